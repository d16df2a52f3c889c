"""What every training here shares: a course that ends on time, an optimiser, averaged weights."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long and how fast to learn.

    The learning rate decays with time instead of steps, so that a run ends when planned on any
    machine. The price: equal seeds see equal data but need not end in equal weights.
    """

    minutes: float
    learning_rate: float
    batch_size: int
    seed: int = 0
    warm_up_steps: int = 100
    weight_decay: float = 0.01
    averaging: float = 0.998
    save_every_min: float = 6.0

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, then half a cosine down to 2 %; `progress` is 0..1 of the time."""
        warm_up = min(1.0, (step + 1) / self.warm_up_steps)
        return self.learning_rate * warm_up * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


class AveragedWeights:
    """Exponential moving average of parameters; these are the weights that are saved."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._num_updates = 0
        self._averages = [parameter.detach().clone() for parameter in parameters]

    def update(self) -> None:
        self._num_updates += 1
        decay = min(self._decay, self._num_updates / (10 + self._num_updates))
        current = [parameter.detach() for parameter in self._parameters]
        torch._foreach_lerp_(self._averages, current, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the weights in training; a second call undoes the first."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def train(
    modules: nn.Module,
    course: Course,
    batch_loss: Callable[[], torch.Tensor],
    save: Callable[[], None],
) -> int:
    """Train until the time is up, saving averaged weights now and then and at the end.

    Leaves the averaged weights in `modules` and returns the number of steps made.
    """
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimiser = _optimiser(parameters, course)
    averaged = AveragedWeights(parameters, course.averaging)
    modules.train()
    start = saved = time.monotonic()
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
            averaged.update()
            mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
            step += 1
            bar.set_postfix(loss=f"{mean_loss:.4f}", done=f"{progress:.0%}", refresh=False)
            bar.update()
            if time.monotonic() - saved > course.save_every_min * 60:
                saved = time.monotonic()
                _save_averaged(modules, averaged, save)
    averaged.swap()
    modules.eval()
    save()
    return step


def _save_averaged(modules: nn.Module, averaged: AveragedWeights, save: Callable[[], None]) -> None:
    averaged.swap()
    modules.eval()
    save()
    modules.train()
    averaged.swap()


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
