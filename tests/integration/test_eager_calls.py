"""Compiled regions that are called in a form without compiled code: the reply says so."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from support import loading
from torch import nn
from torch.utils._pytree import tree_unflatten

from pixpod.engine.compilation.calls import (
    PackageCompiled,
    RegionForward,
    collecting_eager_calls,
)
from pixpod.engine.compilation.regions import Call
from pixpod.engine.component_key import extra_key
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import Compilation, LoadedExtra
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.families import Precision
from pixpod.job import Conditions, ControlOptions, InputImage, RawImage
from pixpod_tools.compile.exporting import form_of

CPU = torch.device("cpu")


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 2.0), requires_grad=False)

    def forward(self, sample, scale=1.0):
        return sample * self.weight * scale


@pytest.fixture
def region():
    """Runs a package for float32 of any two sizes times 4, of up to 64 elements."""
    region = Doubled()
    samples = (torch.ones(2, 3, 4), torch.ones(3, 5, 4))
    form = form_of(region, *(Call.of((sample, 1.0), {}, CPU) for sample in samples))
    form = replace(form, max_elements=64)
    package = PackageCompiled(lambda tensors: [tensors[0] * tensors[1]], form)
    compile_with(region, package)
    return region


def compile_with(region, compiled):
    """Have a region called as compile_model does."""
    compilation = Compilation(model="tiny", modes={"unet": "package"})
    region.forward = RegionForward(region, "unet", compiled, compilation)


def warnings_of(*calls):
    with collecting_eager_calls() as found:
        for call in calls:
            call()
    return list(found)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            (torch.ones(2, 3, 4).half(), 1.0),
            "expected float32 of ?x?x4, got float16 of 2x3x4",
        ),
        ((torch.ones(2, 3, 5), 1.0), "expected float32 of ?x?x4, got float32 of 2x3x5"),
        ((torch.ones(2, 3, 4), 1.5), "expected 1.0, got 1.5"),
        ((torch.ones(2, 3, 4),), "expected the arguments that it was compiled with, got others"),
    ],
    ids=["format", "size", "constant", "arguments"],
)
def test_call_in_another_form_runs_eagerly_and_says_why(region, arguments, reason):
    expected = region.forward.eager(*arguments)
    found = []
    warnings = warnings_of(lambda: found.append(region(*arguments)))
    assert torch.equal(found[0], expected)
    assert warnings == [f"unet ran eagerly, which is slower: {reason}"]


def test_call_that_is_larger_than_the_compiled_code_takes_says_so(region):
    (warning,) = warnings_of(lambda: region(torch.ones(3, 7, 4), 1.0))
    assert warning.endswith(": expected at most 64 elements in an argument, got 84")


def test_call_that_is_compiled_gives_no_warning(region):
    assert warnings_of(lambda: region(torch.ones(3, 2, 4), 1.0)) == []


def test_each_form_is_reported_once(region):
    wide, half = torch.ones(2, 3, 5), torch.ones(2, 3, 4).half()
    warnings = warnings_of(*[lambda: region(wide, 1.0), lambda: region(half, 1.0)] * 3)
    assert len(warnings) == len(set(warnings)) == 2


def compiled_unet(region, call):
    raise AssertionError("the size of this call is not compiled")


def test_reply_names_a_size_that_is_not_compiled():
    """The tiny UNet halves its latents once; they have a pixel for 8x8 of the image."""
    model = loading.load("sd15-tiny", loading.shipped("sd15-tiny"), Precision.FLOAT32, CPU)
    compile_with(model.components["unet"], compiled_unet)
    placement = Placement(make_plan([], None))
    placement.add(model)
    request = model.spec.default_request(
        prompt="a red circle", width=72, height=64, num_inference_steps=2, seeds=(1,)
    )
    item = BatchItem(request=request, seeds=(1,))
    (result,) = ModelRunner(placement, ConditionCache(0)).execute(model, [item], lambda calls: None)
    assert isinstance(result, ItemResult)
    assert result.warnings == (
        "unet ran eagerly, which is slower: expected latents with sides that are multiples of 2, "
        "got 9x8",
    )


def execute(model, request):
    placement = Placement(make_plan([], None))
    placement.add(model)
    item = BatchItem(request=request, seeds=request.seeds)
    (result,) = ModelRunner(placement, ConditionCache(0)).execute(model, [item], lambda calls: None)
    assert isinstance(result, ItemResult)
    return result


def test_reply_names_a_control_that_is_not_compiled():
    """A package for plain calls has no place for what a ControlNet adds to the UNet's."""
    model = loading.load("sd15-tiny", loading.shipped("sd15-tiny"), Precision.FLOAT32, CPU)
    unet, seen = model.components["unet"], []

    def record(region, call):
        seen.append(call)
        arguments, options = tree_unflatten(list(call.leaves), call.spec)
        return region.forward.eager(*arguments, **options)

    def must_not_run(tensors):
        raise AssertionError("the package has no such form")

    plain = model.spec.default_request(prompt="a red circle", num_inference_steps=2, seeds=(1,))
    compile_with(unet, record)
    for request in (plain, replace(plain, width=96, height=80, seeds=(1, 2))):
        assert execute(model, request).warnings == ()
    unet.forward = unet.forward.eager
    compile_with(unet, PackageCompiled(must_not_run, form_of(unet, seen[0], seen[-1])))
    net = ControlNetModel.from_unet(unet, load_weights_from_unet=False).eval()
    model.extras["net"] = LoadedExtra(module=net, key=extra_key("net", Precision.FLOAT32))
    pixels = RawImage(width=64, height=64, pixels=bytes(3 * 64 * 64))
    controlled = replace(
        plain,
        controls=(ControlOptions(net="net", scale=1.0, start=0.0, end=1.0),),
        conditions=Conditions(controls=(InputImage(raw=pixels, digest="black"),)),
    )
    assert execute(model, controlled).warnings == (
        "unet ran eagerly, which is slower: expected the arguments that it was compiled with, got "
        "others",
    )
