"""The cache of LoRA files over real HTTP: what is fetched, what is kept, and what is dropped."""

import asyncio
import hashlib
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from support.fake_internet import local_server
from support.lora_files import SDXL_LAYER, file_of, pair

from pixpod.errors import FetchFailed, WeightsRefused
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.lora_cache import LoraCache
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use, parse_opened

FILES = [file_of(pair(SDXL_LAYER, (8, 8), seed=seed)) for seed in range(4)]
HASHES = [hashlib.sha256(data).hexdigest() for data in FILES]
SIZE = len(FILES[0])
OTHER = file_of({"a": pair(SDXL_LAYER, (8, 8))[f"{SDXL_LAYER}.lora_A.weight"]})


class Host:
    """Serves files by number, with ETags if `has_etags`; counts full answers and comparisons."""

    def __init__(self, has_etags=True, delay_s=0.0):
        self.files = dict(enumerate(FILES))
        self.has_etags = has_etags
        self.delay_s = delay_s
        self.statuses = []

    async def answer(self, request):
        await asyncio.sleep(self.delay_s)
        body = self.files.get(int(request.path.strip("/")))
        etag = f'W/"{hash(body)}"'
        headers = {"ETag": etag} if self.has_etags else {}
        status = 200
        if body is None:
            status, body = 404, b""
        elif headers and request.headers.get("If-None-Match") == etag:
            status, body = 304, b""
        self.statuses.append(status)
        return web.Response(status=status, body=body, headers=headers)


@asynccontextmanager
async def fetching(host):
    """Yields `get(cache, use, number, sha256=None)`."""
    async with local_server(host.answer) as port:
        targets = Targets(opened=(parse_opened(f"127.0.0.1:{port}"),))
        client = GuardedClient(targets, retry_waits_s=())
        intake = Intake(client)

        async def get(cache, use, number, sha256=None):
            target = targets.parse(f"http://127.0.0.1:{port}/{number}", Use.READ)
            return await cache.get(target, sha256, intake, use)

        try:
            yield get
        finally:
            intake.close()
            client.close()


def run(host, work):
    async def main():
        async with fetching(host) as get:
            return await work(get)

    return asyncio.run(main())


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_file_lies_under_the_hash_of_its_bytes_and_is_complete(tmp_path):
    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            return await get(cache, use, 0)

    found = run(Host(), work)
    assert (found.sha256, found.is_cached) == (HASHES[0], False)
    assert found.path.read_bytes() == FILES[0]
    assert names(tmp_path) == {f"{HASHES[0]}.safetensors"}


@pytest.mark.parametrize(("has_etags", "statuses"), [(True, [200, 304]), (False, [200, 200])])
def test_url_is_asked_again_with_its_etag(tmp_path, has_etags, statuses):
    host = Host(has_etags)

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            return [await get(cache, use, 0) for _ in range(2)]

    first, second = run(host, work)
    assert host.statuses == statuses
    assert (first.is_cached, second.is_cached) == (False, True)
    assert first.path == second.path


def test_other_bytes_under_the_same_url_are_another_file(tmp_path):
    host = Host()

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            first = await get(cache, use, 0)
            host.files[0] = FILES[1]
            return first, await get(cache, use, 0)

    first, second = run(host, work)
    assert (first.sha256, second.sha256) == (HASHES[0], HASHES[1])


def test_nothing_is_fetched_for_a_hash_that_is_here_also_after_a_restart(tmp_path):
    host = Host()

    async def work(get):
        for cache in (LoraCache(tmp_path, 10 * SIZE), LoraCache(tmp_path, 10 * SIZE)):
            with cache.using() as use:
                found = [await get(cache, use, 0, HASHES[0]) for _ in range(2)]
        return found

    assert [each.is_cached for each in run(host, work)] == [True, True]
    assert host.statuses == [200]


def test_another_download_than_the_hash_says_is_refused(tmp_path):
    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            await get(cache, use, 0, HASHES[1])

    with pytest.raises(Refused) as refused:
        run(Host(), work)
    assert refused.value.error is WeightsRefused
    assert HASHES[0] in str(refused.value)


def test_concurrent_fetches_of_one_url_happen_once(tmp_path):
    host = Host(has_etags=False, delay_s=0.1)

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            return await asyncio.gather(*(get(cache, use, 0) for _ in range(8)))

    assert len({each.path for each in run(host, work)}) == 1
    assert host.statuses == [200]


def test_waiter_that_is_cancelled_leaves_the_fetch_to_the_others(tmp_path):
    host = Host(delay_s=0.2)

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            first, second = (asyncio.create_task(get(cache, use, 0)) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
            return await second

    assert run(host, work).sha256 == HASHES[0]
    assert host.statuses == [200]


def test_fetch_that_all_have_left_ends_and_leaves_no_file(tmp_path):
    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            task = asyncio.create_task(get(cache, use, 0))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        return [each for each in asyncio.all_tasks() if "_fetch" in repr(each)]

    assert run(Host(delay_s=0.5), work) == []
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("number", "error"), [(9, FetchFailed), (1, WeightsRefused)], ids=["missing", "no LoRA"]
)
def test_failed_fetch_leaves_no_file(tmp_path, number, error):
    host = Host()
    host.files[1] = OTHER

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            await get(cache, use, number)

    with pytest.raises(Refused) as refused:
        run(host, work)
    assert refused.value.error is error
    assert names(tmp_path) == set()


def test_oldest_files_are_dropped_and_those_in_use_are_not(tmp_path):
    async def work(get):
        cache = LoraCache(tmp_path, 2 * SIZE)
        with cache.using() as long:
            await get(cache, long, 0)
            for number in (1, 2, 3):
                with cache.using() as use:
                    await get(cache, use, number)
            during = names(tmp_path)
        return during

    during = run(Host(), work)
    assert during == {f"{HASHES[number]}.safetensors" for number in (0, 3)}


def test_cache_of_no_bytes_keeps_files_while_they_are_used(tmp_path):
    async def work(get):
        cache = LoraCache(tmp_path, 0)
        with cache.using() as use:
            assert (await get(cache, use, 0)).path.exists()

    run(Host(), work)
    assert names(tmp_path) == set()


def test_draft_of_a_process_that_died_is_removed(tmp_path):
    (tmp_path / "0123.part").write_bytes(b"half")

    async def work(get):
        cache = LoraCache(tmp_path, 10 * SIZE)
        with cache.using() as use:
            await get(cache, use, 0)

    run(Host(), work)
    assert names(tmp_path) == {f"{HASHES[0]}.safetensors"}
