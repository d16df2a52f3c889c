"""Code for each family's pipelines: text encoding, arguments of the call, decoding."""

import importlib
from typing import Any

from pixpod.engine.execution.pipelines.base import (
    Arguments,
    ArrangingCalls,
    MaskCalls,
    PipelineCalls,
    RefinerCalls,
    TokenLimit,
)
from pixpod.families import FamilySpec

__all__ = [
    "Arguments",
    "ArrangingCalls",
    "MaskCalls",
    "PipelineCalls",
    "RefinerCalls",
    "TokenLimit",
    "calls_of",
    "refiner_calls_of",
]


def calls_of(family: FamilySpec) -> PipelineCalls:
    """Import the code that a family names as `module:object`."""
    calls: PipelineCalls = _import(family.calls)()
    return calls


def refiner_calls_of(family: FamilySpec) -> RefinerCalls:
    """Import the code for the refiners of a family that has some."""
    assert family.refiner is not None, "the contract refuses refiners of other families"
    calls: RefinerCalls = _import(family.refiner.calls)()
    return calls


def _import(place: str) -> Any:  # noqa: ANN401 - any class
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
