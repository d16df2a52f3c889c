"""Conditions steer an image: text is the first of them."""

from pixpod.engine.execution.conditions.base import Condition
from pixpod.engine.execution.conditions.text import TextCondition

__all__ = ["Condition", "TextCondition"]
