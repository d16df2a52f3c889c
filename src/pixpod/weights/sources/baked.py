"""Weights that are in the image, as its manifest says."""

from pathlib import Path

from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.extras import ServedSpec
from pixpod.weights.layout import Weights
from pixpod.weights.manifest import names_in
from pixpod.weights.sources.base import listed_names, read_manifest_if_there, weights_of


class BakedSource:
    """A weights directory on the local disk. It has no models without a manifest.toml."""

    name = "baked"

    def __init__(self, directory: Path) -> None:
        """Read the manifest. Raises InvalidSettings if it is damaged."""
        self._directory = directory
        self._manifest = read_manifest_if_there(directory)

    @property
    def names(self) -> tuple[str, ...]:
        return names_in(self._manifest or {}, extras=False)

    @property
    def extra_names(self) -> tuple[str, ...]:
        return names_in(self._manifest or {}, extras=True)

    def find(self, spec: ServedSpec) -> Weights | None:
        """Return the model's weights; None if the manifest does not list the model.

        Raises ModelUnavailable for a missing file, which the container image then lacks on every
        host, and WeightsUnreadable for a file of another size.
        """
        entry = (self._manifest or {}).get(spec.name)
        if entry is None:
            return None
        weights = weights_of(self._directory, entry, self.name)
        for file in weights.files:
            path = weights.folder / file.path
            try:
                found_bytes = path.stat().st_size
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise ModelUnavailable(
                    f"{spec.name}: {path} is in manifest.toml, but missing from the image: "
                    "build the image again"
                ) from exc
            except OSError as exc:
                raise WeightsUnreadable(f"{spec.name}: {path}: {exc.strerror}") from exc
            if found_bytes != file.size_bytes:
                raise WeightsUnreadable(
                    f"{spec.name}: {path}: expected {file.size_bytes} bytes, got {found_bytes}"
                )
        return weights

    def fetch(self, spec: ServedSpec) -> Weights | None:
        return self.find(spec)

    def why_not(self, spec: ServedSpec) -> str:
        return listed_names(self._directory, self._manifest)
