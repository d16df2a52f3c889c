"""One job from its payload to its reply. The only place that turns errors into replies.

Knows protocols only: which engine draws and which store keeps is decided in `bootstrap`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pixpod.encoding import base64_bytes, encode, generation_text, max_encoded_bytes
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
from pixpod.payload import parse_job, render_error, render_result
from pixpod.pricing import PriceList
from pixpod.rules import Offer
from pixpod.storage import ImageStore, image_key
from pixpod.timeline import Timeline

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""What RunPod's SDK calls for each job. Any: JSON documents."""

PHASES = (
    "load",
    "queue",
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

DEVICE_PHASES = ("text_encode", "denoise", "decode", "safety")
"""The phases in which a job has the card to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker needs to know beside its parts. `key_prefix` is the deployment's."""

    worker_id: str
    key_prefix: str
    key_secret: Secret
    max_reply_bytes: int


class Worker:
    """Serves jobs until it is closed; jobs may overlap."""

    def __init__(
        self,
        *,
        offer: Offer,
        engine: Engine,
        stores: Mapping[Delivery, ImageStore],
        prices: PriceList,
        options: WorkerOptions,
    ) -> None:
        self._offer = offer
        self._engine = engine
        self._stores = stores
        self._prices = prices
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

    def stop(self) -> None:
        """End what is running and free the device; waits for the current step."""
        self._engine.stop()

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Run one job, `{"id", "input", ...}`, and return what the platform shall report.

        Never raises, except for `asyncio.CancelledError` when the platform stops the job. Any:
        JSON documents.
        """
        with job_context(raw.get("id")):
            try:
                return render_result(await self._run(raw))
            except WorkerError as error:
                _log_failure(error)
                return render_error(error)
            except Exception:
                log.exception("job failed unexpectedly")
                return render_error(InternalError("the worker's log has the details"))

    async def _run(self, raw: Mapping[str, Any]) -> JobResult:
        timeline = Timeline()
        with timeline.phase("total"):
            job = parse_job(raw, self._offer)
            self._check_reply_size(job)
            log.info("job started", extra=_describe(job))
            generation = await self._engine.generate(job.request)
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
        spent = timeline.milliseconds()
        timings_ms = {phase: spent.get(phase, 0.0) for phase in PHASES}
        gpu_ms = round(sum(timings_ms[phase] for phase in DEVICE_PHASES), 1)
        return JobResult(
            images=stored,
            model=generation.model,
            timings_ms=timings_ms,
            cost=self._prices.cost(self._engine.device_name, gpu_ms),
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
