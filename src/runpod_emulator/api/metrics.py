"""The emulator's state as a Prometheus page."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runpod_emulator.jobs.job import JobStatus
from runpod_emulator.workers.state import WorkerState

PREFIX = "runpod_emulator"


def render(state: Mapping[str, Any]) -> bytes:
    """Return the page. `state` is the result of `snapshot.snapshot`."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(state))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs kept", labels=["endpoint", "status"])
        workers = GaugeMetricFamily(
            f"{PREFIX}_workers", "Workers that have a place", labels=["endpoint", "state"]
        )
        ended = CounterMetricFamily(
            f"{PREFIX}_jobs_ended", "Jobs ended or retried", labels=["endpoint", "how"]
        )
        billed = CounterMetricFamily(
            f"{PREFIX}_billed_seconds", "Whole seconds of all workers", labels=["endpoint"]
        )
        cost = CounterMetricFamily(f"{PREFIX}_cost_usd", "What these cost", labels=["endpoint"])
        waits = GaugeMetricFamily(
            f"{PREFIX}_oldest_wait_seconds", "Age of the oldest waiting job", labels=["endpoint"]
        )
        for endpoint_id, each in self._state["endpoints"].items():
            for status in JobStatus:
                jobs.add_metric([endpoint_id, status], each["jobs"].get(status, 0))
            states = [worker["state"] for worker in each["workers"]]
            for state in WorkerState:
                workers.add_metric([endpoint_id, state], states.count(state))
            for how, count in each["tally"].items():
                ended.add_metric([endpoint_id, how], count)
            billed.add_metric([endpoint_id], each["billed_s"])
            if each["cost_usd"] is not None:
                cost.add_metric([endpoint_id], each["cost_usd"])
            oldest = each["backlog"]["oldest_queued_at"]
            waits.add_metric([endpoint_id], self._state["now"] - oldest if oldest else 0)
        yield from (jobs, workers, ended, billed, cost, waits)
        hazards = CounterMetricFamily(f"{PREFIX}_hazards", "Hazards found", labels=["kind"])
        for kind, count in self._state["hazards"]["counts"].items():
            hazards.add_metric([kind], count)
        faults = CounterMetricFamily(f"{PREFIX}_faults", "Faults that struck", labels=["rule"])
        for rule in self._state["faults"]:
            faults.add_metric([rule["id"]], rule["hits"])
        yield from (hazards, faults)
