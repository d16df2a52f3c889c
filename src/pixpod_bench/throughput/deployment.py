"""The settings that all of our sides share, so that they do the same work as stock pipelines."""

from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_bench.throughput.workload import MODELS

WEIGHTS = SOURCE_WEIGHTS_DIR
TINY_WEIGHTS = WEIGHTS / "tiny"

PRECISION = "float32"
"""In which a CPU is quickest with these models, and in which both sides draw the same image."""


def environ(*, is_batching: bool = True, **more: str) -> dict[str, str]:
    """Of a worker, or an engine, of the tiny models."""
    return {
        "PIXPOD_WEIGHTS_DIR": str(WEIGHTS),
        "PIXPOD_MODELS": ",".join(MODELS),
        "PIXPOD_DEVICE": "cpu",
        "PIXPOD_PRECISION": PRECISION,
        "PIXPOD_COMPILE": "false",
        "PIXPOD_PRELOAD": "true",
        "PIXPOD_DELIVERY": "inline",
        "PIXPOD_RENEW_AFTER_IMAGES": "0",
        "PIXPOD_BATCHING": "true" if is_batching else "false",
        **more,
    }
