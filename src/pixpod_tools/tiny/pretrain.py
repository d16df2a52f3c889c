"""Teaches text encoders the words first, as a caption classifier.

Image models learn far faster when colour, background, shape, size and position can be read off
their conditioning from the first step, each by itself; that also carries over to combinations held
out of training. The heads are thrown away.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn import functional

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.scenes import Colour, Position, Scene, Shape, Size, sample_training_scene
from pixpod_tools.tiny.training import Course, train
from pixpod_tools.tiny.untrained import text_encoders

COURSE = Course(minutes=3.5, learning_rate=2e-3, batch_size=48)
TEXT_LENGTHS = (24, 48)
_NOT_SAID = -100  # the label that cross entropy leaves out
_QUESTIONS: tuple[type[StrEnum], ...] = (Colour, Colour, Shape, Size, Position)


Conditioning = tuple[torch.Tensor, torch.Tensor]
"""Sequence (batch x tokens x channels) and pooled vector (batch x channels)."""

Read = Callable[[Any, list[str], int], Conditioning]
"""Encodes captions for a pipeline; the number of tokens matters only to T5."""


class CaptionClassifier(nn.Module):
    """Linear heads on three views of the text: its mean, its last token, its pooled vector."""

    def __init__(self, pipeline: DiffusionPipeline, read: Read) -> None:
        super().__init__()
        self.encoders = text_encoders(pipeline)
        num_answers = sum(len(question) for question in _QUESTIONS)
        views = _views(read(pipeline, [""], TEXT_LENGTHS[0]))
        self.heads = nn.ModuleList(nn.Linear(view.shape[-1], num_answers) for view in views)

    def answer(self, conditioning: Conditioning) -> list[list[torch.Tensor]]:
        """Return logits per view and question."""
        sizes = [len(question) for question in _QUESTIONS]
        return [
            list(head(view).split(sizes, dim=-1))
            for head, view in zip(self.heads, _views(conditioning), strict=True)
        ]


def _views(conditioning: Conditioning) -> tuple[torch.Tensor, ...]:
    sequence, pooled = conditioning
    return sequence.mean(dim=1), sequence[:, -1], pooled


def pretrain(pipeline: DiffusionPipeline, read: Read, course: Course) -> None:
    """Train the text encoders in place."""
    classifier = CaptionClassifier(pipeline, read)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        scenes = [sample_training_scene(rng) for _ in range(course.batch_size)]
        captions = [vary(scene, rng) for scene in scenes]
        labels = torch.tensor([_labels(*pair) for pair in zip(scenes, captions, strict=True)])
        max_tokens = TEXT_LENGTHS[int(rng.integers(len(TEXT_LENGTHS)))]
        answers = classifier.answer(read(pipeline, captions, max_tokens))
        losses = [
            functional.cross_entropy(logits, labels[:, question])
            for view in answers
            for question, logits in enumerate(view)
        ]
        return torch.stack(losses).sum() / len(answers)

    train(classifier, course, batch_loss)


def _labels(scene: Scene, caption: str) -> list[int]:
    if not caption:
        return [_NOT_SAID] * len(_QUESTIONS)
    background = list(Colour).index(scene.background)
    return [
        list(Colour).index(scene.colour),
        background if scene.background in caption.lower() else _NOT_SAID,
        list(Shape).index(scene.shape),
        list(Size).index(scene.size),
        list(Position).index(scene.position),
    ]
