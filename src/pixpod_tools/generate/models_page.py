"""Render docs/models.md from the catalog and the families."""

from collections.abc import Iterator

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.extras import ExtraSpec, ServedSpec, load_extras
from pixpod.families import FAMILIES, STORED_PRECISIONS, FamilySpec
from pixpod.methods import pipelines_of
from pixpod_tools.generate.markdown import code, generated_from, table

_HEAD = """\
# Models

A worker serves the models that its weights directory holds. Each model belongs to a family, which
is an architecture.

## In the catalog

"""

_DEFAULTS = """
The large models need CUDA and never run on the CPU. The precision in this table is a model's
default: a GPU may choose another one for FLUX, FLUX.2 klein, Z-Image and SD 3.5, by its class in
[gpus.toml](../src/pixpod/gpus.toml), and `PIXPOD_PRECISION` sets it by hand; `flux-dev-16bit` runs
in 16 bits everywhere. Each reply says in `model.precision` what ran. The tiny models ship with the
source:
[flux-tiny](../model_cache/tiny/flux-tiny/README.md),
[sd35-tiny](../model_cache/tiny/sd35-tiny/README.md),
[sdxl-tiny](../model_cache/tiny/sdxl-tiny/README.md),
[sd15-tiny](../model_cache/tiny/sd15-tiny/README.md).

Defaults of requests:

"""

_LIMITS = """
Limits of requests:

"""

_DISTILLED = """
These are distilled to few steps, and refuse other values:

"""

_EXTRAS = """
## Extras

Models can be served with these, as [controlnets.md](controlnets.md), [refiner.md](refiner.md),
[image-prompts.md](image-prompts.md) and [upscaling.md](upscaling.md) describe:

"""

_CLASSIFIER = """
[safety.md](safety.md) describes the classifier of unsafe images (Open-NSFW, BSD-2-Clause), which
comes with the Python packages and is neither baked nor planned for: it runs on the CPU.
"""

_FAMILIES = """
## Families

"""

_OWN = """
## Add a model

A checkpoint of a family that exists needs no code: an entry in a TOML file of the form of
[catalog.toml](../src/pixpod/catalog.toml), which `PIXPOD_CATALOG` names, and weights, which
`scripts/bake --catalog FILE --model NAME=PRECISION --to DIR` writes. The entry says where they are:

| weights | in the entry |
| --- | --- |
| a repository of the hub, in the layout of diffusers | `repository`, and `revision` to pin it |
| a folder in this layout | `source` |
| one `.safetensors` file in its authors' layout | `source`, and `config` |

`config` is a folder of diffusers with what a file lacks. Paths begin at the folder of the TOML
file; `--from` and `--config` take the place of `source` and `config`. The names and shapes of
tensors in a file's header must be those of the entry's family, and the classes in a folder's
`model_index.json` as well; otherwise the bake ends with `model_unavailable`. Files of SDXL
and SD 1.5 hold a whole model, and get its configs, tokenizers and scheduler; those of the other
families hold the transformer and perhaps the VAE, and get the text encoders of `config`. A file of
FLUX.2 klein must be without its VAE, which diffusers does not convert. `--lora FILE=SCALE` adds a
[LoRA](loras.md#few-steps-by-a-lora) to the weights. A new family is described in
[CONTRIBUTING.md](../CONTRIBUTING.md#a-family).

## SD 3.5 without T5

T5 is most of what SD 3.5 medium loads: 8.9 of 15.2 GiB in 16 bits. A GPU of up to 24 GB holds it in
8 bits, and it is offloaded while images are generated if they need its place; the worker never
leaves it out by itself, because images would change. A deployment does so by an entry with
`without = ["text_encoder_3"]` in its own file, under the same name or another: T5 is then neither
baked nor read, and diffusers puts zeros in the place of its tokens, `max_sequence_length` of them.
Prompts follow long texts and lettering less well, and have at most 77 tokens.
"""


def render() -> str:
    """Return the text of the page."""
    models = list(load_catalog().values())
    families = list(FAMILIES.values())
    return (
        _HEAD
        + table(("model", "family", "weights", "licence", "needs CUDA", "precision"), _rows(models))
        + _DEFAULTS
        + table(
            ("model", "size", "steps", "scheduler", "guidance", "sequence length"),
            _default_rows(models),
        )
        + _LIMITS
        + table(
            ("model", "side in pixels", "pixels", "steps", "guidance", "images", "sequence length"),
            _limit_rows(models),
        )
        + _DISTILLED
        + table(("model", "values of `num_inference_steps`", "`scheduler`"), _distilled(models))
        + _EXTRAS
        + table(("extra", "kind", "types", "for", "licence", "weights"), _extra_rows())
        + _CLASSIFIER
        + _FAMILIES
        + table(("", *(family.title for family in families)), _family_rows(families))
        + "".join(_schedulers(family, families) for family in _firsts(families))
        + _OWN
        + generated_from("src/pixpod/catalog.toml", "src/pixpod/families")
    )


def _rows(models: list[ModelSpec]) -> Iterator[tuple[str, ...]]:
    for model in models:
        licence = _licence(model)
        parts = [part for part in (model.repository, model.vae_repository) if part]
        weights = " with the VAE of ".join(f"`{part}`" for part in parts) or "in this repository"
        if model.denoiser_file:
            file = f"`{model.denoiser_file}` of `{model.denoiser_repository}`"
            weights += f" and {file} as {model.family.denoiser}"
        precision = "; ".join(f"{device}: `{each}`" for device, each in model.precision.items())
        is_cuda = "yes" if model.requires_cuda else "no"
        yield f"`{model.name}`", model.family.title, weights, licence, is_cuda, precision


def _licence(spec: ServedSpec) -> str:
    return spec.licence + (", must be accepted" if spec.licence_must_be_accepted else "")


def _default_rows(models: list[ModelSpec]) -> Iterator[tuple[str, ...]]:
    for model in models:
        defaults = model.defaults
        yield (
            f"`{model.name}`",
            f"{defaults.width}x{defaults.height}",
            str(defaults.num_inference_steps),
            f"`{defaults.scheduler}`",
            _or_dash(defaults.guidance_scale),
            _or_dash(defaults.max_sequence_length),
        )


def _limit_rows(models: list[ModelSpec]) -> Iterator[tuple[str, ...]]:
    for model in models:
        limits, multiple = model.limits, model.family.size_multiple_px
        yield (
            f"`{model.name}`",
            f"{limits.min_side_px} to {limits.max_side_px}, multiple of {multiple}",
            f"{limits.max_pixels:,}",
            str(limits.max_steps),
            f"{limits.max_guidance:g}" if model.takes_guidance else "-",
            str(limits.max_images),
            _or_dash(limits.max_sequence_length),
        )


def _distilled(models: list[ModelSpec]) -> Iterator[tuple[str, ...]]:
    for model in models:
        if model.step_counts:
            counts = ", ".join(map(str, model.step_counts))
            yield f"`{model.name}`", counts, code(model.schedulers)


def _extra_rows() -> Iterator[tuple[str, ...]]:
    for extra in load_extras().values():
        yield (
            f"`{extra.name}`",
            extra.kind,
            code(extra.types),
            code(extra.models) if extra.models else extra_title(extra),
            _licence(extra),
            f"`{extra.repository}`" if extra.repository else "in this repository",
        )


def extra_title(extra: ExtraSpec) -> str:
    """Return the models that an extra is made for."""
    if extra.family:
        return extra.family.title
    return "all" if extra.kind.sees_pixels else "adapters that name it"


def _family_rows(families: list[FamilySpec]) -> Iterator[tuple[str, ...]]:
    yield "modes", *(code(sorted(each.pipelines)) for each in families)
    yield "modes with `controlnets`", *(code(_controlled(each)) for each in families)
    yield "takes a `refiner`", *("yes" if each.refiner else "no" for each in families)
    yield "image prompts", *(_image_prompt(each) for each in families)
    yield "pipeline", *(code(each.pipelines.values()) for each in families)
    yield "components", *(code(each.component_names) for each in families)
    yield "sizes", *(f"multiples of {each.size_multiple_px}" for each in families)
    yield "prompts", *(code(sorted(each.prompt_fields)) for each in families)
    yield "guidance", *(f"`{each.guidance}`" for each in families)
    yield "precisions in files", *(code(_stored(each)) for each in families)
    yield "skips steps (`turbo`)", *("yes" if each.step_cache_blocks else "no" for each in families)


def _image_prompt(family: FamilySpec) -> str:
    spec = family.image_prompt
    return f"`{spec.adapter}`, up to {spec.max_images} images" if spec else "no"


def _controlled(family: FamilySpec) -> list[str]:
    return sorted(pipelines_of(family, has_controls=True))


def _stored(family: FamilySpec) -> list[str]:
    return [each for each in STORED_PRECISIONS if family.quantization or not each.is_8_bit]


def _firsts(families: list[FamilySpec]) -> list[FamilySpec]:
    """Return the families that have a list of schedulers of their own."""
    return list({id(each.schedulers): each for each in reversed(families)}.values())[::-1]


def _schedulers(family: FamilySpec, families: list[FamilySpec]) -> str:
    """Return the schedulers of a family, and of those that share its table."""
    peers = [each.title for each in families if each.schedulers is family.schedulers]
    rows = []
    for name, spec in family.schedulers.items():
        is_alias = name != spec.class_name
        options = code(f"{key}={value}" for key, value in spec.options.items())
        rows.append(
            (
                f"`{name}`",
                f"`{spec.class_name}`" if is_alias else "",
                options,
                str(spec.calls_per_step),
                _or_dash(spec.max_steps),
                "yes" if spec.can_be_split else "no",
            )
        )
    head = ("name", "alias of", "options", "denoiser calls per step", "most steps", "can be split")
    return f"\n### Schedulers of {' and '.join(peers)}\n\n" + table(head, rows)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
