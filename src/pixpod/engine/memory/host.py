"""Free host memory, which holds the copies of offloaded components. Standard library only."""

import re
from pathlib import Path

PROC = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Return the free memory without swap, within the container's limit; page cache is free.

    None off Linux. Of control groups only version 2 is looked at.
    """
    try:
        in_host = _number(r"^MemAvailable:\s+(\d+) kB", proc) * 1024
    except (OSError, ValueError):
        return None
    in_group = _free_in_group(cgroup)
    return in_host if in_group is None else min(in_host, in_group)


def _free_in_group(cgroup: Path) -> int | None:
    """Return the free memory within the container's limit; None without a limit."""
    try:
        used = _number(r"^(\d+)", cgroup / "memory.current")
        cached = _number(r"^file (\d+)", cgroup / "memory.stat")
        limit = _number(r"^(\d+)", cgroup / "memory.max")  # else it is `max`
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached)


def _number(pattern: str, path: Path) -> int:
    """Return the number that matches. Raises OSError, or ValueError if nothing matches."""
    found = re.search(pattern, path.read_text("ascii"), re.MULTILINE)
    if not found:
        raise ValueError(f"{path}: no {pattern}")
    return int(found[1])
