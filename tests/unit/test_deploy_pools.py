"""What models need, and the pools that follow from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.families import Precision
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.footprints import Footprints, Mode, Need, ServedModel
from pixpod_tools.deploy.pools import MAX_CHOSEN, choose_pools, load_pools, named_pools

POOLS = load_pools()
CATALOG = load_catalog()
BF16, FP8, FP16 = Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC, Precision.FLOAT16


def need_of(*models, t5=FP8, adaln=FP8):
    return Footprints().need(
        ServedModel(spec=CATALOG[name], precision=precision, t5=t5, adaln=adaln)
        for name, precision in models
    )


def ids(pools):
    return [pool.id for pool in pools]


@given(pools=st.permutations(POOLS), device_gib=st.floats(0, 250), float8=st.booleans())
def test_chosen_are_the_cheapest_that_fit_in_order_of_price(pools, device_gib, float8):
    need = Need(device_gib=device_gib, files_gb=1, float8=float8)
    prices = sorted(
        pool.usd_per_second for pool in POOLS if pool.fits(need) and pool.usd_per_second is not None
    )
    if not prices:
        with pytest.raises(InvalidConfiguration, match="more than any pool has"):
            choose_pools(pools, need)
        return
    chosen = choose_pools(pools, need)
    assert all(pool.fits(need) for pool in chosen)
    assert [pool.usd_per_second for pool in chosen] == prices[:MAX_CHOSEN]


@pytest.mark.parametrize(
    ("models", "t5", "first"),
    [
        pytest.param([("sd15", FP16)], FP8, "AMPERE_16", id="sd15"),
        pytest.param([("sdxl", FP16)], FP8, "AMPERE_16", id="sdxl"),
        pytest.param([("flux-dev", FP8)], FP8, "ADA_24", id="flux in 8 bit"),
        pytest.param([("flux-dev", FP8)], BF16, "ADA_48_PRO", id="flux with T5 in 16 bit"),
        pytest.param([("flux-dev", BF16)], BF16, "AMPERE_48", id="flux in 16 bit"),
        pytest.param(
            [("flux-schnell", FP8), ("sdxl", FP16)], FP8, "ADA_48_PRO", id="flux and sdxl"
        ),
        pytest.param(
            [("flux-dev", FP8), ("flux-schnell", FP8), ("sdxl", FP16), ("sd15", FP16)],
            FP8,
            "BLACKWELL_96",
            id="all",
        ),
    ],
)
def test_cheapest_pool_of_usual_sets_of_models(models, t5, first):
    assert ids(choose_pools(POOLS, need_of(*models, t5=t5)))[0] == first


def test_parts_kept_at_16_bit_need_more():
    flux = [("flux-dev", FP8)]
    needs = [need_of(*flux), need_of(*flux, t5=BF16), need_of(*flux, t5=BF16, adaln=BF16)]
    assert [need.device_gib for need in needs] == pytest.approx([21.5, 25.8, 28.8], abs=0.05)


def test_float8_takes_no_card_without_it():
    need = need_of(("flux-dev", FP8))
    assert not {"AMPERE_24", "AMPERE_48", "AMPERE_80"} & {
        pool.id for pool in POOLS if pool.fits(need)
    }


def test_pool_without_a_price_is_taken_by_name_only():
    need = need_of(("flux-dev", FP8))
    assert ids(named_pools(POOLS, ["ADA_32_PRO"], need)) == ["ADA_32_PRO"]
    assert "ADA_32_PRO" not in ids(choose_pools(POOLS, need))


def test_named_pools_keep_their_order():
    need = need_of(("sdxl", FP16))
    assert ids(named_pools(POOLS, ["ADA_80_PRO", "AMPERE_16"], need)) == ["ADA_80_PRO", "AMPERE_16"]


def test_pool_that_is_too_small_is_refused_with_what_fits():
    with pytest.raises(InvalidConfiguration) as caught:
        named_pools(POOLS, ["ADA_48_PRO", "ADA_24"], need_of(("flux-dev", BF16), t5=BF16))
    text = str(caught.value)
    assert text.startswith("gpu_pools = 'ADA_24': accepted is a pool on which the models fit")
    assert text.endswith(
        "they need 36.8 GiB: AMPERE_48, ADA_48_PRO, AMPERE_80, BLACKWELL_96, ADA_80_PRO, "
        "HOPPER_141, BLACKWELL_180"
    )


@pytest.mark.parametrize(
    ("named", "words"),
    [
        pytest.param(["ADA_25"], "'ADA_25': accepted is any of AMPERE_16, ", id="unknown"),
        pytest.param(["ADA_24", "ADA_24"], "each pool once", id="twice"),
    ],
)
def test_wrong_names_of_pools_are_refused(named, words):
    with pytest.raises(InvalidConfiguration, match=words):
        named_pools(POOLS, named, None)


def test_models_too_big_for_any_card_are_refused():
    big = Need(device_gib=500, files_gb=400, float8=True)
    with pytest.raises(InvalidConfiguration, match=r"these need 500\.0 GiB and FP8"):
        choose_pools(POOLS, big)


def test_precision_without_figures_is_refused_with_those_that_have_some():
    with pytest.raises(InvalidConfiguration, match="float32, bfloat16, float16"):
        need_of(("sdxl", FP8))


@pytest.mark.parametrize(
    ("mode", "disk_gb"), [(Mode.BAKED, 35), (Mode.VOLUME, 35), (Mode.CACHED_MODEL, 20)]
)
def test_disk_holds_the_weights_that_lie_on_it(mode, disk_gb):
    assert Footprints().disk_gb(mode, need_of(("flux-dev", FP8)).files_gb) == disk_gb


def test_small_models_have_small_needs():
    need = need_of(("flux-tiny", BF16), ("sdxl-tiny", BF16), ("sd15-tiny", BF16))
    assert need.device_gib < 2
    assert need.files_gb < 1
