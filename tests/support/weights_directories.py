"""Small weights directories that only look like models: right names, any bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import xxhash

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.weights.hub_repository import in_boot_order
from pixpod.weights.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    ManifestEntry,
    WeightFile,
    read_manifest,
    render_manifest,
)

CATALOG = load_catalog()
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def pinned(spec: ModelSpec) -> tuple[str, str]:
    """Repository and revision of a model that has both."""
    assert spec.repository and spec.revision
    return spec.repository, spec.revision


def files_of(spec: ModelSpec, *, salt: str = "") -> dict[str, bytes]:
    """What a model's folder holds, in boot order. Bytes differ by model, file and salt."""
    parts = {part: ["diffusers", "AClass"] for part in ("scheduler", *spec.family.component_names)}
    index = {"_class_name": spec.family.default_pipeline, **parts}
    files = {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b"{}",
    }
    for component in spec.family.component_names:
        files[f"{component}/config.json"] = b"{}"
        text = f"{spec.name} {component} {salt} " * 50
        files[f"{component}/{WEIGHTS_NAME}"] = text.encode()
    return {path: files[path] for path in in_boot_order(files)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def describe(path: str, data: bytes) -> WeightFile:
    pieces = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    is_large = path.endswith(".safetensors")
    return WeightFile(
        path=path,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunks=tuple(xxhash.xxh3_64_hexdigest(piece) for piece in pieces) if is_large else (),
    )


def add_model(directory: Path, name: str, *, salt: str = "", revision: str = "1") -> ManifestEntry:
    """Put a model of the catalog into a weights directory, and list it."""
    files = files_of(CATALOG[name], salt=salt)
    write_files(directory / name, files)
    entry = ManifestEntry(
        name=name,
        path=name,
        revision=revision,
        files=tuple(describe(path, data) for path, data in files.items()),
    )
    listed = read_manifest(directory) if (directory / MANIFEST).exists() else {}
    text = render_manifest({**listed, name: entry})
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return entry


def write_cached(
    hub_cache: Path, repository: str, commit: str, files: Mapping[str, bytes], *, main: bool = True
) -> Path:
    """A snapshot of a repository in the hub's cache layout: links to blobs."""
    folder = hub_cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    for path, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        blob = folder / "blobs" / (digest if path.endswith(".safetensors") else digest[:40])
        blob.write_bytes(data)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "/".join([".."] * (2 + path.count("/")))
        link.symlink_to(f"{up}/blobs/{blob.name}")
    if main:
        (folder / "refs" / "main").write_text(commit)
    return snapshot
