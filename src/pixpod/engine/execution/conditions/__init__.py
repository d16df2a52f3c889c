"""Conditions, which steer an image: one file for each kind."""

from pixpod.engine.execution.conditions.base import AfterStep, Condition, Prepared
from pixpod.engine.execution.conditions.controls import ControlNetCondition
from pixpod.engine.execution.conditions.image_prompt import ImagePromptCondition
from pixpod.engine.execution.conditions.lora import LoraCondition
from pixpod.engine.execution.conditions.refiner import RefinerCondition
from pixpod.engine.execution.conditions.seen_mask import SeenMaskCondition
from pixpod.engine.execution.conditions.source import SourceCondition
from pixpod.engine.execution.conditions.text import TextCondition

__all__ = [
    "AfterStep",
    "Condition",
    "ControlNetCondition",
    "ImagePromptCondition",
    "LoraCondition",
    "Prepared",
    "RefinerCondition",
    "SeenMaskCondition",
    "SourceCondition",
    "TextCondition",
]
