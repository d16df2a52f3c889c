"""What is sent for a difference, and what the user reads of it."""

import copy
from dataclasses import replace

import pytest

from pixpod_tools.deploy.build import build_spec
from pixpod_tools.deploy.configuration import parse
from pixpod_tools.deploy.documents import UnreadableAnswer, parse_endpoint, parse_listing
from pixpod_tools.deploy.errors import EndpointConflict
from pixpod_tools.deploy.plan import Action, make_plan
from pixpod_tools.deploy.report import done_text, plan_text

KEYS = {
    "name": "pixpod",
    "image": "example.org/pixpod:1.0",
    "profile": "flux-schnell+sdxl",
    "env": {"PIXPOD_LOG_LEVEL": "INFO", "PIXPOD_MAX_REPLY_BYTES": "5000000"},
    "secrets": {"HF_TOKEN": "hub"},
}


def spec_of(**keys):
    return build_spec(parse(KEYS | keys))


def there(spec, **changes):
    """The endpoint as a GET shows it after `spec` was created, and something was changed."""
    body = copy.deepcopy(make_plan(spec, ()).body)
    document = {
        "id": "ep1",
        "createdAt": "2026-11-20T12:00:00Z",
        "registry": None,
        "dataCenterIds": [],
        "networkVolumes": [],
        **body,
    }
    if "gpu" in body:
        document["gpu"] = {"allowedCudaVersions": [], **body["gpu"]}
    for place, value in changes.items():
        group, _, name = place.partition("__")
        if name:
            document[group][name] = value
        else:
            document[group] = value
    return parse_endpoint(document)


SPEC = spec_of()


def test_new_endpoint_is_created_with_what_is_set():
    plan = make_plan(SPEC, [there(spec_of(name="another"))])
    assert plan.action is Action.CREATE
    assert plan.body == {
        "name": "pixpod",
        "type": "QUEUE",
        "image": "example.org/pixpod:1.0",
        "disk": 50,
        "gpu": {
            "pools": ["ADA_24", "ADA_48_PRO", "BLACKWELL_96"],
            "count": 1,
            "minCudaVersion": "13.0",
        },
        "workers": {"min": 0, "max": 3, "idleTimeout": 5},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "timeout": 600_000,
        "flashboot": "FLASHBOOT",
        "env": {
            "HF_TOKEN": "{{ RUNPOD_SECRET_hub }}",
            "PIXPOD_LOG_LEVEL": "INFO",
            "PIXPOD_MODELS": "flux-schnell,sdxl",
            "PIXPOD_MAX_REPLY_BYTES": "5000000",
        },
    }


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"profile": "tiny"},
        {"scaler": "request_count"},
        {"mode": "volume", "network_volume_id": "v"},
        {"data_centers": ["EU-RO-1", "US-KS-2"], "registry_auth_id": "r", "flashboot": "off"},
        {"exclude_gpus": ["NVIDIA L40"]},
    ],
    ids=str,
)
def test_created_endpoint_needs_no_change(keys):
    spec = spec_of(**keys)
    plan = make_plan(spec, [there(spec)])
    assert (plan.action, plan.changes, plan.body) == (Action.NOTHING, (), {})


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({"image": "example.org/pixpod:0.9"}, {"image": "example.org/pixpod:1.0"}),
        ({"disk": 10}, {"disk": 50}),
        ({"registry": "cred"}, {"registry": None}),
        ({"timeout": 1}, {"timeout": 600_000}),
        ({"flashboot": "OFF"}, {"flashboot": "FLASHBOOT"}),
        ({"dataCenterIds": ["EU-RO-1"]}, {"dataCenterIds": []}),
        ({"networkVolumes": ["vol"]}, {"networkVolumes": []}),
        ({"workers__max": 9}, {"workers": {"min": 0, "max": 3, "idleTimeout": 5}}),
        (
            {"scaling": {"type": "REQUEST_COUNT", "requestCount": 4}},
            {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}},
        ),
        ({"scaling__queueDelay": 9}, {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}}),
        ({"gpu__minCudaVersion": None}, {"gpu": {"minCudaVersion": "13.0"}}),
        (
            {"gpu__minCudaVersion": None, "gpu__allowedCudaVersions": ["12.8"]},
            {"gpu": {"minCudaVersion": "13.0", "allowedCudaVersions": []}},
        ),
        ({"gpu__count": 2}, {"gpu": {"count": 1}}),
        (
            {"gpu__pools": ["ADA_80_PRO"]},
            {"gpu": {"pools": ["ADA_24", "ADA_48_PRO", "BLACKWELL_96"], "excludedTypes": []}},
        ),
        (
            {"gpu__excludedTypes": ["NVIDIA L40"]},
            {"gpu": {"pools": ["ADA_24", "ADA_48_PRO", "BLACKWELL_96"], "excludedTypes": []}},
        ),
    ],
    ids=str,
)
def test_change_made_elsewhere_is_undone_by_sending_little_else(changes, body):
    plan = make_plan(SPEC, [there(SPEC, **changes)])
    assert plan.action is Action.UPDATE
    assert plan.body == body
    assert len(plan.changes) == len(changes) + ("scaling" in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu__pools": ["ADA_24", "BLACKWELL_96", "ADA_48_PRO"]},
        {"scaling__queueDelay": 4.0000001},
        {"env__HF_TOKEN": "{{RUNPOD_SECRET_hub}}"},
        {"args": "--verbose", "ports": ["80/http"]},
    ],
    ids=str,
)
def test_what_means_the_same_or_is_not_ours_is_no_change(changes):
    assert make_plan(SPEC, [there(SPEC, **changes)]).action is Action.NOTHING


def test_environment_is_replaced_as_a_whole():
    plan = make_plan(SPEC, [there(SPEC, env__PIXPOD_LOG_LEVEL="ERROR", env__EXTRA="x")])
    assert plan.body == {"env": dict(SPEC.env)}
    assert [change.place for change in plan.changes] == ["env.PIXPOD_LOG_LEVEL", "env.EXTRA"]


def test_change_of_scaler_and_back_sends_what_each_needs():
    by_count = spec_of(scaler="request_count")
    plan = make_plan(by_count, [there(SPEC)])
    assert plan.body == {"scaling": {"type": "REQUEST_COUNT", "requestCount": 4}}
    plan = make_plan(SPEC, [there(by_count)])
    assert plan.body == {
        "workers": {"min": 0, "max": 3, "idleTimeout": 5},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    }


def test_endpoints_of_one_name_are_not_guessed_between():
    with pytest.raises(EndpointConflict, match=r"2 endpoints are named 'pixpod' \(ep1, ep1\)"):
        make_plan(SPEC, [there(SPEC), there(SPEC)])


def test_endpoint_of_another_type_is_left_alone():
    with pytest.raises(EndpointConflict, match="LOAD_BALANCER, which cannot be changed"):
        make_plan(SPEC, [there(SPEC, type="LOAD_BALANCER")])


def test_cpu_endpoint_cannot_become_a_gpu_endpoint():
    with pytest.raises(EndpointConflict, match="runs on CPU"):
        make_plan(SPEC, [there(spec_of(profile="tiny"))])
    with pytest.raises(EndpointConflict, match="runs on GPU"):
        make_plan(spec_of(profile="tiny"), [there(SPEC)])


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({}, "endpoints"),
        ([], "valid dictionary"),
        ({"endpoints": [{"id": "x", "env": {"A": ["hunter2"]}}]}, "name"),
    ],
    ids=str,
)
def test_unreadable_listing_is_named_without_values(document, place):
    with pytest.raises(UnreadableAnswer, match=place) as caught:
        parse_listing(document)
    assert "hunter2" not in str(caught.value)


def test_plan_shows_old_and_new_but_no_value_that_may_be_secret():
    endpoint = there(
        SPEC,
        workers__max=9,
        env__PIXPOD_LOG_LEVEL="ERROR",
        env__HF_TOKEN="hunter2",
        env__PIXPOD_KEY_SECRET="hunter2",
        env__OTHER="hunter2",
    )
    text = plan_text(make_plan(SPEC, [endpoint]), replace(SPEC, remarks=("a remark",)))
    assert text.splitlines()[:7] == [
        "endpoint 'pixpod' (ep1): update",
        "  workers.max: 9 -> 3",
        "  env.HF_TOKEN: (not shown) -> {{ RUNPOD_SECRET_hub }}",
        "  env.PIXPOD_LOG_LEVEL: ERROR -> INFO",
        "  env.PIXPOD_KEY_SECRET: (not shown) -> (not set)",
        "  env.OTHER: (not shown) -> (not set)",
        "  note: a remark",
    ]
    assert "hunter2" not in text


def test_hidden_values_that_differ_are_said_to_change():
    spec = spec_of(env={"OTHER": "new"})
    endpoint = there(spec, env__OTHER="old")
    text = plan_text(make_plan(spec, [endpoint]), spec)
    assert "  env.OTHER: changes\n" in text


def test_plan_says_what_it_costs():
    spec = spec_of(min_workers=2, max_workers=4, gpu_pools=["ADA_48_PRO", "ADA_80_PRO"])
    text = plan_text(make_plan(spec, ()), spec)
    assert "ADA_48_PRO    $0.00053 a second, $1.91 an hour" in text
    assert "min_workers 2: $91.58 to $200.45 a day, even without a job" in text
    assert "max_workers 4: $7.63 to $16.70 an hour, if all work" in text


def test_pool_without_a_price_is_said_to_have_none():
    spec = spec_of(models=["sdxl"], gpu_pools=["ADA_32_PRO"])
    assert "ADA_32_PRO    no price is known" in plan_text(make_plan(spec, ()), spec)


def test_first_job_is_ready_to_paste():
    urls = {"run": "https://x/v2/ep1/run", "runSync": "https://x/v2/ep1/runsync"}
    text = done_text(there(SPEC, requestUrls=urls), "sdxl")
    assert text.startswith("endpoint id: ep1\n")
    assert "curl -X POST https://x/v2/ep1/runsync" in text
    assert '"Authorization: Bearer $RUNPOD_API_KEY"' in text
    assert '\'{"input": {"model": "sdxl", ' in text
