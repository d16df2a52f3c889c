"""The text that `serve` prints once it listens: the address, and how to submit a first job.

The key itself is never in it.
"""

import json
import shlex
from enum import Enum
from pathlib import Path
from textwrap import indent

from runpod_emulator.command_line.project import TEST_INPUT
from runpod_emulator.command_line.state_dir import KEY_FILE
from runpod_emulator.settings import EmulatorSettings, EndpointSettings

KEY_VARIABLE = "RUNPOD_EMULATOR_API_KEY"


class KeySource(Enum):
    """The source of the API key; the value is its description in the text."""

    FLAG = f"the one given by --api-key; the lines below take it from {KEY_VARIABLE}"
    ENVIRONMENT = f"from {KEY_VARIABLE}"
    KEPT = "{path}"


def welcome(settings: EmulatorSettings, base_url: str, source: KeySource) -> str:
    key_file = settings.state_dir / KEY_FILE
    in_python, in_shell = _key_expressions(key_file, source)
    first = settings.endpoints[0]
    job_in_python, job_in_shell = _first_job(first)
    lines = [
        f"import {'json, ' if 'json' in job_in_python else ''}"
        f"{'' if source is KeySource.KEPT else 'os, '}runpod",
        f"runpod.endpoint_url_base = {json.dumps(base_url)}",
        f"runpod.api_key = {in_python}",
        f"print(runpod.Endpoint({json.dumps(first.id)}).run_sync({job_in_python}))",
    ]
    in_program = indent("\n".join(lines), "  ")
    return f"""\
RunPod emulator at {base_url}
  endpoints  {", ".join(endpoint.id for endpoint in settings.endpoints)}
  worker     {shlex.join(first.command)}
  runs in    {first.workdir}
  API key    {source.value.format(path=key_file)}
  logs       {settings.state_dir / "logs"}
  to stop    Ctrl-C lets running jobs end; a second Ctrl-C kills them

For programs that know RunPod already:
  export RUNPOD_ENDPOINT_BASE_URL={base_url} RUNPOD_API_KEY="{in_shell}"

Python:
{in_program}

curl:
  curl -s {base_url}/{first.id}/runsync -H "Authorization: Bearer {in_shell}" \\
    -H "Content-Type: application/json" -d {job_in_shell}

"""


def _first_job(endpoint: EndpointSettings) -> tuple[str, str]:
    """Return a job as an argument in Python and in a shell: the project's test input if any."""
    test_input = endpoint.workdir / TEST_INPUT
    if test_input.is_file():
        path = str(test_input)
        return f"json.load(open({json.dumps(path)}))", shlex.quote(f"@{path}")
    return '{"prompt": "Hello"}', shlex.quote(json.dumps({"input": {"prompt": "Hello"}}))


def _key_expressions(key_file: Path, source: KeySource) -> tuple[str, str]:
    """Return the expressions that give the key in Python and in a shell."""
    if source is KeySource.KEPT:
        path = str(key_file)
        return f"open({json.dumps(path)}).read()", f"$(cat {shlex.quote(path)})"
    return f"os.environ[{json.dumps(KEY_VARIABLE)}]", f"${KEY_VARIABLE}"
