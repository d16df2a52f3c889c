"""Methods of running a request: pipeline, stages and the key of its batch. No torch."""

from pixpod.methods.batch_key import BatchKey, batch_key_of, num_tokens
from pixpod.methods.guidance import is_guided, uses_negative_prompt
from pixpod.methods.method import Method, method_of, num_steps, pipelines_of, refining
from pixpod.methods.stages import (
    StageName,
    StagePlan,
    extras_of,
    pipeline_for,
    stack_extras,
    stages_of,
)

__all__ = [
    "BatchKey",
    "Method",
    "StageName",
    "StagePlan",
    "batch_key_of",
    "extras_of",
    "is_guided",
    "method_of",
    "num_steps",
    "num_tokens",
    "pipeline_for",
    "pipelines_of",
    "refining",
    "stack_extras",
    "stages_of",
    "uses_negative_prompt",
]
