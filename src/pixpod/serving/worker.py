"""One job from its payload to its reply. The only place that turns errors into replies.

Knows protocols only: which engine draws and which store keeps is decided in `bootstrap`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pixpod.contract.payload import execution_timeout_s, parse_job, render_error, render_result
from pixpod.contract.rules import Offer
from pixpod.engine.base import Engine
from pixpod.environment import Secret
from pixpod.errors import Fault, InternalError, ResultTooLarge, WorkerError
from pixpod.job import (
    Delivery,
    EncodedImage,
    Generation,
    Job,
    JobResult,
    StoredImage,
    WorkerReport,
)
from pixpod.logs import job_context
from pixpod.outputs.encoding import base64_bytes, encode, generation_text, max_encoded_bytes
from pixpod.outputs.storage import ImageStore, image_key
from pixpod.pricing import PriceList
from pixpod.serving.concurrency import HeldJobs
from pixpod.serving.deadline import deadline, limit_s
from pixpod.serving.progress import Progress, ProgressSender
from pixpod.serving.refresh import Renewal
from pixpod.timeline import Timeline

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""What RunPod's SDK calls for each job. Any: JSON documents."""

PHASES = (
    "load",
    "queue",
    "swap",
    "fetch",
    "text_encode",
    "denoise",
    "decode",
    "safety",
    "encode",
    "upload",
    "total",
)
"""All phases of a job, in the order of the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a worker that serves a platform needs of it; one at a desk has none."""

    num_held_jobs: Callable[[], int]
    send_progress: ProgressSender


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker needs to know beside its parts. `key_prefix` is the deployment's."""

    worker_id: str
    key_prefix: str
    key_secret: Secret
    max_reply_bytes: int
    max_job_s: float


class Worker:
    """Serves jobs until it is closed; jobs may overlap. Without `send_progress` none is told."""

    def __init__(
        self,
        *,
        offer: Offer,
        engine: Engine,
        stores: Mapping[Delivery, ImageStore],
        prices: PriceList,
        held_jobs: HeldJobs,
        renewal: Renewal,
        send_progress: ProgressSender | None,
        options: WorkerOptions,
    ) -> None:
        self._offer = offer
        self._engine = engine
        self._stores = stores
        self._prices = prices
        self._held_jobs = held_jobs
        self._renewal = renewal
        self._send_progress = send_progress
        self._options = options
        self._images_served = 0

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Begin to load models in the background; jobs may come at once."""
        self._engine.start()

    def check_host(self) -> None:
        """Raises a WorkerError if this host cannot serve, whatever the deployment is."""
        self._engine.check_host()

    def jobs_to_hold(self, current: int) -> int:
        """How many jobs may be here at a time; `current` is what was said the last time."""
        return self._held_jobs(current)

    def stop(self) -> None:
        """End what is running and free the device; waits for the current step."""
        self._engine.stop()

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Run one job, `{"id", "input", ...}`, and return what the platform shall report.

        Never raises, except for `asyncio.CancelledError` when the platform stops the job. Any:
        JSON documents.
        """
        with job_context(raw.get("id")), self._held_jobs.running():
            return await self._asking_for_renewal(await self._answer(raw))

    async def _answer(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return render_result(await self._run(raw))
        except WorkerError as error:
            _log_failure(error)
            if error.refresh_worker:
                self._renewal.failed(error.code)
            return render_error(error)
        except Exception:
            log.exception("job failed unexpectedly")
            return render_error(InternalError("the worker's log has the details"))

    async def _asking_for_renewal(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The reply with `refresh_worker` if that is due and costs no other job."""
        reply.pop("refresh_worker", None)
        reason = self._renewal.reason
        if reason and await self._held_jobs.end(is_urgent=self._renewal.is_urgent):
            log.warning("worker asks to be renewed", extra={"reason": reason})
            reply["refresh_worker"] = True
        return reply

    async def _run(self, raw: Mapping[str, Any]) -> JobResult:
        timeline = Timeline()
        with timeline.phase("total"):
            job = parse_job(raw, self._offer)
            self._check_reply_size(job)
            log.info("job started", extra=_describe(job))
            generation = await self._draw(job, execution_timeout_s(raw))
            for phase, milliseconds in generation.timings_ms.items():
                timeline.add(phase, milliseconds)
            with timeline.phase("encode"):
                encoded = await _encode_all(job, generation)
            with timeline.phase("upload"):
                stored = await self._put_all(job, encoded)
        result = self._finish(generation, stored, timeline)
        log.info("job done", extra={"timings_ms": result.timings_ms})
        return result

    def _check_reply_size(self, job: Job) -> None:
        """Refuse what cannot fit before the card is asked to draw it."""
        if job.output.delivery is not Delivery.INLINE:
            return
        request, output = job.request, job.output
        each = max_encoded_bytes(request.width, request.height, output.format, output.quality)
        largest = len(request.seeds) * base64_bytes(each)
        if largest > self._options.max_reply_bytes:
            raise ResultTooLarge(
                f"{len(request.seeds)} inline {output.format} images of "
                f"{request.width}x{request.height} may take {largest} bytes, and a reply holds "
                f"{self._options.max_reply_bytes}: ask for fewer images, for jpeg or webp, or "
                "for delivery by s3"
            )

    async def _draw(self, job: Job, timeout_s: float | None) -> Generation:
        """`timeout_s` is the platform's own limit for this job, if it is known."""
        seconds = limit_s(self._options.max_job_s, timeout_s)
        progress = Progress(
            job_id=job.id,
            num_steps=job.request.num_inference_steps,
            send=self._send_progress,
        )
        async with progress.told(), deadline(seconds, lambda: progress.position):
            return await self._engine.generate(job.request, progress.on_step)

    async def _put_all(self, job: Job, images: list[EncodedImage]) -> tuple[StoredImage, ...]:
        """Put side by side; waits for all, so that none is under way when the job is answered."""
        puts = (self._put(job, image) for image in images)
        results = await asyncio.gather(*puts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return tuple(result for result in results if not isinstance(result, BaseException))

    async def _put(self, job: Job, image: EncodedImage) -> StoredImage:
        key = image_key(
            prefix=self._options.key_prefix,
            key_prefix=job.output.key_prefix,
            job_id=job.id,
            index=image.index,
            format=image.format,
            secret=self._options.key_secret,
        )
        return await self._stores[job.output.delivery].put(image, key)

    def _finish(
        self, generation: Generation, stored: tuple[StoredImage, ...], timeline: Timeline
    ) -> JobResult:
        is_first = self._images_served == 0
        self._images_served += len(stored)
        self._renewal.served(generation.model.name, len(stored))
        spent = timeline.milliseconds()
        timings_ms = {phase: spent.get(phase, 0.0) for phase in PHASES}
        return JobResult(
            images=stored,
            model=generation.model,
            timings_ms=timings_ms,
            cost=self._prices.cost(self._engine.device_name, round(generation.device_ms, 1)),
            worker=WorkerReport(
                id=self._options.worker_id,
                cold_start=is_first,
                boot_ms=self._engine.boot_ms(),
                images_served=self._images_served,
            ),
            warnings=generation.warnings,
        )


class RefusingWorker:
    """Stands in for a worker of a deployment that is set up wrongly: each job gets its fault.

    Cheaper for the owner than a worker that crashes and is started again on every host.
    """

    def __init__(self, error: WorkerError) -> None:
        self._error = error

    def check_host(self) -> None:
        """Raises the fault if it is this host's: a disk that fails when settings are read."""
        if self._error.fault is Fault.HOST:
            raise self._error

    def jobs_to_hold(self, current: int) -> int:
        """As `Worker.jobs_to_hold`: one at a time, as the SDK begins."""
        return current

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """As `Worker.handle`."""
        with job_context(raw.get("id")):
            log.error("job refused", extra={"error": str(self._error)})
        return render_error(self._error)


def _log_failure(error: WorkerError) -> None:
    """A caller's fault without its text, which quotes the payload; ours with its cause."""
    if error.fault is Fault.CALLER:
        log.warning("job refused", extra={"code": error.code})
    else:
        log.error("job failed", extra={"code": error.code, "fault": error.fault}, exc_info=error)


async def _encode_all(job: Job, generation: Generation) -> list[EncodedImage]:
    """Each image on a thread of its own: encoders let go of the interpreter's lock."""
    request, output = job.request, job.output
    assert len(generation.images) == len(request.seeds), "an engine draws one image per seed"

    def encode_one(index: int) -> EncodedImage:
        seed = request.seeds[index]
        text = generation_text(request, seed, generation.model) if output.metadata else None
        return encode(
            generation.images[index],
            index=index,
            seed=seed,
            format=output.format,
            quality=output.quality,
            text=text,
        )

    indices = range(len(request.seeds))
    return await asyncio.gather(*(asyncio.to_thread(encode_one, index) for index in indices))


def _describe(job: Job) -> dict[str, object]:
    """What may be logged of a job: no prompt."""
    request = job.request
    return {
        "model": request.model,
        "size": f"{request.width}x{request.height}",
        "steps": request.num_inference_steps,
        "num_images": len(request.seeds),
        "delivery": job.output.delivery,
    }
