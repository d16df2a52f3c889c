"""Facts about this machine that can change a figure, and an environment without its settings."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = (
    *("torch", "torchao", "diffusers", "transformers", "safetensors"),
    *("runpod", "xxhash"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The moment after which no measurement may run; without `minutes` there is none."""

    minutes: float | None = None
    began_at: float = field(default_factory=time.perf_counter)

    def allows(self, expected_s: float = 0.0) -> bool:
        """Return whether a measurement that takes so long would end in time."""
        if self.minutes is None:
            return True
        return time.perf_counter() + expected_s <= self.began_at + self.minutes * 60


def describe_machine(device: str = "cpu") -> dict[str, object]:
    """Return date, processor, versions and, for a CUDA device, the GPU and its driver.

    Call it before measuring: it includes the load of the machine by other programs.
    """
    facts: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "cores": os.cpu_count(),
        "processor": _processor(),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        **{package: _version(package) for package in PACKAGES},
    }
    return facts | _describe_gpu() if device == "cuda" else facts


def environment(extra: Mapping[str, str] | None = None, root: Path = ROOT) -> dict[str, str]:
    """Return the environment of a measured process: the sources of `root`, no hub, no settings."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIXPOD_", "RUNPOD_", "BUCKET_", "AWS_"))
    }
    own = str(ROOT / "src")
    paths = [path for path in inherited.get("PYTHONPATH", "").split(os.pathsep) if path]
    others = [path for path in paths if Path(path).resolve() != Path(own)]
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(root / "src"), *others]),
        **(extra or {}),
    }


def _describe_gpu() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


def _driver() -> str | None:
    """Return driver, power limit and highest clock; torch knows none of them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    fields = "driver_version,power.limit,clocks.max.sm"
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return found.stdout.strip().splitlines()[0]


def _processor() -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
