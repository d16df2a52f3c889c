"""The unmodified `AsyncioEndpoint` against the emulator, with its quirks."""

import asyncio

import aiohttp
import pytest
import runpod
from support.endpoint_client import worked_by_hand

from runpod_emulator.testing import running_emulator, settings_for

pytestmark = pytest.mark.sdk


@pytest.fixture(scope="module")
def stuck(handlers, tmp_path_factory):
    """An endpoint without workers, so that jobs stay queued."""
    state_dir = tmp_path_factory.mktemp("stuck")
    chosen = settings_for(handlers / "many_sided.py", state_dir, workers_max=0, rate_limits=False)
    with running_emulator(chosen) as emulator:
        yield emulator


@pytest.fixture
def talk(monkeypatch):
    """Runs a coroutine function that is given an endpoint of this emulator."""

    def run(emulator, conversation, *, endpoint_id="test", api_key=None):
        monkeypatch.setattr(runpod, "endpoint_url_base", emulator.base_url)

        async def converse():
            async with aiohttp.ClientSession() as session:
                key = api_key or emulator.api_key
                endpoint = runpod.AsyncioEndpoint(endpoint_id, session, api_key=key)
                return await conversation(endpoint)

        return asyncio.run(converse())

    return run


def give(value):
    return {"do": "give", "value": value}


def test_run_then_output_then_status(talk, emulator):
    async def conversation(endpoint):
        job = await endpoint.run(give({"image": "ü"}))
        return await job.output(timeout=30), await job.status(), await job.output()

    assert talk(emulator, conversation) == ({"image": "ü"}, "COMPLETED", {"image": "ü"})


def test_run_always_wraps(talk, stuck):
    async def conversation(endpoint):
        return await endpoint.run({"input": {"a": 1}}), await endpoint.run({"a": 1})

    wrapped, plain = talk(stuck, conversation)
    hazards = stuck.state()["hazards"]["recent"]
    found = {each["job_id"] for each in hazards if each["kind"] == "double-wrapped-input"}
    assert wrapped.job_id in found
    assert plain.job_id not in found


def test_output_without_a_timeout_raises_unless_it_is_known_already(talk, emulator):
    async def conversation(endpoint):
        job = await endpoint.run(give(1))
        with pytest.raises(TimeoutError, match="Job timed out"):
            await job.output()
        first = await job.output(timeout=30)
        return first, await job.output()

    assert talk(emulator, conversation) == (1, 1)


def test_a_failed_job_has_no_output(talk, emulator):
    async def conversation(endpoint):
        job = await endpoint.run({"do": "fail"})
        return await job.output(timeout=30), await job.status()

    assert talk(emulator, conversation) == (None, "FAILED")


def test_stream_yields_each_item_once_and_ends_with_the_job(talk, tmp_path):
    with worked_by_hand(tmp_path) as (emulator, _, worker):

        def work(job_id):
            worker.take()
            for item in ("a", {"b": 1}):
                worker.stream(job_id, item)
            worker.done(job_id, output=[])

        async def conversation(endpoint):
            job = await endpoint.run({"a": 1})
            working = asyncio.create_task(asyncio.to_thread(work, job.job_id))
            items = [item async for item in job.stream()]
            await working
            return items, await job.status()

        assert talk(emulator, conversation) == (["a", {"b": 1}], "COMPLETED")


def test_cancel_ends_a_queued_job(talk, stuck):
    async def conversation(endpoint):
        job = await endpoint.run({"a": 1})
        before, cancelled = await job.status(), await job.cancel()
        return job.job_id, before, cancelled, await job.status(), await job.output(timeout=5)

    job_id, before, cancelled, after, output = talk(stuck, conversation)
    assert cancelled == {"id": job_id, "status": "CANCELLED"}
    assert (before, after, output) == ("IN_QUEUE", "CANCELLED", None)


def test_output_gives_up_after_its_timeout(talk, stuck):
    async def conversation(endpoint):
        job = await endpoint.run({"a": 1})
        with pytest.raises(TimeoutError, match="Job timed out"):
            await job.output(timeout=1)

    talk(stuck, conversation)


def test_health_and_purge(talk, stuck):
    async def conversation(endpoint):
        await endpoint.purge_queue()
        await endpoint.run({"a": 1})
        return await endpoint.health(), await endpoint.purge_queue()

    health, purged = talk(stuck, conversation)
    assert health["jobs"]["inQueue"] == 1
    assert purged == {"removed": 1, "status": "completed"}


def test_a_wrong_key_is_a_content_type_error(talk, stuck):
    """The platform's 401 is plain text, and this client looks at no status."""

    async def conversation(endpoint):
        with pytest.raises(aiohttp.ContentTypeError, match="401"):
            await endpoint.run({"a": 1})

    talk(stuck, conversation, api_key="wrong")


def test_an_unknown_endpoint_is_a_key_error(talk, stuck):
    async def conversation(endpoint):
        with pytest.raises(KeyError, match="id"):
            await endpoint.run({"a": 1})

    talk(stuck, conversation, endpoint_id="nowhere")


def test_a_job_that_is_gone_is_a_key_error(talk, stuck):
    async def conversation(endpoint):
        job = await endpoint.run({"a": 1})
        job.job_id = "nobody"
        with pytest.raises(KeyError, match="status"):
            await job.status()

    talk(stuck, conversation)
