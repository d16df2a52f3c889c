"""The command line: `serve` runs an emulator until Ctrl-C, `test` runs a RunPod Hub tests.json.

Exit status: 0 after a clean stop or if all tests pass, 1 if the emulator cannot run or a test
fails, 2 for flags or files that cannot be used.
"""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runpod_emulator.api.server import is_loopback
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.command_line.flags import configuration_of, fault_rules, parse_flags
from runpod_emulator.command_line.hub_file import (
    HubFile,
    HubMachine,
    HubTest,
    find_tests,
    read_hub_tests,
)
from runpod_emulator.command_line.hub_report import HubResult, report_of
from runpod_emulator.command_line.hub_run import Progress, Target, run_hub_tests
from runpod_emulator.command_line.logs import LogFormat, configure_logging
from runpod_emulator.command_line.project import check_sdk
from runpod_emulator.command_line.reload import reload_on_change
from runpod_emulator.command_line.state_dir import checked_key, kept_key, prepare_state_dir
from runpod_emulator.command_line.welcome import KEY_VARIABLE, KeySource, welcome
from runpod_emulator.emulator import Emulator
from runpod_emulator.errors import EmulatorError, InvalidConfiguration
from runpod_emulator.faults import FaultRule
from runpod_emulator.settings import EmulatorSettings, EndpointSettings
from runpod_emulator.workers.environ import worker_environ

logger = logging.getLogger(__name__)


BEHAVIOUR_UNDER_TEST = Behaviour(min_execution_timeout_s=0, terminate_grace_s=2)
"""Behaviour that keeps the Hub's timeouts unchanged, and stops workers without waiting."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS_FAILED = 1
STATUS_USAGE = 2
STATUS_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status. `arguments` lack the program's name, and default to the process's."""
    given = parse_flags(sys.argv[1:] if arguments is None else arguments)
    try:
        work = ACTIONS[given.action](given, os.environ)
    except EmulatorError as error:
        sys.stderr.write(f"{error}\n")
        return STATUS_USAGE
    try:
        return asyncio.run(_until_signal(work))
    except (EmulatorError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return STATUS_FAILED


def prepare_serve(
    given: argparse.Namespace, environ: Mapping[str, str]
) -> Coroutine[Any, Any, int]:
    """Check everything that can be checked before anything starts. Raises EmulatorError."""
    configuration = configuration_of(given, environ)
    rules = fault_rules(given)
    key, source = _own_key(given, environ)
    level = getattr(given, "log_level", "WARNING" if "echo_logs" in given else "INFO")
    configure_logging(level, getattr(given, "log_format", LogFormat.TEXT))
    settings = configuration.settings(key)
    _check_host(settings.host, source)
    _check_workers(settings.endpoints, environ)
    return serve(settings, source, rules, reloads="reload" in given)


async def serve(
    settings: EmulatorSettings, source: KeySource, rules: Sequence[FaultRule], *, reloads: bool
) -> int:
    """Run an emulator until cancelled."""
    prepare_state_dir(settings.state_dir)
    if source is KeySource.KEPT:
        settings = replace(settings, api_key=kept_key(settings.state_dir))
    emulator = Emulator(settings)
    for rule in rules:
        emulator.faults.add(rule)
    await emulator.start()
    try:
        sys.stdout.write(welcome(settings, emulator.base_url, source))
        sys.stdout.flush()
        if reloads:
            await reload_on_change(emulator.gateway.endpoints.values())
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 0
    finally:
        await emulator.stop()
    return 0


def prepare_test(given: argparse.Namespace, environ: Mapping[str, str]) -> Coroutine[Any, Any, int]:
    """Check the flags and files of `test`, and return its work. Raises EmulatorError."""
    if "tests" in given:
        file = read_hub_tests(given.tests)
    else:
        file = find_tests(getattr(given, "workdir", Path()))
    if "execution_timeout_s" in given:
        file = file.without_timeouts()
    machines = dict.fromkeys(test.machine for test in file.tests)
    endpoints = {each: _endpoint_under_test(given, each, environ) for each in machines}
    _check_workers(tuple(endpoints.values()), environ)
    for warning in file.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    is_verbose = "verbose" in given
    configure_logging("INFO" if is_verbose else "WARNING", LogFormat.TEXT)
    return run_tests(file, endpoints, echo_logs=is_verbose)


async def run_tests(
    file: HubFile, endpoints: Mapping[HubMachine, EndpointSettings], *, echo_logs: bool
) -> int:
    """Run the tests machine by machine, each on an emulator of its own, and print the results."""
    results: dict[int, HubResult] = {}
    for machine, endpoint in endpoints.items():
        chosen = [index for index, test in enumerate(file.tests) if test.machine == machine]
        tests = [file.tests[index] for index in chosen]
        run = await _run_on_machine(tests, endpoint, echo_logs=echo_logs)
        results.update(zip(chosen, run, strict=True))
    in_order = [results[index] for index in sorted(results)]
    sys.stdout.write(report_of(in_order, file.not_run))
    return 0 if all(result.has_passed for result in in_order) else STATUS_FAILED


async def _run_on_machine(
    tests: Sequence[HubTest], endpoint: EndpointSettings, *, echo_logs: bool
) -> list[HubResult]:
    """Run tests on an emulator started for them, and delete its state afterwards."""
    with tempfile.TemporaryDirectory(prefix="runpod-emulator-") as state_dir:
        settings = EmulatorSettings(
            endpoints=(endpoint,),
            api_key=secrets.token_urlsafe(),
            state_dir=Path(state_dir),
            database=Path(state_dir, "jobs.db"),
            behaviour=BEHAVIOUR_UNDER_TEST,
            rate_limits=False,
            echo_logs=echo_logs,
        )
        emulator = Emulator(settings)
        await emulator.start()
        try:
            target = Target(url=emulator.url, endpoint=endpoint, api_key=settings.api_key)
            return await run_hub_tests(tests, target, Progress(sys.stderr))
        finally:
            await emulator.stop()


ACTIONS = {"serve": prepare_serve, "test": prepare_test}


def _endpoint_under_test(
    given: argparse.Namespace, machine: HubMachine, environ: Mapping[str, str]
) -> EndpointSettings:
    """Return the endpoint with one worker, on a machine of the file."""
    env = [*machine.env, *getattr(given, "env", ())]
    chosen = argparse.Namespace(**{**vars(given), "env": env})
    (endpoint,) = configuration_of(chosen, environ).endpoints
    return replace(
        endpoint,
        workers_min=1,
        workers_max=1,
        gpu=machine.gpu or endpoint.gpu,
        gpu_count=machine.gpu_count or endpoint.gpu_count,
    )


def _own_key(given: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, KeySource]:
    """Return the key that the user has chosen, empty if none. Raises InvalidConfiguration."""
    if "api_key" in given:
        return checked_key(given.api_key, "--api-key"), KeySource.FLAG
    if environ.get(KEY_VARIABLE):
        return checked_key(environ[KEY_VARIABLE], KEY_VARIABLE), KeySource.ENVIRONMENT
    return "", KeySource.KEPT


def _check_host(host: str, source: KeySource) -> None:
    if is_loopback(host):
        return
    if source is KeySource.KEPT:
        expected = f"127.0.0.1, or any other with a key of yours (--api-key, {KEY_VARIABLE})"
        raise InvalidConfiguration("host", host, expected)
    logger.warning("other machines can reach the emulator, unencrypted", extra={"host": host})


def _check_workers(endpoints: Sequence[EndpointSettings], environ: Mapping[str, str]) -> None:
    """Raise EmulatorError for a variable that is the protocol's own, and for a missing SDK."""
    for endpoint in endpoints:
        workers = worker_environ(
            endpoint,
            Behaviour(),
            base_url="http://localhost",
            worker_id="",
            token="",
            home=Path(),
            inherited=environ,
        )
        check_sdk(endpoint.command, workers)


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end, or to the first SIGINT or SIGTERM, which cancels; a second one kills."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def interrupt() -> None:
        sys.stderr.write("\nStopping: workers may end their jobs. Once more kills them.\n")
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        return STATUS_INTERRUPTED
