"""Where the bytes of a model are: the manifest of the weights directory, and its checks.

Standard library only; reads no weights.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pixpod.catalog import Family, ModelSpec
from pixpod.errors import (
    InvalidSettings,
    LicenceNotAccepted,
    ModelUnavailable,
    WeightsUnreadable,
)

MANIFEST = "manifest.toml"

PIPELINE_CLASS: Mapping[Family, str] = {
    Family.FLUX: "FluxPipeline",
    Family.SDXL: "StableDiffusionXLPipeline",
    Family.SD15: "StableDiffusionPipeline",
}
"""The diffusers class that a family's `model_index.json` must name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A folder in the layout of diffusers, of a known revision.

    `vae` is a folder that replaces the one inside, e.g. SDXL's fp16-safe VAE. `source` tells
    where the files came from.
    """

    folder: Path
    revision: str
    vae: Path | None = None
    source: str = "baked"


class Manifest:
    """The models that a weights directory holds, by name."""

    def __init__(self, entries: Mapping[str, Weights], path: Path) -> None:
        self._entries = entries
        self._path = path

    @classmethod
    def read(cls, weights_dir: Path) -> "Manifest":
        """Raises InvalidSettings if the directory has no readable manifest."""
        path = weights_dir / MANIFEST
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise InvalidSettings(f"PIXPOD_WEIGHTS_DIR={str(weights_dir)!r}: {exc}") from exc
        entries = {}
        for name, table in tables.items():
            if not _is_entry(table):
                accepted = "a table of strings: path, revision, and maybe vae"
                raise InvalidSettings(f"{path}: model {name!r}: accepted is {accepted}")
            entries[name] = _to_weights(weights_dir, table)
        return cls(entries, path)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def get_weights(self, spec: ModelSpec) -> Weights:
        """Raises ModelUnavailable if the model is not listed, or its folder is not as it says,
        and WeightsUnreadable if what is in that folder is damaged.
        """
        weights = self._entries.get(spec.name)
        if weights is None:
            held = ", ".join(self._entries) or "nothing"
            raise ModelUnavailable(f"{spec.name} is not in {self._path}, which lists {held}")
        _check_layout(spec, weights)
        return weights


def _is_entry(table: object) -> bool:
    return (
        isinstance(table, dict)
        and {"path", "revision"} <= table.keys() <= {"path", "revision", "vae"}
        and all(isinstance(value, str) for value in table.values())
    )


def _to_weights(weights_dir: Path, table: Mapping[str, str]) -> Weights:
    vae = table.get("vae")
    return Weights(
        folder=weights_dir / table["path"],
        revision=table["revision"],
        vae=weights_dir / vae if vae else None,
    )


def _check_layout(spec: ModelSpec, weights: Weights) -> None:
    index = weights.folder / "model_index.json"
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise ModelUnavailable(f"{spec.name}: {index}: {exc.strerror}") from exc
    except (KeyError, TypeError) as exc:
        raise ModelUnavailable(f"{spec.name}: {index} is no model index of diffusers") from exc
    except (OSError, ValueError) as exc:
        raise WeightsUnreadable(f"{spec.name}: {index} cannot be read as JSON") from exc
    expected = PIPELINE_CLASS[spec.family]
    if found != expected:
        raise ModelUnavailable(f"{spec.name}: {index} is of a {found}, expected is {expected}")
    if weights.vae and not (weights.vae / "config.json").is_file():
        raise ModelUnavailable(f"{spec.name}: {weights.vae} holds no VAE")


def check_licence(spec: ModelSpec, accepted: frozenset[str]) -> None:
    """Raises LicenceNotAccepted unless the deployment has accepted what must be accepted."""
    if spec.licence_must_be_accepted and spec.licence not in accepted:
        raise LicenceNotAccepted(
            f"{spec.name} has the licence {spec.licence}: read it, then add it to "
            "PIXPOD_ACCEPT_LICENCES if your use is allowed"
        )
