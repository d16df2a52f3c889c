"""Checks every byte of a weights directory against its manifest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from pixpod.catalog import Catalog
from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.extras import Extras
from pixpod.weights.layout import Weights, check_extra_layout, check_layout
from pixpod.weights.manifest import CHUNK_BYTES, Manifest, ManifestEntry, WeightFile
from pixpod_tools.bake.checksums import Progress, describe_file

_THREADS = 4


def verify_directory(
    directory: Path,
    manifest: Manifest,
    catalog: Catalog,
    progress: Progress,
    extras: Extras = MappingProxyType({}),
) -> list[str]:
    """Return all problems, one line each, with paths in the directory; empty if there is none.

    Finds damage, weights that no entry lists, entries without files, and a layout that differs
    from that of the catalog's model or extra of the same name.
    """
    return [
        problem
        for entry in manifest.values()
        for problem in chain(
            verify_entry(directory, entry, progress), _layout(directory, entry, catalog, extras)
        )
    ]


def verify_entry(directory: Path, entry: ManifestEntry, progress: Progress) -> list[str]:
    """Return the problems of one model's files."""
    folder = directory / entry.path
    if not folder.is_dir():
        return [f"{entry.path}: is missing"]
    if not entry.files:
        return [f"{entry.path}: the manifest lists no files of {entry.name}: bake again"]

    def check(file: WeightFile) -> list[str]:
        return [f"{entry.path}/{file.path}: {p}" for p in _check_file(folder, file, progress)]

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
        found = chain.from_iterable(threads.map(check, entry.files))
        return [*found, *_unlisted(folder, entry)]


def _check_file(folder: Path, file: WeightFile, progress: Progress) -> Iterator[str]:
    path = folder / file.path
    try:
        size_bytes = path.stat().st_size
        if size_bytes != file.size_bytes:
            yield f"expected {file.size_bytes} bytes, got {size_bytes}"
            progress(file.size_bytes)
            return
        found = describe_file(folder, file.path, progress)
    except OSError as exc:
        yield "is missing" if isinstance(exc, FileNotFoundError) else f"{exc.strerror}"
        return
    for number, (is_, expected) in enumerate(zip(found.chunks, file.chunks, strict=False)):
        if is_ != expected:
            begin = number * CHUNK_BYTES
            end = min(begin + CHUNK_BYTES, file.size_bytes)
            yield f"bytes {begin} to {end} are not what was baked"
    if found.chunks == file.chunks and found.sha256 != file.sha256:
        yield f"expected sha256 {file.sha256}, got {found.sha256}"
    if len(found.chunks) != len(file.chunks):
        yield f"expected {len(found.chunks)} chunks in the manifest, got {len(file.chunks)}"


def _unlisted(folder: Path, entry: ManifestEntry) -> Iterator[str]:
    """Yield a problem for each weight file that a boot does not check, but `from_pretrained` may
    read.
    """
    listed = {file.path for file in entry.files}
    for path in sorted(folder.rglob("*.safetensors")):
        if (name := path.relative_to(folder).as_posix()) not in listed:
            yield f"{entry.path}/{name}: is not listed in the manifest"


def _layout(
    directory: Path, entry: ManifestEntry, catalog: Catalog, extras: Extras
) -> Iterator[str]:
    weights = Weights(
        folder=directory / entry.path,
        revision=entry.revision,
        source="baked",
        vae=directory / entry.vae if entry.vae else None,
    )
    try:
        if entry.is_extra:
            if extra := extras.get(entry.name):
                check_extra_layout(extra, weights)
        elif spec := catalog.get(entry.name):
            check_layout(spec, weights)
    except (ModelUnavailable, WeightsUnreadable) as exc:
        yield f"{entry.path}: {exc}"
