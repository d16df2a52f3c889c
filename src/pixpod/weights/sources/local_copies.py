"""Copies of models on the local disk, each a weights directory of its own, of one version."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pixpod.errors import InvalidSettings
from pixpod.weights.disk import disk_faults, exclusive, write_durably
from pixpod.weights.layout import Weights
from pixpod.weights.manifest import MANIFEST, ManifestEntry, render_manifest
from pixpod.weights.sources.base import is_whole, read_manifest_if_there, weights_of

_LOCK = "copying.lock"
_VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopies:
    """`<directory>/<source>/<model>/<version>/` with a manifest once the copy is complete."""

    directory: Path
    source: str

    def find(self, model: str, version: str) -> Weights | None:
        """Return a complete copy; None if there is none, or files of it are missing."""
        folder = self.folder(model, version)
        try:
            manifest = read_manifest_if_there(folder)
        except InvalidSettings:  # the disk lost it; it is written again
            return None
        if manifest is None or model not in manifest:
            return None
        weights = weights_of(folder, manifest[model], self.source)
        return weights if is_whole(weights) else None

    def is_first(self, model: str, version: str) -> bool:
        """Make a version's folder; return whether there are no others that it could replace.

        Return False, too, if the folder cannot be made: `making` raises the reason.
        """
        folder = self.folder(model, version)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return all(path == folder for path in folder.parent.iterdir())
        except OSError:
            return False

    @contextmanager
    def making(self, model: str, version: str) -> Iterator[Path]:
        """Lock and yield the folder of one version, which may have a part of the copy already.

        One copy is made at a time on a host, because copies share one disk and one network. Other
        versions of the model are removed first, to leave room: a process keeps files it has opened.
        """
        what = f"copy of {model}"
        with disk_faults(self.directory, what), exclusive(self.directory / _LOCK):
            folder = self.folder(model, version)
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
            yield folder

    def finish(self, version: str, entry: ManifestEntry) -> None:
        """Mark a copy as complete: its manifest is written last."""
        path = self.folder(entry.name, version) / MANIFEST
        write_durably(path, render_manifest({entry.name: entry}))

    def folder(self, model: str, version: str) -> Path:
        """Return a path that suits any version, whatever it is called."""
        name = hashlib.sha256(version.encode()).hexdigest()[:_VERSION_DIGITS]
        return self.directory / self.source / model / name
