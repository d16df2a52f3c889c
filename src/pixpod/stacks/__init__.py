"""Stacks: a model with extras and LoRAs that must fit on the GPU together. No torch."""

from pixpod.stacks.notation import parse_stacks
from pixpod.stacks.presets import PRESETS, Presets, preset_of_fields
from pixpod.stacks.presets_file import read_presets_file
from pixpod.stacks.stack import USUAL_RANK, Stack
from pixpod.stacks.usage import can_be_named, stack_request, with_slots

__all__ = [
    "PRESETS",
    "USUAL_RANK",
    "Presets",
    "Stack",
    "can_be_named",
    "parse_stacks",
    "preset_of_fields",
    "read_presets_file",
    "stack_request",
    "with_slots",
]
