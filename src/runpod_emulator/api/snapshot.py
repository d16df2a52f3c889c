"""The whole emulator as one JSON document, for people and their scripts; nothing secret in it."""

from dataclasses import asdict
from typing import Any

from runpod_emulator.api.gateway import Endpoint, Gateway
from runpod_emulator.jobs.job import Job
from runpod_emulator.workers.billing import job_cost_usd
from runpod_emulator.workers.session import WorkerSession

NUM_RECENT_JOBS = 50


async def snapshot(gateway: Gateway) -> dict[str, Any]:
    """Return the state. Times are seconds since the epoch, costs US dollars since the start.

    A cost is null for a GPU without a published price.
    """
    now = gateway.clock()
    return {
        "started_at": gateway.started_at,
        "now": now,
        "endpoints": {
            endpoint_id: await _endpoint(gateway, endpoint, now)
            for endpoint_id, endpoint in gateway.endpoints.items()
        },
        "faults": [
            {**asdict(each.rule), "passes": each.passes, "hits": each.hits}
            for each in gateway.faults.rules
        ],
        "hazards": {
            "counts": gateway.hazards.counts,
            "recent": [asdict(each) for each in gateway.hazards.recent],
        },
        "behaviour": asdict(gateway.behaviour),
    }


def job_details(gateway: Gateway, endpoint: Endpoint, job: Job) -> dict[str, Any]:
    """Return a job with its history and its cost, without its input and output."""
    settings = endpoint.settings
    price = gateway.prices.usd_per_second(settings.gpu, gpu_count=settings.gpu_count)
    webhook = job.webhook
    return {
        "id": job.id,
        "status": job.status,
        "is_sync": job.is_sync,
        "created_at": job.created_at,
        "delay_ms": job.delay_ms,
        "execution_ms": job.execution_ms,
        "worker_id": job.worker_id,
        "retries": job.retries,
        "executions": job.executions,
        "error": job.error,
        "policy": asdict(job.policy),
        "has_s3_config": job.s3_config is not None,
        # an address may carry a token, so only the delivery is shown
        "webhook": webhook and {k: v for k, v in asdict(webhook).items() if k != "url"},
        "cost_usd": job_cost_usd(job.execution_ms or 0, price),
        "history": [asdict(event) for event in job.history],
    }


async def _endpoint(gateway: Gateway, endpoint: Endpoint, now: float) -> dict[str, Any]:
    settings, fleet = endpoint.settings, endpoint.fleet
    workers = [_worker(each, now) for each in fleet.workers.values()]
    retired = [_worker(each, now) for each in fleet.retired]
    return {
        "settings": {
            name: value
            for name, value in asdict(settings).items()
            if name not in ("env", "command", "workdir")
        },
        "workdir": str(settings.workdir),
        "command": list(settings.command),
        "jobs": await gateway.store.counts(settings.id),
        "tally": asdict(await gateway.store.tally(settings.id)),
        "backlog": asdict(await gateway.store.backlog(settings.id)),
        "is_short_of_gpus": fleet.is_short_of_gpus,
        "failures_in_a_row": fleet.num_failures,
        "billed_s": fleet.billed_s(now),
        "cost_usd": fleet.cost_usd(now),
        "workers": workers,
        "retired": retired,
        "recent_jobs": [
            job_details(gateway, endpoint, job)
            for job in await gateway.store.recent(settings.id, NUM_RECENT_JOBS)
        ],
    }


def _worker(worker: WorkerSession, now: float) -> dict[str, Any]:
    return {
        "id": worker.id,
        "state": worker.state,
        "reason": worker.reason,
        "pid": worker.process and worker.process.pid,
        "is_active": worker.is_active,
        "created_at": worker.created_at,
        "ready_at": worker.ready_at,
        "last_ping_at": worker.last_ping_at,
        "retry_at": worker.retry_at,
        "jobs": list(worker.jobs),
        "num_results": worker.num_results,
        "bill": asdict(worker.meter.bill(now)),
        "cost_usd": worker.cost_usd(now),
    }
