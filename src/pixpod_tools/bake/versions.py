"""Versions of the libraries that a bake was made with."""

from collections.abc import Mapping
from importlib import metadata

import pixpod

_LIBRARIES = ("torch", "torchao", "diffusers", "transformers", "safetensors")


def library_versions() -> Mapping[str, str]:
    return {"pixpod": pixpod.__version__} | {name: metadata.version(name) for name in _LIBRARIES}
