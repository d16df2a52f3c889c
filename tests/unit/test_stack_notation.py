"""Stacks: their notation, presets, and the requests that use them."""

import pytest
from support.stack_cases import CATALOG, net, nets

from pixpod.errors import InvalidSettings
from pixpod.extras import ExtraKind
from pixpod.families import FAMILIES
from pixpod.job import LoraSlots
from pixpod.methods import stack_extras
from pixpod.stacks import Stack, parse_stacks, stack_request
from pixpod.stacks.usage import USAGES

MODELS = {name: CATALOG[name] for name in ("sdxl", "flux-dev")}
NETS = nets()


def names(*entries, models=MODELS, extras=NETS):
    return [stack.name for stack in parse_stacks(entries, models, extras)]


def test_each_kind_of_extra_has_an_entry():
    assert USAGES.keys() == set(ExtraKind)


def test_stack_is_a_model_and_parts():
    (stack,) = parse_stacks(["sdxl + canny + loras=128"], MODELS, NETS)
    assert stack == Stack(model="sdxl", extras=("canny",), lora_rank=128)
    assert stack.name == "sdxl+canny+loras=128"


@pytest.mark.parametrize("name", ["sdxl+canny", "sdxl+loras", "flux-dev+flux-canny+loras=16"])
def test_name_is_read_back(name):
    assert names(name) == [name]


def test_equal_stacks_are_one():
    assert names("sdxl+loras", "sdxl+loras=64") == ["sdxl+loras"]


def test_studio_has_one_net_and_some_loras_of_each_model():
    assert names("studio") == ["sdxl+canny+loras", "flux-dev+flux-canny+loras"]


def test_heavy_has_all_that_one_request_may_use():
    assert names("heavy") == ["sdxl+canny+depth+loras=256", "flux-dev+flux-canny+loras=256"]
    assert names("heavy", extras={}) == ["sdxl+loras=256", "flux-dev+loras=256"]


def test_presets_take_the_largest_of_more_than_a_request_may_use():
    many = {name: net(name, gib) for name, gib in zip("abcdef", [1, 3, 2, 5, 4, 3], strict=True)}
    assert names("heavy", models={"sdxl": CATALOG["sdxl"]}, extras=many) == [
        "sdxl+d+e+b+f+loras=256"
    ]
    assert names("studio", models={"sdxl": CATALOG["sdxl"]}, extras=many) == ["sdxl+d+loras"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("sdxll+canny", "expected a served model (sdxl, flux-dev), got 'sdxll': did you mean"),
        ("sd15+loras", "expected a served model (sdxl, flux-dev), got 'sd15'"),
        ("stduio", "(studio, heavy, sdxl, flux-dev), got 'stduio': did you mean 'studio'?"),
        ("sdxl", "expected sdxl and what must fit beside it, got no part"),
        ("sdxl+cany", "(canny, depth, loras), got 'cany': did you mean 'canny'?"),
        ("sdxl+flux-canny", "a part that sdxl is served with (canny, depth, loras), got 'flux-c"),
        ("sdxl+", "got ''"),
        ("sdxl+lora", "got 'lora': did you mean 'loras'?"),
        ("sdxl+loras=20", "expected loras= and one of 16, 32, 64, 128, 256, got 'loras=20'"),
        ("sdxl+loras=", "expected loras= and one of 16, 32, 64, 128, 256, got 'loras='"),
        ("sdxl+canny+canny", "expected each part once"),
        ("sdxl+loras+loras=16", "expected each part once"),
    ],
)
def test_what_cannot_be_a_stack_is_refused(entry, text):
    with pytest.raises(InvalidSettings) as caught:
        names(entry)
    assert str(caught.value).startswith(f"invalid_settings: PIXPOD_STACKS: {entry}: ")
    assert text in str(caught.value)


def test_more_than_a_request_may_use_is_refused():
    many = {name: net(name, 1) for name in "abcde"}
    with pytest.raises(InvalidSettings, match="at most 4 of kind controlnet, got 5"):
        names("sdxl+a+b+c+d+e", extras=many)


def test_union_nets_stand_alone_where_their_pipeline_does():
    union = net("union", 3, modes={"tile": 6, "pose": 0})
    extras = {**NETS, "union": union}
    with pytest.raises(InvalidSettings, match="that one job may use, got canny and union"):
        names("sdxl+canny+union", extras=extras)
    sdxl = {"sdxl": CATALOG["sdxl"]}
    assert names("studio", models=sdxl, extras=extras) == ["sdxl+union+loras"]
    assert names("heavy", models=sdxl, extras=extras) == ["sdxl+canny+depth+loras=256"]
    (stack,) = parse_stacks(["sdxl+union"], MODELS, extras)
    (control,) = stack_request(stack, CATALOG["sdxl"], extras).controls
    assert control.union_mode == 6
    flux = {"flux-union": net("flux-union", 3, modes={"tile": 1}), **NETS}
    assert names("flux-dev+flux-canny+flux-union", extras=flux)


def test_request_uses_everything_in_its_stack():
    stack = Stack(model="sdxl", extras=("depth", "canny"), lora_rank=128)
    request = stack_request(stack, CATALOG["sdxl"], NETS, width=512)
    assert [control.net for control in request.controls] == ["depth", "canny"]
    assert [image.raw.width for image in request.conditions.controls] == [512, 512]
    assert request.conditions.slots == LoraSlots(rank=128, is_whole=True)
    assert stack_extras(stack, CATALOG["sdxl"], NETS) == ("depth", "canny")


def test_presets_have_ranks_that_slots_may_have():
    for family in FAMILIES.values():
        assert family.lora is None or family.lora.ranks[-1] == family.lora.max_rank
