"""Trains and measures the tiny checkpoints of `model_cache/tiny`; never part of the image.

This door opens on what tests and the demo use, which needs numpy only; the trainings, with torch,
lie behind `scripts/train_tiny`.
"""

from pixpod_tools.tiny.checker import Sighting, Verdict, check, recognise
from pixpod_tools.tiny.scenes import (
    Colour,
    Position,
    Scene,
    Shape,
    Size,
    draw,
    grid_scenes,
    is_held_out,
    sample_training_scene,
)

__all__ = [
    "Colour",
    "Position",
    "Scene",
    "Shape",
    "Sighting",
    "Size",
    "Verdict",
    "check",
    "draw",
    "grid_scenes",
    "is_held_out",
    "recognise",
    "sample_training_scene",
]
