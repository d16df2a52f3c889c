"""Deployments with nets of full size, for plans: no file is there."""

from pixpod.catalog import load_catalog
from pixpod.engine.memory.needs import need_of
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.extras import ExtraKind, ExtraSpec
from pixpod.families import FLUX, SDXL, Precision
from pixpod.stacks import parse_stacks

CATALOG = load_catalog()
PLANS = {
    "flux-dev": QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC, t5=Precision.FLOAT8_DYNAMIC),
    "sdxl": QuantizationPlan(precision=Precision.FLOAT16),
}
FOUR = {
    "SDXL studio": (["sdxl"], ["studio"]),
    "SDXL heavy": (["sdxl"], ["heavy"]),
    "FLUX with LoRAs": (["flux-dev"], ["flux-dev+loras=128"]),
    "FLUX and SDXL": (["flux-dev", "sdxl"], ["flux-dev+flux-canny+loras", "studio"]),
}
"""Models and stacks by title."""

NETS_GIB = {"canny": 2.33, "depth": 2.33, "flux-canny": 3.99}


def net(name, gib, modes=()):
    """A net; one with `modes` is a union net."""
    return ExtraSpec(
        name=name,
        kind=ExtraKind.CONTROLNET,
        family=FLUX if name.startswith("flux") else SDXL,
        licence="MIT",
        types=tuple(modes) or (name.removeprefix("flux-"),),
        modes=dict(modes),
        gib_16=gib,
    )


def nets(**sizes_gib):
    """The nets of a deployment; `sizes_gib` replaces the usual ones."""
    return {name: net(name, gib) for name, gib in (sizes_gib or NETS_GIB).items()}


def needs_of(models, stacks, extras):
    served = {name: CATALOG[name] for name in models}
    parsed = parse_stacks(stacks, served, extras)
    return [
        need_of(spec, PLANS[name], extras=extras, stacks=parsed) for name, spec in served.items()
    ]
