"""What a worker is told about its platform, and who has the last word on a variable."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.environ import ProtectedVariable, worker_environ

ENDPOINT = EndpointSettings(id="ep", command=("python", "handler.py"), gpu="NVIDIA RTX A5000")
BASE_URL = "http://127.0.0.1:8000"
HOME = Path("/state/worker-1")
PATHS = {
    "RUNPOD_WEBHOOK_GET_JOB": "/v2/ep/job-take/$ID",
    "RUNPOD_WEBHOOK_POST_OUTPUT": "/v2/ep/job-done/$RUNPOD_POD_ID/$ID",
    "RUNPOD_WEBHOOK_POST_STREAM": "/v2/ep/job-stream/$RUNPOD_POD_ID/$ID",
    "RUNPOD_WEBHOOK_PING": "/v2/ep/ping/$RUNPOD_POD_ID",
}
PROTECTED = (
    *PATHS,
    "RUNPOD_AI_API_KEY",
    "RUNPOD_ENDPOINT_ID",
    "RUNPOD_PING_INTERVAL",
    "RUNPOD_POD_ID",
)


def environ_of(
    *, env=None, inherited=None, behaviour=None, base_url=BASE_URL, home=HOME, **endpoint
):
    return worker_environ(
        replace(ENDPOINT, env=env or {}, **endpoint),
        behaviour or Behaviour(),
        base_url=base_url,
        worker_id="worker-1",
        token="token-1",
        home=home,
        inherited=inherited or {},
    )


@pytest.mark.parametrize(("name", "path"), PATHS.items())
def test_each_url_leads_to_the_emulator_and_has_a_parameter(name, path):
    url = urlsplit(environ_of()[name])
    assert f"{url.scheme}://{url.netloc}" == BASE_URL
    assert url.path == path
    assert url.query == "gpu=NVIDIA+RTX+A5000"


@pytest.mark.parametrize("name", PATHS)
def test_names_cannot_bend_a_url(name):
    url = urlsplit(environ_of(id="a/b?c", gpu="x&$ID#y")[name])
    assert url.path.split("/")[:3] == ["", "v2", "a%2Fb%3Fc"]
    assert parse_qs(url.query) == {"gpu": ["x&$ID#y"]}
    assert "$ID" not in url.query


def test_base_url_may_end_in_a_slash():
    assert environ_of(base_url=f"{BASE_URL}/") == environ_of()


def test_worker_gets_its_identity():
    environ = environ_of(gpu_count=2)
    assert environ["RUNPOD_AI_API_KEY"] == "token-1"
    assert environ["RUNPOD_POD_ID"] == "worker-1"
    assert environ["RUNPOD_ENDPOINT_ID"] == "ep"
    assert environ["RUNPOD_GPU_COUNT"] == "2"
    assert environ["RUNPOD_GPU_TYPE_ID"] == "NVIDIA RTX A5000"
    assert environ["HOME"] == str(HOME)


def test_home_is_absolute_since_the_worker_runs_elsewhere():
    assert environ_of(home=Path("state"))["HOME"] == str(Path.cwd() / "state")


@pytest.mark.parametrize(("seconds", "told"), [(10, "10000"), (2.5, "2500"), (0.2, "1000")])
def test_ping_interval_is_at_least_a_second(seconds, told):
    environ = environ_of(behaviour=Behaviour(ping_interval_s=seconds))
    assert environ["RUNPOD_PING_INTERVAL"] == told


@pytest.mark.parametrize(
    "name",
    [
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS",
        "RUNPOD_SKIP_GPU_CHECK",
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
    ],
)
def test_checks_that_need_the_cloud_are_off_until_the_endpoint_wants_them(name):
    assert environ_of()[name] == "true"
    assert environ_of(env={name: "false"})[name] == "false"


def test_runpod_variables_are_not_inherited():
    inherited = dict.fromkeys(
        ("RUNPOD_API_KEY", "RUNPOD_REALTIME_PORT", "RUNPOD_EMULATOR_API_KEY", "RUNPOD_POD_ID"),
        "inherited",
    )
    assert environ_of(inherited=inherited) == environ_of()


def test_endpoint_wins_over_what_is_inherited():
    environ = environ_of(inherited={"A": "1", "B": "1"}, env={"B": "2", "RUNPOD_VOLUME_ID": "v"})
    assert (environ["A"], environ["B"], environ["RUNPOD_VOLUME_ID"]) == ("1", "2", "v")


@pytest.mark.parametrize("name", PROTECTED)
def test_endpoint_cannot_replace_what_the_protocol_needs(name):
    with pytest.raises(ProtectedVariable, match=rf"'ep': .*, got {name}") as refused:
        environ_of(env={name: "secret-value"})
    assert "secret-value" not in str(refused.value)


def test_all_protected_variables_are_named_at_once():
    with pytest.raises(ProtectedVariable, match="RUNPOD_AI_API_KEY, RUNPOD_POD_ID"):
        environ_of(env={"RUNPOD_POD_ID": "x", "RUNPOD_AI_API_KEY": "y"})


def test_caches_and_user_packages_stay_where_they_were():
    environ = environ_of(inherited={"HOME": "/home/me"})
    assert environ["HOME"] == str(HOME)
    assert environ["XDG_CACHE_HOME"] == "/home/me/.cache"
    assert environ["PYTHONUSERBASE"] == "/home/me/.local"


def test_caches_that_are_named_already_are_left_alone():
    inherited = {"HOME": "/home/me", "XDG_CACHE_HOME": "/cache", "HF_HOME": "/models"}
    environ = environ_of(inherited=inherited, env={"PYTHONUSERBASE": "/packages"})
    assert environ["XDG_CACHE_HOME"] == "/cache"
    assert environ["HF_HOME"] == "/models"
    assert environ["PYTHONUSERBASE"] == "/packages"


def test_home_of_the_endpoint_brings_its_own_caches(tmp_path):
    environ = environ_of(inherited={"HOME": "/home/me"}, env={"HOME": str(tmp_path)})
    assert environ["HOME"] == str(tmp_path)
    assert "XDG_CACHE_HOME" not in environ


def make_config(home, text):
    (home / ".runpod").mkdir()
    (home / ".runpod" / "config.toml").write_text(text)


def test_home_with_a_key_that_the_sdk_would_prefer_is_refused(tmp_path):
    make_config(tmp_path, '[default]\napi_key = "rpa_SECRET"\n')
    with pytest.raises(ProtectedVariable, match=r"config\.toml") as refused:
        environ_of(env={"HOME": str(tmp_path)})
    assert "rpa_SECRET" not in str(refused.value)


@pytest.mark.parametrize("text", ['[other]\napi_key = "k"\n', "no toml", ""])
def test_home_whose_config_the_sdk_ignores_is_accepted(tmp_path, text):
    make_config(tmp_path, text)
    assert environ_of(env={"HOME": str(tmp_path)})["HOME"] == str(tmp_path)


@pytest.mark.parametrize(
    ("inherited", "names"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "internal"}, "internal,127.0.0.1"),
        ({"no_proxy": "lower", "NO_PROXY": "upper"}, "lower,127.0.0.1"),
    ],
)
def test_no_proxy_stands_between_worker_and_emulator(inherited, names):
    environ = environ_of(inherited={"HTTP_PROXY": "http://proxy:3128", **inherited})
    assert environ["NO_PROXY"] == environ["no_proxy"] == names


def test_arguments_are_left_as_they_were():
    inherited, env = {"HOME": "/home/me"}, {"A": "1"}
    environ_of(inherited=inherited, env=env)
    assert (inherited, env) == ({"HOME": "/home/me"}, {"A": "1"})
