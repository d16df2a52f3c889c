"""Moves the weights of a module out of the device's memory into page-locked host memory and back.

Whole storages move, below the tensors: parameters, torchao's tensors inside of them, tied weights
and views of one file stay the objects that they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from pixpod.engine.device import synchronize_stream

PIECE_BYTES = 64 * 1024 * 1024
"""Size of one piece of page-locked memory, which torch allocates in powers of two: a single piece
for 9 GiB would take 16.
"""

WORD_BYTES = 8
ROW_WORDS = 4096

ODD_MULTIPLIER = 0x1E3779B97F4A7C15
"""Spreads the weights of a checksum over 64 bits; odd, so that no bit of a word is lost."""


@dataclass(slots=True, kw_only=True)
class _HostCopy:
    """A copy of one storage, and the checksum that the storage had when it was copied."""

    storage: torch.UntypedStorage
    pieces: tuple[torch.Tensor, ...]
    checksum: torch.Tensor

    @property
    def size_bytes(self) -> int:
        return sum(len(piece) for piece in self.pieces)


class OffloadableWeights:
    """The weights of one module.

    A copy in host memory is made once and kept: after the first time, offloading copies nothing
    and onloading copies once. Weights that changed since then are copied again. Replaced weights
    are recognised by their storage, whose old memory stays on the device until then, and weights
    that were changed in place by a checksum. Not for several threads at once.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self._device = device
        self._copies: dict[int, _HostCopy] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes that the module takes on the device while it is there."""
        sizes = {key: storage.nbytes() for key, storage in self._storages().items()}
        sizes |= {key: copy.size_bytes for key, copy in self._copies.items() if key in sizes}
        return sum(sizes.values())

    @property
    def host_bytes(self) -> int:
        """Bytes that the copy takes in host memory; 0 before it is made."""
        return sum(copy.size_bytes for copy in self._copies.values())

    def copy_to_host(self) -> None:
        """Copy everything on the device to host memory, so that offloading is quick."""
        if self._device.type == "cpu":
            _make_resizable(self.module)
        storages = self._storages()
        self._copies = {key: copy for key, copy in self._copies.items() if key in storages}
        self._copy_changed()
        for key, storage in storages.items():
            if key not in self._copies:
                self._copies[key] = _HostCopy(
                    storage=storage,
                    pieces=_copy_out(storage, self._device),
                    checksum=_checksum(storage),
                )
        synchronize_stream(self._device)

    def offload(self) -> None:
        """Move the weights off the device; their memory is free afterwards."""
        self.copy_to_host()
        for copy in self._copies.values():
            copy.storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next may need one large piece

    def onload(self) -> None:
        """Move the same bytes back to the device. Raises torch.OutOfMemoryError."""
        for copy in self._copies.values():
            if not copy.storage.nbytes():
                copy.storage.resize_(copy.size_bytes)
                _copy_in(copy.pieces, copy.storage)
        synchronize_stream(self._device)

    def _copy_changed(self) -> None:
        """Copy storages again that were changed in place since they were copied."""
        there = [copy for copy in self._copies.values() if copy.storage.nbytes()]
        if not there:
            return
        checksums = torch.stack([_checksum(copy.storage) for copy in there])
        copied = torch.stack([copy.checksum for copy in there])
        for index in (checksums != copied).nonzero().flatten().tolist():
            _update(there[index].pieces, there[index].storage)
            there[index].checksum = checksums[index].clone()

    def _storages(self) -> dict[int, torch.UntypedStorage]:
        """Return all storages of the device, each once, whether they are offloaded or not."""
        found = {}
        for tensor in _plain_tensors(self.module):
            storage = tensor.untyped_storage()
            if storage.device.type == self._device.type:
                found[storage._cdata] = storage  # an offloaded one has no address
        return found


def _plain_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield parameters and buffers; for torchao's, yield the tensors inside."""
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
    """Copy weights that are views of mapped files, as on a CPU: such memory cannot be freed."""
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


def _checksum(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return one number for the contents of a storage, computed on its device.

    Autograd's version counters would cost nothing, but they miss `weight.data += delta`, which is
    how PEFT merges adapters. Reading weights twice on a GPU takes a few percent of the time that
    the bus takes for them.

    The 64-bit words are summed by row and by column of a table, without a copy of the weights,
    as memory is short when something is offloaded. The sums are weighted by their position, so
    that words that trade places count, after their upper bits were mixed into the lower ones:
    two changed signs would otherwise cancel modulo 2^64.
    """
    whole = _bytes_of(storage)
    num_words = len(whole) // WORD_BYTES
    words = whole[: num_words * WORD_BYTES].view(torch.int64)
    rest = whole.new_zeros(WORD_BYTES)
    rest[: len(whole) % WORD_BYTES] = whole[num_words * WORD_BYTES :]
    in_table = num_words - num_words % ROW_WORDS
    table = words[:in_table].view(-1, ROW_WORDS)
    sums = torch.cat([table.sum(0), table.sum(1), words[in_table:], rest.view(torch.int64)])
    positions = torch.arange(1, len(sums) + 1, device=sums.device)
    return ((sums ^ (sums >> 32)) * (positions * ODD_MULTIPLIER)).sum()


def _copy_out(storage: torch.UntypedStorage, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy a storage to pieces in host memory; the copies may still be under way at return."""
    pieces = tuple(
        torch.empty(len(source), dtype=torch.uint8, pin_memory=device.type == "cuda")
        for source in _pieces(storage)
    )
    _update(pieces, storage)
    return pieces


def _update(pieces: tuple[torch.Tensor, ...], storage: torch.UntypedStorage) -> None:
    for piece, source in zip(pieces, _pieces(storage), strict=True):
        piece.copy_(source, non_blocking=True)


def _copy_in(pieces: tuple[torch.Tensor, ...], storage: torch.UntypedStorage) -> None:
    for piece, target in zip(pieces, _pieces(storage), strict=True):
        target.copy_(piece, non_blocking=True)


def _pieces(storage: torch.UntypedStorage) -> Iterator[torch.Tensor]:
    whole = _bytes_of(storage)
    for begin in range(0, len(whole), PIECE_BYTES):
        yield whole[begin : begin + PIECE_BYTES]


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
