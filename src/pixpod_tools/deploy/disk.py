"""Size of a worker's container disk."""

import math

from pixpod_tools.deploy.configuration import Mode

SOFTWARE_GB = 12.0
"""Image without weights, in 10^9 bytes: Python, torch and the CUDA libraries that it needs."""

SCRATCH_GB = 5.0
"""Compiled artefacts, logs, images on their way."""

_STEP_GB = 5


def disk_gb(mode: Mode, files_gb: float) -> int:
    """Return what to ask for. The image lies on the container disk; so does a volume's copy."""
    weights_gb = 0.0 if mode is Mode.CACHED_MODEL else files_gb
    return math.ceil((SOFTWARE_GB + SCRATCH_GB + weights_gb) / _STEP_GB) * _STEP_GB
