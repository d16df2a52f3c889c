"""Adds models to a weights directory. Its manifest never lists an incomplete model."""

import contextlib
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pixpod.weights.disk import write_durably
from pixpod.weights.hub_repository import in_boot_order
from pixpod.weights.manifest import (
    MANIFEST,
    Manifest,
    ManifestEntry,
    WeightFile,
    read_manifest,
    render_manifest,
)
from pixpod_tools.bake.bars import byte_bar
from pixpod_tools.bake.checksums import describe_files, total_bytes
from pixpod_tools.bake.verify import verify_entry

NOT_LISTED = ("LICENSE", "README", "NOTICE")
"""Prefixes of the names of files that are kept beside the weights, but that no boot needs."""

_STAMP = "bake.json"


def is_baked(directory: Path, entry: ManifestEntry) -> bool:
    """Return whether the directory already has this model, with every byte as in the entry."""
    found = _manifest(directory).get(entry.name)
    if found is None or replace(found, files=()) != entry:
        return False
    with byte_bar(f"{entry.name}: checking", found.size_bytes) as bar:
        return not verify_entry(directory, found, bar.update)


def list_models(directory: Path) -> dict[str, int]:
    """Return the bytes of each model; write a manifest without models if there is none yet."""
    if not (directory / MANIFEST).exists():
        write_manifest(directory, {})
    return {name: entry.size_bytes for name, entry in _manifest(directory).items()}


def add_model(directory: Path, entry: ManifestEntry, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder, checksum what it wrote, and list it in the manifest.

    `make` gets a folder that may have files of an earlier run of the same entry.
    """
    part = _prepare(directory, entry)
    make(part)
    paths = in_boot_order(_listed(part))
    with byte_bar(f"{entry.name}: checksums", total_bytes(part, paths)) as bar:
        files = describe_files(part, paths, bar.update)
    (part / _STAMP).unlink()
    others = {name: other for name, other in _manifest(directory).items() if name != entry.name}
    _link_what_is_there(directory, others, part, files)
    write_manifest(directory, others)
    target = directory / entry.path
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    write_manifest(directory, {**others, entry.name: replace(entry, files=files)})


def list_again(directory: Path) -> None:
    """Write the manifest anew after files of its models were changed in place."""
    found = {}
    for name, entry in _manifest(directory).items():
        folder = directory / entry.path
        paths = in_boot_order(_listed(folder))
        with byte_bar(f"{name}: checksums", total_bytes(folder, paths)) as bar:
            found[name] = replace(entry, files=describe_files(folder, paths, bar.update))
    write_manifest(directory, found)


def _link_what_is_there(
    directory: Path, others: Manifest, folder: Path, files: Iterable[WeightFile]
) -> None:
    """Keep one copy of tensors that other models have, too. It has hard links, so that any of the
    models may be removed.
    """
    there = {
        file.sha256: directory / other.path / file.path
        for other in others.values()
        for file in other.files
    }
    for path, digest in ((folder / file.path, file.sha256) for file in files):
        if digest in there and path.suffix == ".safetensors":
            link = path.with_name(f"{path.name}.link")
            with contextlib.suppress(OSError):  # there is no file, or the disk has no links
                if filecmp.cmp(there[digest], path, shallow=False):  # it may be damaged by now
                    link.hardlink_to(there[digest].resolve())
                    link.replace(path)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / MANIFEST, render_manifest(manifest))


def _prepare(directory: Path, entry: ManifestEntry) -> Path:
    """Return the folder to fill, emptied unless it is of the same entry."""
    part = directory / f"{entry.path}.part"
    stamp = {"entry": repr(entry)}
    if part.exists():
        try:
            is_same = json.loads((part / _STAMP).read_text(encoding="utf-8")) == stamp
        except (OSError, ValueError):
            is_same = False
        if not is_same:
            shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    (part / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return part


def _manifest(directory: Path) -> Manifest:
    return read_manifest(directory) if (directory / MANIFEST).exists() else {}


def _listed(folder: Path) -> list[str]:
    """Return the files of a folder, those behind links to other folders as well."""
    return [
        str((Path(parent) / name).relative_to(folder))
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name != _STAMP and not name.startswith(NOT_LISTED)
    ]
