"""From raw JSON to a job: what is refused and how, what is accepted and with which defaults."""

import json
from dataclasses import asdict, fields, replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bad_payloads import BAD_PAYLOADS
from support.factories import CATALOG, OFFER, make_input, make_job

from pixpod.catalog import Limits, load_catalog
from pixpod.contract.payload import parse_job, render_error
from pixpod.contract.problems import MAX_PROBLEMS, wrong
from pixpod.contract.rules import Capabilities
from pixpod.contract.scalars import MAX_SEED
from pixpod.errors import (
    InvalidInput,
    OutOfMemory,
    PayloadError,
    PutRefused,
    StorageDenied,
)
from pixpod.extras import ExtraKind, ExtraSpec, load_extras
from pixpod.families import Guidance
from pixpod.job import Delivery, ImageFormat, LongPrompt, Mode

MAX_ERROR_BYTES = 20_000
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(job, offer=OFFER):
    with pytest.raises(PayloadError) as caught:
        parse_job(job, offer)
    return caught.value


def request(**input):
    return parse_job(make_job(**input), OFFER).request


def fields_of(request):
    """Return the fields of a request and of the values inside of it, by name."""
    parts = (request, request.sampling, request.text, request.prompts)
    return {each.name: getattr(part, each.name) for part in parts for each in fields(part)}


UNION = ExtraSpec(
    name="union",
    kind=ExtraKind.CONTROLNET,
    family=CATALOG["sdxl-tiny"].family,
    licence="MIT",
    types=("canny", "pose"),
    modes={"canny": 3, "pose": 0},
    gib_16=2.3,
)


def nets_of(*types, model="sdxl-tiny"):
    """Names of the nets that see these types, and the modes that they get.

    Beside the shipped ones, which see canny or depth, there is one for canny and pose.
    """
    union = replace(UNION, family=CATALOG[model].family)
    offer = replace(OFFER, extras={**OFFER.extras, "union": union})
    controls = [{"type": type, "image": "https://example.org/a.png"} for type in types]
    parsed = parse_job(make_job(model=model, controlnets=controls), offer)
    return [(control.net, control.union_mode) for control in parsed.request.controls]


def output(**fields):
    return parse_job(make_job(output=fields), OFFER).output


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD_PAYLOADS, ids=lambda bad: bad.id)
def test_bad_payload_is_refused_with_all_that_is_wrong(bad):
    error = refusal(bad.job)
    assert error.code == bad.code
    assert [problem.field for problem in error.problems] == [field for field, _ in bad.expected]
    for problem, (_, part) in zip(error.problems, bad.expected, strict=True):
        assert part in f"{problem.accepted} {problem.hint}"


def test_table_of_bad_payloads_names_each_once():
    ids = [bad.id for bad in BAD_PAYLOADS]
    assert len(ids) == len(set(ids)) >= 70


@pytest.mark.parametrize("bad", BAD_PAYLOADS, ids=lambda bad: bad.id)
def test_refusal_is_json_of_modest_size(bad):
    text = render_error(refusal(bad.job))["error"]
    problems = json.loads(text.removeprefix(f"{bad.code}: "))["problems"]
    assert all(problem.keys() == {"field", "value", "accepted", "hint"} for problem in problems)
    assert len(text.encode("utf-8")) < MAX_ERROR_BYTES


def test_field_that_is_null_counts_as_absent():
    job = make_job(image=None, webhook_url=None, output={"put_urls": None})
    assert parse_job({**job, "s3Config": None}, OFFER).id == "job-1"


@pytest.mark.parametrize("names", [range(20_000), ["\ud800" * n for n in range(1, 500)]])
def test_thousands_of_problems_are_cut_and_say_so(names):
    error = refusal(make_job(**{f"field {name}": 1 for name in names}))
    assert len(error.problems) == MAX_PROBLEMS + 1
    assert error.problems[-1].accepted == "fewer problems: these are the first"


def test_longest_possible_refusal_stays_small():
    fields = {"\0" * 1_000 + str(index): 1 for index in range(50)}
    assert len(str(refusal(make_job(model="\0" * 1_000, **fields))).encode()) < MAX_ERROR_BYTES


def test_no_model_served_is_said():
    error = refusal(
        make_job(), Capabilities(models={}, qualities={}, deliveries=(Delivery.INLINE,))
    )
    assert error.problems[0].accepted == "nothing: no model is served"


def test_model_without_guidance_refuses_a_negative_prompt():
    sdxl = load_catalog()["sdxl"]
    turbo = replace(
        sdxl, takes_guidance=False, defaults=replace(sdxl.defaults, guidance_scale=None)
    )
    error = refusal(
        make_job(model="sdxl", negative_prompt="x"), replace(OFFER, models={"sdxl": turbo})
    )
    assert [(p.field, "without guidance" in p.accepted) for p in error.problems] == [
        ("negative_prompt", True)
    ]


def test_pixels_over_the_limit_by_the_given_side_alone_are_reported_for_that_side():
    sd15 = load_catalog()["sd15"]
    narrow = replace(sd15, limits=replace(sd15.limits, max_pixels=512 * 512))
    models = {"sd15": narrow}
    error = refusal(make_job(model="sd15", height=1024), replace(OFFER, models=models))
    assert [(problem.field, problem.value) for problem in error.problems] == [
        ("height", "512x1024")
    ]


def test_no_nearest_size_is_offered_where_there_is_none():
    sd15 = load_catalog()["sd15"]
    limits = replace(sd15.limits, max_pixels=512 * 512, max_side_px=8192)
    models = {"sd15": replace(sd15, limits=limits)}
    error = refusal(make_job(model="sd15", height=8192, width=256), replace(OFFER, models=models))
    assert error.problems[0].hint is None


@few
@given(width=st.integers(512, 2048), height=st.integers(512, 2048))
def test_each_size_named_as_nearest_is_accepted(width, height):
    try:
        request(model="sdxl", width=width, height=height)
    except InvalidInput as error:
        for problem in error.problems:
            assert problem.hint is not None
            numbers = problem.hint.replace("x", " ").split()
            nearest = [int(number) for number in numbers if number.isdecimal()]
            both = len(nearest) == 2 and "shape" in problem.hint
            for size in [nearest] if both else [[side, 512] for side in nearest]:
                assert request(model="sdxl", width=size[0], height=size[1])


# --- what a refusal never tells ------------------------------------------------------------

SECRET = "PLANTEDSECRET"
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
known_names = st.sampled_from(
    [
        "model",
        "prompt",
        "width",
        "height",
        "seed",
        "num_images",
        "output",
        "guidance_scale",
        "true_cfg_scale",
        "negative_prompt",
        "scheduler",
        "output.quality",
        "image",
        "a.b",
    ]
)
output_names = st.sampled_from(["format", "quality", "delivery", "key_prefix", "name", "put_urls"])
outputs = st.dictionaries(output_names | st.text(max_size=3), json_values, max_size=3)
inputs = st.dictionaries(known_names | st.text(max_size=5), json_values | outputs, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    document=json_values | inputs,
    is_plain=st.booleans(),
    job_id=st.just("job-1") | json_values,
    s3_config=st.none() | json_values,
)
def test_any_json_parses_or_is_refused_in_small_valid_json(document, is_plain, job_id, s3_config):
    if is_plain and isinstance(document, dict):
        document = make_input() | document
    try:
        parse_job({"id": job_id, "input": document, "s3Config": s3_config}, OFFER)
    except PayloadError as error:
        assert isinstance(error, InvalidInput | PutRefused)
        reply = json.dumps(render_error(error), allow_nan=False)
        assert len(reply) < MAX_ERROR_BYTES
        text = str(error)
        assert len(text.encode("utf-8")) < MAX_ERROR_BYTES
        json.loads(text.partition(": ")[2])


def planted(text_strategy):
    """The secret as a field's value, alone, inside text, in a list or as a name."""
    return text_strategy.flatmap(
        lambda around: st.sampled_from(
            [
                around + SECRET,
                SECRET + around,
                SECRET + "\0",
                SECRET + "\ud800",
                SECRET * 2_000,
                [SECRET],
                {SECRET: SECRET},
            ]
        )
    )


@few
@given(
    field=st.sampled_from(
        [
            "prompt",
            "prompt_2",
            "negative_prompt",
            "text",
            "image",
            "webhook_url",
            "loras",
            "flavour",
            "mask",
            "webhook",
            "lora",
        ]
    ),
    value=planted(st.text(max_size=5)),
    rest=inputs,
)
def test_text_of_a_caller_never_shows_up_in_a_refusal(field, value, rest):
    job = make_job(**(rest | {"width": "wrong", field: value}))
    assert SECRET not in str(refusal(job))


@pytest.mark.parametrize(
    "input",
    [
        {"model": f"https://user:{SECRET}@example.org/"},
        {"scheduler": f"https://example.org/?signature={SECRET}"},
        {"seed": [f"https://{SECRET}"]},
        {f"https://{SECRET}": 1},
        {"output": {"key_prefix": f"s3://{SECRET}"}},
        {"output": {"format": f"data://{SECRET}", "put_urls": [SECRET]}},
    ],
)
def test_addresses_never_show_up_in_a_refusal(input):
    assert SECRET not in str(refusal(make_job(**input)))


def test_s3_config_never_shows_up_in_a_refusal():
    job = make_job(width=-1) | {"s3Config": {"accessSecret": SECRET}}
    assert SECRET not in str(refusal(job))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, True),
        (2.5, 2.5),
        (None, None),
        (float("-inf"), "-inf"),
        (10**30, "a number of 100 bits"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1 fields"),
        ("x" * 81, "x" * 80 + "..."),
        ("caf\u00e9", "caf\u00e9"),
        ("\ud800", "?"),
    ],
)
def test_value_is_shown_short(value, shown):
    assert wrong("width", value, "a whole number").value == shown


# --- what is accepted ----------------------------------------------------------------------


def needed_images(spec):
    """The fields that a model requires beside the prompt."""
    is_plain = Mode.TEXT_TO_IMAGE in spec.family.pipelines
    url = "https://app.example/image.png"
    return {} if is_plain else {"image": url, "mask": url}


@pytest.mark.parametrize("spec", OFFER.models.values(), ids=lambda spec: spec.name)
def test_shortest_input_takes_the_defaults_of_its_model(spec):
    parsed = request(model=spec.name, **needed_images(spec))
    found = fields_of(parsed)
    for field, default in asdict(spec.defaults).items():
        assert found[field] == default
    assert len(parsed.seeds) == 1
    assert found["on_long_prompt"] is LongPrompt.REFUSE
    assert not found["prompt_weights"] and found["clip_skip"] == 0
    assert not parsed.isolated
    assert [found[name] for name in ("negative_prompt", "prompt_2", "true_cfg_scale")] == [None] * 3


def test_null_is_the_default():
    nulls = dict.fromkeys(
        ("api_version", "prompt_2", "width", "guidance_scale", "seed", "scheduler", "output")
    )
    assert request(**nulls) == request()


def test_api_version_1_is_accepted():
    assert request(api_version=1) == request()


def test_nets_are_chosen_that_go_together():
    assert nets_of("canny", "depth") == [("sdxl-canny-tiny", None), ("sdxl-depth-tiny", None)]
    assert nets_of("pose", "canny") == [("union", 0), ("union", 3)]
    assert nets_of("pose", "canny", model="flux-tiny") == [("union", 0), ("flux-canny-tiny", None)]


def test_types_whose_nets_do_not_go_together_are_refused():
    with pytest.raises(InvalidInput, match="types of nets that go together") as caught:
        nets_of("pose", "depth")
    assert [problem.field for problem in caught.value.problems] == ["controlnets"]


def test_guidance_zero_is_not_the_default():
    assert request(guidance_scale=0).sampling.guidance_scale == 0


def test_whole_number_is_a_guidance():
    assert request(guidance_scale=4).sampling.guidance_scale == 4.0


def test_long_prompt_may_be_truncated():
    for choice in LongPrompt:
        assert request(model="sdxl", on_long_prompt=choice).text.on_long_prompt is choice
    assert request().text.on_long_prompt is LongPrompt.REFUSE


def test_empty_negative_prompt_turns_true_cfg_on():
    parsed = request(model="flux-schnell", true_cfg_scale=2, negative_prompt="")
    assert (parsed.sampling.true_cfg_scale, parsed.prompts.negative_prompt) == (2.0, "")


def test_keys_beside_input_belong_to_the_platform():
    assert parse_job(make_job() | {"webhook": "https://x", "policy": {"ttl": 1}}, OFFER)


def test_prompt_keeps_its_spaces_and_every_script():
    prompt = "  un cercle rouge\n\u8d64\u3044\u5186 \U0001f534 "
    assert request(prompt=prompt).prompts.prompt == prompt


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_seed_is_taken_as_it_is(seed):
    assert request(seed=seed).seeds == (seed,)
    assert request(seed=[seed]).seeds == (seed,)


def test_one_seed_is_counted_up():
    assert request(seed=7, num_images=3).seeds == (7, 8, 9)


def test_seed_wraps_to_zero_after_the_last():
    assert request(seed=MAX_SEED, num_images=3).seeds == (MAX_SEED, 0, 1)


def test_list_of_seeds_says_how_many_images():
    assert request(seed=[5, 5, 0]).seeds == (5, 5, 0)


def test_missing_seeds_are_the_same_for_the_same_job():
    assert request(num_images=4).seeds == request(num_images=4).seeds
    assert request(num_images=2).seeds == request(num_images=4).seeds[:2]


def test_derived_seeds_are_pinned():
    """A change of the derivation would change the pictures of retried jobs."""
    assert request(num_images=2).seeds == DERIVED_OF_JOB_1


def test_missing_seeds_differ_by_job_and_by_image():
    other = parse_job({**make_job(num_images=8), "id": "job-2"}, OFFER).request.seeds
    seeds = request(num_images=8).seeds + other
    assert len(set(seeds)) == 16
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


@given(job_id=st.text(min_size=1))
def test_derived_seed_is_one_that_json_clients_can_hold(job_id):
    (seed,) = parse_job({**make_job(), "id": job_id}, OFFER).request.seeds
    assert json.loads(json.dumps(float(seed))) == seed


def test_output_defaults():
    parsed = output()
    assert parsed.format is ImageFormat.PNG
    assert parsed.quality is None
    assert parsed.delivery is OFFER.deliveries[0]
    assert parsed.key_prefix == ""
    assert parsed.metadata


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_formats_have_a_quality(format):
    assert output(format=format).quality == 90
    assert output(format=format, quality=1).quality == 1


def test_output_says_otherwise():
    parsed = output(delivery="directory", key_prefix="customers/42/", metadata=False)
    assert parsed.delivery is Delivery.DIRECTORY
    assert parsed.key_prefix == "customers/42"
    assert not parsed.metadata


@st.composite
def good_inputs(draw):
    """Any combination that the rules allow, of any model."""
    spec = draw(st.sampled_from(list(OFFER.models.values())))
    limits: Limits = spec.limits
    multiple = spec.family.size_multiple_px
    side = st.integers(limits.min_side_px // multiple, limits.max_side_px // multiple).map(
        lambda count: count * multiple
    )
    has_true_cfg = spec.family.guidance is Guidance.EMBEDDED
    has_negative = "negative_prompt" in spec.family.prompt_fields
    options = {
        "prompt": st.text(min_size=1, max_size=20).filter(
            lambda text: "\0" not in text and text.strip()
        ),
        "width": side,
        "num_inference_steps": st.sampled_from(spec.step_counts or range(1, limits.max_steps + 1)),
        "num_images": st.integers(1, limits.max_images),
        "seed": st.integers(0, MAX_SEED),
        "scheduler": st.sampled_from(sorted(spec.scheduler_specs)),
        "deterministic": st.booleans(),
        "on_long_prompt": st.sampled_from(["refuse", "truncate"]),
        "output": st.fixed_dictionaries(
            {"format": st.sampled_from(["jpeg", "webp"]), "quality": st.integers(1, 100)}
        ),
    }
    if spec.takes_guidance:
        options["guidance_scale"] = st.floats(1.5, limits.max_guidance)
    if spec.family.has_sequence_length:
        options["max_sequence_length"] = st.integers(1, limits.max_sequence_length)
    if "prompt_2" in spec.family.prompt_fields:
        options["prompt_2"] = st.text("abc", min_size=1, max_size=5)
    given = draw(st.fixed_dictionaries({}, optional=options))
    scheduler = spec.family.schedulers[given.get("scheduler", spec.defaults.scheduler)]
    if scheduler.max_steps is not None:
        given["num_inference_steps"] = draw(st.integers(1, scheduler.max_steps))
    if "width" in given:
        highest = limits.max_pixels // given["width"] // multiple
        lowest = limits.min_side_px // multiple
        at_most = min(highest, limits.max_side_px // multiple)
        given["height"] = draw(st.integers(lowest, at_most)) * multiple
    if has_negative and (has_true_cfg or spec.takes_guidance) and draw(st.booleans()):
        given["negative_prompt"] = "text"
        if has_true_cfg:
            given["true_cfg_scale"] = draw(st.floats(1.1, limits.max_guidance))
    return make_input(model=spec.name) | given | needed_images(spec)


@few
@given(input=good_inputs())
def test_every_good_combination_parses_and_keeps_what_was_given(input):
    parsed = parse_job({"id": "job-1", "input": input}, OFFER).request
    for field in ("prompt", "width", "height", "num_inference_steps", "scheduler"):
        if field in input:
            assert fields_of(parsed)[field] == input[field]
    assert len(parsed.seeds) == input.get("num_images", 1)
    if "seed" in input:
        assert all((b - a) % (MAX_SEED + 1) == 1 for a, b in pairwise(parsed.seeds))


def test_error_is_a_string_and_leaves_refreshing_to_the_worker():
    assert render_error(OutOfMemory("full")) == {"error": "out_of_memory: full"}
    assert render_error(StorageDenied("no")) == {"error": "storage_denied: no"}


DERIVED_OF_JOB_1 = (5565097425218564, 6707663495029744)


def test_refiner_is_refused_by_a_model_of_its_own_steps():
    refiner = replace(load_extras()["sdxl-refiner"], models=("sdxl-lightning",))
    offer = replace(OFFER, extras={"sdxl-refiner": refiner})
    given = make_input(model="sdxl-lightning", refiner={"num_inference_steps": 1})
    with pytest.raises(InvalidInput, match="whole schedules of its own steps"):
        parse_job({"id": "job-1", "input": given}, offer)
