"""Runs one job from its payload to its reply. The only place that turns errors into replies.

Knows protocols only: `bootstrap` chooses the engine and the stores.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pixpod.contract.describe import describe
from pixpod.contract.payload import is_describe, parse_job, render_error, render_result
from pixpod.contract.rules import Capabilities
from pixpod.contract.webhooks import find_webhook
from pixpod.engine.base import Engine
from pixpod.errors import Fault, InternalError, ResultTooLarge, WorkerError
from pixpod.inputs.conditions import complete
from pixpod.inputs.intake import Intake
from pixpod.inputs.loras import Loras
from pixpod.inputs.named import ParsedJob
from pixpod.job import (
    Cost,
    Delivery,
    EncodedImage,
    EncodedResult,
    Generation,
    Job,
    JobResult,
    StoredResult,
    WorkerReport,
)
from pixpod.logs import job_context
from pixpod.methods import method_of
from pixpod.outputs.encoding import (
    MetadataOptions,
    base64_bytes,
    encode,
    generation_text,
    max_encoded_bytes,
)
from pixpod.outputs.keys import JobKeys
from pixpod.pricing import estimate_cost
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.deadline import deadline, limit_s
from pixpod.serving.delivery import Delivered, ImageDelivery
from pixpod.serving.job_events import JobEvents
from pixpod.serving.progress import Progress, ProgressSender
from pixpod.serving.refresh import Refresh
from pixpod.serving.replies import BulkyReply
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.webhooks import Webhooks
from pixpod.timeline import Timeline

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Coroutine[Any, Any, dict[str, Any]]]
"""Called by RunPod's SDK for each job. Any: JSON documents."""

ANSWERED_FROM_STORED = "this job was finished before: it is answered from its stored result"
FROM_SPOOL = "this job was finished before: its images come from the deployment's spool"


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
    metadata: MetadataOptions = field(default_factory=MetadataOptions)
    images_served: int = field(default=0, init=False)

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
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Begin to load models in the background; jobs may come at once."""
        self.engine.start()

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
        with job_context(raw.get("id")), self.concurrency.running():
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
            _log_failure(error)
            if error.refresh_worker:
                self.refresh.failed(error.code)
            if error.ends_worker and self.platform:
                self.platform.end_worker()
            return render_error(error)
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
            self._check_reply_size(job)
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
            result = self._repeat(made, ANSWERED_FROM_STORED, timeline)
        elif isinstance(made, EncodedResult):
            result = self._repeat(_stored(made, delivered), FROM_SPOOL, timeline)
        else:
            result = self._finish(made.generation, delivered, timeline)
        reply = await self._render(job, result, files)
        if isinstance(made, EncodedResult):
            await self.delivery.remove_spooled(job)
        log.info("job done", extra={"timings_ms": result.timings_ms})
        return reply

    async def _render(
        self, job: Job, result: JobResult, files: EncodedResult | None
    ) -> dict[str, Any]:
        """Render a result. Inline images that do not fit into a reply go to the bucket."""
        reply = render_result(result)
        if files is None or all(stored.data is None for stored in result.images):
            return reply
        if _json_bytes(reply) > self.delivery.max_reply_bytes:
            return await self._render_links(job, result, files)
        return BulkyReply(reply, lambda: self._shrink(job, result, files))

    async def _render_links(
        self, job: Job, result: JobResult, files: EncodedResult
    ) -> dict[str, Any]:
        """Render a result with its images in the bucket in place of the reply.

        If the bucket fails, they go to the spool. Raises ResultTooLarge or SpoolFull.
        """
        moved, cause = None, None
        try:
            moved = await self.delivery.move_out_of_reply(job, result.images)
        except WorkerError as exc:
            log.error("images not stored in place of inline ones", exc_info=exc)
            cause = exc
        if moved is None:
            num_bytes = sum(stored.image.size_bytes for stored in result.images)
            error: WorkerError = ResultTooLarge(
                f"a reply cannot hold {len(result.images)} inline images of together {num_bytes} "
                "bytes: request fewer images, jpeg or webp, or delivery by s3"
            )
            if cause is not None:
                error = await self.delivery.keep(job, files, error)
            raise error from cause
        warnings = (*result.warnings, *moved.warnings)
        return render_result(replace(result, images=moved.images, warnings=warnings))

    async def _shrink(self, job: Job, result: JobResult, files: EncodedResult) -> dict[str, Any]:
        """Return the reply to a job whose inline images the platform has refused."""
        try:
            return await self._render_links(job, result, files)
        except WorkerError as error:
            _log_failure(error)
            return render_error(error)

    async def _find_or_generate(
        self, job: ParsedJob, progress: Progress, timeline: Timeline
    ) -> Generated | StoredResult | EncodedResult:
        def generate() -> Coroutine[Any, Any, Generated]:
            return self._generate(job, progress, timeline)

        if spooled := await self.delivery.find_spooled(job):
            return spooled
        results = self._results_of(job)
        if results is None:
            return await generate()
        keys = self.delivery.keys_of(job, Delivery.S3)
        return await results.find_or_generate(job, keys, generate)

    async def _generate(self, job: ParsedJob, progress: Progress, timeline: Timeline) -> Generated:
        warnings: tuple[str, ...] = ()
        with self.loras.cache.using() as use:
            if job.names_files:
                with timeline.phase("fetch"):
                    spec = self.capabilities.models[job.request.model]
                    completed = await complete(job, spec, self.intake, self.loras, use)
                job, warnings = completed.job, completed.warnings
                self._check_reply_size(job)
            generation = await self.engine.generate(job.request, progress.on_step)
        warnings = (*warnings, *generation.warnings)
        return Generated(job=job, generation=replace(generation, warnings=warnings))

    def _results_of(self, job: Job) -> StoredResults | None:
        """Return where the result of this job is kept; only the deployment's bucket has results."""
        return self.results if job.output.delivery is Delivery.S3 else None

    async def _encode(self, job: Job, generation: Generation, timeline: Timeline) -> EncodedResult:
        for phase, milliseconds in generation.timings_ms.items():
            timeline.add(phase, milliseconds)
        with timeline.phase("encode"):
            images = await _encode_all(job, generation, self.metadata)
        return EncodedResult(
            images=tuple(images),
            model=generation.model,
            steps=generation.num_calls,
            warnings=generation.warnings,
            adapters=generation.adapters,
        )

    async def _deliver(self, job: Job, files: EncodedResult, timeline: Timeline) -> Delivered:
        with timeline.phase("upload"):
            delivered = await self.delivery.deliver(job, files)
        results = self._results_of(job)
        if results is not None and not delivered.warnings:  # all images are in the bucket
            keys = self.delivery.keys_of(job, Delivery.S3)
            await results.keep(job, keys, files, delivered.images)
        return delivered

    def _check_reply_size(self, job: Job) -> None:
        """Refuse results that cannot fit before any GPU time is spent."""
        if job.output.delivery is not Delivery.INLINE or self.delivery.may_use_bucket(job):
            return
        request, output = job.request, job.output
        each = max_encoded_bytes(request.width, request.height, output.format, output.quality)
        largest = len(request.seeds) * base64_bytes(each)
        if largest > self.delivery.max_reply_bytes:
            raise ResultTooLarge(
                f"{len(request.seeds)} inline {output.format} images of "
                f"{request.width}x{request.height} may take {largest} bytes, and a reply holds "
                f"{self.delivery.max_reply_bytes}: request fewer images, jpeg or webp, or "
                "delivery by s3"
            )

    def _finish(
        self, generation: Generation, delivered: Delivered, timeline: Timeline
    ) -> JobResult:
        is_first = self.images_served == 0
        self.images_served += len(delivered.images)
        self.refresh.served(len(delivered.images))
        return JobResult(
            images=delivered.images,
            model=generation.model,
            steps=generation.num_calls,
            timings_ms=timeline.milliseconds(),
            cost=estimate_cost(
                self.engine.device_name, round(generation.device_ms, 1), self.usd_per_gpu_second
            ),
            worker=self._report(is_first),
            warnings=(*generation.warnings, *delivered.warnings),
            adapters=generation.adapters,
        )

    def _repeat(self, result: StoredResult, reason: str, timeline: Timeline) -> JobResult:
        return JobResult(
            images=result.images,
            model=result.model,
            steps=result.steps,
            timings_ms=timeline.milliseconds(),
            cost=Cost(
                gpu=self.engine.device_name,
                gpu_ms=0.0,
                estimated_usd=0.0,
                basis="answered from a stored result",
            ),
            worker=self._report(is_first=self.images_served == 0),
            warnings=(*result.warnings, reason),
            adapters=result.adapters,
        )

    def _report(self, is_first: bool) -> WorkerReport:
        return WorkerReport(
            id=self.worker_id,
            cold_start=is_first,
            boot_ms=self.engine.boot_ms(),
            images_served=self.images_served,
        )


class RefusingWorker:
    """Stands in for a worker whose settings are wrong: each job is answered with the fault.

    That is cheaper for the owner than a worker that crashes and is started again on every host.
    """

    def __init__(self, error: WorkerError) -> None:
        self._error = error

    def check_host(self) -> None:
        """Raise the fault if it is this host's: a disk that fails when settings are read."""
        if self._error.fault is Fault.HOST:
            raise self._error

    def max_concurrency(self, current: int) -> int:
        """See `Worker.max_concurrency`; the SDK begins with one."""
        return current

    async def settle(self) -> None:
        """See `Worker.settle`; no job is run."""

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """See `Worker.handle`."""
        with job_context(raw.get("id")):
            log.error("job refused", extra={"error": str(self._error)})
        return render_error(self._error)


def _log_failure(error: WorkerError) -> None:
    """Log a caller's fault without its text, which quotes the payload; others with their cause."""
    if error.fault is Fault.CALLER:
        log.warning("job refused", extra={"code": error.code})
    else:
        log.error("job failed", extra={"code": error.code, "fault": error.fault}, exc_info=error)


async def _encode_all(
    job: Job, generation: Generation, metadata: MetadataOptions
) -> list[EncodedImage]:
    """Encode each image on a thread of its own: encoders release the interpreter's lock."""
    request, output = job.request, job.output
    assert len(generation.images) == len(request.seeds), "an engine makes one image per seed"

    def encode_one(index: int) -> EncodedImage:
        image = generation.images[index]
        text = generation_text(
            request, image.seed, generation.model, has_prompts=metadata.has_prompts
        )
        return encode(
            image.pixels,
            index=index,
            seed=image.seed,
            format=output.format,
            quality=output.quality,
            text=text if output.metadata else None,
            has_ai_mark=metadata.has_ai_mark,
        )

    indices = range(len(request.seeds))
    return await asyncio.gather(*(asyncio.to_thread(encode_one, index) for index in indices))


def _stored(spooled: EncodedResult, delivered: Delivered) -> StoredResult:
    return StoredResult(
        images=delivered.images,
        model=spooled.model,
        steps=spooled.steps,
        warnings=(*spooled.warnings, *delivered.warnings),
        adapters=spooled.adapters,
    )


def _json_bytes(reply: Mapping[str, Any]) -> int:
    return len(json.dumps(reply).encode())


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
