"""Weights directories with a copy of the tiny models in which one thing is wrong."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import MANIFEST, ManifestEntry, read_manifest, render_manifest

MODEL = "sd15-tiny"
"""The smallest that ships."""

UNET = "unet/diffusion_pytorch_model.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"


def copy_weights(to: Path, *names: str) -> Path:
    """A sound weights directory of these models, MODEL if none is named. Returns `to`."""
    manifest = read_manifest(SOURCE_WEIGHTS_DIR)
    for name in names or (MODEL,):
        shutil.copytree(SOURCE_WEIGHTS_DIR / manifest[name].path, to / name)
    write_manifest(to, *(replace(manifest[name], path=name) for name in names or (MODEL,)))
    return to


def write_manifest(directory: Path, *entries: ManifestEntry) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = render_manifest({entry.name: entry for entry in entries})
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def change_entry(directory: Path, **changes: Any) -> None:
    """Let the manifest say something else of MODEL."""
    manifest = read_manifest(directory)
    entries = [
        replace(entry, **changes) if entry.name == MODEL else entry for entry in manifest.values()
    ]
    write_manifest(directory, *entries)


def broken_copy(how: str, to: Path) -> Path:
    """A weights directory with MODEL alone, broken in one of the ways of BREAKS."""
    BREAKS[how](copy_weights(to))
    return to


def write_catalog(path: Path, name: str = MODEL, **fields: str) -> Path:
    """A catalog file with one built-in model and these TOML values put into its table."""
    text = resources.files("pixpod").joinpath("catalog.toml").read_text(encoding="utf-8")
    tables = re.findall(rf"^\[{name}(?:\.\w+)?\]\n(?:[^\[\n].*\n|\n)+", text, re.MULTILINE)
    head = "".join(f"{field} = {value}\n" for field, value in fields.items())
    path.write_text(tables[0].rstrip() + f"\n{head}" + "".join(tables[1:]), encoding="utf-8")
    return path


def flip(path: Path, offset: int | None = None) -> None:
    """Change one bit, in the middle of the file if nobody says where. Its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def say_larger(directory: Path, path: str, size_bytes: int) -> None:
    """Let the manifest list one file of MODEL with another size, without chunks."""
    files = read_manifest(directory)[MODEL].files
    changed = (replace(f, size_bytes=size_bytes, chunks=()) if f.path == path else f for f in files)
    change_entry(directory, files=tuple(changed))


def _break_unlisted_header(directory: Path) -> None:
    """Nobody says what the bytes must be, so that only loading finds out."""
    change_entry(directory, files=())
    flip(directory / MODEL / UNET, offset=7)  # the length of the header, now beyond the file


def _grow_beyond_memory(directory: Path) -> None:
    """A file with a hole, larger than any machine's memory and swap."""
    size_bytes = 1 << 42
    with (directory / MODEL / UNET).open("r+b") as file:
        file.truncate(size_bytes)
    say_larger(directory, UNET, size_bytes)


def _name_no_class(directory: Path) -> None:
    change_entry(directory, files=())
    index = directory / MODEL / "model_index.json"
    index.write_text(index.read_text().replace("UNet2DConditionModel", "UNetOfNobody"))


BREAKS: Mapping[str, Callable[[Path], object]] = {
    "missing file": lambda directory: (directory / MODEL / UNET).unlink(),
    "short file": lambda directory: cut(directory / MODEL / UNET),
    "flipped byte": lambda directory: flip(directory / MODEL / UNET),
    "flipped byte in a tokenizer": lambda directory: flip(directory / MODEL / TOKENIZER),
    "damaged index": lambda directory: flip(directory / MODEL / "model_index.json", offset=0),
    "unlisted header": _break_unlisted_header,
    "larger than memory": _grow_beyond_memory,
    "class of nobody": _name_no_class,
    "manifest without TOML": lambda directory: (directory / MANIFEST).write_text("[models"),
    "manifest of format 1": lambda directory: (directory / MANIFEST).write_text("format = 1\n"),
}
