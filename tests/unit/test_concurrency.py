"""A worker takes few jobs at a time, and none once it is to be refreshed."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from pixpod.catalog import load_catalog
from pixpod.families import FAMILIES
from pixpod.serving import concurrency
from pixpod.serving.concurrency import Concurrency, max_concurrency

CATALOG = load_catalog()


def few_steps(name):
    spec = CATALOG[name]
    return replace(spec, defaults=replace(spec.defaults, num_inference_steps=4))


@pytest.mark.parametrize(
    ("spec", "num_jobs"),
    [
        (CATALOG["flux-dev"], 2),
        (CATALOG["flux-schnell"], 3),
        (few_steps("sdxl"), 9),
        (CATALOG["sdxl"], 5),
        (CATALOG["sd15"], 9),
    ],
    ids=["flux-dev", "flux-schnell", "sdxl in 4 steps", "sdxl", "sd15"],
)
def test_concurrency_keeps_the_gpu_busy(spec, num_jobs):
    assert max_concurrency([spec]) == num_jobs


def test_model_with_small_images_has_a_larger_batch():
    spec = CATALOG["flux-dev"]
    small = replace(spec, defaults=replace(spec.defaults, width=512, height=512))
    assert max_concurrency([small]) > max_concurrency([spec])


def test_model_that_is_given_the_fewest_decides():
    assert max_concurrency([CATALOG["sd15"], CATALOG["flux-dev"], CATALOG["sdxl"]]) == 2


@pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)
def test_every_model_has_a_rule_and_more_than_its_batch(spec):
    assert max_concurrency([spec]) >= 2


def test_every_rule_gives_its_reason():
    assert all(rule.reason for family in FAMILIES.values() for rule in family.concurrency)


class Sdk:
    """The SDK's take loop as far as it matters here: a changed number waits for an empty worker."""

    def __init__(self, *, when_warm, is_warm=True):
        self.is_warm = is_warm
        self.num_taken = 0
        self.concurrency = Concurrency(
            max_when_warm=when_warm,
            is_warm=lambda: self.is_warm,
            num_taken=lambda: self.num_taken,
        )
        self.said = [1]

    def ask(self):
        """Return whether the SDK would go on to take jobs."""
        self.said.append(self.concurrency(self.said[-1]))
        return self.said[-1] == self.said[-2] or self.num_taken == 0

    def end(self, *, num_others=0, is_urgent=False, report_after_s=None, start_after_s=None):
        """Return whether a job to be answered may ask for a refresh, beside `num_others` that run.

        After so many seconds the SDK has reported the others, or starts one that it has queued.
        """

        async def end():
            loop = asyncio.get_running_loop()
            with ExitStack() as running:
                for _ in range(1 + num_others):
                    running.enter_context(self.concurrency.running())
                if report_after_s:
                    loop.call_later(report_after_s, setattr, self, "num_taken", 1)
                if start_after_s:
                    start = partial(running.enter_context, self.concurrency.running())
                    loop.call_later(start_after_s, start)
                return await self.concurrency.end(is_urgent=is_urgent)

        return asyncio.run(end())


def test_one_job_is_taken_while_cold_and_the_number_changes_once():
    sdk = Sdk(when_warm=3, is_warm=False)
    assert all(sdk.ask() for _ in range(3))
    sdk.is_warm = True
    for _ in range(3):
        sdk.ask()
    sdk.is_warm = False
    sdk.ask()
    assert sdk.said == [1, 1, 1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("when_warm", [1, 3])
def test_worker_that_shall_end_takes_none_until_its_jobs_have_ended(when_warm):
    sdk = Sdk(when_warm=when_warm)
    sdk.ask()
    sdk.num_taken = when_warm
    sdk.end()
    for _ in range(3):
        assert not sdk.ask(), "the number must change each time"
    assert min(sdk.said[2:]) >= when_warm, "below, the SDK would not start what it has taken"


def test_only_the_last_job_may_ask_for_a_refresh():
    sdk = Sdk(when_warm=3)
    sdk.ask()
    sdk.num_taken = 3
    assert not sdk.end(num_others=2, is_urgent=True)
    sdk.ask()
    sdk.num_taken = 2
    assert not sdk.end(num_others=1, is_urgent=True)
    sdk.num_taken = 1
    assert sdk.end()


def test_last_job_waits_until_those_of_its_batch_are_reported():
    sdk = Sdk(when_warm=3)
    sdk.ask()
    sdk.num_taken = 3
    sdk.end(num_others=2)
    sdk.ask()
    assert sdk.end(report_after_s=0.1)
    assert sdk.num_taken == 1


def test_job_that_the_sdk_has_yet_to_start_is_another_one():
    sdk = Sdk(when_warm=3)
    sdk.ask()
    sdk.num_taken = 2
    sdk.end(num_others=1)
    sdk.ask()
    assert not sdk.end(start_after_s=0.1)


def test_report_that_does_not_end_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(concurrency, "REPORT_LIMIT_S", 0.1)
    sdk = Sdk(when_warm=1)
    sdk.num_taken = 2
    assert not sdk.end()


def test_single_job_does_not_ask_while_a_poll_is_open_unless_it_is_urgent():
    sdk = Sdk(when_warm=3)
    sdk.ask()
    sdk.num_taken = 1
    assert not sdk.end()
    assert sdk.end(is_urgent=True)
    assert not sdk.ask(), "the next poll is not opened"
    assert sdk.end()


def test_worker_with_one_job_at_a_time_asks_at_once():
    sdk = Sdk(when_warm=1)
    sdk.ask()
    sdk.num_taken = 1
    assert sdk.end()


def test_idle_worker_that_shall_end_still_serves():
    """It can only ask by a reply."""
    sdk = Sdk(when_warm=2)
    sdk.ask()
    sdk.end()
    assert sdk.ask()
