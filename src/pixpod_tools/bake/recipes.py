"""Formats in which models are baked: profiles as data, and their notation on the command line.

scripts/deploy and scripts/build_image read the profiles too, so nothing here needs torch.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pixpod.catalog import Catalog
from pixpod.contract.condition_inputs import MAX_LORA_SCALE
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import InvalidSettings
from pixpod.extras import Extras, ExtraSpec
from pixpod.families import STORED_PRECISIONS, FamilySpec, Precision
from pixpod_tools.bake.architectures import FULL_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeLora:
    """A LoRA that is added to the weights of a model. `sha256` is that of its file."""

    path: Path
    sha256: str
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """A model and the formats of its files.

    T5 in float8_dynamic saves 4.6 GB; `adaln` in bfloat16 keeps the layers that modulate each
    block at 16 bits, for 3.2 GB more. `loras` are added before weights get their format.
    """

    model: str
    plan: QuantizationPlan
    loras: tuple[RecipeLora, ...] = ()

    def describe(self, family: FamilySpec) -> str:
        """Describe the formats of all components and the LoRAs in them, for the manifest."""
        return "; ".join((self._describe_formats(family), *map(_describe_lora, self.loras)))

    def _describe_formats(self, family: FamilySpec) -> str:
        plan = self.plan
        if plan.precision is not Precision.FLOAT8_DYNAMIC or family.quantization is None:
            return f"all in {plan.precision}"
        kept = sorted(family.quantization.keep_16_bit)
        if plan.adaln is not Precision.FLOAT8_DYNAMIC:
            kept.append("adaln")
        parts = [
            f"denoiser in {plan.precision} (e4m3fn with a scale per row; activations likewise, "
            f"when they come) but for {', '.join(kept)}"
        ]
        if family.large_text_encoder:
            but = " but for its embeddings" if plan.t5 is Precision.FLOAT8_DYNAMIC else ""
            parts.append(f"T5 in {plan.t5 or Precision.BFLOAT16}{but}")
        return "; ".join([*parts, "all else in bfloat16"])


def _describe_lora(lora: RecipeLora) -> str:
    return f"LoRA {lora.path.name} ({lora.sha256[:12]}) at {lora.scale:g}"


def _float8(
    model: str,
    *,
    t5: Precision | None = None,
    adaln: Precision = Precision.FLOAT8_DYNAMIC,
) -> ModelRecipe:
    plan = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC, t5=t5, adaln=adaln)
    return ModelRecipe(model=model, plan=plan)


def _in(model: str, precision: Precision) -> ModelRecipe:
    return ModelRecipe(model=model, plan=QuantizationPlan(precision=precision))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The models of an image, and its extras in the notation of `parse_extra`."""

    models: tuple[ModelRecipe, ...]
    extras: tuple[str, ...] = ()


PROFILES: Mapping[str, Profile] = {
    "tiny": Profile(
        models=(
            _float8("flux-tiny"),
            _in("flux-kontext-tiny", Precision.BFLOAT16),
            _in("sd35-tiny", Precision.BFLOAT16),
            _in("sdxl-tiny", Precision.BFLOAT16),
            _in("sd15-tiny", Precision.BFLOAT16),
        ),
        extras=(
            *("flux-canny-tiny", "sdxl-canny-tiny", "sdxl-depth-tiny", "sd15-canny-tiny"),
            *("sdxl-refiner-tiny", "flux-redux-tiny", "clip-vision-tiny", "sd15-ip-adapter-tiny"),
            "swin2sr-x2-tiny",
        ),
    ),
    "flux-schnell+sdxl": Profile(models=(_float8("flux-schnell"), _in("sdxl", Precision.FLOAT16))),
    **{
        name: Profile(models=(_float8(name),))
        for name, architecture in FULL_SIZE.items()
        if architecture.family.quantization
    },
    "flux-dev-24gb": Profile(models=(_float8("flux-dev", t5=Precision.FLOAT8_DYNAMIC),)),
    "flux-dev-adaln16": Profile(models=(_float8("flux-dev", adaln=Precision.BFLOAT16),)),
    "flux-dev-16bit": Profile(models=(_in("flux-dev-16bit", Precision.BFLOAT16),)),
    "sdxl-few-steps": Profile(
        models=(_in("sdxl-lightning", Precision.FLOAT16), _in("sdxl-turbo", Precision.FLOAT16))
    ),
    "all": Profile(
        models=(
            _float8("flux-dev"),
            _float8("flux-schnell"),
            _in("sdxl", Precision.FLOAT16),
            _in("sd15", Precision.FLOAT16),
        )
    ),
    "slim": Profile(models=()),
}
"""The contents of images by name; each model that runs in 8 bits has an image of its own.
`slim` has no weights: they come from elsewhere.
"""


def get_profile(name: str) -> Profile:
    """Return a profile. Raises InvalidSettings, with all names, for another name."""
    if name not in PROFILES:
        raise InvalidSettings(f"--profile {name}: expected {', '.join(PROFILES)}")
    return PROFILES[name]


_RECIPE = re.compile(r"(?P<model>[^=,]+)=(?P<precision>\w+)(?P<others>(,\w+=\w+)*)")
_EXTRA_PRECISIONS = (Precision.FLOAT16, Precision.BFLOAT16, Precision.FLOAT32)
_PRECISIONS_OF: Mapping[str, tuple[Precision, ...]] = {
    "t5": (Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC),
    "adaln": (Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC),
}


def parse_recipe(text: str) -> ModelRecipe:
    """Parse e.g. `flux-dev=float8_dynamic,t5=float8_dynamic,adaln=bfloat16`.

    Raises InvalidSettings.
    """
    where = f"--model {text}"
    found = _RECIPE.fullmatch(text)
    if found is None:
        raise InvalidSettings(f"{where}: expected NAME=PRECISION[,t5=...][,adaln=...]")
    if found["precision"] not in STORED_PRECISIONS:
        raise InvalidSettings(f"{where}: precision: expected {', '.join(STORED_PRECISIONS)}")
    others = {}
    for pair in found["others"].split(",")[1:]:
        field, _, value = pair.partition("=")
        if field not in _PRECISIONS_OF or value not in _PRECISIONS_OF[field]:
            raise InvalidSettings(
                f"{where}: {pair}: expected t5 and adaln, each in bfloat16 or float8_dynamic"
            )
        others[field] = Precision(value)
    plan = QuantizationPlan(
        precision=Precision(found["precision"]),
        t5=others.get("t5"),
        adaln=others.get("adaln", Precision.FLOAT8_DYNAMIC),
    )
    return ModelRecipe(model=found["model"], plan=plan)


def parse_lora(text: str) -> RecipeLora:
    """Parse e.g. `style.safetensors` or `style.safetensors=0.8`. Raises InvalidSettings."""
    name, equals, scale = text.rpartition("=")
    path = Path(name if equals else text)
    try:
        data = path.read_bytes()
        number = float(scale) if equals else 1.0
    except OSError as exc:
        raise InvalidSettings(f"--lora {text}: {path}: {exc.strerror}") from exc
    except ValueError:
        number = math.nan
    if not -MAX_LORA_SCALE <= number <= MAX_LORA_SCALE:
        accepted = f"FILE or FILE=SCALE, a scale of {-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
        raise InvalidSettings(f"--lora {text}: expected {accepted}")
    return RecipeLora(path=path, sha256=hashlib.sha256(data).hexdigest(), scale=number)


def parse_extra(text: str, extras: Extras) -> tuple[ExtraSpec, Precision]:
    """Parse e.g. `canny=float16`, or a name alone for its usual format. Raises InvalidSettings."""
    name, _, precision = text.partition("=")
    if name not in extras:
        raise InvalidSettings(f"--extra {text}: expected one of {', '.join(extras)}")
    if precision and precision not in _EXTRA_PRECISIONS:
        accepted = ", ".join(_EXTRA_PRECISIONS)
        raise InvalidSettings(f"--extra {text}: expected a precision of {accepted}")
    usual = extras[name].precision_beside(Precision.BFLOAT16)
    return extras[name], Precision(precision) if precision else usual


def parse_random_recipe(text: str, catalog: Catalog) -> ModelRecipe:
    """See `parse_recipe`; a name alone means the format that images of the model ship in."""
    if "=" in text:
        return parse_recipe(text)
    spec = catalog.get(text)
    if spec is None or spec.family.quantization is None:
        return _in(text, Precision.FLOAT16)
    return _in(text, Precision.BFLOAT16) if spec.keeps_16_bit else _float8(text)
