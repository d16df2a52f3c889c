"""Steps of a model and of its refiner: as many as the payload says, and never none."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.factories import CATALOG, OFFER, make_request

from pixpod.contract.payload import parse_job
from pixpod.errors import InvalidInput
from pixpod.extras import load_extras
from pixpod.families import SDXL
from pixpod.job import Conditions, ControlOptions, LoraSlots, RefinerOptions
from pixpod.methods import StageName, extras_of, method_of, num_steps, refining, stages_of
from pixpod.stacks import parse_stacks, stack_request

SPEC = CATALOG["sdxl"]
REFINING = replace(OFFER, extras=load_extras())
IMAGE = "https://example.org/a.png"

shares = st.floats(0, 1, exclude_min=True, exclude_max=True).map(
    lambda share: {"high_noise_frac": share}
)
numbers = st.integers(1, 160).map(lambda steps: {"num_inference_steps": steps})


def method(**fields):
    """Raises InvalidInput."""
    job = {"id": "job-1", "input": {"model": "sdxl", "prompt": "a lighthouse", **fields}}
    return method_of(SPEC, parse_job(job, REFINING).request)


def test_steps_of_the_refiner_come_after_the_models():
    assert method(num_inference_steps=30, refiner={"num_inference_steps": 10}).calls == (30, 10)
    assert method(refiner={"num_inference_steps": 10}).calls == (30, 10)


def test_share_divides_the_models_steps():
    assert method(num_inference_steps=40, refiner={"high_noise_frac": 0.75}).calls == (30, 10)
    assert method(num_inference_steps=2, refiner={"high_noise_frac": 0.5}).calls == (1, 1)


def test_strength_leaves_out_steps_of_the_model():
    fields = {"image": IMAGE, "strength": 0.5, "refiner": {"num_inference_steps": 10}}
    assert method(num_inference_steps=30, **fields).calls == (10, 10)


@given(
    steps=st.integers(1, 150),
    refiner=shares | numbers,
    strength=st.none() | st.floats(0, 1, exclude_min=True),
)
def test_both_have_steps_or_the_job_is_refused(steps, refiner, strength):
    fields = {"image": IMAGE, "strength": strength} if strength is not None else {}
    total = steps + refiner.get("num_inference_steps", 0)
    try:
        own, refined = method(num_inference_steps=steps, refiner=refiner, **fields).calls
    except InvalidInput as error:
        assert {problem.field.partition(".")[0] for problem in error.problems} <= {
            "refiner",
            "strength",
            "num_inference_steps",
        }
        return
    assert own >= 1 and refined >= 1
    assert own + refined == (total if strength is None else int(total * strength))
    assert refined == refiner.get("num_inference_steps", refined)


@given(steps=st.integers(2, 150), share=shares, strength=st.none() | st.just(0.01))
def test_least_value_that_a_refusal_names_is_accepted(steps, share, strength):
    fields = {"num_inference_steps": steps, "refiner": share}
    if strength is not None:
        fields |= {"image": IMAGE, "strength": strength}
    for _ in range(2):
        try:
            method(**fields)
        except InvalidInput as error:
            for problem in error.problems:
                least, most = accepted_range(problem)
                if problem.field == "strength":
                    fields["strength"] = least
                else:
                    nearest = least if share["high_noise_frac"] < 0.5 else most
                    fields["refiner"] = {"high_noise_frac": nearest}
    method(**fields)


def accepted_range(problem):
    """`at least A, which ...` or `A to B, which ...`"""
    numbers = problem.accepted.partition(",")[0].removeprefix("at least ").split(" to ")
    return float(numbers[0]), float(numbers[-1])


def test_strength_of_the_refiners_own_call_leaves_just_its_steps():
    for total in range(2, SPEC.limits.max_steps + 1):
        for refined in range(1, total):
            request = make_request(
                num_inference_steps=total,
                refiner=RefinerOptions(name="refiner", num_inference_steps=refined),
            )
            assert num_steps(SDXL, refining(request).sampling) == refined


def test_refiner_is_not_asked_for_what_was_made_for_the_model():
    control = ControlOptions(net="net", scale=1.0, start=0.0, end=1.0)
    slots = LoraSlots(rank=16, is_whole=False)
    request = make_request(
        controls=(control,),
        conditions=Conditions(slots=slots),
        refiner=RefinerOptions(name="refiner", num_inference_steps=1),
    )
    asked = refining(request)
    assert (asked.controls, asked.conditions) == ((), Conditions())
    assert (asked.prompts, asked.refiner) == (request.prompts, request.refiner)


def test_refiner_has_a_stage_of_its_own():
    request = make_request(refiner=RefinerOptions(name="refiner", num_inference_steps=1))
    spec = CATALOG["sdxl-tiny"]
    stages = stages_of(spec, method_of(spec, request))
    components = {stage.name: stage.components for stage in stages}
    assert components[StageName.DENOISE] == ("unet",)
    assert components[StageName.REFINE] == ("refiner",)
    assert [*components][-2:] == [StageName.REFINE, StageName.DECODE]
    assert extras_of(spec, request) == ("refiner",)


def test_deployment_without_refiners_refuses_them():
    fields = {"prompt": "a lighthouse", "refiner": {"high_noise_frac": 0.8}}
    job = {"id": "job-1", "input": {"model": "sdxl", **fields}}
    with pytest.raises(InvalidInput, match="absent: sdxl has no refiner here"):
        parse_job(job, replace(OFFER, extras={}))


def test_stack_with_a_refiner_uses_it_for_a_step():
    spec, extras = CATALOG["sdxl-tiny"], OFFER.extras
    (stack,) = parse_stacks(["sdxl-tiny+sdxl-refiner-tiny"], {spec.name: spec}, extras)
    calls = method_of(spec, stack_request(stack, spec, extras, num_inference_steps=2)).calls
    assert calls == (2, 1)
