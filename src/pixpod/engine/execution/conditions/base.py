"""The protocol of conditions: everything that steers an image apart from its seed."""

from typing import Protocol

from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.job import GenerationRequest
from pixpod.methods import StageName


class Condition(Protocol):
    """Prepares a part of a request as tensors for the pipeline's call.

    `methods.batch_key` says what rows of a batch must share, and the plan of `stage` names the
    components that `compute` may use.
    """

    @property
    def stage(self) -> StageName:
        """The stage that computes this condition."""
        ...

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        """Return warnings for the caller. Raises InvalidInput; needs no component."""
        ...

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        """Return arguments that were computed before, on the model's device; None if unknown."""
        ...

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        """Compute the arguments of one request; a tensor's first dimension is 1."""
        ...
