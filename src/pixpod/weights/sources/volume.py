"""Weights on a network volume, which are copied to the local disk once."""

from pathlib import Path

from pixpod.errors import ModelUnavailable
from pixpod.extras import ServedSpec
from pixpod.weights.layout import Weights
from pixpod.weights.manifest import Manifest, ManifestEntry, names_in, render_manifest
from pixpod.weights.sources.base import listed_names, log_progress, read_manifest_if_there
from pixpod.weights.sources.copying import check_room, copy_files
from pixpod.weights.sources.local_copies import LocalCopies


class VolumeSource:
    """A weights directory on a volume that all hosts share. Its manifest is read each time, because
    models may be added while workers run.
    """

    name = "volume"

    def __init__(self, volume_dir: Path, local_dir: Path) -> None:
        self._volume_dir = volume_dir
        self._copies = LocalCopies(directory=local_dir, source=self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The manifest's models. Raises InvalidSettings if the manifest is damaged."""
        return names_in(self._manifest() or {}, extras=False)

    @property
    def extra_names(self) -> tuple[str, ...]:
        return names_in(self._manifest() or {}, extras=True)

    def find(self, spec: ServedSpec) -> Weights | None:
        """Return a complete local copy, else None. Raises DiskFull early, before any job waits for
        it, if the missing copy would not fit.
        """
        entry = self._entry(spec)
        if entry is None:
            return None
        version = _version(entry)
        found = self._copies.find(entry.name, version)
        if found is None and self._copies.is_first(entry.name, version):
            folder = self._copies.folder(entry.name, version)
            check_room(self._volume_dir / entry.path, folder / entry.path, entry.files)
        return found

    def fetch(self, spec: ServedSpec) -> Weights | None:
        entry = self._entry(spec)
        if entry is None:
            return None
        if not entry.files or entry.vae:
            raise ModelUnavailable(
                f"{spec.name}: its entry in {self._volume_dir} does not list all files: write it "
                "to the volume with scripts/bake"
            )
        version = _version(entry)
        if found := self._copies.find(entry.name, version):
            return found
        with self._copies.making(entry.name, version) as folder:
            copy_files(
                self._volume_dir / entry.path,
                folder / entry.path,
                entry.files,
                log_progress("copying weights from the volume", entry.name),
            )
            self._copies.finish(version, entry)
        return self._copies.find(entry.name, version)

    def why_not(self, spec: ServedSpec) -> str:
        return listed_names(self._volume_dir, self._manifest())

    def _manifest(self) -> Manifest | None:
        return read_manifest_if_there(self._volume_dir)

    def _entry(self, spec: ServedSpec) -> ManifestEntry | None:
        return (self._manifest() or {}).get(spec.name)


def _version(entry: ManifestEntry) -> str:
    """Return the version of an entry; entries that differ in anything have different versions."""
    return render_manifest({entry.name: entry})
