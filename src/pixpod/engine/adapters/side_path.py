"""Side paths: low-rank weights beside a frozen layer, other ones for each row of a batch.

The layer computes `base(x) + up[row] (down[row] x)`. It is never changed, so that layers in 8 bits
have side paths in 16, and nothing has to be taken out of the weights again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The weights of one layer: `down` is (rank, inputs, ...), `up` is (outputs, rank)."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


Scaled = tuple[Pair, float]


class SidePath(nn.Module):
    """A layer with slots for `rank` rows of `down` and columns of `up`, for each row of a batch.

    The slots have one place in memory for `max_rows`; `use_rows` chooses how many of them are used.
    """

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, base: nn.Module, rank: int, max_rows: int) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, torch.Tensor)
        self.base = base
        self.rank = rank
        outputs, *inputs = weight.shape
        dtype, device = weight.dtype, weight.device
        self._all_down = torch.zeros(max_rows, rank, *inputs, dtype=dtype, device=device)
        self._all_up = torch.zeros(max_rows, outputs, rank, dtype=dtype, device=device)
        self.register_buffer("down", self._all_down, persistent=False)
        self.register_buffer("up", self._all_up, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The base's: pipelines and blocks read its number format."""
        weight = self.base.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def bias(self) -> object:
        return self.base.bias

    @property
    def slot_bytes(self) -> int:
        return sum(slots.nbytes for slots in (self._all_down, self._all_up))

    def use_rows(self, num_rows: int) -> None:
        """Use the slots of so many rows, and empty them."""
        self.down, self.up = self._all_down[:num_rows], self._all_up[:num_rows]
        self.down.zero_()
        self.up.zero_()

    def write(self, row: int, pairs: Sequence[Scaled]) -> None:
        """Write the pairs of one row side by side, in this order; their scales go into `up`."""
        begin = 0
        for pair, scale in pairs:
            end = begin + pair.rank
            self.down[row, begin:end].copy_(pair.down)
            self.up[row, :, begin:end].copy_(pair.up.to(self.up) * scale)
            begin = end

    def _for_calls(self, num_inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Repeat the slots for guidance, which runs all rows once more behind the first."""
        times = num_inputs // len(self.down)
        if times == 1:
            return self.down, self.up
        return (
            self.down.repeat(times, *[1] * (self.down.ndim - 1)),
            self.up.repeat(times, 1, 1),
        )


class SideLinear(SidePath):
    """A side path of a Linear layer. The first dimension of its input are rows."""

    def __init__(self, base: nn.Linear, rank: int, max_rows: int) -> None:
        super().__init__(base, rank, max_rows)
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.base(inputs)
        down, up = self._for_calls(inputs.shape[0])
        tokens = inputs.unsqueeze(1) if inputs.ndim == 2 else inputs.flatten(1, -2)
        side = torch.bmm(torch.bmm(tokens, down.transpose(1, 2)), up.transpose(1, 2))
        return outputs + side.view_as(outputs)


class SideConvolution(SidePath):
    """A side path of a convolution: `down` has its kernel, `up` has one of 1 x 1."""

    def __init__(self, base: nn.Conv2d, rank: int, max_rows: int) -> None:
        super().__init__(base, rank, max_rows)
        self._stride, self._dilation = base.stride, base.dilation
        self._padding = base.padding

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.base(inputs)
        down, up = self._for_calls(inputs.shape[0])
        num_rows, _, height, width = inputs.shape
        # one group of channels for each row, with weights of its own
        narrow = functional.conv2d(
            inputs.reshape(1, -1, height, width),
            down.flatten(0, 1),
            stride=self._stride,
            padding=self._padding,
            dilation=self._dilation,
            groups=num_rows,
        )
        side = torch.bmm(up, narrow.view(num_rows, down.shape[1], -1))
        return outputs + side.view(outputs.shape)


def can_have_side_path(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)


def add_side_paths(
    module: nn.Module, names: Sequence[str], rank: int, max_rows: int
) -> dict[str, SidePath]:
    """Give layers of a module side paths, which are empty. Returns them by the layers' names."""
    paths: dict[str, SidePath] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        layer = owner.get_submodule(leaf)
        path: SidePath
        if isinstance(layer, nn.Conv2d):
            path = SideConvolution(layer, rank, max_rows)
        else:
            assert isinstance(layer, nn.Linear)
            path = SideLinear(layer, rank, max_rows)
        owner._modules[leaf] = path
        paths[name] = path
    return paths
