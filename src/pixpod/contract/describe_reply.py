"""The `output` of a job whose input is `{"describe": true}`, as JSON."""

from typing import Literal

from pydantic import BaseModel, Field

from pixpod.catalog import Defaults
from pixpod.job import Delivery, Mode, Quality, SafetyAction


class ServedModelReply(BaseModel):
    """A model that the worker serves."""

    name: str
    family: str
    licence: str
    revision: str | None
    modes: list[Mode]
    control_modes: list[Mode]
    """Modes that take controlnets."""
    control_types: list[str]
    """Types of controlnets that the worker has for the model."""
    preprocessed_types: list[str]
    """Those of them that take controlnets[].preprocess."""
    refiners: list[str]
    """Names of the refiners that the worker has for the model."""
    image_prompts: list[str]
    """Names for ip_adapter that the worker has for the model."""
    upscales: list[int]
    """Values of upscale that the worker has for the model."""
    qualities: list[Quality]
    schedulers: list[str]
    step_counts: list[int]
    """The only values of `num_inference_steps` that the model takes; empty if it takes any."""
    prompt_fields: list[str]
    defaults: Defaults
    """Null where the model has no such field."""
    limits: dict[str, int | float | None]
    """The limits of the catalog, `size_multiple_px`, of which both sides are multiples, and
    `max_loras` of one job.
    """


class ExtraReply(BaseModel):
    """Something that models are served with, such as a ControlNet or an upscaler.

    `family` is null for one that is not made for a family: an image encoder, an upscaler or a depth
    estimator.
    """

    name: str
    kind: str
    family: str | None
    licence: str
    revision: str | None
    types: list[str]
    models: list[str]
    """The served models that it fits."""


class DescribeReply(BaseModel):
    """The `output` of a job whose input is `{"describe": true}`. It takes no GPU."""

    api_version: Literal[1]
    version: str = Field(description="Version of the worker.")
    request_schema_sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="Of the JSON Schema of inputs, in hex."
    )
    models: list[ServedModelReply]
    extras: list[ExtraReply]
    deliveries: list[Delivery] = Field(description="The default first.")
    loras: list[str] = Field(description="Names of the LoRAs that the deployment has.")
    stacks: list[str] = Field(description="Names that jobs may give as `stack`.")
    safety: SafetyAction | None = Field(
        description="What happens to unsafe images of all jobs; null if jobs choose."
    )
