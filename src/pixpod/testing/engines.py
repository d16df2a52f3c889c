"""Engines as a worker has them, built from a deployment's variables."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pixpod.bootstrap import build_engine
from pixpod.engine.base import Engine
from pixpod.settings import Settings

WARM_LIMIT_S = 480.0
"""Compiling two large models takes minutes."""

_POLL_S = 0.02


@contextmanager
def running_engine(environ: Mapping[str, str]) -> Iterator[Engine]:
    """Start an engine and stop it at the end. Raises InvalidSettings."""
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def warm_engine(environ: Mapping[str, str]) -> Iterator[Engine]:
    """Start an engine and wait until it has loaded its models and warmed them up.

    A model that cannot be loaded is reported by its first request. `PIXPOD_PRELOAD` must be on.
    Raises InvalidSettings, and TimeoutError after WARM_LIMIT_S.
    """
    with running_engine(environ) as engine:
        deadline = time.perf_counter() + WARM_LIMIT_S
        while not engine.is_warm:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"the engine was not warm within {WARM_LIMIT_S:.0f} s")
            time.sleep(_POLL_S)
        yield engine
