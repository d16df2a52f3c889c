"""An endpoint as we want it; knows nothing of the API's documents."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod_tools.deploy.configuration import FlashBoot, Scaler
from pixpod_tools.deploy.pools import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCompute:
    """One GPU of any of these pools, but not of these types, on a driver for this CUDA."""

    pools: tuple[Pool, ...]
    excluded_types: tuple[str, ...]
    min_cuda: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuCompute:
    """Workers without a GPU."""

    flavor: str
    vcpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """Everything about an endpoint that we keep as it should be; the rest is left alone.

    `env` has references in place of secrets. `idle_timeout_s` is None where the platform has none.
    """

    name: str
    image: str
    env: Mapping[str, str]
    compute: GpuCompute | CpuCompute
    min_workers: int
    max_workers: int
    idle_timeout_s: int | None
    scaler: Scaler
    scaler_value: float
    execution_timeout_s: int
    flashboot: FlashBoot
    container_disk_gb: int
    network_volume_ids: tuple[str, ...]
    data_centers: tuple[str, ...]
    registry_auth_id: str | None
