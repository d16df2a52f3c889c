"""Conditions, which steer an image. The only one so far is text."""

from pixpod.engine.execution.conditions.base import Condition
from pixpod.engine.execution.conditions.text import TextCondition

__all__ = ["Condition", "TextCondition"]
