"""Estimates what the GPU time of a job costs. Prices are data in `gpus.toml`.

A reply has the job's own share of the GPU. The platform bills a worker's whole life.
"""

from pixpod.gpus import find_gpu, price_basis
from pixpod.job import Cost


def estimate_cost(device_name: str, gpu_ms: float, own_usd_per_s: float | None = None) -> Cost:
    """Return the cost of `gpu_ms` on a device; no estimate for an unknown GPU.

    A deployment's own price, if given, applies to any GPU.
    """
    gpu = find_gpu(device_name)
    if own_usd_per_s is not None:
        usd_per_s, basis = own_usd_per_s, "PIXPOD_USD_PER_GPU_SECOND"
    elif gpu and gpu.usd_per_second is not None:
        usd_per_s, basis = gpu.usd_per_second, price_basis()
    else:
        basis = "no price is known for this device"
        return Cost(gpu=device_name, gpu_ms=gpu_ms, estimated_usd=None, basis=basis)
    estimated_usd = round(gpu_ms / 1e3 * usd_per_s, 8)
    return Cost(gpu=device_name, gpu_ms=gpu_ms, estimated_usd=estimated_usd, basis=basis)
