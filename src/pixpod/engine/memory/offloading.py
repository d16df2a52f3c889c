"""Weights of a module out of the device's memory and back; page-locked host memory keeps them.

Whole storages move, below the tensors: parameters, torchao's tensors inside of them, tied weights
and views of one file stay the objects that they are.
"""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn

from pixpod.engine.streams import synchronize_stream

PIECE_BYTES = 64 * 1024 * 1024
"""Of page-locked memory, which torch hands out in powers of two: 9 GiB in one piece would take 16.
"""


class OffloadableWeights:
    """One module's weights, frozen as they are for drawing.

    A copy in host memory is made once and kept, as nothing changes it: after the first time,
    parking takes no time and bringing back one copy. Weights that were replaced are copied anew,
    but the old ones stay on the device until then. Not for several threads at once.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self._device = device
        self._copies: dict[int, tuple[torch.UntypedStorage, tuple[torch.Tensor, ...]]] = {}

    @property
    def size_bytes(self) -> int:
        """What the module takes on the device while it is there."""
        sizes = {key: storage.nbytes() for key, storage in self._storages().items()}
        sizes |= {
            key: _total_bytes(pieces) for key, (_, pieces) in self._copies.items() if key in sizes
        }
        return sum(sizes.values())

    @property
    def host_bytes(self) -> int:
        """What its copy takes in host memory; 0 as long as there is none."""
        return sum(_total_bytes(pieces) for _, pieces in self._copies.values())

    def copy_to_host(self) -> None:
        """Have a copy in host memory of all that is on the device, so that parking is quick."""
        if self._device.type == "cpu":
            _make_resizable(self.module)
        storages = self._storages()
        self._copies = {key: copy for key, copy in self._copies.items() if key in storages}
        for key, storage in storages.items():
            if key not in self._copies:
                self._copies[key] = (storage, _copy_out(storage, self._device))
        synchronize_stream(self._device)

    def offload(self) -> None:
        """Leave the device; its memory is free afterwards."""
        self.copy_to_host()
        for storage, _ in self._copies.values():
            storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next may need one large piece

    def onload(self) -> None:
        """Be on the device again, with the same bytes. Raises torch.OutOfMemoryError."""
        for storage, pieces in self._copies.values():
            if not storage.nbytes():
                storage.resize_(_total_bytes(pieces))
                _copy_in(pieces, storage)
        synchronize_stream(self._device)

    def _storages(self) -> dict[int, torch.UntypedStorage]:
        """All storages on the device, each once, whatever is parked."""
        found = {}
        for tensor in _plain_tensors(self.module):
            storage = tensor.untyped_storage()
            if storage.device.type == self._device.type:
                found[storage._cdata] = storage  # a parked one has no address
        return found


def _plain_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers; of torchao's, the tensors inside."""
    for tensor in chain(module.parameters(), module.buffers()):
        yield from _inner_tensors(tensor)


def _inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inner_tensors(getattr(tensor, name))


def _make_resizable(module: nn.Module) -> None:
    """On a CPU weights are views of mapped files, which cannot be given back: copy them first."""
    copies: dict[int, torch.UntypedStorage] = {}
    kept: list[torch.UntypedStorage] = []  # an address must not be used again meanwhile
    for tensor in _plain_tensors(module):
        storage = tensor.untyped_storage()
        if storage.resizable():
            continue
        kept.append(storage)
        key = storage._cdata
        if key not in copies:
            copies[key] = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            copies[key].copy_(storage)
        with torch.no_grad():
            tensor.set_(copies[key], tensor.storage_offset(), tensor.shape, tensor.stride())


def _copy_out(storage: torch.UntypedStorage, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Pieces in host memory; the copies may still be under way at return."""
    pieces = []
    for source in _pieces(storage):
        piece = torch.empty(len(source), dtype=torch.uint8, pin_memory=device.type == "cuda")
        pieces.append(piece.copy_(source, non_blocking=True))
    return tuple(pieces)


def _copy_in(pieces: tuple[torch.Tensor, ...], storage: torch.UntypedStorage) -> None:
    for piece, target in zip(pieces, _pieces(storage), strict=True):
        target.copy_(piece, non_blocking=True)


def _pieces(storage: torch.UntypedStorage) -> Iterator[torch.Tensor]:
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    for begin in range(0, len(whole), PIECE_BYTES):
        yield whole[begin : begin + PIECE_BYTES]


def _total_bytes(pieces: tuple[torch.Tensor, ...]) -> int:
    return sum(len(piece) for piece in pieces)
