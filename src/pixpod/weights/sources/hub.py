"""Weights that are downloaded from the hub, if the deployment allows it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pydantic import SecretStr

from pixpod.catalog import ModelSpec
from pixpod.errors import ModelUnavailable
from pixpod.extras import ExtraSpec, ServedSpec
from pixpod.weights.hub_repository import (
    VAE_FILES,
    allowed_online,
    extra_files,
    fetch_repository,
    in_boot_order,
    needed_files,
)
from pixpod.weights.layout import Weights
from pixpod.weights.manifest import ManifestEntry, WeightFile
from pixpod.weights.sources.base import log_progress
from pixpod.weights.sources.local_copies import LocalCopies


@dataclass(eq=False)
class HubSource:
    """The catalog's repositories at their pinned revisions. Uses no network unless allowed.

    `endpoint` is the hub's address if it is not the one that huggingface_hub knows.
    """

    name = "hub"
    names: ClassVar[tuple[str, ...]] = ()
    extra_names: ClassVar[tuple[str, ...]] = ()

    local_dir: Path
    token: SecretStr | None
    is_allowed: bool
    endpoint: str | None = None

    def __post_init__(self) -> None:
        self._copies = LocalCopies(directory=self.local_dir, source=self.name)

    def find(self, spec: ServedSpec) -> Weights | None:
        if not self.is_allowed or spec.repository is None or spec.revision is None:
            return None
        return self._copies.find(spec.name, _version(spec))

    def fetch(self, spec: ServedSpec) -> Weights | None:
        if not self.is_allowed or spec.repository is None:
            return None
        _check_pinned(spec.name, "revision", spec.repository, spec.revision)
        if isinstance(spec, ModelSpec):
            _check_pinned(spec.name, "vae_revision", spec.vae_repository, spec.vae_revision)
            _check_pinned(
                spec.name, "denoiser_revision", spec.denoiser_repository, spec.denoiser_revision
            )
        if found := self.find(spec):
            return found
        version = _version(spec)
        with self._copies.making(spec.name, version) as folder:
            if found := self.find(spec):  # another process was faster
                return found
            self._copies.finish(version, self._fetch(spec, folder))
        return self.find(spec)

    def why_not(self, spec: ServedSpec) -> str:
        if not self.is_allowed:
            return "downloading is not allowed (PIXPOD_ALLOW_HUB)"
        return "the catalog names no repository"

    def _fetch(self, spec: ServedSpec, folder: Path) -> ManifestEntry:
        """Fetch a model's repositories into one folder, as in a baked model; of an extra's
        repository, its folder only.
        """
        assert spec.repository and spec.revision
        is_extra = isinstance(spec, ExtraSpec)
        patterns = extra_files(spec) if isinstance(spec, ExtraSpec) else needed_files(spec)
        to = folder / spec.name
        files = self._fetch_one(spec, spec.repository, spec.revision, patterns, to)
        for part, repository, revision, wanted in _parts(spec):
            of_part = self._fetch_one(spec, repository, revision, wanted, to / part)
            files += tuple(replace(file, path=f"{part}/{file.path}") for file in of_part)
        inside = f"{spec.folder}/" if isinstance(spec, ExtraSpec) and spec.folder else ""
        by_path = {
            file.path.removeprefix(inside): replace(file, path=file.path.removeprefix(inside))
            for file in files
            if file.path.startswith(inside)
        }
        return ManifestEntry(
            name=spec.name,
            path=f"{spec.name}/{inside}".rstrip("/"),
            revision=spec.revision,
            repository=spec.repository,
            licence=spec.licence,
            files=tuple(by_path[path] for path in in_boot_order(by_path)),
            is_extra=is_extra,
        )

    def _fetch_one(
        self, spec: ServedSpec, repository: str, revision: str, patterns: tuple[str, ...], to: Path
    ) -> tuple[WeightFile, ...]:
        with allowed_online():
            return fetch_repository(
                repository,
                revision,
                patterns,
                to,
                token=self.token,
                endpoint=self.endpoint,
                progress=log_progress(f"downloading {repository}", spec.name),
            )


def _check_pinned(model: str, field: str, repository: str | None, revision: str | None) -> None:
    if repository and not revision:
        raise ModelUnavailable(
            f"{model}: {field} is missing in the catalog: {repository} is downloaded at a pinned "
            "commit only"
        )


def _parts(spec: ServedSpec) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield each component from another repository: its name, repository, commit and patterns."""
    if isinstance(spec, ExtraSpec):
        return
    if spec.vae_repository and spec.vae_revision:
        yield spec.family.vae, spec.vae_repository, spec.vae_revision, VAE_FILES
    if spec.denoiser_repository and spec.denoiser_revision and spec.denoiser_file:
        wanted = (spec.denoiser_file,)
        yield spec.family.denoiser, spec.denoiser_repository, spec.denoiser_revision, wanted


def _version(spec: ServedSpec) -> str:
    others: tuple[str | None, ...]
    if isinstance(spec, ExtraSpec):
        others = (spec.folder, spec.file)
    else:
        others = (spec.vae_repository, spec.vae_revision)
        if spec.denoiser_file:
            others += (spec.denoiser_repository, spec.denoiser_revision, spec.denoiser_file)
    return "\n".join(str(part) for part in (spec.repository, spec.revision, *others))
