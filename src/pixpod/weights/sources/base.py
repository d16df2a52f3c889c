"""The protocol of sources, and functions that several of them share."""

import logging
from pathlib import Path
from typing import Protocol

from pixpod.errors import WeightsUnreadable
from pixpod.extras import ServedSpec
from pixpod.weights.disk import Progress
from pixpod.weights.layout import Weights
from pixpod.weights.manifest import (
    MANIFEST,
    Manifest,
    ManifestEntry,
    read_manifest,
)

log = logging.getLogger(__name__)

_STEP_PERCENT = 10


class Source(Protocol):
    """One of the places where a deployment's weights may be."""

    @property
    def name(self) -> str:
        """`baked`, `platform_cache`, `volume` or `hub`, as a reply names the source of weights."""
        ...

    def find(self, spec: ServedSpec) -> Weights | None:
        """Return the model's weights if they are on a local disk now, else None. Quick.

        Raises DiskFull if they are not there and would not fit.
        """
        ...

    def fetch(self, spec: ServedSpec) -> Weights | None:
        """Return the model's weights on a local disk, copied or downloaded first if need be.

        Return None if this source does not have the model. May take minutes; safe to call from
        several processes at once.

        Raises:
            ModelUnavailable: this source should have the model, but cannot provide it to any host.
            WeightsUnreadable, DiskFull: this host could not fetch it.
        """
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The models that the source lists, in order; empty if it has no list of models.

        Raises InvalidSettings for a damaged manifest.
        """
        ...

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The extras that the source lists, like `names`."""
        ...

    def why_not(self, spec: ServedSpec) -> str:
        """Describe what is there instead of the model, after `fetch` returned None.

        The text is for the owner of the endpoint.
        """
        ...


def read_manifest_if_there(directory: Path) -> Manifest | None:
    """Read the manifest of a weights directory; return None if it has no manifest.toml.

    Raises InvalidSettings for a damaged manifest, WeightsUnreadable for a damaged disk.
    """
    path = directory / MANIFEST
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc
    return read_manifest(directory)


def listed_names(directory: Path, manifest: Manifest | None) -> str:
    """Describe what a weights directory has."""
    if manifest is None:
        return f"{directory} has no {MANIFEST}"
    return f"{directory / MANIFEST} lists {', '.join(manifest) or 'nothing'}"


def weights_of(directory: Path, entry: ManifestEntry, source: str) -> Weights:
    """Return an entry of a weights directory's manifest as weights; reads no file."""
    return Weights(
        folder=directory / entry.path,
        revision=entry.revision,
        source=source,
        vae=directory / entry.vae if entry.vae else None,
        precision=entry.precision,
        files=entry.files,
    )


def is_whole(weights: Weights) -> bool:
    """Return whether all files are there in their sizes. Readers check the bytes."""
    try:
        return all(
            (weights.folder / file.path).stat().st_size == file.size_bytes for file in weights.files
        )
    except OSError:
        return False


def log_progress(message: str, model: str) -> Progress:
    """Return a Progress that logs a line for each tenth that is done."""
    last_percent = -_STEP_PERCENT

    def note(done_bytes: int, total_bytes: int) -> None:
        nonlocal last_percent
        percent = 100 * done_bytes // total_bytes if total_bytes else 100
        if percent >= last_percent + _STEP_PERCENT:
            last_percent = percent - percent % _STEP_PERCENT
            sizes = {"done_bytes": done_bytes, "total_bytes": total_bytes}
            log.info(message, extra={"model": model, "percent": percent, **sizes})

    return note
