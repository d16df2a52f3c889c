"""What a model needs on a card: its parts, by the stage of an image that they serve.

POLICY, numbers only. An image is made in two stages, text and picture, each with its own parts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pixpod.catalog import Family, ModelSpec, Precision, Size
from pixpod.engine.memory.footprints import Footprints, Held, Working
from pixpod.weights.layout import Weights


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Part:
    """One component of a model. `precision` tells a denoiser's variants apart, and is empty for
    what they share. What several models share is named after one of them.
    """

    model: str
    component: str
    precision: str = ""

    def __str__(self) -> str:
        name = f"{self.model}/{self.component}"
        return f"{name} in {self.precision}" if self.precision else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Sizes in bytes. `text_bytes` is what its text stage works with; `saved_bytes` what the
    denoiser would save in 8 bits, 0 where it is in them or cannot be.
    """

    model: str
    precision: Precision
    text: Mapping[Part, int]
    image: Mapping[Part, int]
    text_bytes: int
    working: Working
    size: Size
    saved_bytes: int

    @property
    def title(self) -> str:
        return f"{self.model} in {self.precision}"

    @property
    def parts(self) -> Mapping[Part, int]:
        return {**self.text, **self.image}

    def stages(self) -> Iterator[tuple[Mapping[Part, int], int]]:
        """Parts and working memory of each, for one image of the default size."""
        yield self.text, self.text_bytes
        yield self.image, self.working.needed_bytes(self.size, 1)


def need_of(
    spec: ModelSpec,
    held: Held,
    footprints: Footprints,
    weights: Weights | None = None,
    parts: Mapping[str, Part] | None = None,
) -> Need:
    """By the files, where there are any; else by the table. `parts` by component are the model's
    own unless some are those of another.

    Raises NoFootprint for a precision that the table does not have, WeightsUnreadable.
    """
    sizes = _sizes(spec, held, footprints, weights)
    parts = parts or own_parts(spec, held.precision)
    denoiser = spec.family.denoiser
    saved_bytes = 0
    if spec.family is Family.FLUX and not held.precision.is_8_bit:
        in_8_bits = Held(precision=Precision.FLOAT8_DYNAMIC, t5=held.t5, adaln=held.adaln)
        smaller = _sizes(spec, in_8_bits, footprints, weights)
        saved_bytes = sizes[denoiser] - smaller[denoiser]
    return Need(
        model=spec.name,
        precision=held.precision,
        text={parts[name]: sizes[name] for name in spec.family.text_encoders},
        image={parts[name]: sizes[name] for name in (denoiser, "vae")},
        text_bytes=footprints.text_bytes,
        working=footprints.working(spec.family),
        size=(spec.defaults.width, spec.defaults.height),
        saved_bytes=saved_bytes,
    )


def own_parts(spec: ModelSpec, precision: Precision) -> Mapping[str, Part]:
    """All of a model that shares none, by component."""
    return {name: part_of(spec, name, precision) for name in spec.family.components}


def part_of(spec: ModelSpec, component: str, precision: Precision) -> Part:
    is_denoiser = component == spec.family.denoiser
    return Part(
        model=spec.name, component=component, precision=precision.value if is_denoiser else ""
    )


def _sizes(
    spec: ModelSpec, held: Held, footprints: Footprints, weights: Weights | None
) -> Mapping[str, int]:
    if weights is None:
        return footprints.known_bytes(spec, held)
    return footprints.measured_bytes(spec, held, weights)
