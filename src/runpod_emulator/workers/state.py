"""The states of a worker, as RunPod's console and `/health` name them, and what they allow."""

from enum import StrEnum


class WorkerState(StrEnum):
    """THROTTLED has no process: it waits for a GPU. DRAINING takes no job and is about to end."""

    INITIALIZING = "INITIALIZING"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    THROTTLED = "THROTTLED"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"

    @property
    def can_take(self) -> bool:
        """Return whether a job may be handed to the worker."""
        return self in (WorkerState.INITIALIZING, WorkerState.IDLE, WorkerState.RUNNING)

    @property
    def is_wanted(self) -> bool:
        """Return whether scaling counts the worker as one of the endpoint's."""
        return self not in (WorkerState.DRAINING, WorkerState.STOPPED)
