"""The model that the platform caches on its hosts: a repository in the hub's own layout.

https://docs.runpod.io/serverless/endpoints/model-caching
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pixpod.catalog import ModelSpec
from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.extras import ExtraSpec, ServedSpec
from pixpod.weights.hub_repository import choose_files, needed_files
from pixpod.weights.layout import (
    MODEL_INDEX,
    Weights,
    component_folder,
    tensor_paths,
)
from pixpod.weights.manifest import WeightFile


@dataclass(frozen=True)
class PlatformCacheSource:
    """`<hub_cache_dir>/models--<organisation>--<name>/{refs/main,snapshots/<commit>/}`.

    The platform caches one repository for an endpoint, as its authors have uploaded it. A VAE
    that belongs to another repository is taken from the weights directory, where it is named
    like its repository; without it the model's own is used.
    """

    name = "platform_cache"
    names: ClassVar[tuple[str, ...]] = ()
    extra_names: ClassVar[tuple[str, ...]] = ()

    hub_cache_dir: Path
    weights_dir: Path

    def find(self, spec: ServedSpec) -> Weights | None:
        """Return the pinned revision, else the one that the cache calls main.

        Raises ModelUnavailable for a repository that is not in the layout of diffusers, and
        WeightsUnreadable for an incomplete snapshot: the platform is still filling it, or has
        stopped filling it, on this host only. Extras are not cached: the one repository is a
        model's. Nor are models whose denoiser is a file of another repository.
        """
        if spec.repository is None or isinstance(spec, ExtraSpec) or spec.denoiser_file:
            return None
        repository = self.hub_cache_dir / f"models--{spec.repository.replace('/', '--')}"
        try:
            snapshot = self._snapshot(spec, repository)
        except OSError as exc:
            raise WeightsUnreadable(f"{spec.name}: {exc.filename}: {exc.strerror}") from exc
        if snapshot is None:
            return None
        is_being_filled = any((repository / "blobs").glob("*.incomplete"))
        if not (snapshot / MODEL_INDEX).exists() and not is_being_filled:
            raise ModelUnavailable(
                f"{spec.name}: {snapshot} is not in the layout of diffusers, it has no "
                f"{MODEL_INDEX}: have the platform cache {spec.repository}"
            )
        weights = Weights(
            folder=snapshot, revision=snapshot.name, source=self.name, vae=self._vae(spec)
        )
        try:
            _check_whole(spec, weights)
            return replace(weights, files=_list_files(spec, weights))
        except (OSError, ValueError, WeightsUnreadable) as exc:
            raise WeightsUnreadable(
                f"{spec.name}: {snapshot} is not whole ({_reason(exc)}): the platform has not "
                "finished its download"
            ) from exc

    def fetch(self, spec: ServedSpec) -> Weights | None:
        return self.find(spec)

    def why_not(self, spec: ServedSpec) -> str:
        if isinstance(spec, ModelSpec) and spec.denoiser_file:
            return "the platform caches one repository, and the model's denoiser is in another"
        cached = sorted(path.name for path in self.hub_cache_dir.glob("models--*"))
        if not cached:
            return f"{self.hub_cache_dir} has no model"
        names = ", ".join(name.removeprefix("models--").replace("--", "/", 1) for name in cached)
        return (
            f"{self.hub_cache_dir} holds {names}, and the platform caches one repository per "
            "endpoint: serve the others from the image, the volume or endpoints of their own"
        )

    def _snapshot(self, spec: ModelSpec, repository: Path) -> Path | None:
        snapshots = repository / "snapshots"
        if spec.revision and (snapshots / spec.revision).is_dir():
            return snapshots / spec.revision
        try:
            commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return None
        is_commit = re.fullmatch("[0-9a-f]{40}", commit) is not None
        return snapshots / commit if is_commit and (snapshots / commit).is_dir() else None

    def _vae(self, spec: ModelSpec) -> Path | None:
        if spec.vae_repository is None:
            return None
        folder = self.weights_dir / spec.vae_repository.rpartition("/")[2]
        return folder if (folder / "config.json").is_file() else None


def _check_whole(spec: ModelSpec, weights: Weights) -> None:
    """Raise OSError, ValueError or WeightsUnreadable for a required file that is missing.

    A file of a snapshot is a link to its bytes, which is made once they are complete.
    """
    index = json.loads((weights.folder / MODEL_INDEX).read_text(encoding="utf-8"))
    for part in index:
        if part.startswith(("scheduler", "tokenizer")):
            found = [path.stat() for path in (weights.folder / part).iterdir()]
            if not found:
                raise WeightsUnreadable(f"{part} is empty")
    for component in spec.family.component_names:
        folder = component_folder(weights, component)
        for path in (folder / "config.json", *tensor_paths(folder)):
            path.stat()


def _list_files(spec: ModelSpec, weights: Weights) -> tuple[WeightFile, ...]:
    """List the snapshot's files; large ones are links to blobs, which are named by their sha256."""
    patterns = needed_files(spec if weights.vae else replace(spec, vae_repository=None))
    paths = (path.relative_to(weights.folder) for path in weights.folder.rglob("*"))
    chosen = choose_files((path.as_posix() for path in paths), patterns)
    return tuple(_describe(weights.folder / path, path) for path in chosen)


def _describe(path: Path, name: str) -> WeightFile:
    blob = path.resolve().name
    sha256 = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
    return WeightFile(path=name, size_bytes=path.stat().st_size, sha256=sha256)


def _reason(exc: Exception) -> str:
    """Return a short reason: a path and what is wrong with it."""
    return f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) else str(exc)
