"""Deployments of an engine for a benchmark, arrivals of requests, and records of their service.

Imports no torch.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixpod.catalog import load_catalog
from pixpod_bench.figures import percentile
from pixpod_bench.gpu.results import LoadPoint
from pixpod_bench.gpu.scenarios import Served

ALL_LICENCES = ",".join(
    spec.licence for spec in load_catalog().values() if spec.licence_must_be_accepted
)
"""Licences of published weights, accepted because the weights of a benchmark are random."""

SEED = 0
"""Seed of arrivals and of the order of requests, the same for every side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Weights, models and options of an engine; `compiled_dir` need not exist."""

    weights_dir: Path
    compiled_dir: Path
    device: str
    served: Served
    sizes_px: Sequence[int] = ()
    is_batching: bool = True
    limit_gib: float | None = None

    def environ(self) -> Mapping[str, str]:
        """Return the variables of the deployment; the sizes are warmed up."""
        sizes = ",".join(f"{size}x{size}" for size in self.sizes_px)
        environ = {
            "PIXPOD_WEIGHTS_DIR": str(self.weights_dir),
            "PIXPOD_COMPILED_DIR": str(self.compiled_dir),
            "PIXPOD_MODELS": ",".join(model for model, _ in self.served),
            "PIXPOD_PRECISION": ",".join(
                f"{model}={precision}" for model, precision in self.served
            ),
            "PIXPOD_DEVICE": self.device,
            "PIXPOD_PRELOAD": "true",
            "PIXPOD_VERIFY": "sizes",
            "PIXPOD_WARMUP_SIZES": sizes or "none",
            "PIXPOD_BATCHING": str(self.is_batching).lower(),
            "PIXPOD_ACCEPT_LICENCES": ALL_LICENCES,
        }
        if self.limit_gib is not None:
            environ["PIXPOD_MEMORY_LIMIT_GB"] = f"{self.limit_gib:g}"
        return environ


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRequest:
    """One request: the times of its arrival and of its images, in seconds of one clock."""

    arrived_s: float
    done_s: float
    device_s: float
    num_images: int


def arrivals(rate_per_s: float, num_requests: int) -> list[float]:
    """Return seconds from the start: a Poisson process, the same each time."""
    source, now, times = random.Random(SEED), 0.0, []  # noqa: S311 - no secret
    for _ in range(num_requests):
        now += source.expovariate(rate_per_s)
        times.append(now)
    return times


def summarize(served: Sequence[AnsweredRequest], *, is_batching: bool, load: float) -> LoadPoint:
    began, ended = min(each.arrived_s for each in served), max(each.done_s for each in served)
    latencies = [each.done_s - each.arrived_s for each in served]
    return LoadPoint(
        is_batching=is_batching,
        load=load,
        requests_per_s=len(served) / (ended - began),
        images_per_s=sum(each.num_images for each in served) / (ended - began),
        p50_s=percentile(latencies, 50),
        p95_s=percentile(latencies, 95),
        p99_s=percentile(latencies, 99),
        busy_percent=100 * sum(each.device_s for each in served) / (ended - began),
    )
