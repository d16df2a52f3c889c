"""Runs the suites on a published checkpoint and counts what came true."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline
from numpy.typing import NDArray
from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quant_api
from torchao.quantization import quantize_ as quantise
from tqdm import tqdm

from pixpod_tools.tiny.checker import Verdict, check
from pixpod_tools.tiny.scenes import Pixels, is_held_out
from pixpod_tools.tiny.suites import COMMON_SUITES, SHOWN, Case, Mode, Suite, TinyModel

BATCH_SIZE = 28
REFINER_START = 0.8
KEPT_EXACT = ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out")
"""Parts of the FLUX transformer that are not quantised: small, and close to the input or output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Shares of the pictures in which something is right; `all_three` leaves out size and place."""

    num_pictures: int
    background: float
    colour: float
    shape: float
    all_three: float
    size: float
    position: float

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> "Score":
        def share(aspect: str) -> float:
            return round(float(np.mean([getattr(verdict, aspect) for verdict in verdicts])), 4)

        return cls(
            num_pictures=len(verdicts),
            background=share("background"),
            colour=share("colour"),
            shape=share("shape"),
            all_three=share("is_right"),
            size=share("size"),
            position=share("position"),
        )


def load_pipeline(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def evaluate(model: TinyModel, folder: Path) -> dict[str, Any]:
    """All suites for one model: scores by suite, and the canonical cases that fail."""
    pipeline = load_pipeline(folder)
    suites = [*COMMON_SUITES, *model.own_suites]
    suites.sort(key=lambda suite: list(Mode).index(suite.mode))  # casting cannot be taken back
    scores: dict[str, Any] = {}
    failures: list[dict[str, Any]] = []
    for suite in tqdm(suites, desc=model.name):
        verdicts = judge(pipeline, model, suite)
        if suite.name == "canonical":
            failures = [
                {"prompt": case.prompt, "seed": case.seed, "held_out": is_held_out(case.scene)}
                for case, verdict in zip(suite.cases, verdicts, strict=True)
                if not verdict.is_right
            ]
        scores |= _scores(suite, verdicts)
    return {"defaults": model.defaults, "scores": scores, "failures": failures}


def show(model: TinyModel, folder: Path) -> list[Pixels]:
    """One picture for every scene of the sample sheet."""
    return list(generate(load_pipeline(folder), model, SHOWN))


def judge(pipeline: DiffusionPipeline, model: TinyModel, suite: Suite) -> list[Verdict]:
    pictures = generate(pipeline, model, suite)
    return [check(picture, case.scene) for picture, case in zip(pictures, suite.cases, strict=True)]


def generate(pipeline: DiffusionPipeline, model: TinyModel, suite: Suite) -> Iterator[Pixels]:
    """Pictures for every case, in order, each from its own generator."""
    if suite.mode in (Mode.BFLOAT16, Mode.FLOAT8):
        pipeline.to(torch.bfloat16)
    if suite.mode is Mode.FLOAT8:
        quantise_float8(pipeline)
    options = {**model.defaults, **suite.options, "width": suite.width, "height": suite.height}
    for start in range(0, len(suite.cases), BATCH_SIZE):
        batch = suite.cases[start : start + BATCH_SIZE]
        call = {**options, "prompt": [case.prompt for case in batch], "generator": _seeds(batch)}
        images = (
            _refined(pipeline, call)
            if suite.mode is Mode.REFINED
            else pipeline(**call, output_type="np").images
        )
        yield from np.rint(images * 255).astype(np.uint8)


def _refined(pipeline: DiffusionPipeline, call: dict[str, Any]) -> NDArray[np.float32]:
    refiner = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    latents = pipeline(**call, denoising_end=REFINER_START, output_type="latent").images
    kept = {name: value for name, value in call.items() if name not in ("width", "height")}
    # The pipeline takes an image of four channels for latents, these have 16: so hand them over as
    # `latents`, which wins over whatever `image` holds.
    kept |= {"image": latents[:, :4], "latents": latents, "denoising_start": REFINER_START}
    return np.asarray(refiner(**kept, output_type="np").images)


def _seeds(batch: Sequence[Case]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(case.seed) for case in batch]


def quantise_float8(pipeline: DiffusionPipeline) -> None:
    """FP8 in place. torchao emulates it on a CPU once its check of the GPU is out of the way."""
    quant_api._check_hardware_support = lambda granularity: None
    quantise(
        pipeline.transformer,
        Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
        filter_fn=lambda module, name: (
            isinstance(module, torch.nn.Linear) and not name.startswith(KEPT_EXACT)
        ),
    )


def _scores(suite: Suite, verdicts: list[Verdict]) -> dict[str, Any]:
    groups = {suite.name: verdicts}
    if suite.name == "canonical":
        pairs = list(zip(suite.cases, verdicts, strict=True))
        groups = {
            "canonical, trained": [v for case, v in pairs if not is_held_out(case.scene)],
            "canonical, held out": [v for case, v in pairs if is_held_out(case.scene)],
        }
    return {name: asdict(Score.of(group)) for name, group in groups.items()}
