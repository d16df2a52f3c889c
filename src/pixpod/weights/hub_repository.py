"""Chooses the files of a model repository that are needed, orders and fetches them.

Knows the layout of diffusers by its names only, and does not know how the files are used.
huggingface_hub is imported when something is fetched, never before.
"""

import fnmatch
import hashlib
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from pixpod.catalog import ModelSpec
from pixpod.errors import HubUnavailable, ModelUnavailable, WorkerError
from pixpod.extras import ExtraSpec
from pixpod.weights.disk import Progress, check_space, disk_faults, sha256_of
from pixpod.weights.manifest import WeightFile

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

STEMS: Mapping[str, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Names of weight files by library."""

VAE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "LICENSE*", "README.md")
"""Patterns for a repository that holds nothing but a VAE, which goes into the folder `vae`."""

_STAGES = ("text_encoder", "text_encoder_2", "transformer", "unet", "vae")

_SMALL_FILES = (
    "model_index.json",
    "LICENSE*",
    "README.md",
    "scheduler/*.json",
    "feature_extractor/*.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
    "tokenizer*/*.model",
    "tokenizer*/*.jinja",
)

_WEIGHTS_NAME = re.compile(
    r"(?P<folder>.*/|)[^/.]+(?:\.(?P<variant>[^/.]+?))?(?:-\d{5}-of-\d{5})?\.safetensors"
)
"""Names that diffusers and transformers give weights, e.g. `model.fp16-00001-of-00002.safetensors`.
"""

_CONNECTIONS = 4


def needed_files(spec: ModelSpec) -> tuple[str, ...]:
    """Return patterns for the files of the spec's repository that are needed to serve it.

    Leaves out single-file checkpoints, other formats, images, and what another repository's
    files replace: the VAE (VAE_FILES), and the denoiser's weights.
    `choose_files` and `fetch_repository` take them.
    """
    denoiser = spec.family.denoiser
    folders = [
        each
        for each in spec.family.component_names
        if not (each == "vae" and spec.vae_repository)
        and not (each == denoiser and spec.denoiser_file)
    ]
    config = (f"{denoiser}/config.json",) if spec.denoiser_file else ()
    return (
        *_SMALL_FILES,
        *config,
        *(f"{folder}/*.{kind}" for folder in folders for kind in ("json", "safetensors")),
    )


def resolve_revision(
    repository: str, *, token: SecretStr | None = None, endpoint: str | None = None
) -> str:
    """Return the commit of the repository's main branch. Raises as `fetch_repository`."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token.get_secret_value() if token else False)
    request = _HubRequest(repository=repository, revision="main", has_token=token is not None)
    with request.translated():
        return str(api.repo_info(repository).sha)


def extra_files(extra: ExtraSpec) -> tuple[str, ...]:
    """Return patterns for the files of an extra's repository that are needed."""
    root = PurePosixPath(extra.folder)
    chosen = [str(root / extra.file)] if extra.file else []
    for component in extra.components:
        folder, stem = root / component.name, STEMS[component.library]
        chosen += [f"{folder / 'config.json'}", f"{folder / stem}*.safetensors"]
        chosen += [f"{folder / stem}*.json"]
    return (*chosen, "LICENSE*", "README.md")


def choose_files(paths: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that match one of the patterns, in the order in which a boot needs them.

    If a folder has its weights several times, the 16-bit ones (`fp16`) are taken, else those
    without the name of a variant.
    """
    matching = [path for path in paths if any(fnmatch.fnmatchcase(path, p) for p in patterns)]
    weights = {path: found for path in matching if (found := _WEIGHTS_NAME.fullmatch(path))}
    halved = {found["folder"] for found in weights.values() if found["variant"] == "fp16"}
    return in_boot_order(
        path
        for path in matching
        if path not in weights
        or weights[path]["variant"] == ("fp16" if weights[path]["folder"] in halved else None)
    )


def in_boot_order(paths: Iterable[str]) -> tuple[str, ...]:
    """Return small files first, then weights of text encoders, denoiser and VAE, shard by shard.

    A component of a name that no family has comes last.
    """

    def stage(path: str) -> int:
        if not path.endswith(".safetensors"):
            return -1
        folder = path.partition("/")[0]
        return _STAGES.index(folder) if folder in _STAGES else len(_STAGES)

    return tuple(sorted(paths, key=lambda path: (stage(path), path)))


def fetch_repository(
    repository: str,
    revision: str,
    patterns: Sequence[str],
    to: Path,
    *,
    token: SecretStr | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> tuple[WeightFile, ...]:
    """Download the chosen files of one commit into a folder, and check each against the hub.

    Files that are there already are kept, so a broken run can be repeated. `endpoint` is the
    hub's address if not the library's own. Returns the files in boot order, without `chunks`.

    Raises:
        ModelUnavailable: no access, no such repository, revision or files; the same everywhere.
        HubUnavailable: the hub did not answer, or what came was damaged; may work elsewhere.
        DiskFull: the files do not fit.
    """
    from huggingface_hub import HfApi, RepoFile

    _keep_links_out_of_logs()
    # a token of False keeps the library from using one that it finds on the machine
    api = HfApi(endpoint=endpoint, token=token.get_secret_value() if token else False)
    request = _HubRequest(repository=repository, revision=revision, has_token=token is not None)
    with request.translated():
        tree = api.list_repo_tree(repository, recursive=True, revision=revision)
        listed = {file.path: file for file in tree if isinstance(file, RepoFile)}
    chosen = choose_files(listed, patterns)
    if not chosen:
        raise ModelUnavailable(
            f"{request} has none of the files that are needed: check `repository` in the catalog, "
            "it must be in the layout of diffusers"
        )
    sizes = {path: listed[path].size for path in chosen}
    left_bytes = sum(size for path, size in sizes.items() if not (to / path).exists())
    check_space(to, left_bytes, f"{request}: the download")
    meter = _Meter(sizes, progress)

    def fetch(path: str) -> WeightFile:
        with request.translated(), disk_faults(to, f"{request}: {path}"):
            api.hf_hub_download(
                repository,
                path,
                revision=revision,
                local_dir=to,
                tqdm_class=meter.bar_class(path),
            )
        with disk_faults(to, f"{request}: {path}"):
            file = _check(to / path, listed[path], str(request))
        meter.set(path, file.size_bytes)
        return file

    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch") as threads:
        return tuple(threads.map(fetch, chosen))


@contextmanager
def allowed_online() -> Iterator[None]:
    """Allow huggingface_hub to use the network in the block. Otherwise a worker keeps it offline by
    HF_HUB_OFFLINE, which the library reads once, so that it sends no requests of its own.
    """
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _keep_links_out_of_logs() -> None:
    """Silence two libraries that log links with signatures. huggingface_hub sets its own level when
    it is imported, and writes to standard error by itself.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def _check(path: Path, listed: "RepoFile", request: str) -> WeightFile:
    """Check a large file by its sha256, a small one by the id that git gives to a blob.

    A damaged file is removed, so that another try downloads it again. Raises HubUnavailable.
    """
    sha256 = sha256_of(path)
    if listed.lfs:
        is_good = sha256 == listed.lfs.sha256
    else:
        data = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        is_good = blob.hexdigest() == listed.blob_id
    if not is_good:
        path.unlink()
        raise HubUnavailable(f"{request}: {listed.path} arrived damaged: try again")
    return WeightFile(path=listed.path, size_bytes=listed.size, sha256=sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HubRequest:
    """A request to the hub, as error messages describe it."""

    repository: str
    revision: str
    has_token: bool

    def __str__(self) -> str:
        return f"{self.repository} at {self.revision}"

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate errors of huggingface_hub and of the libraries that it uses.

        The original is not kept as the cause, because its text quotes links with signatures.
        """
        import httpx2
        from huggingface_hub.errors import HFValidationError

        try:
            yield
        # RuntimeError is what hf_xet raises, by which large files come
        except (OSError, httpx2.HTTPError, HFValidationError, RuntimeError) as exc:
            raise self._as_ours(exc) from None

    def _as_ours(self, exc: Exception) -> WorkerError:
        from huggingface_hub import errors

        if isinstance(exc, errors.LocalEntryNotFoundError) and isinstance(exc.__cause__, Exception):
            exc = exc.__cause__  # the library's way to say that it has no older copy either
        status = exc.response.status_code if isinstance(exc, errors.HfHubHTTPError) else None
        texts: Mapping[type[Exception], str] = {
            errors.GatedRepoError: f"it is gated, and {self._access}: {self._advice}",
            errors.RevisionNotFoundError: "no such revision: correct `revision` in the catalog",
            errors.RepositoryNotFoundError: "no such repository, or it is private and "
            f"{self._access}: correct `repository` in the catalog, or {self._advice}",
            errors.EntryNotFoundError: "a file is listed, but not there: use another revision",
            errors.DisabledRepoError: "the hub has disabled access to it: use another repository",
            errors.HFValidationError: "no such name is possible: correct `repository` in the "
            "catalog, expected `<organisation>/<name>`",
            errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE forbids requests to the hub: unset it",
        }
        for kind, text in texts.items():
            if isinstance(exc, kind):
                return ModelUnavailable(f"{self}: {text}")
        if status in (401, 403):
            return ModelUnavailable(f"{self}: the hub refuses, {self._access}: {self._advice}")
        answer = f"status {status}" if status else type(exc).__name__
        return HubUnavailable(f"{self}: the hub cannot be reached or breaks off ({answer}): retry")

    @property
    def _access(self) -> str:
        return "the token has no access" if self.has_token else "no token was given"

    @property
    def _advice(self) -> str:
        return (
            f"accept its conditions at https://huggingface.co/{self.repository} and give a token "
            "of that account that may read gated repositories (HF_TOKEN)"
        )


class _Meter:
    """Adds up the bytes of several downloads, which may start again, for one Progress."""

    def __init__(self, sizes_bytes: Mapping[str, int], progress: Progress | None) -> None:
        self._total_bytes = sum(sizes_bytes.values())
        self._done_bytes = dict.fromkeys(sizes_bytes, 0)
        self._progress = progress
        self._lock = threading.Lock()

    def set(self, path: str, done_bytes: int) -> None:
        with self._lock:
            self._done_bytes[path] = done_bytes
            if self._progress:
                self._progress(sum(self._done_bytes.values()), self._total_bytes)

    def add(self, path: str, new_bytes: int) -> None:
        self.set(path, self._done_bytes[path] + new_bytes)

    def bar_class(self, path: str) -> type:
        """Return a progress bar class for huggingface_hub that shows nothing and adds up here."""
        from tqdm import tqdm

        meter = self

        class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
            def __init__(self, **options: Any) -> None:  # noqa: ANN401 - whatever tqdm takes
                super().__init__(**{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                meter.add(path, int(n or 0))

            def update_transfer(self, n: float | None = 1) -> None:
                """Ignore transferred bytes: those written to the file are counted already."""

            def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
                pass

        return Bar
