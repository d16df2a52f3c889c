"""Images and weights of a job, from the payload's text to pixels and files."""

import asyncio
import base64
import json
import os
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
from aiohttp import web
from safetensors import SafetensorError, deserialize
from support.factories import OFFER, make_job
from support.fake_internet import local_server
from support.odd_images import HEIGHT, WIDTH, saved
from support.safetensors_files import GOOD, HOSTILE, ONLY_OURS, file_of

from pixpod.contract.payload import parse_job
from pixpod.errors import (
    FetchFailed,
    FetchUnavailable,
    ImageRefused,
    InvalidInput,
    UrlRefused,
    WeightsRefused,
)
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.images import decode_image, decode_mask
from pixpod.inputs.intake import (
    MAX_READS,
    MAX_WEIGHTS_BYTES,
    InlineData,
    Intake,
    parse_source,
    read_all,
)
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use, parse_opened
from pixpod.inputs.weights_files import BYTES_PER_VALUE
from pixpod.job import RawMask


@asynccontextmanager
async def serving(files, *, max_weights_bytes=MAX_WEIGHTS_BYTES):
    """Serve files by path; yields an intake, the rules, and the base of their URLs."""

    async def answer(request):
        found = files.get(request.path)
        if callable(found):
            return await found(request)
        if found is None:
            return web.Response(status=404)
        return web.Response(body=found)

    async with local_server(answer) as port:
        targets = Targets(opened=(parse_opened(f"127.0.0.1:{port}"),))
        client = GuardedClient(targets, retry_waits_s=(0, 0))
        intake = Intake(client, max_weights_bytes=max_weights_bytes)
        try:
            yield intake, targets, f"http://127.0.0.1:{port}"
        finally:
            intake.close()
            client.close()


def read_job(files, given, decode=decode_image):
    """Read images of a job; a text that begins with a slash is a path of the server."""

    async def run():
        async with serving(files) as (intake, targets, base):
            full = {
                path: base + text if text.startswith("/") else text for path, text in given.items()
            }
            sources = {path: parse_source(text, targets) for path, text in full.items()}
            return await read_all(
                {
                    path: partial(intake.read_image, source, decode)
                    for path, source in sources.items()
                }
            )

    return asyncio.run(run())


def problems_of(error):
    return json.loads(str(error).partition(": ")[2])["problems"]


def test_images_come_from_urls_data_uris_and_base64():
    data = saved("PNG")
    text = base64.b64encode(data).decode()
    given = {
        "image": "/a.png",
        "mask": f"data:image/png;base64,{text}",
        "ip_adapter.image": f"DATA:;BASE64,{text}",
        "controlnets[0].image": text,
    }
    found = read_job({"/a.png": data}, given)
    assert list(found) == list(given)
    assert {(image.width, image.height) for image in found.values()} == {(WIDTH, HEIGHT)}
    assert len({image.pixels for image in found.values()}) == 1
    [mask] = read_job({}, {"mask": text}, decode_mask).values()
    assert isinstance(mask, RawMask)
    assert len(mask.pixels) == WIDTH * HEIGHT


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", "data that is not empty"),
        ("data:image/png;base64,", "data that is not empty"),
        ("iVBORw0KGgo", "base64 without line breaks"),
        ("iVBO\nRw0K", "base64 without line breaks"),
        ("iVBO Rw0K", "base64 without line breaks"),
        ("iVBO-w0_", "base64 without line breaks"),
        ("iVBORw==iVBO", "base64 without line breaks"),
        ("iVBORw===", "base64 without line breaks"),
        ("\u0130VBO", "base64 without line breaks"),
        ("data:image/png,abc", "base64 without line breaks"),
        ("data:image/png;base64;base64,iVB%", "base64 without line breaks"),
        ("data:text/html;charset=utf-8,<p>", "base64 without line breaks"),
        ("@a.png", "base64 without line breaks"),
        ("/etc/passwd", "base64 without line breaks"),
        ("../../etc/passwd", "base64 without line breaks"),
        ("C:\\a.png", "base64 without line breaks"),
        ("file:/etc/passwd", "base64 without line breaks"),
        ("file:///etc/passwd", "a URL with http or https"),
        ("A" * 44_739_248, "a file of at most 33554432 bytes"),
        ("https://10.0.0.1/?token=secret", "a host with public addresses"),
    ],
)
def test_what_can_be_seen_in_the_payload_is_invalid_input(text, accepted):
    with pytest.raises(InvalidInput) as caught:
        parse_job(make_job(image=text, mask="ftp://x"), OFFER)
    first, second = problems_of(caught.value)
    assert (first["field"], second["field"]) == ("image", "mask")
    assert accepted in first["accepted"]
    assert "secret" not in str(caught.value)


def test_path_of_a_file_is_data_and_no_file_is_opened(monkeypatch):
    """`/etc/host` has letters of base64 only and a length of three bytes."""

    def opened(*args):
        raise AssertionError(args)

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(os, "open", opened)
    source = parse_source("/etc/hostnam", Targets())
    assert source == InlineData(data=base64.b64decode("/etc/hostnam"))


def test_all_refusals_of_what_was_fetched_come_at_once_under_the_first_code():
    async def to_inside(request):
        raise web.HTTPFound("http://10.0.0.1/?token=secret")

    async def broken(request):
        return web.Response(status=500)

    files = {"/inside": to_inside, "/broken": broken, "/gif": saved("GIF")}
    given = {
        "image": "/gif",
        "mask": "/broken?token=secret",
        "controlnets[0].image": "/missing?token=secret",
        "controlnets[1].image": "/inside",
    }
    for error, fields in (
        (UrlRefused, list(given)),
        (FetchFailed, list(given)[:3]),
        (FetchUnavailable, list(given)[:2]),
        (ImageRefused, list(given)[:1]),
    ):
        with pytest.raises(error) as caught:
            read_job(files, {field: given[field] for field in fields})
        assert type(caught.value) is error
        found = problems_of(caught.value)
        assert [problem["field"] for problem in found] == fields
        assert all(problem["value"] and problem["accepted"] for problem in found)
        assert "secret" not in str(caught.value)
    assert "/gif" not in str(caught.value)


def test_no_more_than_four_are_read_and_two_decoded_at_a_time():
    reading, decoding, lock = [0, 0], [0, 0], threading.Lock()

    def change(counts, by):
        with lock:
            counts[0] += by
            counts[1] = max(counts)

    async def slow(request):
        change(reading, 1)
        await asyncio.sleep(0.05)
        change(reading, -1)
        return web.Response(body=saved("PNG"))

    def decode(data):
        change(decoding, 1)
        threading.Event().wait(0.05)
        change(decoding, -1)
        return decode_image(data)

    given = {f"controlnets[{n}].image": "/slow" for n in range(12)}
    assert len(read_job({"/slow": slow}, given, decode)) == 12
    assert reading == [0, MAX_READS]
    assert decoding == [0, 2]


def test_error_that_is_no_refusal_ends_the_other_reads():
    ended = []

    async def fail():
        raise ImportError

    async def wait():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def run():
        with pytest.raises(ImportError):
            await read_all({"image": wait, "mask": fail})
        await asyncio.sleep(0)
        return list(ended)

    assert asyncio.run(run()) == [True]


def read_weights(data, path, sent=None, **options):
    """Read weights from a server, which adds the length of what it could send to `sent`."""

    async def send(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(data), 65_536):
            await response.write(data[at : at + 65_536])
            if sent is not None:
                sent.append(65_536)
        return response

    async def run():
        async with serving({"/lora": send}, **options) as (intake, targets, base):
            found = await intake.read_weights(targets.parse(f"{base}/lora", Use.READ), path)
            return found.header

    return asyncio.run(run())


@pytest.mark.parametrize("name", GOOD)
def test_weights_are_stored_as_they_were_sent(name, tmp_path):
    header = read_weights(GOOD[name], tmp_path / "lora")
    assert (tmp_path / "lora").read_bytes() == GOOD[name]
    assert header.size_bytes == len(GOOD[name])
    library = dict(deserialize(GOOD[name]))
    assert {name: list(shape) for name, shape in header.shapes.items()} == {
        name: each["shape"] for name, each in library.items()
    }


def test_there_are_hostile_weights_that_the_library_refuses_and_others():
    assert len(HOSTILE) >= 25
    taken = set()
    for name, (data, _) in HOSTILE.items():
        try:
            deserialize(data)
            taken.add(name)
        except SafetensorError:
            pass
    assert taken == ONLY_OURS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused_and_leave_no_file(name, tmp_path):
    data, accepted = HOSTILE[name]
    with pytest.raises(Refused) as caught:
        read_weights(data, tmp_path / "lora")
    assert caught.value.error is WeightsRefused
    assert accepted in caught.value.accepted
    assert list(tmp_path.iterdir()) == []


def test_download_ends_at_a_header_that_is_not_accepted(tmp_path):
    size = 64 * 2**20
    for dtype, max_bytes in (("I16", MAX_WEIGHTS_BYTES), ("F16", size)):
        entry = {"dtype": dtype, "shape": [size // 2], "data_offsets": [0, size]}
        sent: list[int] = []
        with pytest.raises(Refused) as caught:
            data = file_of({"a": entry}, bytes(size))
            read_weights(data, tmp_path / "lora", sent, max_weights_bytes=max_bytes)
        assert caught.value.error is WeightsRefused
        assert sum(sent) < size / 4


def test_download_ends_where_the_header_says(tmp_path):
    sent: list[int] = []
    size = 64 * 2**20
    with pytest.raises(Refused) as caught:
        read_weights(GOOD["one tensor"] + bytes(size), tmp_path / "lora", sent)
    assert caught.value.accepted == "a safetensors file as long as its header says"
    assert sum(sent) < size / 4


def test_weights_longer_than_the_setting_are_refused_by_their_header(tmp_path):
    with pytest.raises(Refused) as caught:
        read_weights(GOOD["20,000 tensors"], tmp_path / "lora", max_weights_bytes=1_300_000)
    assert caught.value.accepted == "a file of at most 1300000 bytes"


def test_weights_are_read_again_after_a_connection_that_broke(tmp_path):
    data = GOOD["20,000 tensors"]
    calls = []

    async def send(request):
        calls.append(request)
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data if len(calls) > 1 else data[:900_000])
        if len(calls) == 1:
            request.transport.abort()
        return response

    async def run():
        async with serving({"/lora": send}) as (intake, targets, base):
            target = targets.parse(f"{base}/lora", Use.READ)
            return await intake.read_weights(target, tmp_path / "lora")

    assert asyncio.run(run()).header.size_bytes == len(data)
    assert (len(calls), (tmp_path / "lora").read_bytes()) == (2, data)


def test_types_of_weights_are_those_of_the_library():
    for dtype, size in BYTES_PER_VALUE.items():
        data = file_of(
            {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8 * size]}}, bytes(8 * size)
        )
        assert dict(deserialize(data))["a"]["dtype"] == dtype
