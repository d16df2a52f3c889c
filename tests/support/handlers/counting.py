"""The product's handler; its worker adds a line to the file `COUNT_FILE` for each denoiser call."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.counting_engine import CountingEngine

import handler
from pixpod.serving import runpod_sdk
from pixpod.serving.worker import Worker

start_worker = handler.start_worker


def start_counting(*arguments, **options):
    worker = start_worker(*arguments, **options)
    assert isinstance(worker, Worker)
    worker.engine = CountingEngine(worker.engine, add_line)
    return worker


def add_line():
    with Path(os.environ["COUNT_FILE"]).open("a", encoding="utf-8") as file:
        file.write("call\n")


if __name__ == "__main__":
    handler.start_worker = start_counting
    runpod_sdk.leave(handler.main())
