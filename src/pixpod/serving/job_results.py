"""Results of jobs: what was made, what it cost, and the state of the worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pixpod.engine.base import Engine
from pixpod.job import (
    Cost,
    EncodedResult,
    Generation,
    Job,
    JobResult,
    StoredImage,
    StoredResult,
    WorkerReport,
)
from pixpod.pricing import estimate_cost
from pixpod.serving.delivery import Delivered
from pixpod.serving.refresh import Refresh
from pixpod.timeline import Timeline

ANSWERED_FROM_STORED = "this job was finished before: it is answered from its stored result"
FROM_SPOOL = "this job was finished before: its images come from the deployment's spool"


@dataclass(slots=True, kw_only=True, eq=False)
class JobResults:
    """Makes the results of a worker's jobs, and counts the images that it has served."""

    refresh: Refresh
    usd_per_gpu_second: float | None
    worker_id: str
    images_served: int = field(default=0, init=False)

    def of_generated(
        self,
        engine: Engine,
        job: Job,
        generation: Generation,
        files: EncodedResult,
        delivered: Delivered,
        timeline: Timeline,
    ) -> JobResult:
        """Return a result of images that the GPU has made, and count them."""
        is_first = self.images_served == 0
        self.images_served += job.num_images
        self.refresh.served(job.num_images)
        return JobResult(
            images=_images_of(job, delivered.images),
            controls=_controls_of(job, delivered.images),
            model=generation.model,
            steps=generation.num_calls,
            timings_ms=timeline.milliseconds(),
            cost=estimate_cost(
                engine.device_name, round(generation.device_ms, 1), self.usd_per_gpu_second
            ),
            worker=self._report(engine, is_first),
            warnings=(*files.warnings, *delivered.warnings),
            adapters=files.adapters,
            dropped=files.dropped,
            refiner=job.request.refiner,
            image_prompt=job.request.image_prompt,
            stack=job.stack,
            upscaler=job.request.upscaler,
        )

    def of_stored(
        self, engine: Engine, job: Job, stored: StoredResult, timeline: Timeline
    ) -> JobResult:
        """Return a result whose images are where they were."""
        return self._repeat(engine, job, stored, ANSWERED_FROM_STORED, timeline)

    def of_spooled(
        self,
        engine: Engine,
        job: Job,
        spooled: EncodedResult,
        delivered: Delivered,
        timeline: Timeline,
    ) -> JobResult:
        """Return a result whose images have come from the spool."""
        stored = StoredResult(
            images=delivered.images,
            model=spooled.model,
            steps=spooled.steps,
            warnings=(*spooled.warnings, *delivered.warnings),
            adapters=spooled.adapters,
            dropped=spooled.dropped,
        )
        return self._repeat(engine, job, stored, FROM_SPOOL, timeline)

    def _repeat(
        self, engine: Engine, job: Job, result: StoredResult, reason: str, timeline: Timeline
    ) -> JobResult:
        return JobResult(
            images=_images_of(job, result.images),
            controls=_controls_of(job, result.images),
            model=result.model,
            steps=result.steps,
            timings_ms=timeline.milliseconds(),
            cost=Cost(
                gpu=engine.device_name,
                gpu_ms=0.0,
                estimated_usd=0.0,
                basis="answered from a stored result",
            ),
            worker=self._report(engine, is_first=self.images_served == 0),
            warnings=(*result.warnings, reason),
            adapters=result.adapters,
            dropped=result.dropped,
            refiner=job.request.refiner,
            image_prompt=job.request.image_prompt,
            stack=job.stack,
            upscaler=job.request.upscaler,
        )

    def _report(self, engine: Engine, is_first: bool) -> WorkerReport:
        return WorkerReport(
            id=self.worker_id,
            cold_start=is_first,
            boot_ms=engine.boot_ms(),
            images_served=self.images_served,
        )


def _images_of(job: Job, files: Sequence[StoredImage]) -> tuple[StoredImage, ...]:
    """Return the images among the files of a job: those that were not dropped."""
    return tuple(file for file in files if file.image.index < job.num_images)


def _controls_of(job: Job, files: Sequence[StoredImage]) -> Mapping[int, StoredImage]:
    """Return the control images among the files of a job, by the indices of their controls."""
    return {
        job.made_controls[file.image.index - job.num_images]: file
        for file in files
        if file.image.index >= job.num_images
    }
