"""One class for each stage that a plan may name."""

from pixpod.engine.execution.stages.adapt import AdaptStage
from pixpod.engine.execution.stages.base import Stage, StageContext
from pixpod.engine.execution.stages.decode import DecodeStage
from pixpod.engine.execution.stages.denoise import DenoiseStage
from pixpod.engine.execution.stages.encode import EncodeStage
from pixpod.engine.execution.stages.preprocess import PreprocessStage
from pixpod.engine.execution.stages.refine import RefineStage
from pixpod.engine.execution.stages.upscale import UpscaleStage

__all__ = [
    "AdaptStage",
    "DecodeStage",
    "DenoiseStage",
    "EncodeStage",
    "PreprocessStage",
    "RefineStage",
    "Stage",
    "StageContext",
    "UpscaleStage",
]
