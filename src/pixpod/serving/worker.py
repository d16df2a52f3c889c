"""Runs one job from its payload to its reply. No error leaves this module but as a reply.

Knows protocols only: `bootstrap` chooses the engine and the stores.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pixpod.contract.describe import describe
from pixpod.contract.payload import is_describe, parse_job, render_error
from pixpod.contract.rules import Capabilities
from pixpod.contract.sensitive import sensitive_texts
from pixpod.contract.stacks import name_for_caller
from pixpod.contract.webhooks import find_webhook
from pixpod.engine.base import Engine
from pixpod.errors import InternalError, PayloadError, WorkerError
from pixpod.inputs.conditions import complete
from pixpod.inputs.intake import Intake
from pixpod.inputs.loras import Loras
from pixpod.inputs.named import ParsedJob
from pixpod.job import (
    Delivery,
    EncodedResult,
    Generation,
    Job,
    StoredImage,
    StoredResult,
)
from pixpod.logs import job_context
from pixpod.methods import method_of
from pixpod.outputs.encoding import MetadataOptions
from pixpod.outputs.keys import JobKeys
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.deadline import deadline, limit_s
from pixpod.serving.delivery import Delivered, ImageDelivery
from pixpod.serving.encoding import encode_images
from pixpod.serving.job_events import JobEvents
from pixpod.serving.job_results import JobResults
from pixpod.serving.progress import Progress, ProgressSender
from pixpod.serving.refresh import Refresh
from pixpod.serving.rendering import ReplyRenderer, render_failure
from pixpod.serving.safety import Safety
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.webhooks import Webhooks
from pixpod.timeline import Timeline

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Coroutine[Any, Any, dict[str, Any]]]
"""Called by RunPod's SDK for each job. Any: JSON documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The platform as a worker sees it; a worker that is run locally has none.

    `end_worker` takes no further job, and ends the process with status 1 once the results of those
    that are running are reported.
    """

    num_taken_jobs: Callable[[], int]
    send_progress: ProgressSender
    end_worker: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A job whose request is complete, and what the engine has made of it."""

    job: Job
    generation: Generation


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """Serves jobs concurrently until closed.

    Without `platform`, progress is not reported. `results` are those in the deployment's bucket, if
    it has one. Without `webhooks`, no events are sent.
    """

    capabilities: Capabilities
    engine: Engine
    delivery: ImageDelivery
    usd_per_gpu_second: float | None
    concurrency: Concurrency
    refresh: Refresh
    intake: Intake
    platform: Platform | None
    worker_id: str
    max_job_s: float
    results: StoredResults | None = None
    webhooks: Webhooks | None = None
    loras: Loras = field(default_factory=Loras)
    safety: Safety = field(default_factory=Safety)
    metadata: MetadataOptions = field(default_factory=MetadataOptions)
    _job_results: JobResults = field(init=False)

    def __post_init__(self) -> None:
        self._job_results = JobResults(
            refresh=self.refresh,
            usd_per_gpu_second=self.usd_per_gpu_second,
            worker_id=self.worker_id,
        )

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def settle(self) -> None:
        """Wait for what jobs have left to be done. Call it once all of them have ended.

        Result files are written. Final events are delivered or become dead letters, and other
        events are dropped. Each of these has its own time limit.
        """
        if self.results is not None:
            await self.results.settle()
        if self.webhooks is not None:
            await self.webhooks.settle()

    async def __aexit__(self, *exc: object) -> None:
        if self.results is not None:
            await self.results.settle()
        if self.webhooks is not None:
            await self.webhooks.close()
        if self.delivery.callers is not None:
            self.delivery.callers.close()
        self.intake.close()
        self.safety.close()
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Begin to load models in the background; jobs may come at once."""
        self.engine.start()
        if self.capabilities.safety is not None:
            self.safety.start()

    def check_host(self) -> None:
        """Raise a WorkerError if this host cannot serve, whatever the deployment is."""
        self.engine.check_host()

    def max_concurrency(self, current: int) -> int:
        """Return the number of jobs to take at a time; `current` is the last number returned."""
        return self.concurrency(current)

    def stop(self) -> None:
        """End running jobs and free the device; wait for the current step."""
        self.engine.stop()

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Run one job, `{"id", "input", ...}`, and return its reply for the platform.

        Never raises, except for `asyncio.CancelledError` when the platform stops the job. Any:
        JSON documents.
        """
        sensitive = sensitive_texts(raw)
        with job_context(raw.get("id"), sensitive), self.concurrency.running():
            events = self._events_of(raw)
            try:
                reply = await self._answer(raw, events)
            except asyncio.CancelledError:
                events.cancelled()
                raise
            await events.ended(reply)
            return await self._with_refresh(reply)

    def _events_of(self, raw: Mapping[str, Any]) -> JobEvents:
        job_id = str(raw.get("id"))
        keys = JobKeys(
            prefix=self.delivery.key_prefix,
            key_prefix="",
            job_name=job_id,
            secret=self.delivery.key_secret,
        )
        options = find_webhook(raw, self.capabilities)
        return JobEvents(job_id=job_id, keys=keys, webhooks=self.webhooks, options=options)

    async def _answer(self, raw: Mapping[str, Any], events: JobEvents) -> dict[str, Any]:
        try:
            if is_describe(raw):
                return describe(self.capabilities)
            return await self._run(raw, events)
        except WorkerError as error:
            if error.refresh_worker:
                self.refresh.failed(error.code)
            if error.ends_worker and self.platform:
                self.platform.end_worker()
            return render_failure(error)
        except Exception:
            log.exception("job failed unexpectedly")
            return render_error(InternalError("the worker's log has the details"))

    async def _with_refresh(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Add `refresh_worker` to the reply if that is due and costs no other job."""
        reason = self.refresh.reason
        if reason and await self.concurrency.end(is_urgent=self.refresh.is_urgent):
            log.warning("worker requests a refresh", extra={"reason": reason})
            reply["refresh_worker"] = True
        return reply

    async def _run(self, raw: Mapping[str, Any], events: JobEvents) -> dict[str, Any]:
        timeline = Timeline()
        with timeline.phase("total"):
            job = parse_job(raw, self.capabilities, self.delivery.key_secret)
            events.keys = self.delivery.keys_of(job, Delivery.S3)
            self._renderer.check_size(job)
            await self.delivery.check(job)
            log.info("job started", extra=_describe(job))
            events.started()
            method = method_of(self.capabilities.models[job.request.model], job.request)
            send = events.with_progress(self.platform.send_progress if self.platform else None)
            progress = Progress(job_id=job.id, num_calls=method.num_calls, send=send)
            seconds = limit_s(self.max_job_s, job.execution_timeout_s)
            async with deadline(seconds, lambda: progress.position):
                async with progress.reporting():
                    made = await self._find_or_generate(job, progress, timeline)
                files = made if isinstance(made, EncodedResult) else None
                if isinstance(made, Generated):
                    files = await self._encode(made.job, made.generation, timeline)
                if files is not None:
                    delivered = await self._deliver(job, files, timeline)
        if isinstance(made, StoredResult):
            result = self._job_results.of_stored(self.engine, job, made, timeline)
        elif isinstance(made, EncodedResult):
            result = self._job_results.of_spooled(self.engine, job, made, delivered, timeline)
        else:
            assert files is not None
            result = self._job_results.of_generated(
                self.engine, job, made.generation, files, delivered, timeline
            )
        reply = await self._renderer.render(job, result, files)
        if isinstance(made, EncodedResult):
            await self.delivery.remove_spooled(job)
        log.info("job done", extra={"timings_ms": result.timings_ms})
        return reply

    @property
    def _renderer(self) -> ReplyRenderer:
        return ReplyRenderer(self.delivery, self._keep)

    async def _find_or_generate(
        self, job: ParsedJob, progress: Progress, timeline: Timeline
    ) -> Generated | StoredResult | EncodedResult:
        async def generate() -> Generated:
            try:
                return await self._generate(job, progress, timeline)
            except PayloadError as error:
                raise type(error)(name_for_caller(error.problems, job.stack)) from error

        if spooled := await self.delivery.find_spooled(job):
            return spooled
        results = self._results_of(job)
        if results is None:
            return await generate()
        keys = self.delivery.keys_of(job, Delivery.S3)
        return await results.find_or_generate(job, keys, generate)

    async def _generate(self, job: ParsedJob, progress: Progress, timeline: Timeline) -> Generated:
        warnings: tuple[str, ...] = ()
        if job.output.safety is not None:
            await self.safety.ready()
        with self.loras.cache.using() as use:
            if job.names_files:
                with timeline.phase("fetch"):
                    spec = self.capabilities.models[job.request.model]
                    completed = await complete(job, spec, self.intake, self.loras, use)
                job, warnings = completed.job, completed.warnings
                self._renderer.check_size(job)
            generation = await self.engine.generate(job.request, progress.on_step)
        warnings = (*warnings, *generation.warnings)
        return Generated(job=job, generation=replace(generation, warnings=warnings))

    def _results_of(self, job: Job) -> StoredResults | None:
        """Return where this job may have a result: its images may be in the deployment's bucket.

        Inline images are if they were too large for the reply.
        """
        is_moved = job.output.delivery is Delivery.INLINE and self.delivery.may_use_bucket(job)
        return self.results if is_moved or job.output.delivery is Delivery.S3 else None

    async def _keep(self, job: Job, files: EncodedResult, images: tuple[StoredImage, ...]) -> None:
        """Keep a result if all its images are in the deployment's bucket. Fails no job."""
        results = self._results_of(job)
        if results is not None and all(image.key for image in images):
            await results.keep(job, self.delivery.keys_of(job, Delivery.S3), files, images)

    async def _encode(self, job: Job, generation: Generation, timeline: Timeline) -> EncodedResult:
        for phase, milliseconds in generation.timings_ms.items():
            timeline.add(phase, milliseconds)
        return await encode_images(job, generation, self.metadata, self.safety, timeline)

    async def _deliver(self, job: Job, files: EncodedResult, timeline: Timeline) -> Delivered:
        with timeline.phase("upload"):
            delivered = await self.delivery.deliver(job, files)
        await self._keep(job, files, delivered.images)
        return delivered


def _describe(job: Job) -> dict[str, object]:
    """Return facts about a job that may be logged: no prompt."""
    request = job.request
    return {
        "model": request.model,
        "size": f"{request.width}x{request.height}",
        "steps": request.sampling.num_inference_steps,
        "num_images": len(request.seeds),
        "delivery": job.output.delivery,
    }
