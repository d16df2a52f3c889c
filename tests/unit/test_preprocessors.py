"""Preprocessors in payloads: which control images can be made, and the files of such jobs."""

from dataclasses import replace

import pytest
from support.factories import CATALOG, OFFER, OFFERED_EXTRAS, make_job

from pixpod.contract.payload import parse_job
from pixpod.errors import InvalidInput
from pixpod.extras import DEPTH, ExtraKind, ExtraSpec
from pixpod.families import SDXL
from pixpod.job import PreprocessorOptions
from pixpod.methods import StageName, extras_of, method_of, stages_of
from pixpod.stacks import Stack, stack_request

ESTIMATOR = "depth-anything-small"
IMAGE = "https://example.org/a.png"
POSE = ExtraSpec(
    name="pose", kind=ExtraKind.CONTROLNET, family=SDXL, licence="MIT", types=("pose",), gib_16=2.3
)


def offer(*names):
    extras = {name: OFFERED_EXTRAS[name] for name in names}
    return replace(OFFER, extras={**extras, "pose": POSE})


def job_of(*types, offered=OFFER, **fields):
    controls = [{"type": type, "image": IMAGE, "preprocess": True} for type in types]
    return parse_job(make_job(controlnets=controls, **fields), offered)


def test_edges_need_no_extra_and_depth_the_deployments_estimator():
    request = job_of("canny", "depth").request
    assert [control.preprocessor for control in request.controls] == [
        PreprocessorOptions(type="canny"),
        PreprocessorOptions(type="depth", estimator=ESTIMATOR, size_px=518),
    ]
    assert extras_of(CATALOG["sdxl-tiny"], request)[0] == ESTIMATOR
    assert ESTIMATOR not in extras_of(CATALOG["sdxl-tiny"], job_of("canny").request)


@pytest.mark.parametrize(
    ("extras", "type", "made"),
    [
        (["sdxl-depth-tiny"], "depth", "none can be made"),
        (["sdxl-depth-tiny", "sdxl-canny-tiny"], "depth", "canny can be made"),
        (["sdxl-canny-tiny", "sdxl-depth-tiny", ESTIMATOR], "pose", "canny, depth can be made"),
    ],
)
def test_type_without_a_preprocessor_is_refused_with_those_that_have_one(extras, type, made):
    with pytest.raises(InvalidInput) as caught:
        job_of(type, offered=offer(*extras))
    (problem,) = caught.value.problems
    assert problem.field == "controlnets[0].preprocess"
    assert problem.accepted == f"absent with {type}: of the types of sdxl-tiny, {made}"


def test_files_of_a_job_are_its_images_and_then_its_control_images():
    job = job_of("canny", "depth", seed=[5, 6], output={"controls": True})
    assert job.made_controls == (0, 1)
    assert job.seeds_of_files == (5, 6, None, None)
    assert job_of("canny").made_controls == ()


def stage_of(request):
    spec = CATALOG["sdxl-tiny"]
    plans = {plan.name: plan for plan in stages_of(spec, method_of(spec, request))}
    return plans.get(StageName.PREPROCESS)


def test_plan_has_the_estimator_in_a_stage_of_its_own():
    assert stage_of(job_of("canny", "depth").request).components == (ESTIMATOR,)
    assert stage_of(job_of("canny").request).components == ()
    ready = make_job(controlnets=[{"type": "canny", "image": IMAGE}])
    assert stage_of(parse_job(ready, OFFER).request) is None


@pytest.mark.parametrize("parts", [(ESTIMATOR,), (ESTIMATOR, "sdxl-canny-tiny")])
def test_stack_with_an_estimator_uses_it_for_a_net(parts):
    stack = Stack(model="sdxl-tiny", extras=parts)
    request = stack_request(stack, CATALOG["sdxl-tiny"], OFFERED_EXTRAS)
    (control,) = request.controls
    assert control.net == ("sdxl-depth-tiny" if len(parts) == 1 else "sdxl-canny-tiny")
    assert control.preprocessor == PreprocessorOptions(type=DEPTH, estimator=ESTIMATOR, size_px=518)
    assert stage_of(request).components == (ESTIMATOR,)


def test_stack_of_a_model_without_nets_has_no_use_for_an_estimator():
    extras = {ESTIMATOR: OFFERED_EXTRAS[ESTIMATOR]}
    stack = Stack(model="sdxl-tiny", extras=(ESTIMATOR,))
    assert stage_of(stack_request(stack, CATALOG["sdxl-tiny"], extras)) is None
