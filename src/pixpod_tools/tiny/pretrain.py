"""Teaches text encoders the words first, as a caption classifier.

Image models learn far faster when colour, background, shape, size and position can be read off
their conditioning from the first step, each by itself; that also carries over to combinations held
out of training. The heads are thrown away.
"""

from enum import StrEnum

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.encoders import WIDTH, Conditioning, TextStack
from pixpod_tools.tiny.scenes import Colour, Position, Scene, Shape, Size, sample_training_scene
from pixpod_tools.tiny.training import Course, train

COURSE = Course(minutes=3.5, learning_rate=2e-3, batch_size=48)
TEXT_LENGTHS = (24, 48)
_NOT_SAID = -100  # the label that cross entropy leaves out
_QUESTIONS: tuple[type[StrEnum], ...] = (Colour, Colour, Shape, Size, Position)


class CaptionClassifier(nn.Module):
    """Linear heads on three views of the text: its middle, its last token, its pooled vector."""

    def __init__(self, text: TextStack) -> None:
        super().__init__()
        self.encoders = text.encoders()
        widths = (text.sequence_width, text.sequence_width, WIDTH)
        num_answers = sum(len(question) for question in _QUESTIONS)
        self.heads = nn.ModuleList(nn.Linear(width, num_answers) for width in widths)

    def answer(self, conditioning: Conditioning) -> list[list[torch.Tensor]]:
        """Logits per view and question."""
        sequence, pooled = conditioning
        sizes = [len(question) for question in _QUESTIONS]
        views = (sequence.mean(dim=1), sequence[:, -1], pooled)
        return [
            list(head(view).split(sizes, dim=-1))
            for head, view in zip(self.heads, views, strict=True)
        ]


def pretrain(text: TextStack, course: Course) -> None:
    """Train the encoders of `text` in place."""
    torch.manual_seed(course.seed)
    rng = np.random.default_rng(course.seed)
    classifier = CaptionClassifier(text)

    def batch_loss() -> torch.Tensor:
        scenes = [sample_training_scene(rng) for _ in range(course.batch_size)]
        captions = [vary(scene, rng) for scene in scenes]
        labels = torch.tensor([_labels(*pair) for pair in zip(scenes, captions, strict=True)])
        max_tokens = TEXT_LENGTHS[int(rng.integers(len(TEXT_LENGTHS)))]
        answers = classifier.answer(text.read(captions, max_tokens))
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
