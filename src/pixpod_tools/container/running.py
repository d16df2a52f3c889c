"""Runs a worker's container without privileges, and with nothing writable but /tmp."""

import shutil
from collections.abc import Iterable, Sequence

MEMORY = "3g"
PIDS = 256
LIMITS = ("nofile=4096:4096", "nproc=4096:4096")
"""Limits of open files and threads: podman's defaults may be more than a machine allows."""


def run_command(
    image: str,
    *,
    name: str,
    environment: Iterable[str] = (),
    options: Sequence[str] = (),
    command: Sequence[str] = (),
) -> list[str]:
    """Return the arguments of `podman run`. `environment` has only names: a command line does not
    keep values secret.

    /tmp must allow execution: inductor and Triton load compiled code from there.
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
