"""Stacks: a model with extras and LoRAs that must fit on the GPU together. No torch."""

from pixpod.stacks.notation import parse_stacks
from pixpod.stacks.stack import USUAL_RANK, Stack
from pixpod.stacks.usage import can_be_named, stack_request, with_slots

__all__ = ["USUAL_RANK", "Stack", "can_be_named", "parse_stacks", "stack_request", "with_slots"]
