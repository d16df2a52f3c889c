"""Scenarios for a GPU as values, each with its name in journals and tables.

Imports no torch.
"""

from dataclasses import dataclass
from enum import StrEnum

from pixpod.families import Precision


class Side(StrEnum):
    """The code that generates: pixpod, or diffusers as its documentation describes."""

    OURS = "pixpod"
    STOCK = "diffusers"


class Mode(StrEnum):
    """The way in which the denoiser runs.

    COMPILED: by pixpod's recipe, or as diffusers' documentation compiles it. GRAPHS: UNets as a
    whole, for each size by itself, with torch's own CUDA graphs (`reduce-overhead`).
    """

    EAGER = "eager"
    COMPILED = "compiled"
    GRAPHS = "graphs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model as it is built once for several scenarios."""

    side: Side
    model: str
    precision: Precision
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.side} {self.model} {self.precision} {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One batch of square images of one prompt.

    `text_tokens` are T5's, None for UNets. Without `has_guidance` the guidance scale is 0, as
    distilled UNets are called.
    """

    variant: Variant
    size_px: int
    batch_size: int
    num_inference_steps: int
    text_tokens: int | None = None
    has_guidance: bool = True

    expected_s = 60.0
    """Expected time on an H100 with building and compiling the model, for the deadline."""

    @property
    def name(self) -> str:
        text = f" {self.text_tokens} tokens" if self.text_tokens else ""
        guidance = "" if self.has_guidance else " no guidance"
        size = f"{self.size_px}px x{self.batch_size} {self.num_inference_steps} steps"
        return f"{self.variant.name} {size}{text}{guidance}"


Served = tuple[tuple[str, Precision], ...]
"""Models that one engine serves, with their precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScenario:
    """Mixed requests through a whole engine; `limit_gib` is the GPU memory that it may use."""

    served: Served
    num_requests: int
    sizes_px: tuple[int, ...]
    limit_gib: float | None = None

    expected_s = 300.0

    @property
    def name(self) -> str:
        models = " + ".join(f"{model} {precision}" for model, precision in self.served)
        limit = f" within {self.limit_gib:g} GiB" if self.limit_gib else ""
        return f"memory of {models}{limit}"


Kind = tuple[str, int, int]
"""Model, size in pixels, steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadScenario:
    """Requests at random times, at `loads` times the engine's rate for requests one by one."""

    served: Served
    kinds: tuple[Kind, ...]
    loads: tuple[float, ...]
    num_requests: int

    expected_s = 360.0

    @property
    def name(self) -> str:
        return f"mixed load of {' + '.join(model for model, _ in self.served)}"


PLAIN = "plain"
"""The name of the stack that has nothing beside a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Conditions of images beside a text; none by default.

    `loras` are the numbers of LoRAs of each row of a batch, none the same, of `rank`. `nets` are
    types of ControlNets. `strength` is that of a given image. `refiner_steps` follow those of the
    model. `num_images` are shown as an image prompt.
    """

    loras: tuple[int, ...] = ()
    rank: int = 16
    nets: tuple[str, ...] = ()
    strength: float | None = None
    refiner_steps: int = 0
    num_images: int = 0

    @property
    def name(self) -> str:
        counts = sorted(set(self.loras))
        loras = f"{'/'.join(map(str, counts))} LoRA rank {self.rank}" if any(counts) else ""
        image = f"image at {self.strength:g}" if self.strength else ""
        refiner = f"refiner in {self.refiner_steps} steps" if self.refiner_steps else ""
        shown = f"{self.num_images} shown" if self.num_images else ""
        return " + ".join(filter(None, (loras, *self.nets, image, shown, refiner))) or PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class StackScenario:
    """One batch of images, whose rows are requests of their own with the same stack.

    `is_alone`: the same rows in batches of one.
    """

    variant: Variant
    stack: Stack
    size_px: int
    batch_size: int
    num_inference_steps: int
    text_tokens: int | None = None
    is_alone: bool = False

    expected_s = 60.0

    @property
    def name(self) -> str:
        size = f"{self.size_px}px x{self.batch_size} {self.num_inference_steps} steps"
        alone = " one by one" if self.is_alone else ""
        return f"{self.variant.name} {size}{alone}: {self.stack.name}"


AnyScenario = Scenario | MemoryScenario | LoadScenario | StackScenario
