"""Measures an image's layers, and searches them for bytes."""

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixpod_tools.container.commands import output

LABEL_LENGTH = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer: `made_by` is the builder's copy of the Dockerfile's line, `blob` a plain tar."""

    digest: str
    made_by: str
    blob: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """An image as files: its configuration, and its layers from the lowest to the uppermost."""

    config_file: Path
    layers: tuple[Layer, ...]

    @property
    def config(self) -> dict[str, Any]:
        """`Env`, `Labels`, `User`, `Entrypoint` and so on."""
        document = json.loads(self.config_file.read_text(encoding="utf-8"))
        found: dict[str, Any] = document["config"]
        return found

    def files_with(self, needle: bytes) -> Iterator[str]:
        """Yield the digests of layers, and `config`, that contain these bytes."""
        if needle in self.config_file.read_bytes():
            yield "config"
        for layer in self.layers:
            with (
                layer.blob.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            ):
                if mapped.find(needle) >= 0:
                    yield layer.digest


def save(image: str, folder: Path) -> SavedImage:
    """Copy an image of podman's storage into `folder`, uncompressed. Raises ImageError."""
    output(("podman", "save", "--quiet", "--format=docker-dir", f"--output={folder}", image))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    config_file = folder / _hex(manifest["config"]["digest"])
    history = json.loads(config_file.read_text(encoding="utf-8"))["history"]
    made_by = [entry.get("created_by", "") for entry in history if not entry.get("empty_layer")]
    layers = tuple(
        Layer(
            digest=each["digest"],
            made_by=line,
            blob=folder / _hex(each["digest"]),
        )
        for each, line in zip(manifest["layers"], made_by, strict=True)
    )
    return SavedImage(config_file=config_file, layers=layers)


def layer_table(image: str) -> str:
    """Return a table of layers, the lowest first: size, share, origin. Raises ImageError."""
    history = json.loads(output(("podman", "history", "--no-trunc", "--format=json", image)))
    layers = [entry for entry in reversed(history) if entry["size"]]
    total = sum(entry["size"] for entry in layers)
    lines = [f"{'MB':>9}  {'%':>5}  made by"]
    for entry in layers:
        size = entry["size"]
        made_by = short_line(entry["CreatedBy"])
        lines.append(f"{size / 1e6:9.1f}  {100 * size / total:5.1f}  {made_by}")
    lines.append(f"{total / 1e6:9.1f}  100.0  {image}, uncompressed")
    return "\n".join(lines)


def short_line(made_by: str) -> str:
    """Return the Dockerfile's line without the builder's additions, e.g. `COPY /weights/`."""
    text = " ".join(made_by.split())
    copied = re.search(r"(ADD|COPY) (?:file|dir|multi):\w+ in (\S+)", text)
    if copied:
        return f"{copied[1]} {copied[2]}"
    text = "RUN " + re.sub(r"^(\|\d+ .*?)?/bin/(ba)?sh -\w+ ", "", text)
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 3] + "..."


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
