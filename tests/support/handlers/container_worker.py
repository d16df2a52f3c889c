"""Becomes `podman run`: the worker is a container of `CONTAINER_IMAGE`, locked down.

Its name is `CONTAINER_PREFIX` and the worker's id. Signals reach it through podman.
"""

import os

from pixpod_tools.container.running import run_command

PASSED = ("RUNPOD_", "PIXPOD_")


def main():
    command = run_command(
        os.environ["CONTAINER_IMAGE"],
        name=os.environ["CONTAINER_PREFIX"] + os.environ["RUNPOD_POD_ID"],
        environment=[name for name in os.environ if name.startswith(PASSED)],
    )
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
