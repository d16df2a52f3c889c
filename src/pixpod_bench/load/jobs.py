"""The jobs that are measured: the same for each side, drawn from one seed.

Knows no engine and no pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.job import GenerationRequest, Quality
from pixpod_tools.tiny import sample_training_scene

MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
SIZES = {(64, 64): 0.6, (64, 96): 0.2, (96, 64): 0.2}
STEPS = {8: 0.7, 6: 0.2, 12: 0.1}
"""What jobs ask for, and how often: most of an endpoint's callers leave the defaults alone."""

NUM_SEEDS = 1_000_000


class JobFailed(Exception):
    """A side answered a job with an error, so that its figures would mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyJob:
    """One image. `options` are those that the model's family alone knows."""

    model: str
    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    options: Mapping[str, int]
    seed: int

    def payload(self) -> dict[str, object]:
        """What a client sends, to any side: the names are those of diffusers' pipelines, beside
        `model` and `seed`.
        """
        return {"model": self.model, "seed": self.seed, **self.arguments()}

    def arguments(self) -> dict[str, object]:
        """For the model's own pipeline, without a generator."""
        return {
            "prompt": self.prompt,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            **self.options,
        }

    def request(self) -> GenerationRequest:
        """For an engine."""
        return GenerationRequest(
            model=self.model,
            prompt=self.prompt,
            prompt_2=None,
            negative_prompt=None,
            width=self.width,
            height=self.height,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            true_cfg_scale=None,
            max_sequence_length=self.options.get("max_sequence_length"),
            scheduler=load_spec(self.model).defaults.scheduler,
            seeds=(self.seed,),
            truncate_long_prompt=False,
            deterministic=False,
            quality=Quality.DEFAULT,
        )


def load_spec(model: str) -> ModelSpec:
    return load_catalog()[model]


def mixed_jobs(count: int, seed: int = 0) -> list[TinyJob]:
    """Models in equal parts; sizes and steps as often as said above, in random order."""
    rng = np.random.default_rng(seed)
    specs = [load_spec(model) for model in MODELS]
    sizes, steps = list(SIZES), list(STEPS)
    jobs = []
    for number in range(count):
        width, height = sizes[int(rng.choice(len(sizes), p=list(SIZES.values())))]
        jobs.append(
            _job(
                specs[number % len(specs)],
                rng,
                width=width,
                height=height,
                num_inference_steps=steps[int(rng.choice(len(steps), p=list(STEPS.values())))],
            )
        )
    return [jobs[position] for position in rng.permutation(count)]


def same_size_jobs(model: str, count: int, seed: int = 0) -> list[TinyJob]:
    """All that a batch must have in common is the model's default; prompts and seeds differ."""
    spec = load_spec(model)
    defaults = spec.defaults
    rng = np.random.default_rng(seed)
    return [
        _job(
            spec,
            rng,
            width=defaults.width,
            height=defaults.height,
            num_inference_steps=defaults.num_inference_steps,
        )
        for _ in range(count)
    ]


def _job(
    spec: ModelSpec, rng: np.random.Generator, *, width: int, height: int, num_inference_steps: int
) -> TinyJob:
    defaults = spec.defaults
    assert defaults.guidance_scale is not None, "the tiny models take guidance"
    length = defaults.max_sequence_length
    return TinyJob(
        model=spec.name,
        prompt=sample_training_scene(rng).caption,
        width=width,
        height=height,
        num_inference_steps=num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        options={} if length is None else {"max_sequence_length": length},
        seed=int(rng.integers(NUM_SEEDS)),
    )
