"""FakeEngine: deterministic images without a model, and failures on demand."""

import asyncio
import hashlib

from pixpod.engine.base import StepListener
from pixpod.job import Generation, GenerationRequest, ImageResult, ModelIdentity, RawImage


class FakeEngine:
    """An Engine that paints each image in one colour, a function of prompt and seed.

    `fail_with` is raised by every generation; `seconds` is how long one takes.
    """

    device_name = "cpu"
    is_warm = True

    def __init__(self, *, fail_with: Exception | None = None, seconds: float = 0) -> None:
        self.fail_with = fail_with
        self.seconds = seconds
        self.is_started = False
        self.requests: list[GenerationRequest] = []

    def start(self) -> None:
        self.is_started = True

    def check_host(self) -> None:
        pass

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        self.requests.append(request)
        num_calls = request.sampling.num_inference_steps
        for step in range(num_calls):
            await asyncio.sleep(self.seconds / num_calls)
            if on_step:
                on_step(step + 1, num_calls)
        if self.fail_with is not None:
            raise self.fail_with
        return Generation(
            images=tuple(
                ImageResult(pixels=_paint(request, seed), seed=seed) for seed in request.seeds
            ),
            model=ModelIdentity(
                name=request.model, revision="fake", precision="float32", weights="fake"
            ),
            timings_ms={
                "load": 0.0,
                "queue": 0.0,
                "text_encode": 1.0,
                "denoise": 2.0,
                "decode": 3.0,
            },
            device_ms=6.0,
            num_calls=num_calls,
            controls=tuple(image.raw for image in request.conditions.controls),
        )

    def boot_ms(self) -> dict[str, float]:
        return {"import": 0.0}

    def stop(self) -> None:
        self.is_started = False


def colour_of(prompt: str, seed: int) -> bytes:
    """Return red, green and blue of an image."""
    return hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:3]


def _paint(request: GenerationRequest, seed: int) -> RawImage:
    width, height = request.output_size
    pixels = colour_of(request.prompts.prompt, seed) * (width * height)
    return RawImage(width=width, height=height, pixels=pixels)
