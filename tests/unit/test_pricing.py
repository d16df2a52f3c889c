"""Costs follow from the name of a device."""

import pytest

from pixpod.pricing import estimate_cost


@pytest.mark.parametrize(
    ("device_name", "usd_per_second"),
    [
        ("NVIDIA B200", 0.00240),
        ("NVIDIA H200", 0.00155),
        ("NVIDIA H100 80GB HBM3", 0.00116),
        ("NVIDIA H100 PCIe", 0.00116),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 0.00111),
        ("NVIDIA A100-SXM4-80GB", 0.00076),
        ("NVIDIA A100 80GB PCIe", 0.00076),
        ("NVIDIA L40", 0.00053),
        ("NVIDIA L40S", 0.00053),
        ("NVIDIA RTX 6000 Ada Generation", 0.00053),
        ("NVIDIA RTX A6000", 0.00034),
        ("NVIDIA A40", 0.00034),
        ("NVIDIA GeForce RTX 4090", 0.00031),
        ("NVIDIA L4", 0.00019),
        ("NVIDIA RTX A5000", 0.00019),
        ("NVIDIA GeForce RTX 3090", 0.00019),
        ("NVIDIA RTX A4500", 0.00016),
        ("NVIDIA RTX A4000", 0.00016),
    ],
)
def test_gpu_is_found_in_the_name_of_its_driver(device_name, usd_per_second):
    cost = estimate_cost(device_name, 10_000.0)
    assert cost.estimated_usd == pytest.approx(10 * usd_per_second)
    assert cost.basis.startswith("RunPod serverless flex price")
    assert (cost.gpu, cost.gpu_ms) == (device_name, 10_000.0)


@pytest.mark.parametrize("device_name", ["cpu", "unknown", "NVIDIA GH200 480GB", "NVIDIA T4", ""])
def test_unknown_device_has_no_estimate(device_name):
    cost = estimate_cost(device_name, 5.0)
    assert cost.estimated_usd is None
    assert cost.basis == "no price is known for this device"


@pytest.mark.parametrize("device_name", ["cpu", "NVIDIA H100 PCIe"])
@pytest.mark.parametrize("price", [0.0, 0.5])
def test_own_price_holds_for_any_device(device_name, price):
    cost = estimate_cost(device_name, 2_000.0, price)
    assert cost.estimated_usd == 2 * price
    assert cost.basis == "PIXPOD_USD_PER_GPU_SECOND"


def test_basis_names_source_and_date():
    cost = estimate_cost("NVIDIA L4", 1.0)
    assert cost.basis == "RunPod serverless flex price, documentation of 2026-08-20"
