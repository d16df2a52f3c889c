"""A model on a device that does not return, and the loader that has loaded it."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace

from support.factories import CATALOG

from pixpod.engine.base import OnStep
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.errors import WorkerError
from pixpod.job import GenerationRequest, ModelIdentity, Quality


class HangingModel:
    """Returns from a batch once `may_return` is set."""

    identity = ModelIdentity(name="m", revision="r", precision="float32", weights="baked")
    loaded = SimpleNamespace(spec=CATALOG["sdxl-tiny"])

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_return = threading.Event()

    def num_calls(self, request: GenerationRequest) -> int:
        return 1

    def max_batch_size(self, request: GenerationRequest) -> int:
        return 1

    def execute(
        self, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        self.has_begun.set()
        self.may_return.wait()
        on_step(1)
        return []


class LoadedAlready:
    """Stands in for a ModelLoader."""

    def __init__(self, model: HangingModel, device_name: str) -> None:
        self.device_name = device_name
        self._load: Future[HangingModel] = Future()
        self._load.set_result(model)

    def load(self, name: str, quality: Quality) -> "Future[HangingModel]":
        return self._load

    def check_host(self) -> None:
        pass

    def stop(self) -> None:
        pass
