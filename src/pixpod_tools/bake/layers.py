"""Splits a weights directory into folders of near-equal size, each for one layer of a container
image: layers are pulled in parallel, so that the largest determines how long a pull takes.
"""

import errno
import heapq
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from pixpod.errors import InvalidSettings
from pixpod.weights.manifest import MANIFEST, read_manifest

Layers = tuple[tuple[str, ...], ...]


def spread(sizes_bytes: Mapping[str, int], num_layers: int) -> Layers:
    """Assign each file to a layer: the largest first, each to the layer with the fewest bytes.

    No layer is larger than their mean plus the largest file.
    """
    layers: list[list[str]] = [[] for _ in range(num_layers)]
    heap = [(0, number) for number in range(num_layers)]
    for path in sorted(sizes_bytes, key=lambda path: (-sizes_bytes[path], path)):
        used_bytes, number = heapq.heappop(heap)
        layers[number].append(path)
        heapq.heappush(heap, (used_bytes + sizes_bytes[path], number))
    return tuple(tuple(sorted(layer)) for layer in layers)


def split_directory(directory: Path, to: Path, num_layers: int) -> Mapping[str, Mapping[str, int]]:
    """Fill `to/0`, `to/1` ... with the models' files, hard links where the disk allows it.

    A file that several models have is in one layer, and the others have symbolic links to it. The
    manifest is in the last layer, so that it is added to an image after all that it lists. Returns
    the bytes of each file by layer. Raises InvalidSettings if `to` exists already or there is
    no manifest.
    """
    if not (directory / MANIFEST).is_file():
        raise InvalidSettings(f"--from {directory}: holds no {MANIFEST}: bake it first")
    if to.exists() and any(to.iterdir()):
        raise InvalidSettings(f"--to {to}: is not empty")
    sizes = {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for entry in read_manifest(directory).values()
        for pattern in ("*", "*/*")  # unlike `**`, this goes into folders that are links
        for path in (directory / entry.path).glob(pattern)
        if path.is_file()
    }
    firsts = _first_names(directory, sizes)
    layers = [
        dict.fromkeys(layer, 0)
        for layer in spread({first: sizes[first] for first in firsts.values()}, num_layers)
    ]
    layers[-1] |= dict.fromkeys((path for path in sizes if firsts[path] != path), 0)
    layers[-1][MANIFEST] = 0
    for number, layer in enumerate(layers):
        (to / str(number)).mkdir(parents=True, exist_ok=True)
        for path in layer:
            layer[path] = _put(directory, path, firsts.get(path, path), to / str(number))
    return {str(number): layer for number, layer in enumerate(layers)}


def _first_names(directory: Path, paths: Iterable[str]) -> Mapping[str, str]:
    """Return for each path the first one that is the same file on the disk."""
    names: dict[tuple[int, int], str] = {}
    firsts = {}
    for path in paths:
        status = (directory / path).stat()
        firsts[path] = names.setdefault((status.st_dev, status.st_ino), path)
    return firsts


def _put(directory: Path, path: str, first: str, layer: Path) -> int:
    """Put a file into a layer; return the bytes that it takes there."""
    target = layer / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if first != path:
        target.symlink_to(os.path.relpath(first, Path(path).parent))
        return 0
    _link(directory / path, target)
    return target.stat().st_size


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
