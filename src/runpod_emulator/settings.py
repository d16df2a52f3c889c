"""The choices of the emulator's user: endpoints, address, key, and where state is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from runpod_emulator.behaviour import Behaviour

DEFAULT_GPU = "NVIDIA GeForce RTX 4090"


class Scaler(StrEnum):
    QUEUE_DELAY = "QUEUE_DELAY"
    REQUEST_COUNT = "REQUEST_COUNT"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """One endpoint; names and defaults are those of RunPod's console.

    `command` starts a worker in `workdir`, e.g. `("python", "/app/handler.py")`. `scaler_value` is
    seconds for QUEUE_DELAY, requests per worker for REQUEST_COUNT. `capacity` is how many workers
    the emulated data centre has GPUs for; further workers are throttled.
    """

    id: str
    command: tuple[str, ...]
    workers_min: int = 0
    workers_max: int = 3
    idle_timeout_s: float = 5.0
    scaler: Scaler = Scaler.QUEUE_DELAY
    scaler_value: float = 4.0
    execution_timeout_s: float = 600.0
    init_timeout_s: float = 420.0
    ttl_s: float = 86400.0
    gpu: str = DEFAULT_GPU
    gpu_count: int = 1
    capacity: int | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: Path = field(default_factory=Path.cwd)

    @property
    def start_limit_s(self) -> float:
        """Seconds until a worker that has not polled is unhealthy; RunPod's variable wins."""
        given = self.env.get("RUNPOD_INIT_TIMEOUT", "")
        return float(given) if given.isdecimal() else self.init_timeout_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """The whole emulator. `state_dir` has workers' directories and logs, and the key file.

    Web pages of `cors_origin` (`*`: of any origin) may call it; by default none may.
    """

    endpoints: tuple[EndpointSettings, ...]
    api_key: str = field(repr=False)
    state_dir: Path
    database: Path
    host: str = "127.0.0.1"
    port: int = 0
    behaviour: Behaviour = field(default_factory=Behaviour)
    rate_limits: bool = True
    echo_logs: bool = True
    cors_origin: str | None = None
    seed: int = 0
