"""Makes a base image on machines without an image registry: Debian with its own Python."""

import subprocess

from pixpod_tools.container.commands import ImageError

LOCAL_BASE = "localhost/pixpod-base:bookworm"
LOCAL_PYTHON = "3.11"
"""Debian bookworm's, for which wheels must be fetched."""

BOOTSTRAP = (
    "mmdebstrap",
    "--quiet",
    "--variant=apt",
    "--include=ca-certificates,python3,python3-venv",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "bookworm",
    "-",
)
IMPORT = (
    "podman",
    "import",
    "--quiet",
    "--change=CMD=/bin/bash",
    "--change=ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "-",
    LOCAL_BASE,
)


def provide_local_base() -> None:
    """Make LOCAL_BASE unless it is there; about a minute. Raises ImageError."""
    try:
        if subprocess.run(("podman", "image", "exists", LOCAL_BASE), check=False).returncode == 0:
            return
        with subprocess.Popen(BOOTSTRAP, stdout=subprocess.PIPE) as bootstrap:
            imported = subprocess.run(
                IMPORT, stdin=bootstrap.stdout, stdout=subprocess.DEVNULL, check=False
            )
    except FileNotFoundError as exc:
        raise ImageError(f"{exc.filename} is not installed: docs/container.md names it") from exc
    if bootstrap.returncode:  # the part that it wrote may have been imported
        subprocess.run(("podman", "rmi", "--force", LOCAL_BASE), check=False)
    if bootstrap.returncode or imported.returncode:
        raise ImageError(
            f"no base image: mmdebstrap ended with {bootstrap.returncode}, podman import with "
            f"{imported.returncode}; what they printed says why"
        )
