"""The places where a deployment's weights may be, and the order in which they are searched."""

from pixpod.weights.sources.baked import BakedSource
from pixpod.weights.sources.hub import HubSource
from pixpod.weights.sources.locator import WeightsLocator
from pixpod.weights.sources.platform_cache import PlatformCacheSource
from pixpod.weights.sources.volume import VolumeSource

__all__ = ["BakedSource", "HubSource", "PlatformCacheSource", "VolumeSource", "WeightsLocator"]
