"""GPU pools of the platform: the models that a worker can serve on them, and their prices."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from pixpod.gpus import Gpu, find_gpu
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.fit import Fit, ServedModel, fit

MAX_CHOSEN = 3
"""Maximum number of chosen pools: the platform ranks up to three kinds of GPU, and a fourth may
cost eight times the first.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """GPUs that the platform offers as one kind. `usd_per_second` is that of the dearest.

    A pool without a price is taken by name only.
    """

    id: str
    gpus: tuple[Gpu, ...]

    @property
    def usd_per_second(self) -> float | None:
        prices = [gpu.usd_per_second for gpu in self.gpus]
        return max(price for price in prices if price is not None) if all(prices) else None

    def worst_fit(self, models: Sequence[ServedModel]) -> Fit:
        """Return the fit on the GPU of the pool that serves the models worst."""
        fits = [fit(models, gpu) for gpu in self.gpus]
        return min(fits, key=lambda each: (each.plan is not None, each.is_as_baked))


def load_pools() -> tuple[Pool, ...]:
    text = resources.files("pixpod_tools.deploy").joinpath("pools.toml").read_text(encoding="utf-8")
    return tuple(
        Pool(id=entry["id"], gpus=tuple(map(_gpu, entry["gpus"])))
        for entry in tomllib.loads(text)["pools"]
    )


def choose_pools(pools: Iterable[Pool], models: Sequence[ServedModel]) -> tuple[Pool, ...]:
    """Return the cheapest pools that serve the models in the precision of their files.

    The pools are in order of price. Raises InvalidConfiguration if there is none.
    """
    fitting = _by_price(pool for pool in pools if pool.worst_fit(models).is_as_baked)
    if not fitting:
        largest = max((gpu for pool in pools for gpu in pool.gpus), key=lambda gpu: gpu.memory_gib)
        reason = fit(models, largest).reason
        raise InvalidConfiguration(
            "models",
            None,
            f"models that one GPU serves, got more than any does ({largest.name}: {reason}): "
            "serve them by several endpoints",
        )
    return fitting[:MAX_CHOSEN]


def named_pools(
    pools: Sequence[Pool], ids: Sequence[str], models: Sequence[ServedModel]
) -> tuple[Pool, ...]:
    """Return the pools of these ids, in the given order.

    Raises InvalidConfiguration for an id that is unknown or given twice, and for a pool on which
    a worker would refuse its models, with the worker's reason.
    """
    by_id = {pool.id: pool for pool in pools}
    if len(set(ids)) != len(ids):
        raise InvalidConfiguration("gpu_pools", ", ".join(ids), "each pool once")
    for pool_id in ids:
        if pool_id not in by_id:
            raise InvalidConfiguration("gpu_pools", pool_id, f"any of {', '.join(by_id)}")
        _check_fit(pools, by_id[pool_id], models)
    return tuple(by_id[pool_id] for pool_id in ids)


def _check_fit(pools: Sequence[Pool], pool: Pool, models: Sequence[ServedModel]) -> None:
    worst = pool.worst_fit(models)
    if worst.plan is None:
        fitting = [each.id for each in pools if each.worst_fit(models).plan is not None]
        accepted = ", ".join(fitting) or "none"
        raise InvalidConfiguration(
            "gpu_pools",
            pool.id,
            f"a pool that serves the models ({accepted}); on {worst.gpu.name}: {worst.reason}",
        )


def _by_price(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    priced = [(pool.usd_per_second, pool) for pool in pools if pool.usd_per_second is not None]
    return tuple(pool for _, pool in sorted(priced, key=lambda pair: pair[0]))


def _gpu(name: str) -> Gpu:
    gpu = find_gpu(name)
    assert gpu is not None, f"{name} is in pixpod's gpus.toml"
    return gpu
