"""Render docs/features.md: what goes together in one job, as the contract itself says it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pixpod.catalog import Catalog, load_catalog
from pixpod.contract.payload import parse_job
from pixpod.contract.rules import Capabilities
from pixpod.engine.precision.precision import offered_qualities
from pixpod.errors import PayloadError
from pixpod.extras import ExtraKind, extras_for, load_extras
from pixpod.families import FAMILIES
from pixpod.job import Delivery
from pixpod_tools.generate.markdown import generated_from, table

IMAGE, MASK, LORA = "https://app.example/image.png", "https://app.example/mask.png", "style"
"""Sources that the jobs of the table name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A row of the table: the fields of a job beside model and prompt. Any: a JSON document."""

    title: str
    fields: Mapping[str, Any]


_IMAGE = {"image": IMAGE}
_MASK = {"image": IMAGE, "mask": MASK}
_LORA = {"loras": [{"source": LORA}]}
_CONTROL = {"controlnets": [{"type": "canny", "image": IMAGE}]}
_PREPROCESS = {"controlnets": [{"type": "canny", "image": IMAGE, "preprocess": True}]}
_PROMPT = {"ip_adapter": {"image": IMAGE}}
_REFINER = {"refiner": {"high_noise_frac": 0.5}}
_UPSCALE = {"upscale": 2}
_HEUN = {"scheduler": "Heun"}
_TURBO = {"quality": "turbo", "num_inference_steps": 12}
_TRUE_CFG = {"true_cfg_scale": 2.0, "negative_prompt": "blurred"}

_WEIGHTS = {"prompt_weights": True, "prompt": "a (red)1.5 circle"}
_CHUNKS = {"on_long_prompt": "chunk", "prompt": "a red circle, " * 30}
_CLIP_SKIP = {"clip_skip": 1}

_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "`image`": _IMAGE,
    "`image`, a list of two": {"image": [IMAGE, IMAGE]},
    "`image`, `mask`": _MASK,
    "`loras`": _LORA,
    "`loras`, `image`": _LORA | _IMAGE,
    "`loras`, `image`, `mask`": _LORA | _MASK,
    "`controlnets`": _CONTROL,
    "`controlnets`, `image`": _CONTROL | _IMAGE,
    "`controlnets`, `image`, `mask`": _CONTROL | _MASK,
    "`controlnets`, `loras`": _CONTROL | _LORA,
    "`controlnets` with `preprocess`": _PREPROCESS,
    "`controlnets` with `preprocess`, `output.controls`": _PREPROCESS
    | {"output": {"controls": True}},
    "`ip_adapter`": _PROMPT,
    "`ip_adapter`, `image`": _PROMPT | _IMAGE,
    "`ip_adapter`, `image`, `mask`": _PROMPT | _MASK,
    "`ip_adapter`, `loras`": _PROMPT | _LORA,
    "`ip_adapter`, `controlnets`": _PROMPT | _CONTROL,
    "`ip_adapter`, `controlnets`, `loras`, `image`": _PROMPT | _CONTROL | _LORA | _IMAGE,
    "`ip_adapter`, `refiner`": _PROMPT | _REFINER,
    "`refiner`": _REFINER,
    "`refiner`, `image`": _REFINER | _IMAGE,
    "`refiner`, `image`, `mask`": _REFINER | _MASK,
    "`refiner`, `loras`": _REFINER | _LORA,
    "`refiner`, `controlnets`": _REFINER | _CONTROL,
    "`refiner`, `controlnets`, `image`": _REFINER | _CONTROL | _IMAGE,
    "`refiner`, `scheduler: Heun`": _REFINER | _HEUN,
    "`prompt_weights`": _WEIGHTS,
    "`on_long_prompt: chunk`": _CHUNKS,
    "`clip_skip`": _CLIP_SKIP,
    "`prompt_weights`, `on_long_prompt: chunk`, `clip_skip`": _CHUNKS | _CLIP_SKIP | _WEIGHTS,
    "`prompt_weights`, `loras`": _WEIGHTS | _LORA,
    "`on_long_prompt: chunk`, `controlnets`": _CHUNKS | _CONTROL,
    "`prompt_weights`, `on_long_prompt: chunk`, `refiner`": _CHUNKS | _WEIGHTS | _REFINER,
    "`prompt_weights`, `on_long_prompt: chunk`, `ip_adapter`": _CHUNKS | _WEIGHTS | _PROMPT,
    "`upscale`": _UPSCALE,
    "`upscale`, `image`, `mask`": _UPSCALE | _MASK,
    "`upscale`, `controlnets`, `loras`, `ip_adapter`": _UPSCALE | _CONTROL | _LORA | _PROMPT,
    "`upscale`, `refiner`": _UPSCALE | _REFINER,
    "`quality: turbo`": _TURBO,
    "`quality: turbo`, `image`": _TURBO | _IMAGE,
    "`quality: turbo`, `loras`": _TURBO | _LORA,
    "`quality: turbo`, `controlnets`": _TURBO | _CONTROL,
    "`quality: turbo`, `ip_adapter`": _TURBO | _PROMPT,
    "`quality: turbo`, `upscale`": _TURBO | _UPSCALE,
    "`true_cfg_scale`": _TRUE_CFG,
    "`true_cfg_scale`, `image`": _TRUE_CFG | _IMAGE,
    "`true_cfg_scale`, `ip_adapter`": _TRUE_CFG | _PROMPT,
    "`true_cfg_scale`, `controlnets`": _TRUE_CFG | _CONTROL,
    "`true_cfg_scale`, `controlnets`, `image`": _TRUE_CFG | _CONTROL | _IMAGE,
}

FEATURES = tuple(Feature(title=title, fields=fields) for title, fields in _FIELDS.items())

_HEAD = """\
# What goes together

Each row is a job with these fields, for a deployment that has an extra of every kind. A field in
a cell is refused with the code `invalid_input`, and the message says what is expected instead.

"""

_TAIL = """
How each of them works: [images](images.md), [LoRAs](loras.md), [control images](controlnets.md),
[image prompts](image-prompts.md), [refiners](refiner.md), [upscaling](upscaling.md),
[prompts](prompts.md).
"""


def render() -> str:
    """Return the text of the page."""
    titles = [family.title for family in FAMILIES.values()]
    return (
        _HEAD
        + table(("fields", *titles), _rows())
        + _TAIL
        + generated_from("the contract", "src/pixpod_tools/generate/features_page.py")
    )


def refused_fields(feature: Feature, family: str) -> tuple[str, ...]:
    """Return the fields that are refused, none if models of a family take the job."""
    job = {"model": _listed_models()[family].name, "prompt": "a red circle", **feature.fields}
    try:
        parse_job({"id": "job", "input": job}, _capabilities())
    except PayloadError as error:
        return tuple(dict.fromkeys(problem.field for problem in error.problems))
    return ()


@cache
def _listed_models() -> Catalog:
    """Return the last model of each family by the family's name: all of a family take the same."""
    last = {spec.family.name: spec for spec in load_catalog().values()}
    return {family: last[family] for family in FAMILIES}


def _rows() -> Iterator[tuple[str, ...]]:
    for feature in FEATURES:
        cells = (refused_fields(feature, family) for family in FAMILIES)
        yield (feature.title, *(_cell(fields) for fields in cells))


def _cell(fields: tuple[str, ...]) -> str:
    return ", ".join(f"`{field}`" for field in fields) if fields else "yes"


@cache
def _capabilities() -> Capabilities:
    """Return a deployment of these models with one extra of each kind for each of them."""
    models = {spec.name: spec for spec in _listed_models().values()}
    all_extras = load_extras()
    extras = {
        extra.name: extra
        for spec in models.values()
        for kind in ExtraKind
        for extra in extras_for(spec, all_extras, kind)[:1]
    }
    return Capabilities(
        models=models,
        qualities={name: offered_qualities(spec, None, None) for name, spec in models.items()},
        deliveries=(Delivery.INLINE,),
        extras=extras,
        lora_names=frozenset({LORA}),
    )
