"""How a worker's container is run: nothing may be written but /tmp, and no privilege is left."""

import shutil
from collections.abc import Iterable, Sequence

MEMORY = "3g"
PIDS = 256
LIMITS = ("nofile=4096:4096", "nproc=4096:4096")
"""Open files and threads: podman's own defaults may be more than a machine allows."""


def run_command(
    image: str,
    *,
    name: str,
    environment: Iterable[str] = (),
    options: Sequence[str] = (),
    command: Sequence[str] = (),
) -> list[str]:
    """The arguments of `podman run`. `environment` are names: values are not for command lines.

    /tmp must allow execution: inductor and Triton load there what they have compiled.
    """
    runtime = ("--runtime=runc",) if shutil.which("runc") else ()
    return [
        "podman",
        *runtime,
        "run",
        f"--name={name}",
        "--network=host",
        "--no-healthcheck",
        "--read-only",
        "--read-only-tmpfs=false",
        "--tmpfs=/tmp:rw,exec,nosuid,nodev,size=1g,mode=1777",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"--memory={MEMORY}",
        f"--pids-limit={PIDS}",
        *(f"--ulimit={limit}" for limit in LIMITS),
        *(f"--env={each}" for each in sorted(environment)),
        *options,
        image,
        *command,
    ]
