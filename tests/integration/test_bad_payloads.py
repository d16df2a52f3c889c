"""Every bad payload through a real worker, and a good job of the same worker afterwards."""

import asyncio
import json

import pytest
from support.bad_payloads import BAD_PAYLOADS
from support.factories import EXTRAS_FILE, OFFER
from support.tiny_models import Desk, build_tiny_worker

from pixpod.catalog import load_catalog


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_MODELS=",".join(load_catalog()),
        PIXPOD_CATALOG=str(EXTRAS_FILE),
        PIXPOD_EXTRAS=",".join(OFFER.extras),
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def test_each_is_refused_with_its_code_and_problems(desk):
    assert len(BAD_PAYLOADS) >= 60
    for bad in BAD_PAYLOADS:
        code, _, text = asyncio.run(desk.worker.handle(bad.job))["error"].partition(": ")
        found = [(problem["field"], problem) for problem in json.loads(text)["problems"]]
        assert code == bad.code, bad.id
        assert [field for field, _ in found] == [field for field, _ in bad.expected], bad.id
        for (_, problem), (_, said) in zip(found, bad.expected, strict=True):
            assert said in f"{problem['accepted']} {problem['hint']}", bad.id
    assert len(desk.generate("flux-tiny", "a red circle on a blue background")) == 1
