"""The text that `serve` prints once it listens: the address, and how to submit a first job.

The key itself is never in it.
"""

import json
import shlex
from enum import Enum
from pathlib import Path

from runpod_emulator.command_line.state_dir import KEY_FILE
from runpod_emulator.settings import EmulatorSettings

KEY_VARIABLE = "RUNPOD_EMULATOR_API_KEY"


class KeySource(Enum):
    """The source of the API key; the value is its description in the text."""

    FLAG = f"the one given by --api-key; the lines below take it from {KEY_VARIABLE}"
    ENVIRONMENT = f"from {KEY_VARIABLE}"
    KEPT = "{path}"


def welcome(settings: EmulatorSettings, base_url: str, source: KeySource) -> str:
    key_file = settings.state_dir / KEY_FILE
    in_python, in_shell = _key_expressions(key_file, source)
    modules = "runpod" if source is KeySource.KEPT else "os, runpod"
    first = settings.endpoints[0].id
    body = shlex.quote(json.dumps({"input": {"prompt": "Hello"}}))
    return f"""\
RunPod emulator at {base_url}
  endpoints  {", ".join(endpoint.id for endpoint in settings.endpoints)}
  API key    {source.value.format(path=key_file)}
  logs       {settings.state_dir / "logs"}
  to stop    Ctrl-C lets running jobs end; a second Ctrl-C kills them

Python:
  import {modules}
  runpod.endpoint_url_base = {json.dumps(base_url)}
  runpod.api_key = {in_python}
  print(runpod.Endpoint({json.dumps(first)}).run_sync({{"prompt": "Hello"}}))

curl:
  curl -s {base_url}/{first}/runsync -H "Authorization: Bearer {in_shell}" \\
    -H "Content-Type: application/json" -d {body}

"""


def _key_expressions(key_file: Path, source: KeySource) -> tuple[str, str]:
    """Return the expressions that give the key in Python and in a shell."""
    if source is KeySource.KEPT:
        path = str(key_file)
        return f"open({json.dumps(path)}).read()", f"$(cat {shlex.quote(path)})"
    return f"os.environ[{json.dumps(KEY_VARIABLE)}]", f"${KEY_VARIABLE}"
