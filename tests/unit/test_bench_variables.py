"""The benchmarks read the variables that the table lists for them."""

import asyncio
import os

import pytest
from support.read_variables import Reads, ours_and_platforms, variables_of

from pixpod_bench.emulator import stub_worker
from pixpod_tools.generate.platform_variables import Program


def test_worker_without_the_sdk_reads_the_variables_of_the_table(monkeypatch):
    names = ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_WEBHOOK_POST_OUTPUT", "RUNPOD_WEBHOOK_PING")
    environ = Reads(**dict.fromkeys((*names, "RUNPOD_POD_ID"), "http://127.0.0.1:1"))
    # it reads the key last, and without one ends before it connects
    with monkeypatch.context() as patch, pytest.raises(KeyError, match="RUNPOD_AI_API_KEY"):
        patch.setattr(os, "environ", environ)
        asyncio.run(stub_worker.work())
    assert ours_and_platforms(environ.names) == variables_of(Program.BENCH)
