"""Sources of the weights of a bake: the hub, a folder of diffusers, or a single file."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_token
from pydantic import SecretStr

from pixpod.catalog import ModelSpec
from pixpod.errors import InvalidSettings, LicenceNotAccepted
from pixpod.extras import ServedSpec
from pixpod.weights.hub_repository import (
    VAE_FILES,
    fetch_repository,
    needed_files,
    resolve_revision,
)
from pixpod.weights.layout import MODEL_INDEX
from pixpod.weights.manifest import MANIFEST, read_manifest
from pixpod_tools.bake.bars import byte_bar
from pixpod_tools.bake.single_file import as_folder, check_family

HUB = "hub"

_COMMIT = re.compile("[0-9a-f]{40}")
DOWNLOADS = ".download"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A folder in the layout of diffusers, and its description for the manifest.

    `vae` is a folder that replaces the one inside. `denoiser` describes the origin of the
    denoiser's weights where it is another one.
    """

    folder: Path
    revision: str
    repository: str | None = None
    vae: Path | None = None
    denoiser: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """The caller's choice of a source. `location` is HUB, a path, or None for the model's default.

    `own_models` is a weights directory with the models that no hub has. `config` is the folder
    with the configs for a single file, `endpoint` the hub's address if not the library's.
    """

    location: str | None
    own_models: Path
    config: Path | None = None
    vae: Path | None = None
    revision: str | None = None
    token: SecretStr | None = None
    accepted_licences: frozenset[str] = frozenset()
    endpoint: str | None = None


def read_token(file: Path | None) -> SecretStr | None:
    """Return the token in a file such as a build's secret, else the one that huggingface_hub finds:
    HF_TOKEN or the one that its login has stored. Raises InvalidSettings for a file without one.
    """
    if file is None:
        found = get_token()
        return SecretStr(found) if found else None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise InvalidSettings(f"--token-file {file}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        text = ""
    if not text.isascii() or len(text.split()) != 1:
        raise InvalidSettings(f"--token-file {file}: expected a file with one token of the hub")
    return SecretStr(text)


def check_licence(spec: ServedSpec, accepted: frozenset[str]) -> None:
    """Raise LicenceNotAccepted unless the caller has accepted a licence that requires it."""
    if spec.licence_must_be_accepted and spec.licence not in accepted:
        raise LicenceNotAccepted(
            f"{spec.name} has the licence {spec.licence}: read it, then repeat with "
            f"--accept-licence {spec.licence} if your use is allowed"
        )


@contextmanager
def opened(
    spec: ModelSpec, options: SourceOptions, dtype: torch.dtype, directory: Path
) -> Iterator[Origin]:
    """Yield the model's weights as a folder, which exists during the block.

    A single file is converted to `dtype`. After a failure, downloaded files are kept beside the
    baked models, so that the next run resumes the download.

    Raises:
        InvalidSettings: the requested options exclude each other.
        LicenceNotAccepted: the licence was not accepted.
        ModelUnavailable, HubUnavailable, DiskFull: as `fetch_repository`.
    """
    check_licence(spec, options.accepted_licences)
    location = options.location
    if location is None:
        location = HUB if spec.repository else spec.source or str(options.own_models)
    path = Path(location)
    if location == HUB:
        downloads = directory / DOWNLOADS / spec.name
        yield _fetch(spec, options, downloads)
        shutil.rmtree(downloads)
        if not any(downloads.parent.iterdir()):
            downloads.parent.rmdir()
    elif path.is_file():
        with _converted(spec, options, path, dtype, directory) as origin:
            yield origin
    else:
        yield _local(spec, options, path)


def _fetch(spec: ModelSpec, options: SourceOptions, downloads: Path) -> Origin:
    """Download a model at the pinned commits, else at those that are the newest now."""
    if spec.repository is None:
        raise InvalidSettings(
            f"{spec.name} has no repository in the catalog: give it there, or a folder with --from"
        )
    revision = options.revision or spec.revision or newest(spec.repository, options)
    folder = downloads / "model"
    vae = options.vae
    if vae is None and spec.vae_repository:
        vae = downloads / "vae"
        of_vae = spec.vae_revision or newest(spec.vae_repository, options)
        fetch_to(vae, spec.vae_repository, of_vae, VAE_FILES, options)
    fetch_to(folder, spec.repository, revision, needed_files(spec), options)
    denoiser = None
    if spec.denoiser_repository and spec.denoiser_file:
        of_file = spec.denoiser_revision or newest(spec.denoiser_repository, options)
        inside = folder / spec.family.denoiser
        fetch_to(inside, spec.denoiser_repository, of_file, (spec.denoiser_file,), options)
        denoiser = f"{spec.denoiser_repository}/{spec.denoiser_file} at {of_file}"
    return Origin(
        folder=folder,
        revision=revision,
        repository=spec.repository,
        vae=vae,
        denoiser=denoiser,
    )


def newest(repository: str, options: SourceOptions) -> str:
    """Return the newest commit of a repository, which the manifest will name."""
    return resolve_revision(repository, token=options.token, endpoint=options.endpoint)


def fetch_to(
    folder: Path,
    repository: str,
    revision: str,
    patterns: tuple[str, ...],
    options: SourceOptions,
) -> None:
    """Download the chosen files of a commit, and show how far it is."""
    with byte_bar(f"{repository}: fetching", None) as bar:
        seen = 0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal seen
            bar.total = total_bytes
            bar.update(done_bytes - seen)
            seen = done_bytes

        fetch_repository(
            repository,
            revision,
            patterns,
            folder,
            token=options.token,
            endpoint=options.endpoint,
            progress=progress,
        )


def _local(spec: ModelSpec, options: SourceOptions, path: Path) -> Origin:
    """Return an origin: a folder of diffusers, or one in a weights directory with this model."""
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if spec.name not in manifest:
            held = ", ".join(manifest) or "no model"
            raise InvalidSettings(f"--from {path}: holds {held}, not {spec.name}")
        entry = manifest[spec.name]
        return Origin(
            folder=path / entry.path,
            revision=options.revision or entry.revision,
            repository=entry.repository,
            vae=options.vae or (path / entry.vae if entry.vae else None),
        )
    if not (path / MODEL_INDEX).is_file():
        raise InvalidSettings(
            f"--from {path}: expected {HUB}, a folder with {MODEL_INDEX} or {MANIFEST}, "
            "and a .safetensors file"
        )
    return Origin(
        folder=path,
        revision=options.revision or revision_of(path),
        repository=spec.repository,
        vae=options.vae,
    )


def revision_of(folder: Path) -> str:
    """Return the commit that a folder is named after, else a text that its files determine."""
    name = folder.resolve().name
    return name if _COMMIT.fullmatch(name) else f"local-{_fingerprint(folder, '*', '*/*')}"


def _fingerprint(folder: Path, *patterns: str) -> str:
    """Return a text that differs for each state of the user's files, without reading them. Without
    it, a model that was baked from other weights would count as up to date.
    """
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    stats = [(path, path.stat()) for path in paths]
    lines = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@contextmanager
def _converted(
    spec: ModelSpec, options: SourceOptions, file: Path, dtype: torch.dtype, directory: Path
) -> Iterator[Origin]:
    config = options.config or (Path(spec.config) if spec.config else None)
    if config is None:
        raise InvalidSettings(
            f"{file}: a single file needs --config FOLDER, or config in the catalog: a folder of "
            "diffusers with the configs, tokenizers and scheduler of the same model"
        )
    check_family(spec, file)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".single-file-", dir=directory) as folder:
        as_folder(spec, file, config, dtype, Path(folder))
        yield Origin(
            folder=Path(folder),
            revision=options.revision or f"{file.name}-{_fingerprint(file.parent, file.name)}",
            vae=options.vae,
        )
