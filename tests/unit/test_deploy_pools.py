"""Pools follow from the plan that a worker itself would make."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import GIB, Precision
from pixpod.gpus import find_gpu
from pixpod_tools.deploy.build import disk_gb
from pixpod_tools.deploy.configuration import Mode
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.fit import ServedModel, files_gb, fit
from pixpod_tools.deploy.pools import MAX_CHOSEN, choose_pools, load_pools, named_pools
from pixpod_tools.plan.served import find_needs, target_of

POOLS = load_pools()
CATALOG = load_catalog()
BF16, FP8, FP16 = Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC, Precision.FLOAT16


def served(*models, t5=None, requested=None):
    return [
        ServedModel(
            spec=CATALOG[name],
            baked=QuantizationPlan(precision=precision, t5=t5 if precision is FP8 else None),
            requested=requested,
        )
        for name, precision in models
    ]


def ids(pools):
    return [pool.id for pool in pools]


MODEL_SETS = [
    served(("sd15", FP16)),
    served(("flux-dev", FP8)),
    served(("flux-dev", FP8), ("sdxl", FP16)),
    served(("flux-dev", BF16), ("sdxl", FP16)),
]


@settings(max_examples=20, deadline=None)
@given(pools=st.permutations(POOLS), models=st.sampled_from(MODEL_SETS))
def test_chosen_are_the_cheapest_that_serve_in_order_of_price(pools, models):
    prices = sorted(
        pool.usd_per_second
        for pool in POOLS
        if pool.usd_per_second is not None and pool.worst_fit(models).is_as_baked
    )
    chosen = choose_pools(pools, models)
    assert all(pool.worst_fit(models).plan is not None for pool in chosen)
    assert [pool.usd_per_second for pool in chosen] == prices[:MAX_CHOSEN]


def all_bytes(model, gpu):
    plan = fit([model], gpu).plan
    assert plan is not None
    return sum(plan.sizes.values())


@pytest.mark.parametrize("name", ["RTX 4090", "H100 SXM"])
def test_t5_and_adaln_are_counted_as_they_were_baked(name):
    """`flux-dev-24gb` has T5 in FP8, `flux-dev-adaln16` 3.0 GiB more in its denoiser."""
    gpu = find_gpu(name)
    assert gpu is not None
    (usual,) = served(("flux-dev", FP8))
    (small,) = served(("flux-dev", FP8), t5=FP8)
    large = replace(usual, baked=QuantizationPlan(precision=FP8, adaln=BF16))
    if name == "H100 SXM":  # the smaller GPU converts T5 to FP8 in any case
        assert (all_bytes(usual, gpu) - all_bytes(small, gpu)) / GIB == pytest.approx(4.3, abs=0.1)
    else:
        assert all_bytes(small, gpu) == all_bytes(usual, gpu)
    assert (all_bytes(large, gpu) - all_bytes(usual, gpu)) / GIB == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("models", "first"),
    [
        pytest.param(served(("sd15", FP16)), "AMPERE_16", id="sd15"),
        pytest.param(served(("sdxl", FP16)), "AMPERE_16", id="sdxl"),
        pytest.param(served(("flux-dev", FP8), t5=FP8), "ADA_24", id="flux in 8 bits"),
        pytest.param(served(("flux-dev", FP8)), "ADA_24", id="flux, T5 in 16 bits"),
        pytest.param(served(("flux-dev", FP8), ("sdxl", FP16)), "ADA_24", id="flux and sdxl"),
        pytest.param(served(("flux-dev", BF16)), "AMPERE_16", id="flux in INT8"),
    ],
)
def test_cheapest_pool_of_usual_sets_of_models(models, first):
    assert ids(choose_pools(POOLS, models))[0] == first


def test_deploy_and_plan_agree_on_a_4090():
    """The planner of deployments once skipped a GPU that the worker's own plan serves."""
    gpu = next(pool for pool in POOLS if pool.id == "ADA_24").gpus[0]
    found = fit(served(("flux-dev", FP8), ("sdxl", FP16)), gpu)
    target = target_of(gpu)
    needs = find_needs(["flux-dev=float8_dynamic", "sdxl"], CATALOG, None, target)
    plan = make_plan(needs, target.budget)
    assert found.plan is not None
    assert found.plan.offloaded == plan.offloaded
    assert {str(key) for key in plan.offloaded} == {
        "flux-dev/text_encoder_2",
        "sdxl/text_encoder_2",
    }


def test_gpu_without_float8_is_not_chosen_for_files_in_it_but_taken_by_name():
    models = served(("flux-dev", FP8))
    assert not {"AMPERE_48", "AMPERE_80"} & set(ids(choose_pools(POOLS, models)))
    assert ids(named_pools(POOLS, ["AMPERE_48"], models)) == ["AMPERE_48"]


def test_requested_float8_is_refused_on_a_gpu_without_it():
    models = served(("flux-dev", BF16), requested=FP8)
    with pytest.raises(InvalidConfiguration, match=r"on A6000: .*needs a GPU with row-wise FP8"):
        named_pools(POOLS, ["AMPERE_48"], models)


def test_pool_without_a_price_is_taken_by_name_only():
    models = served(("flux-dev", FP8))
    assert ids(named_pools(POOLS, ["ADA_32_PRO"], models)) == ["ADA_32_PRO"]
    assert "ADA_32_PRO" not in ids(choose_pools(POOLS, models))


def test_named_pools_keep_their_order():
    models = served(("sdxl", FP16))
    named = ["ADA_80_PRO", "AMPERE_16"]
    assert ids(named_pools(POOLS, named, models)) == named


def test_pool_that_is_too_small_is_refused_with_the_workers_numbers():
    models = served(("flux-dev", BF16), requested=Precision.FLOAT32)
    with pytest.raises(InvalidConfiguration) as caught:
        named_pools(POOLS, ["ADA_24"], models)
    text = str(caught.value)
    assert text.startswith("gpu_pools = 'ADA_24': expected a pool that serves the models (")
    assert "AMPERE_80" in text
    assert "on RTX 4090: model_unavailable: flux-dev in float32 needs about 48 GiB" in text


@pytest.mark.parametrize(
    ("named", "words"),
    [
        pytest.param(["ADA_25"], "'ADA_25': expected any of AMPERE_16, ", id="unknown"),
        pytest.param(["ADA_24", "ADA_24"], "each pool once", id="twice"),
    ],
)
def test_wrong_names_of_pools_are_refused(named, words):
    with pytest.raises(InvalidConfiguration, match=words):
        named_pools(POOLS, named, served(("sd15", FP16)))


def test_models_that_no_gpu_serves_are_refused_with_the_reason():
    models = served(("sdxl", FP16), requested=Precision.INT8_DYNAMIC)
    with pytest.raises(InvalidConfiguration, match=r"B200: .*sdxl cannot run in int8_dynamic"):
        choose_pools(POOLS, models)


@pytest.mark.parametrize(
    ("mode", "size_gb"), [(Mode.BAKED, 40), (Mode.VOLUME, 40), (Mode.CACHED_MODEL, 20)]
)
def test_disk_holds_the_weights_that_lie_on_it(mode, size_gb):
    assert disk_gb(mode, files_gb(served(("flux-dev", FP8)))) == size_gb


def test_small_models_have_small_files():
    models = served(("flux-tiny", BF16), ("sdxl-tiny", BF16), ("sd15-tiny", BF16))
    assert files_gb(models) < 1
