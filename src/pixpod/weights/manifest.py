"""manifest.toml of a weights directory: its models, and size and checksums of each file.

    format = 2

    [models.flux-dev]
    path = "flux-dev"                         # a folder in the layout of diffusers
    revision = "0ef5fff..."
    repository = "black-forest-labs/FLUX.1-dev"
    precision = "float8_dynamic"              # what the denoiser is stored in
    licence = "flux-1-dev-non-commercial"
    recipe = "..."
    versions = { torch = "2.13.0", torchao = "0.18.0" }

    [[models.flux-dev.files]]                 # in the order in which a boot needs them
    path = "transformer/diffusion_pytorch_model-00001-of-00003.safetensors"
    size_bytes = 4289993121
    sha256 = "..."
    chunks = ["9a5c...", ...]                 # xxh3_64 of each 64 MiB, as 16 hex digits

Only `path` and `revision` are required. A model without `files` is served without checks. Extras,
such as ControlNets, have the same entries in tables `[extras.<name>]`.
Reads no weights.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pixpod.errors import InvalidSettings
from pixpod.families import STORED_PRECISIONS, Precision

MANIFEST = "manifest.toml"
FORMAT = 2

CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes that one fast checksum covers; the last chunk of a file may be shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of a model. `path` is relative to the model's folder, with forward slashes.

    `chunks` are the xxh3_64 digests of its CHUNK_BYTES pieces; empty for a file that is read
    as a whole, such as a config.
    """

    path: str
    size_bytes: int
    sha256: str
    chunks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One model or extra of a weights directory. `path` and `vae` are relative to that directory.

    `vae` replaces the folder's own. `precision` is the stored format of the denoiser; None if it is
    not known. `recipe` and `versions` describe how the files were made.
    """

    name: str
    path: str
    revision: str
    vae: str | None = None
    repository: str | None = None
    precision: Precision | None = None
    licence: str | None = None
    recipe: str | None = None
    versions: Mapping[str, str] | None = None
    files: tuple[WeightFile, ...] = ()
    is_extra: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


Manifest = Mapping[str, ManifestEntry]


def names_in(manifest: Manifest, *, extras: bool) -> tuple[str, ...]:
    """Return the names of the extras, or those of the models, in their order."""
    return tuple(name for name, entry in manifest.items() if entry.is_extra is extras)


def read_manifest(directory: Path) -> Manifest:
    """Return models and extras of a weights directory by name: models first, each in their order.

    Raises InvalidSettings if no manifest can be read; the message names a damaged entry.
    """
    path = directory / MANIFEST
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidSettings(f"{path}: {exc}") from exc
    if document.get("format") != FORMAT:
        found = document.get("format", "none")
        raise InvalidSettings(f"{path}: format {found!r}: expected {FORMAT}; bake again")
    tables, extras = (document.get(section, {}) for section in ("models", "extras"))
    is_known = not document.keys() - {"format", "models", "extras"}
    if not (isinstance(tables, dict) and isinstance(extras, dict) and is_known):
        raise InvalidSettings(
            f"{path}: expected format, [models.<name>] and [extras.<name>] tables"
        )
    if twice := tables.keys() & extras.keys():
        raise InvalidSettings(f"{path}: {min(twice)!r} is a model and an extra")
    return {
        **{name: _parse_entry(name, table, str(path)) for name, table in tables.items()},
        **{
            name: replace(_parse_entry(name, table, str(path)), is_extra=True)
            for name, table in extras.items()
        },
    }


def render_manifest(manifest: Manifest) -> str:
    """Return the text of manifest.toml, from which `read_manifest` reads the same entries."""
    lines = [
        "# What this weights directory holds. Written by scripts/bake; checked by",
        "# scripts/bake --verify and by each worker that boots from it.",
        "",
        f"format = {FORMAT}",
    ]
    for name, entry in manifest.items():
        table = f"{'extras' if entry.is_extra else 'models'}.{_key(name)}"
        lines += ["", f"[{table}]"]
        lines += [
            f"{field} = {_text(value)}"
            for field in _TEXTS
            if (value := getattr(entry, field)) is not None
        ]
        if entry.versions:
            pairs = ", ".join(f"{_key(k)} = {_text(v)}" for k, v in entry.versions.items())
            lines.append(f"versions = {{ {pairs} }}")
        for file in entry.files:
            lines += ["", f"[[{table}.files]]", f"path = {_text(file.path)}"]
            lines += [f"size_bytes = {file.size_bytes}", f"sha256 = {_text(file.sha256)}"]
            if file.chunks:
                lines += ["chunks = [", *(f"    {_text(c)}," for c in file.chunks), "]"]
    return "\n".join(lines) + "\n"


_TEXTS = ("path", "revision", "vae", "repository", "precision", "licence", "recipe")


def _parse_entry(name: str, table: object, source: str) -> ManifestEntry:
    where = f"{source}: model {name!r}"
    if not isinstance(table, dict):
        raise InvalidSettings(f"{where}: expected a table")
    unknown = table.keys() - {*_TEXTS, "versions", "files"}
    if unknown:
        raise InvalidSettings(f"{where}: {min(unknown)}: expected no such field")
    texts = {field: table[field] for field in _TEXTS if field in table}
    for field in {"path", "revision", *texts}:
        if not isinstance(texts.get(field), str) or not texts[field]:
            raise InvalidSettings(f"{where}: {field}: expected a text")
    precision = texts.pop("precision", None)
    if precision is not None and precision not in STORED_PRECISIONS:
        accepted = ", ".join(STORED_PRECISIONS)
        raise InvalidSettings(f"{where}: precision {precision!r}: expected {accepted}")
    for field in ("path", "vae"):
        if field in texts and not _is_inside(texts[field]):
            raise InvalidSettings(f"{where}: {field}: expected a path inside the directory")
    versions, files = table.get("versions", {}), table.get("files", [])
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise InvalidSettings(f"{where}: versions: expected a table of texts")
    if not isinstance(files, list):
        raise InvalidSettings(f"{where}: files: expected a list of tables")
    return ManifestEntry(
        name=name,
        precision=None if precision is None else Precision(precision),
        versions=versions or None,
        files=tuple(_parse_file(file, where) for file in files),
        **texts,
    )


def _parse_file(table: object, where: str) -> WeightFile:
    if not isinstance(table, dict) or not isinstance(table.get("path"), str):
        raise InvalidSettings(f"{where}: files: expected a table with a path")
    where = f"{where}: file {table['path']!r}"
    size, sha256, chunks = table.get("size_bytes"), table.get("sha256"), table.get("chunks", [])
    if not _is_inside(table["path"]):
        raise InvalidSettings(f"{where}: expected a path inside the model's folder")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidSettings(f"{where}: size_bytes: expected a number of bytes")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InvalidSettings(f"{where}: sha256: expected 64 hex digits")
    expected = -(-size // CHUNK_BYTES)
    is_good = isinstance(chunks, list) and all(
        isinstance(chunk, str) and re.fullmatch("[0-9a-f]{16}", chunk) for chunk in chunks
    )
    if not is_good or len(chunks) not in (0, expected):
        accepted = f"{expected} checksums of 16 hex digits, one per {CHUNK_BYTES} bytes"
        raise InvalidSettings(f"{where}: chunks: expected {accepted}")
    return WeightFile(path=table["path"], size_bytes=size, sha256=sha256, chunks=tuple(chunks))


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and bool(pure.parts)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _text(value: str) -> str:
    """Render a TOML basic string, for which a JSON string is valid."""
    return json.dumps(value, ensure_ascii=False)
