"""Files of a model on disk, and the checks that need no weights to be read.

Standard library only. The sources that a deployment may have are in `sources`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pixpod.catalog import ModelSpec
from pixpod.errors import LicenceNotAccepted, ModelUnavailable, WeightsUnreadable
from pixpod.extras import ExtraSpec
from pixpod.families import Precision
from pixpod.weights.disk import sha256_of
from pixpod.weights.manifest import WeightFile

MODEL_INDEX = "model_index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """Format of a model's files.

    `denoiser` is None for 16 bits or wider, as repositories have it; `denoiser_bytes` is the size
    of its files. `is_t5_float8` is about the large text encoder.
    """

    denoiser: Precision | None = None
    denoiser_bytes: int = 0
    is_t5_float8: bool = False

    @property
    def is_float8(self) -> bool:
        return self.denoiser is Precision.FLOAT8_DYNAMIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A folder in the layout of diffusers, of a known revision, and where it came from.

    `vae` is a folder that replaces the one inside, e.g. SDXL's fp16-safe VAE. `precision` is
    the stored format of the denoiser; None means 16 bits or wider, as a repository has it. `files`
    has the manifest's entries of the files; empty without a manifest.
    """

    folder: Path
    revision: str
    source: str
    vae: Path | None = None
    precision: Precision | None = None
    files: tuple[WeightFile, ...] = ()


def check_layout(spec: ModelSpec, weights: Weights) -> None:
    """Check that the folder has a model of this family. Raises ModelUnavailable if it has not, and
    WeightsUnreadable if its index is damaged.
    """
    index = weights.folder / MODEL_INDEX
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise ModelUnavailable(f"{spec.name}: {index}: {exc.strerror}") from exc
    except (KeyError, TypeError) as exc:
        raise ModelUnavailable(f"{spec.name}: {index} is no model index of diffusers") from exc
    except (OSError, ValueError) as exc:
        raise WeightsUnreadable(f"{spec.name}: {index} cannot be read as JSON") from exc
    expected = spec.family.default_pipeline
    if found != expected:
        raise ModelUnavailable(f"{spec.name}: {index}: expected a {expected}, got a {found}")
    if weights.vae and not (weights.vae / "config.json").is_file():
        raise ModelUnavailable(f"{spec.name}: {weights.vae} holds no VAE")


def check_extra_layout(extra: ExtraSpec, weights: Weights) -> None:
    """Check that the folder has components of the extra's classes, or its file. Raises
    ModelUnavailable if it has not, and WeightsUnreadable if a configuration is damaged.
    """
    if extra.file and not (weights.folder / extra.file).is_file():
        raise ModelUnavailable(f"{extra.name}: {weights.folder} has no {extra.file}")
    for component in extra.components:
        config = weights.folder / component.name / "config.json"
        found = _class_of(extra, config)
        if found != component.class_name:
            raise ModelUnavailable(
                f"{extra.name}: {config}: expected a {component.class_name}, got a {found}"
            )


def _class_of(extra: ExtraSpec, config: Path) -> str:
    """Return the class that a configuration of diffusers or transformers names."""
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        return str(facts.get("_class_name") or facts["architectures"][0])
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise ModelUnavailable(f"{extra.name}: {config}: {exc.strerror}") from exc
    except (LookupError, TypeError, AttributeError) as exc:
        raise ModelUnavailable(f"{extra.name}: {config} names no class of diffusers") from exc
    except (OSError, ValueError) as exc:
        raise WeightsUnreadable(f"{extra.name}: {config} cannot be read as JSON") from exc


def check_small_files(weights: Weights) -> None:
    """Raise WeightsUnreadable if a config or a tokenizer differs from the baked one: with one wrong
    byte there, a model would generate other images without an error. Leaves out tensors, and files
    that no manifest lists.
    """
    for file in weights.files:
        path = weights.folder / file.path
        if path.suffix == ".safetensors" or not file.sha256:
            continue
        try:
            is_good = sha256_of(path) == file.sha256
        except OSError as exc:
            raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc
        if not is_good:
            raise WeightsUnreadable(f"{path}: not what was baked: this copy is damaged")


def read_checkpoint_info(spec: ModelSpec, weights: Weights) -> CheckpointInfo:
    """Read the format of the files from their sizes and configs. Raises WeightsUnreadable."""
    large = spec.family.large_text_encoder
    is_t5_float8 = False
    try:
        if large is not None:  # its config says so, as for `from_pretrained`
            config = component_folder(weights, large) / "config.json"
            is_t5_float8 = "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
        denoiser = tensor_paths(component_folder(weights, spec.family.denoiser))
        return CheckpointInfo(
            denoiser=weights.precision,
            denoiser_bytes=sum(path.stat().st_size for path in denoiser),
            is_t5_float8=is_t5_float8,
        )
    except (OSError, ValueError) as exc:
        raise WeightsUnreadable(f"{spec.name}: the files in {weights.folder} are broken") from exc


def content_of(weights: Weights, component: str) -> str | None:
    """Return a text that is equal for components of the same class, configuration and tensors; None
    if no manifest lists the files. Raises WeightsUnreadable.
    """
    listed = {(weights.folder / file.path).resolve(): file.sha256 for file in weights.files}
    folder = component_folder(weights, component)
    digests = [listed.get(path.resolve()) for path in tensor_paths(folder)]
    if not all(digests):
        return None
    try:
        index = json.loads((weights.folder / MODEL_INDEX).read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # without remarks, which name the origin of a config and do not change the component
        remarks = {key for key in config if key.startswith("_")} | {"transformers_version"}
        facts = {key: value for key, value in config.items() if key not in remarks}
        return json.dumps([index[component], facts, digests], sort_keys=True)
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise WeightsUnreadable(f"{folder}: its configuration is broken") from exc


def component_folder(weights: Weights, component: str) -> Path:
    if component == "vae" and weights.vae:
        return weights.vae
    return weights.folder / component


def tensor_paths(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of one component, in order: its shards, else its only file.

    If a repository has a float16 variant, that is taken: the plain files of SDXL and SD 1.5 have
    twice its bytes. Raises WeightsUnreadable if there is none or the index is damaged.
    """
    index = _first(folder, "*.safetensors.index.fp16.json", "*.safetensors.index.json")
    if index is not None:
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return tuple(folder / shard for shard in sorted(set(shards)))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
            raise WeightsUnreadable(f"{index}: cannot be read as an index of shards") from exc
    file = _first(folder, "*.fp16.safetensors", "*.safetensors")
    if file is None:
        raise WeightsUnreadable(f"{folder}: holds no .safetensors file")
    return (file,)


def _first(folder: Path, *patterns: str) -> Path | None:
    """Return the file of the first pattern that matches; of several, the one without a variant."""
    for pattern in patterns:
        if found := list(folder.glob(pattern)):
            return min(found, key=lambda path: (path.name.count("."), path.name))
    return None


def files_to_read(spec: ModelSpec, weights: Weights) -> dict[Path, WeightFile]:
    """Return all weight files of a model, in the order in which they are needed.

    A file that no manifest lists has its present size as the expected one, and is not checked.
    """
    listed = {(weights.folder / file.path).resolve(): file for file in weights.files}
    return {
        path: listed.get(path.resolve()) or _unlisted(path)
        for component in spec.family.component_names
        for path in tensor_paths(component_folder(weights, component))
    }


def extra_files_to_read(extra: ExtraSpec, weights: Weights) -> dict[Path, WeightFile]:
    """Return all weight files of an extra; see `files_to_read`."""
    listed = {(weights.folder / file.path).resolve(): file for file in weights.files}
    return {
        path: listed.get(path.resolve()) or _unlisted(path)
        for path in extra_tensor_paths(extra, weights)
    }


def extra_tensor_paths(extra: ExtraSpec, weights: Weights) -> tuple[Path, ...]:
    """Return the safetensors files of an extra, in order. Raises WeightsUnreadable."""
    if extra.file:
        return (weights.folder / extra.file,)
    folders = [weights.folder / component.name for component in extra.components]
    return tuple(path for folder in folders for path in tensor_paths(folder))


def _unlisted(path: Path) -> WeightFile:
    try:
        size_bytes = path.stat().st_size
    except OSError as exc:
        raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc
    return WeightFile(path=path.name, size_bytes=size_bytes, sha256="")


def check_licence(spec: ModelSpec | ExtraSpec, accepted: frozenset[str]) -> None:
    """Raise LicenceNotAccepted unless the deployment has accepted a licence that requires it."""
    if spec.licence_must_be_accepted and spec.licence not in accepted:
        raise LicenceNotAccepted(
            f"{spec.name} has the licence {spec.licence}: read it, then add it to "
            "PIXPOD_ACCEPT_LICENCES if your use is allowed"
        )
