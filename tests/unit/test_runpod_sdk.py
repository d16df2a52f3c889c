"""What we touch of the SDK without its documentation's word for it: notices when that changes."""

import asyncio
import inspect
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from aiohttp import web
from support.sdk2 import sdk2_environ

from pixpod.serving import runpod_sdk

SRC = Path(__file__).resolve().parents[2] / "src"


def run(code, sdk=""):
    """Lines that code prints in a fresh interpreter; `sdk` is the folder of another SDK."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{sdk}:{SRC}", "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.splitlines()


def test_only_the_processors_name_is_read_from_cpuinfo():
    """Else the stand-in would have to answer more."""
    from runpod.serverless.utils import rp_debugger

    source = inspect.getsource(rp_debugger)
    assert source.count("cpuinfo.") == 1
    assert 'cpuinfo.get_cpu_info()["brand_raw"]' in source


def test_processor_has_its_name_and_cpuinfo_stays_out():
    name, is_real_loaded, is_importable = run(
        "import sys\n"
        "from pixpod.engine.device_probe import processor_name\n"
        "from pixpod.serving.runpod_sdk import _processor_name_from_proc\n"
        "with _processor_name_from_proc():\n"
        "    import runpod\n"
        "from runpod.serverless.utils import rp_debugger\n"
        "print(rp_debugger.PROCESSOR == processor_name())\n"
        "print('cpuinfo' in sys.modules)\n"
        "import cpuinfo\n"
        "print(hasattr(cpuinfo, 'get_cpu_info_json'))\n"
    )
    assert (name, is_real_loaded, is_importable) == ("True", "False", "True")


def test_cpuinfo_that_is_there_already_is_left_alone():
    (is_same,) = run(
        "import sys, types\n"
        "mine = sys.modules['cpuinfo'] = types.ModuleType('cpuinfo')\n"
        "from pixpod.serving.runpod_sdk import _processor_name_from_proc\n"
        "with _processor_name_from_proc():\n"
        "    assert sys.modules['cpuinfo'] is mine\n"
        "print(sys.modules['cpuinfo'] is mine)\n"
    )
    assert is_same == "True"


# --- parts that are replaced ------------------------------------------------------------------

HASHES = """
import hashlib, inspect
from importlib import import_module
from runpod.version import __version__
from pixpod.serving.runpod_sdk import REPLACED
for name, versions in REPLACED.items():
    module, attribute = name.split(".")
    part = getattr(import_module(f"runpod.serverless.modules.{module}"), attribute)
    found = hashlib.sha256(inspect.getsource(part).encode()).hexdigest()
    print(__version__, name, found == versions[__version__])
"""

REPLACE = """
from runpod.serverless.modules import rp_http, rp_scale
import runpod.version
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
runpod.version.__version__ = {version} or runpod.version.__version__
print(runpod_sdk.replace_in_sdk(Drain()))
print(rp_http._handle_result.__module__)
print(getattr(rp_scale.JobScaler, "func", rp_scale.JobScaler).__module__)
"""


@pytest.mark.parametrize("version", ["1.12.0", "2.0.0rc2"])
def test_replaced_parts_are_those_that_the_replacements_were_written_for(version):
    path = "" if version == "1.12.0" else sdk2_environ()["PYTHONPATH"]
    expected = [f"{version} {name} True" for name in runpod_sdk.REPLACED]
    assert run(HASHES, path) == expected


def test_every_replaced_part_names_the_same_versions():
    assert len({tuple(versions) for versions in runpod_sdk.REPLACED.values()}) == 1


@pytest.mark.parametrize(
    ("version", "is_known", "http", "scale"),
    [
        ("None", "True", "pixpod.serving.sdk_replacements", "pixpod.serving.sdk_replacements"),
        (
            "'1.13.0'",
            "False",
            "runpod.serverless.modules.rp_http",
            "runpod.serverless.modules.rp_scale",
        ),
    ],
)
def test_unknown_version_stays_as_it_is(version, is_known, http, scale):
    assert run(REPLACE.format(version=version)) == [is_known, http, scale]


@pytest.mark.sdk
def test_report_of_an_unhealthy_worker_takes_a_check_and_a_reason():
    from runpod.serverless.modules import rp_fitness

    assert [*inspect.signature(rp_fitness._report_unhealthy).parameters] == ["check", "reason"]


@pytest.mark.sdk
class TestProgress:
    update: ClassVar = {"phase": "denoising", "step": 7, "steps": 28, "percent": 25}

    @pytest.fixture
    def sdk(self, monkeypatch):
        """Where the SDK posts results, to be told."""
        from runpod.serverless.modules import rp_http

        def post_to(url):
            monkeypatch.setattr(rp_http, "JOB_DONE_URL_TEMPLATE", url)
            monkeypatch.setattr(rp_http, "JOB_DONE_URL", url)

        return post_to

    def send(self, sdk, answer):
        """Send an update to a platform that answers so."""

        async def send():
            async with platform(answer) as base_url:
                sdk(f"{base_url}/job-done/pod/$ID?gpu=any")
                await runpod_sdk.send_progress("job-1", self.update)

        asyncio.run(send())

    def test_update_has_arrived_when_it_is_sent(self, sdk):
        seen = []

        async def answer(request):
            seen.append((request.path_qs, await request.json()))
            return web.json_response({})

        self.send(sdk, answer)
        body = {"status": "IN_PROGRESS", "output": self.update}
        assert seen == [("/job-done/pod/job-1?gpu=any&isStream=false", body)]

    def test_platform_that_refuses_it_is_no_fault_of_the_job(self, sdk):
        async def answer(request):
            raise web.HTTPBadRequest

        self.send(sdk, answer)

    def test_platform_that_does_not_answer_is_given_up(self, sdk, monkeypatch, caplog):
        monkeypatch.setattr(runpod_sdk, "UPDATE_LIMIT_S", 0.1)

        async def answer(request):
            await asyncio.sleep(600)

        self.send(sdk, answer)
        assert "the platform did not take an update in time" in caplog.messages

    def test_nothing_is_sent_where_the_sdk_has_no_address(self, sdk):
        """Its own local servers leave the address as it is."""
        from runpod.serverless.modules import rp_http

        assert rp_http.JOB_DONE_URL_TEMPLATE == "JOB_DONE_URL"
        asyncio.run(runpod_sdk.send_progress("job-1", self.update))


class TestHeldJobs:
    @pytest.fixture
    def held(self):
        """The jobs that the SDK lists: a singleton of the process."""
        from runpod.serverless.modules.worker_state import JobsProgress

        held = JobsProgress()
        yield held
        held.clear()

    def test_jobs_are_counted_until_they_are_reported(self, held):
        held.add({"id": "a", "input": {}})
        held.add({"id": "b", "input": {}})
        assert runpod_sdk.num_taken_jobs() == 2
        held.remove({"id": "a"})
        assert runpod_sdk.num_taken_jobs() == 1

    def test_changed_number_waits_for_an_empty_worker(self, held):
        from runpod.serverless.modules.rp_scale import JobScaler

        async def change():
            scaler = JobScaler({"concurrency_modifier": lambda current: current + 1})
            held.add({"id": "a", "input": {}})
            scaling = asyncio.create_task(scaler.set_scale())
            await asyncio.sleep(0.05)
            is_waiting = not scaling.done()
            held.remove({"id": "a"})
            await scaling
            return is_waiting, scaler.jobs_queue.maxsize

        assert asyncio.run(change()) == (True, 2)


@asynccontextmanager
async def platform(answer):
    """Its address."""
    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
