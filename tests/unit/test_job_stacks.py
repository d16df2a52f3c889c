"""Jobs that name a stack: what it fills, what wins, and how its problems are reported."""

import asyncio
import json
from dataclasses import replace

import pytest
from support.factories import OFFER, make_job, make_settings
from support.stack_cases import CATALOG

from pixpod.bootstrap import build_worker
from pixpod.contract.describe import describe
from pixpod.contract.payload import parse_job
from pixpod.engine.engine import DiffusionEngine
from pixpod.errors import InvalidInput, InvalidSettings, PayloadError, Problem
from pixpod.extras import extras_for
from pixpod.stacks import PRESETS, parse_stacks, preset_of_fields
from pixpod.testing.fake_engine import FakeEngine

PORTRAIT = {
    "num_inference_steps": 6,
    "guidance_scale": 2.5,
    "negative_prompt": "blurred",
    "refiner": {"high_noise_frac": 0.5},
    "loras": [{"source": "house-style", "scale": 0.7}],
    "output": {"format": "webp", "quality": 80},
}
OWN = replace(
    OFFER,
    presets={**PRESETS, "portrait": preset_of_fields(PORTRAIT)},
    lora_names=frozenset({"house-style"}),
)


def problems_of(job, capabilities=OWN):
    with pytest.raises(PayloadError) as raised:
        parse_job(job, capabilities)
    return raised.value.problems


def test_stack_fills_what_the_job_does_not_give():
    job = parse_job(make_job(stack="portrait"), OWN)
    request = job.request
    assert request.sampling.num_inference_steps == 6
    assert request.sampling.guidance_scale == 2.5
    assert request.prompts.negative_prompt == "blurred"
    assert request.refiner is not None and request.refiner.num_inference_steps == 3
    assert [each.source for each in job.loras] == ["house-style"]
    assert (job.output.format, job.output.quality) == ("webp", 80)
    assert job.stack is not None and job.stack.fields == PORTRAIT


def test_fields_given_beside_it_win():
    given = make_job(
        stack="portrait",
        num_inference_steps=4,
        guidance_scale=None,
        refiner={"num_inference_steps": 2},
        loras=[],
        output={"quality": 70, "name": "poster"},
    )
    job = parse_job(given, OWN)
    assert job.request.sampling.num_inference_steps == 6, "4 and 2 of the refiner"
    assert job.request.sampling.guidance_scale == 2.5, "null is absent"
    assert job.loras == ()
    assert (job.output.format, job.output.quality, job.output.name) == ("webp", 70, "poster")
    assert job.stack is not None
    assert job.stack.fields == {
        "guidance_scale": 2.5,
        "negative_prompt": "blurred",
        "output": {"format": "webp"},
    }


@pytest.mark.parametrize("name", PRESETS)
def test_built_in_stack_adds_a_refiner_where_there_is_one(name):
    plain, job = (parse_job(make_job(**more), OFFER) for more in ({}, {"stack": name}))
    steps = plain.request.sampling.num_inference_steps
    assert job.stack is not None
    assert job.stack.fields == {
        "refiner": {"name": "sdxl-refiner-tiny", "num_inference_steps": steps // 3}
    }
    assert job.request.sampling.num_inference_steps == steps + steps // 3
    without = parse_job(make_job(model="sd15-tiny", stack=name), OFFER)
    assert without.stack is not None and without.stack.fields == {}


@pytest.mark.parametrize("model", [name for name in OFFER.models if "turbo" not in name])
@pytest.mark.parametrize("name", PRESETS)
def test_every_model_takes_the_built_in_stacks(name, model):
    beside = {"image": "https://app.example/a.png"} if "kontext" in model else {}
    if "fill" in model:
        beside = {"image": "https://app.example/a.png", "mask": "https://app.example/b.png"}
    assert parse_job(make_job(model=model, stack=name, **beside), OFFER).stack is not None


def test_job_without_a_stack_has_none():
    assert parse_job(make_job(stack=None), OWN).stack is None


def test_unknown_stack_is_a_problem_of_its_name():
    (problem,) = problems_of(make_job(stack="portrat"))
    assert problem.field == "stack"
    assert problem.accepted == "one of studio, heavy, portrait"
    assert problem.hint == "did you mean 'portrait'?"
    (problem,) = problems_of(make_job(stack=1))
    assert (problem.field, problem.accepted) == ("stack", "a string")


def test_problem_of_a_filled_field_is_one_of_the_stack():
    fields = {"refiner": {"high_noise_frac": 0.5}, "num_inference_steps": 100_000}
    own = replace(OFFER, presets={"wild": preset_of_fields(fields)})
    problems = problems_of(make_job(model="sd15-tiny", stack="wild", width=-1), own)
    assert {problem.field for problem in problems} == {"stack", "width"}
    texts = [problem.accepted for problem in problems if problem.field == "stack"]
    assert any("num_inference_steps: expected at most" in text for text in texts)
    assert any("refiner: expected absent" in text for text in texts)
    assert all(problem.value == "wild" for problem in problems if problem.field == "stack")


def test_problem_of_a_given_field_keeps_its_name():
    problems = problems_of(make_job(stack="portrait", num_inference_steps=100_000, output={"x": 1}))
    assert {problem.field for problem in problems} == {"num_inference_steps", "output.x"}


def test_description_lists_the_stacks():
    assert describe(OWN)["stacks"] == ["studio", "heavy", "portrait"]


# --- presets of a deployment -----------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "presets.toml"
        path.write_text(text, encoding="utf-8")
        return {"PIXPOD_PRESETS": str(path), "PIXPOD_MODELS": "sdxl-tiny"}

    return write_file


def test_preset_of_a_file_is_offered_and_planned_for(write):
    environ = write("[night]\nguidance_scale = 2.0\nrefiner = { high_noise_frac = 0.5 }\n")
    worker = build_worker(make_settings(**environ, PIXPOD_STACKS="night"))
    job = parse_job(make_job(stack="night"), worker.capabilities)
    assert job.request.refiner is not None and job.request.sampling.guidance_scale == 2.0
    engine = worker.engine
    assert isinstance(engine, DiffusionEngine)
    assert [each.name for each in engine.stacks] == ["sdxl-tiny+sdxl-refiner-tiny"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("night = 1", "night: expected a table of job fields"),
        ("[studio]\nwidth = 64", "'studio': expected a name of a-z 0-9 _ - other than studio"),
        ("[Night]\nwidth = 64", "'Night': expected a name"),
        ("[night]\nprompt = 'x'", "night: expected no prompt: jobs have their own"),
        ("[night]\nwidht = 64", "night: widht: expected a field of the contract: did you mean"),
        ("[night]\nwidth = 'x'", "night: width: expected a whole number"),
        ("[night", "presets.toml"),
    ],
)
def test_file_that_cannot_be_used_is_refused_at_start(write, text, message):
    with pytest.raises(InvalidSettings, match="PIXPOD_PRESETS") as raised:
        build_worker(make_settings(**write(text)))
    assert message in str(raised.value)


def test_stack_of_a_preset_has_what_its_fields_name():
    spec = CATALOG["sdxl-tiny"]
    extras = {extra.name: extra for extra in extras_for(spec, OFFER.extras)}
    fields = {
        "loras": [{"source": "house-style"}],
        "controlnets": [{"type": "depth", "image": "https://app.example/a.png"}],
        "ip_adapter": {"image": "https://app.example/b.png"},
    }
    presets = {"all": preset_of_fields(fields)}
    (stack,) = parse_stacks(["all"], {spec.name: spec}, extras, presets=presets)
    job = parse_job(
        make_job(stack="all"),
        replace(OFFER, presets=presets, lora_names=frozenset({"house-style"})),
    )
    prompt = job.request.image_prompt
    assert prompt is not None
    used = {each.net for each in job.request.controls} | {prompt.adapter}
    assert {*stack.extras} == used
    assert stack.lora_rank == 64


def handle(worker, job):
    async def run():
        async with worker:
            return await worker.handle(job)

    return asyncio.run(run())


def test_reply_says_what_the_stack_became(write):
    environ = write("[night]\nguidance_scale = 2.0\nnum_inference_steps = 3\n")
    worker = build_worker(make_settings(**environ, PIXPOD_DELIVERY="inline"))
    worker.engine = FakeEngine()
    reply = handle(worker, make_job(stack="night", num_inference_steps=2))
    assert reply["stack"] == {"name": "night", "fields": {"guidance_scale": 2.0}}
    assert reply["steps"] == 2


def test_problem_that_is_found_later_is_one_of_the_stack(write):
    environ = write("[night]\nnegative_prompt = 'long'\nguidance_scale = 2.0\n")
    worker = build_worker(make_settings(**environ, PIXPOD_DELIVERY="inline"))
    found = [
        Problem(field=field, value=90, accepted="77") for field in ("negative_prompt", "prompt")
    ]
    worker.engine = FakeEngine(fail_with=InvalidInput(found))
    reply = handle(worker, make_job(stack="night"))
    problems = json.loads(reply["error"].removeprefix("invalid_input: "))["problems"]
    assert [problem["field"] for problem in problems] == ["stack", "prompt"]
    assert "negative_prompt: expected 77" in problems[0]["accepted"]
