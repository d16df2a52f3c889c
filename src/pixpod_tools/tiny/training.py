"""Trains modules: a course that ends on time, an optimiser, averaged weights."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Duration and learning rate of a training.

    The learning rate decays with time instead of steps, so that a run ends when planned on any
    machine. Therefore, equal seeds give equal data but not always equal weights.
    """

    minutes: float
    learning_rate: float
    batch_size: int
    seed: int = 0
    warm_up_steps: int = 100
    weight_decay: float = 0.01
    averaging: float = 0.998

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Return the rate: linear warm-up, half a cosine to 2 %; `progress`: time from 0 to 1."""
        warm_up = min(1.0, (step + 1) / self.warm_up_steps)
        return self.learning_rate * warm_up * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def train(modules: nn.Module, course: Course, batch_loss: Callable[[], torch.Tensor]) -> None:
    """Train until the time is up; leaves averaged weights in `modules`."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimiser = _optimiser(parameters, course)
    averaged = EMAModel(parameters, decay=course.averaging, foreach=True)
    modules.train()
    start = time.monotonic()
    step, mean_loss = 0, 0.0
    with tqdm(desc=type(modules).__name__, unit="step", mininterval=5) as bar:
        while (progress := (time.monotonic() - start) / (course.minutes * 60)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = course.learning_rate_at(step, progress)
            loss = batch_loss()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            averaged.step(parameters)
            mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
            step += 1
            bar.set_postfix(loss=f"{mean_loss:.4f}", done=f"{progress:.0%}", refresh=False)
            bar.update()
    averaged.copy_to(parameters)
    modules.eval()


def _optimiser(parameters: list[nn.Parameter], course: Course) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": course.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=course.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )
