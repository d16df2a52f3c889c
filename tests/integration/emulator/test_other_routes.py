"""What answers beside the client API: the page at `/`, what is not emulated, and CORS."""

from dataclasses import replace

import pytest
import requests

from runpod_emulator.testing import running_emulator, settings_for

ORIGIN = "http://localhost:3000"


@pytest.fixture(scope="module")
def settings(handlers, tmp_path_factory):
    """One endpoint, `serverless`, without workers."""
    state_dir = tmp_path_factory.mktemp("other_routes")
    return settings_for(
        handlers / "many_sided.py", state_dir, workers_max=0, endpoint_id="serverless"
    )


@pytest.fixture(scope="module")
def emulator(settings):
    with running_emulator(replace(settings, cors_origin=ORIGIN)) as emulator:
        yield emulator


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("POST", "/v2/serverless/openai/v1/chat/completions", "openai_route"),
        ("GET", "/v2/serverless/openai/v1/models", "OpenAI"),
        ("POST", "/v2/serverless/batch", "batch jobs"),
        ("GET", "/v2/serverless/batches/1", "batch jobs"),
        ("GET", "/ping", "load-balancing"),
        ("GET", "/v2/serverless/ping", "load-balancing"),
        ("POST", "/graphql", "management"),
        ("GET", "/v1/endpoints", "management"),
        ("PATCH", "/v2/templates/x", "management"),
    ],
)
def test_what_is_not_emulated_says_so(emulator, method, path, text):
    answer = requests.request(method, emulator.url + path, timeout=10)
    assert answer.status_code == 501
    assert answer.json()["error"].startswith(f"{path}: the emulator has no ")
    assert text in answer.json()["error"]


def test_endpoint_named_like_a_managed_resource_is_an_endpoint(emulator):
    headers = {"Authorization": f"Bearer {emulator.api_key}"}
    url = f"{emulator.url}/v2/serverless"
    assert requests.get(f"{url}/health", headers=headers, timeout=10).status_code == 200
    assert requests.get(f"{url}/nothing", headers=headers, timeout=10).status_code == 404


def test_browser_sees_the_endpoints_and_how_to_call_them(emulator):
    answer = requests.get(emulator.url, timeout=10)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert f"RUNPOD_ENDPOINT_BASE_URL={emulator.base_url} " in answer.text
    assert f"curl {emulator.base_url}/serverless/runsync" in answer.text
    assert emulator.api_key not in answer.text


def preflight(emulator, origin):
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return requests.options(f"{emulator.base_url}/serverless/run", headers=headers, timeout=10)


def test_page_of_the_chosen_origin_may_submit_a_job(emulator):
    answer = preflight(emulator, ORIGIN)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {emulator.api_key}"}
    url = f"{emulator.base_url}/serverless/run"
    answer = requests.post(url, json={"input": {"a": 1}}, headers=headers, timeout=10)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)


def test_refusal_can_be_read_by_a_page(emulator):
    answer = requests.post(
        f"{emulator.base_url}/serverless/run", headers={"Origin": ORIGIN}, timeout=10
    )
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)


def test_page_of_another_origin_may_not(emulator):
    answer = preflight(emulator, "http://evil.example")
    assert answer.status_code == 405
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_without_the_flag_no_page_may(settings, tmp_path):
    chosen = replace(settings, state_dir=tmp_path, database=tmp_path / "jobs.db")
    with running_emulator(chosen) as emulator:
        answer = preflight(emulator, ORIGIN)
    assert answer.status_code == 405
    assert "Access-Control-Allow-Origin" not in answer.headers
