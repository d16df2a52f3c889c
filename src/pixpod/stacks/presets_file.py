"""Reads a deployment's own presets: a TOML file with a table of job fields for each."""

import re
import tomllib
from pathlib import Path
from typing import Any

from pixpod.errors import InvalidSettings
from pixpod.stacks.presets import PRESETS

NOT_IN_PRESETS = frozenset(
    {
        "api_version",
        "idempotency_key",
        "model",
        "prompt",
        "stack",
        "webhook_events",
        "webhook_url",
    }
)
"""Fields of the job itself."""


def read_presets_file(file: Path, source: str) -> dict[str, dict[str, Any]]:
    """Return the fields of each preset. Any: JSON.

    Raises InvalidSettings, which names `source`, for a file that cannot be read, a name that cannot
    be used, and fields that no preset may have.
    """
    where = f"{source}={str(file)!r}"
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidSettings(f"{where}: {exc}") from exc
    for name, fields in tables.items():
        if not re.fullmatch("[a-z][a-z0-9_-]{0,63}", name) or name in PRESETS:
            taken = ", ".join(PRESETS)
            raise InvalidSettings(
                f"{where}: {name!r}: expected a name of a-z 0-9 _ - other than {taken}"
            )
        if not isinstance(fields, dict):
            raise InvalidSettings(f"{where}: {name}: expected a table of job fields")
        if found := NOT_IN_PRESETS & fields.keys():
            listed = ", ".join(sorted(found))
            raise InvalidSettings(f"{where}: {name}: expected no {listed}: jobs have their own")
    return tables
