"""The folder of the emulator's own files, and the API key that it generates."""

import os
import secrets
from pathlib import Path

from runpod_emulator.errors import EmulatorError, InvalidConfiguration

KEY_FILE = "api_key"


def prepare_state_dir(path: Path) -> None:
    """Make the folder, for its owner only and ignored by git. An existing one is not changed."""
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            (path / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise EmulatorError(f"the state folder cannot be made: {error}") from error


def kept_key(state_dir: Path) -> str:
    """Return the key in the folder's key file, generated once: it is the same at every start."""
    path = state_dir / KEY_FILE
    try:
        if not path.exists():
            _write_privately(path, f"local_{secrets.token_urlsafe(24)}")
        return checked_key(path.read_text(encoding="utf-8").strip(), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise EmulatorError(f"the API key cannot be kept: {error}") from error


def checked_key(key: str, source: str) -> str:
    """Return a key that fits into an HTTP header. Errors name its `source`."""
    if not key or not all("!" <= character <= "~" for character in key):
        raise InvalidConfiguration(source, None, "printable ASCII without spaces, and not empty")
    return key


def _write_privately(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
