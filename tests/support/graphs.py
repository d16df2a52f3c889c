"""A stand-in for CUDA graphs that has their ways: what it captures is not computed yet, and each
replay writes over the result of the one before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pixpod.engine.compilation.cuda_graphs import Run


class Graphs:
    """Counts what it captures and replays."""

    def __init__(self):
        self.num_captured = self.num_replayed = 0

    def capture(self, run: Run) -> tuple[Any, Callable[[], None]]:
        self.num_captured += 1
        result = tree_map(torch.zeros_like, run())

        def replay() -> None:
            self.num_replayed += 1
            for target, made in zip(tree_leaves(result), tree_leaves(run()), strict=True):
                target.copy_(made)

        return result, replay
