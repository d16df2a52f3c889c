"""The wanted endpoint; knows nothing of the API's documents."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod_tools.deploy.configuration import Configuration
from pixpod_tools.deploy.pools import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """A configuration and the fields derived from it; the rest of the endpoint is not changed.

    `env` has references in place of secrets. A worker has one GPU of any of `pools`; without
    pools it is a CPU worker of the kind `cpu`. The user reads `remarks`, one line each, before
    the endpoint is applied.
    """

    configuration: Configuration
    env: Mapping[str, str]
    pools: tuple[Pool, ...]
    cpu: str | None
    container_disk_gb: int
    remarks: tuple[str, ...]
