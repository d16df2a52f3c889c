"""Runs a model of a weights directory on given images, without a worker."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pixpod.catalog import ModelSpec
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.loading.components import LoadJob
from pixpod.engine.loading.model_loading import load_model
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import ResidencyPlan, make_plan
from pixpod.engine.model import LoadedModel
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.job import Conditions, GenerationRequest, InputImage, Mode, RawImage, RawMask
from pixpod.methods import StageName, StagePlan, method_of, stages_of
from pixpod.timeline import BootTimeline, since_process_start
from pixpod.weights.layout import files_to_read
from pixpod.weights.prefetch import Prefetch, Verify
from pixpod.weights.sources import BakedSource

Pixels = npt.NDArray[np.uint8]


def noise_images(count: int, size_px: int = 64) -> list[Pixels]:
    numbers = np.random.default_rng(0)
    small = numbers.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return list(small.repeat(size_px // 8, axis=1).repeat(size_px // 8, axis=2))


class ImageEditor:
    """A model, which is loaded once unless `load` is called again."""

    def __init__(self, spec: ModelSpec, directory: Path, plan: QuantizationPlan) -> None:
        weights = BakedSource(directory).find(spec)
        assert weights is not None
        self.spec, self.weights, self._plan = spec, weights, plan
        self._model = self.load()

    def load(self) -> LoadedModel:
        prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
        try:
            prefetch.add(self.spec.name, files_to_read(self.spec, self.weights))
            job = LoadJob(
                spec=self.spec,
                weights=self.weights,
                plan=self._plan,
                device=torch.device("cpu"),
                prefetch=prefetch,
                timeline=BootTimeline(since_process_start()),
            )
            return load_model(job)
        finally:
            prefetch.stop()

    def request(
        self,
        mode: Mode,
        prompt: str,
        image: Pixels | None,
        mask: Pixels | None = None,
        **changes: Any,
    ) -> GenerationRequest:
        conditions = Conditions(
            image=None if image is None else input_image(image),
            mask=None if mask is None else RawMask(width=64, height=64, pixels=mask.tobytes()),
        )
        changes = {"num_inference_steps": 3, "seeds": (changes.pop("seed"),)} | changes
        return self.spec.default_request(mode=mode, prompt=prompt, conditions=conditions, **changes)

    def denoising(self, mode: Mode, **changes: Any) -> StagePlan:
        request = self.spec.default_request(mode=mode, **changes)
        stages = stages_of(self.spec, method_of(self.spec, request))
        return next(stage for stage in stages if stage.name is StageName.DENOISE)

    def generate(
        self,
        requests: list[GenerationRequest],
        *,
        plan: ResidencyPlan | None = None,
        model: LoadedModel | None = None,
    ) -> list[npt.NDArray[np.int64]]:
        """The image of each request, all in one batch."""
        model = model or (self.load() if plan else self._model)
        runner = ModelRunner(Placement(plan or make_plan((), None)), ConditionCache(0))
        ready = [runner.prepare(model, each).request for each in requests]
        items = [BatchItem(request=each, seeds=each.seeds) for each in ready]
        results = runner.execute(model, items, lambda step: None)
        images = [each.images[0].pixels for each in results if isinstance(each, ItemResult)]
        assert len(images) == len(requests), results
        return [pixels_of(image) for image in images]


def input_image(image: Pixels) -> InputImage:
    height, width, _ = image.shape
    raw = RawImage(width=width, height=height, pixels=image.tobytes())
    return InputImage(raw=raw, digest=hashlib.sha256(raw.pixels).hexdigest())


def pixels_of(image: RawImage) -> npt.NDArray[np.int64]:
    levels = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)
    return levels.astype(np.int64)
