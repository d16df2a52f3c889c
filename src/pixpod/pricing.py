"""Estimates what the GPU time of a job costs. Prices are data in `gpus.toml`.

A reply has the job's own share of the GPU. The platform bills a worker's whole life.
"""

from pixpod.gpus import find_gpu, price_basis
from pixpod.job import Cost


class PriceList:
    """Prices by GPU. A deployment's own price, if given, holds for whatever GPU it has."""

    def __init__(self, own_usd_per_second: float | None = None) -> None:
        self._own = own_usd_per_second

    def cost(self, device_name: str, gpu_ms: float) -> Cost:
        """Return the cost of `gpu_ms` on `device_name`; no estimate for an unknown GPU."""
        usd_per_second, basis = self._price(device_name)
        return Cost(
            gpu=device_name,
            gpu_ms=gpu_ms,
            estimated_usd=(
                None if usd_per_second is None else round(gpu_ms / 1e3 * usd_per_second, 8)
            ),
            basis=basis,
        )

    def _price(self, device_name: str) -> tuple[float | None, str]:
        if self._own is not None:
            return self._own, "PIXPOD_USD_PER_GPU_SECOND"
        gpu = find_gpu(device_name)
        if gpu is None or gpu.usd_per_second is None:
            return None, "no price is known for this device"
        return gpu.usd_per_second, price_basis()
