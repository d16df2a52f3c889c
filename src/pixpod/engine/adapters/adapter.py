"""A LoRA that was read for one model."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod.engine.adapters.side_path import Pair


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Pairs by the names of components and of layers. `is_whole`: it has layers of the denoiser
    that are not among the family's usual ones.
    """

    pairs: Mapping[str, Mapping[str, Pair]]
    is_whole: bool

    def of(self, component: str) -> Mapping[str, Pair]:
        return self.pairs.get(component, {})

    def rank_of(self, component: str) -> int:
        """Return the highest rank of a component's layers, 0 for none."""
        return max((pair.rank for pair in self.of(component).values()), default=0)

    @property
    def rank(self) -> int:
        return max(map(self.rank_of, self.pairs), default=0)

    @property
    def num_layers(self) -> int:
        return sum(map(len, self.pairs.values()))

    @property
    def nbytes(self) -> int:
        return sum(pair.nbytes for layers in self.pairs.values() for pair in layers.values())
