"""The places where a deployment's weights may be, and the order in which they are asked."""

from pixpod.engine.sources.baked import BakedSource
from pixpod.engine.sources.hub import HubSource
from pixpod.engine.sources.locator import WeightsLocator
from pixpod.engine.sources.platform_cache import PlatformCacheSource
from pixpod.engine.sources.volume import VolumeSource

__all__ = ["BakedSource", "HubSource", "PlatformCacheSource", "VolumeSource", "WeightsLocator"]
