"""A loaded model together with the runner of its device: what the request queue executes."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixpod.engine.base import OnStep
from pixpod.engine.execution.conditions import Prepared
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.model import LoadedModel
from pixpod.engine.scheduling.batching import BatchItem, ItemResult, bucket, max_batch_size
from pixpod.errors import WorkerError
from pixpod.job import GenerationRequest, ModelIdentity
from pixpod.methods import batch_key_of, method_of, stages_of
from pixpod.timeline import BootTimeline


@dataclass(frozen=True, slots=True, eq=False)
class RunnableModel:
    """Executes batches of one model. All executions come from the device's thread."""

    loaded: LoadedModel
    runner: ModelRunner
    timeline: BootTimeline

    @property
    def identity(self) -> ModelIdentity:
        return self.loaded.identity

    def num_calls(self, request: GenerationRequest) -> int:
        """Return the denoiser calls of one image."""
        return method_of(self.loaded.spec, request).num_calls

    def prepare(self, request: GenerationRequest) -> Prepared:
        """See `ModelRunner.prepare`."""
        return self.runner.prepare(self.loaded, request)

    def max_batch_size(self, request: GenerationRequest) -> int:
        """Return the largest bucket for such requests that pays and fits into memory."""
        spec = self.loaded.spec
        stages = stages_of(spec, method_of(spec, request))
        wanted = max_batch_size(spec.family, batch_key_of(request))
        plan = self.runner.placement.plan
        return bucket(plan.max_batch_size(spec.name, stages, wanted))

    def execute(
        self, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        """See `ModelRunner.execute`. Warm-ups are part of the boot."""
        if items[0].warms is None:
            return self.runner.execute(self.loaded, items, on_step)
        with self.timeline.span("warm", items[0].warms):
            return self.runner.execute(self.loaded, items, on_step)
