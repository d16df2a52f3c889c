"""The value of a stack."""

from collections.abc import Collection
from dataclasses import dataclass

from pixpod.extras import LORAS

USUAL_RANK = 64
"""Rank of LoRAs that are named without one: room for four of rank 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A model, and what one request to it uses at the same time.

    `extras` are names. `lora_rank` is that of all LoRAs of an image together, 0 for none.
    """

    model: str
    extras: tuple[str, ...] = ()
    lora_rank: int = 0

    @property
    def name(self) -> str:
        """The stack as PIXPOD_STACKS has it, such as `sdxl+canny+loras`."""
        return "+".join((self.model, *self.parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of everything beside the model."""
        return (*self.extras, *self._loras)

    @property
    def _loras(self) -> tuple[str, ...]:
        if not self.lora_rank:
            return ()
        return (LORAS if self.lora_rank == USUAL_RANK else f"{LORAS}={self.lora_rank}",)

    def without(self, parts: Collection[str]) -> "Stack":
        """Return the stack without some of its parts."""
        return Stack(
            model=self.model,
            extras=tuple(name for name in self.extras if name not in parts),
            lora_rank=0 if set(self._loras) & set(parts) else self.lora_rank,
        )
