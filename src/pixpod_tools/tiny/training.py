"""Trains modules: a course that ends on time, an optimiser, averaged weights, checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

CHECKPOINT_INTERVAL_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Duration and learning rate of a training.

    The learning rate decays with time instead of steps, so that a run ends when planned on any
    machine. Therefore, equal seeds give equal data but not always equal weights.

    `checkpoint` is a file that is written every two minutes and at the end; a course that finds it
    resumes from there.
    """

    minutes: float
    learning_rate: float
    batch_size: int
    seed: int = 0
    warm_up_steps: int = 100
    weight_decay: float = 0.01
    averaging: float = 0.998
    checkpoint: Path | None = None

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Return the rate: linear warm-up, half a cosine to 2 %; `progress`: time from 0 to 1."""
        warm_up = min(1.0, (step + 1) / self.warm_up_steps)
        return self.learning_rate * warm_up * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


class _Run:
    """The content of a checkpoint: weights, optimiser, random states, time and steps so far."""

    def __init__(self, modules: nn.Module, course: Course) -> None:
        torch.manual_seed(course.seed)
        self.rng = np.random.default_rng(course.seed)
        self.parameters = [each for each in modules.parameters() if each.requires_grad]
        self.optimiser = _optimiser(self.parameters, course)
        self.averaged = EMAModel(self.parameters, decay=course.averaging, foreach=True)
        self.step, self.elapsed_s = 0, 0.0
        self._modules = modules

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        torch.save(
            {
                "modules": self._modules.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "averaged": self.averaged.state_dict(),
                "torch_random": torch.get_rng_state(),
                "numpy_random": self.rng.bit_generator.state,
                "step": self.step,
                "elapsed_s": self.elapsed_s,
            },
            draft,
        )
        draft.replace(path)

    def resume(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self._modules.load_state_dict(state["modules"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.averaged.load_state_dict(state["averaged"])
        torch.set_rng_state(state["torch_random"])
        self.rng.bit_generator.state = state["numpy_random"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def train(
    modules: nn.Module, course: Course, batch_loss: Callable[[np.random.Generator], torch.Tensor]
) -> None:
    """Train until the time is up; leaves averaged weights in `modules`."""
    run = _Run(modules, course)
    if course.checkpoint and course.checkpoint.exists():
        run.resume(course.checkpoint)
    modules.train()
    mean_loss, saved_s = math.nan, run.elapsed_s
    start = time.monotonic() - run.elapsed_s
    with tqdm(desc=type(modules).__name__, unit="step", mininterval=5, initial=run.step) as bar:
        while (progress := run.elapsed_s / (course.minutes * 60)) < 1:
            for group in run.optimiser.param_groups:
                group["lr"] = course.learning_rate_at(run.step, progress)
            loss = _step(run, batch_loss(run.rng))
            mean_loss = loss if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss
            bar.set_postfix(loss=f"{mean_loss:.4f}", done=f"{progress:.0%}", refresh=False)
            bar.update()
            run.elapsed_s = time.monotonic() - start
            if course.checkpoint and run.elapsed_s - saved_s > CHECKPOINT_INTERVAL_S:
                run.save(course.checkpoint)
                saved_s = run.elapsed_s
    if course.checkpoint:
        run.save(course.checkpoint)
    run.averaged.copy_to(run.parameters)
    modules.eval()


def _step(run: _Run, loss: torch.Tensor) -> float:
    run.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(run.parameters, 1.0)
    run.optimiser.step()
    run.averaged.step(run.parameters)
    run.step += 1
    return loss.item()


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
