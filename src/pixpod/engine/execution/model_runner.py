"""Runs a batch through its stages on one device."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch

from pixpod.engine.adapters.copies import AdaptedCopies, CompileCopy
from pixpod.engine.adapters.image_copies import ImageCopies
from pixpod.engine.adapters.store import AdapterStore
from pixpod.engine.base import OnStep
from pixpod.engine.compilation.calls import collecting_eager_calls, pausing_watch_while_compiling
from pixpod.engine.compilation.cuda_graphs import stop_capturing
from pixpod.engine.device import check_device, free_memory, synchronize_stream
from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.conditions import (
    Condition,
    ControlNetCondition,
    ImagePromptCondition,
    LoraCondition,
    Prepared,
    RefinerCondition,
    SeenMaskCondition,
    SourceCondition,
    TextCondition,
)
from pixpod.engine.execution.stages import (
    AdaptStage,
    DecodeStage,
    DenoiseStage,
    EncodeStage,
    PreprocessStage,
    RefineStage,
    Stage,
    StageContext,
    UpscaleStage,
)
from pixpod.engine.memory.placement import Placement
from pixpod.engine.model import LoadedModel
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.engine.scheduling.device_watch import pausing_watch
from pixpod.errors import OutOfMemory, WorkerError
from pixpod.job import GenerationRequest
from pixpod.methods import StageName, StagePlan, pipeline_for, stages_of


class ModelRunner:
    """Runs batches; all calls come from the device's thread.

    The runner onloads exactly the components that a stage's plan names, and the stage gets a
    pipeline that can use no others. `compile_copy` compiles copies of denoisers, None where nothing
    is compiled. `stages` replace the runner's own stages of the same names.
    """

    def __init__(
        self,
        placement: Placement,
        cache: ConditionCache,
        *,
        compile_copy: CompileCopy | None = None,
        stages: Mapping[StageName, Stage] = MappingProxyType({}),
    ) -> None:
        self._placement = placement
        lora = LoraCondition(AdapterStore(), AdaptedCopies(compile_copy))
        text, source = TextCondition(cache, lora.text_content), SourceCondition(cache)
        mask, controls = SeenMaskCondition(cache), ControlNetCondition(cache)
        prompt = ImagePromptCondition(cache, ImageCopies(compile_copy))
        images, refiner = [source, mask, controls, prompt], RefinerCondition(cache)
        # LoRAs also go on the copies that attend to images
        self._conditions: Sequence[Condition] = (
            prompt,
            lora,
            text,
            source,
            mask,
            controls,
            refiner,
        )
        self._stages: Mapping[StageName, Stage] = {
            StageName.ADAPT: AdaptStage(),
            StageName.PREPROCESS: PreprocessStage(cache),
            StageName.TEXT_ENCODE: EncodeStage([text, refiner], "a text"),
            StageName.IMAGE_ENCODE: EncodeStage(images, "encoding an image"),
            StageName.DENOISE: DenoiseStage(images),
            StageName.REFINE: RefineStage([source, refiner]),
            StageName.DECODE: DecodeStage([source]),
            StageName.UPSCALE: UpscaleStage(),
            **stages,
        }

    @property
    def placement(self) -> Placement:
        return self._placement

    def prepare(self, model: LoadedModel, request: GenerationRequest) -> Prepared:
        """Read and check the files that a request names, before it is queued.

        May be called from any thread. Raises a WorkerError.
        """
        prepared = Prepared(request=request)
        for condition in self._conditions:
            prepared = condition.prepare(model, prepared)
        return prepared

    def execute(
        self, model: LoadedModel, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        """Return for each item its images, or the error with which it failed alone.

        The items' requests have the same batch key. Raises OutOfMemory if the device cannot hold
        even one row, DeviceUnavailable if it no longer computes, and what `on_step` raises.
        """
        batch = Batch.of(model, items, on_step)
        try:
            with torch.inference_mode(), pausing_watch_while_compiling():
                for plan in stages_of(model.spec, batch.method):
                    self._run_stage(plan, batch)
        except RuntimeError:  # torch's: a WorkerError is none
            check_device(model.device)  # else it would fail job after job
            raise
        finally:
            for condition in self._conditions:
                condition.release(self._placement.plan.spare_bytes)
            self._placement.release()
        return batch.results()

    def _run_stage(self, plan: StagePlan, batch: Batch) -> None:
        stage, model = self._stages[plan.name], batch.model
        if not stage.prepare(batch):
            return
        with pausing_watch():
            onload_ms = self._onload(model, plan, len(batch.rows))
        if onload_ms:
            batch.timeline.add("onload", onload_ms)
        class_name, nets = pipeline_for(model.spec, batch.method, plan.name)
        context = StageContext(
            name=plan.name,
            pipe=model.pipeline(class_name, plan.components, nets),
            pipe_with=partial(model.pipeline_with, class_name, plan.components, nets),
            conditions=self._conditions,
            free_cache=self._free_cache,
            offload_others=partial(self._placement.offload_others, model),
        )
        with batch.timeline.phase(plan.name), collecting_eager_calls() as warnings:
            stage.run(batch, context)
            synchronize_stream(model.device)
        batch.warnings += warnings

    def _onload(self, model: LoadedModel, plan: StagePlan, batch_size: int) -> float:
        try:
            return self._placement.onload(model, plan, batch_size)
        except OutOfMemory:
            if not self._free_conditions():
                raise
            return self._placement.onload(model, plan, batch_size)

    def _free_cache(self) -> bool:
        stop_capturing()
        self._free_conditions()
        return True

    def _free_conditions(self) -> bool:
        freed = [condition.free() for condition in self._conditions]
        free_memory()
        return any(freed)
