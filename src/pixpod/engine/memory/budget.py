"""The memory of a GPU that may be used. Numbers only."""

from dataclasses import dataclass

from pixpod.families import GIB

OVERHEAD_BYTES = 1 * GIB
"""CUDA context and workspaces of cuBLAS and cuDNN, which take 0.6 to 1.0 GiB."""

MARGIN_BYTES = GIB // 2
"""Memory that the driver shows and no plan uses, because an allocator wastes some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of a GPU that may be used, and those that are used before a model is loaded."""

    gpu_bytes: int
    overhead_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.gpu_bytes - self.overhead_bytes


def budget_for(memory_bytes: int | None, limit_gib: float | None) -> Budget | None:
    """Return the budget of a GPU with so much memory; None on a CPU without a limit."""
    if limit_gib is not None:
        limit_bytes = round(limit_gib * GIB)
        gpu_bytes = min(limit_bytes, memory_bytes or limit_bytes)
    elif memory_bytes is not None:
        gpu_bytes = memory_bytes - MARGIN_BYTES
    else:
        return None
    return Budget(gpu_bytes=gpu_bytes, overhead_bytes=OVERHEAD_BYTES)
