"""Code for each family's pipelines: text encoding, arguments of the call, decoding."""

import importlib

from pixpod.engine.execution.pipelines.base import (
    Arguments,
    MaskCalls,
    PipelineCalls,
    TokenLimit,
)
from pixpod.families import FamilySpec

__all__ = ["Arguments", "MaskCalls", "PipelineCalls", "TokenLimit", "calls_of"]


def calls_of(family: FamilySpec) -> PipelineCalls:
    """Import the code that a family names as `module:object`."""
    module, _, name = family.calls.partition(":")
    calls: PipelineCalls = getattr(importlib.import_module(module), name)()
    return calls
