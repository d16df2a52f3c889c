"""Keeps LoRAs that were read, in host memory."""

import threading
from collections import OrderedDict

from pixpod.engine.adapters.adapter import Adapter
from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.model import LoadedModel
from pixpod.job import LoraFile

MAX_BYTES = 2 * 2**30
"""A LoRA for FLUX of rank 16 for all layers takes 130 MB."""


class AdapterStore:
    """Reads LoRAs, and drops the least recently used ones beyond `max_bytes`.

    May be used by several threads, of which one reads at a time.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._adapters: OrderedDict[tuple[str, str, str], Adapter] = OrderedDict()

    def get(self, file: LoraFile, model: LoadedModel) -> Adapter:
        """Return a LoRA for this model. Raises what `read_adapter` raises."""
        key = (file.sha256, model.spec.name, model.identity.precision)
        with self._lock:
            adapter = self._adapters.get(key)
            if adapter is None:
                adapter = self._adapters[key] = read_adapter(file, model)
                self._drop_oldest()
            self._adapters.move_to_end(key)
        return adapter

    def _drop_oldest(self) -> None:
        total = sum(adapter.nbytes for adapter in self._adapters.values())
        while total > self._max_bytes and len(self._adapters) > 1:
            _, oldest = self._adapters.popitem(last=False)
            total -= oldest.nbytes
