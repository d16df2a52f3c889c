"""Model families as data, one file each; the standard library only.

`FAMILIES` is the table of those that ship. `load_catalog` takes another one.
"""

from collections.abc import Mapping

from pixpod.families.flux import FLUX
from pixpod.families.flux2_klein import FLUX2_KLEIN
from pixpod.families.flux_fill import FLUX_FILL
from pixpod.families.flux_kontext import FLUX_KONTEXT
from pixpod.families.sd15 import SD15
from pixpod.families.sd35 import SD35
from pixpod.families.sdxl import SDXL
from pixpod.families.spec import (
    GIB,
    STORED_PRECISIONS,
    ClipTextSpec,
    ComponentSpec,
    ConcurrencyRule,
    ControlNetSpec,
    DenoiserSize,
    FamilySpec,
    Guidance,
    ImagePromptSpec,
    LoraSpec,
    Precision,
    QuantizationSpec,
    RefinerSpec,
    RegionSpec,
    Role,
    SchedulerSpec,
    WorkingMemory,
)
from pixpod.families.z_image import Z_IMAGE

__all__ = [
    "FAMILIES",
    "FLUX",
    "FLUX2_KLEIN",
    "FLUX_FILL",
    "FLUX_KONTEXT",
    "GIB",
    "SD15",
    "SD35",
    "SDXL",
    "STORED_PRECISIONS",
    "Z_IMAGE",
    "ClipTextSpec",
    "ComponentSpec",
    "ConcurrencyRule",
    "ControlNetSpec",
    "DenoiserSize",
    "FamilySpec",
    "Guidance",
    "ImagePromptSpec",
    "LoraSpec",
    "Precision",
    "QuantizationSpec",
    "RefinerSpec",
    "RegionSpec",
    "Role",
    "SchedulerSpec",
    "WorkingMemory",
]

FAMILIES: Mapping[str, FamilySpec] = {
    family.name: family
    for family in (FLUX, FLUX_KONTEXT, FLUX_FILL, FLUX2_KLEIN, Z_IMAGE, SD35, SDXL, SD15)
}
