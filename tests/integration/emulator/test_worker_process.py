"""Real processes: exit codes, signals, groups, output, and what a killed emulator leaves.

A process holds a lock on a file for as long as it lives, so that its end can be seen by anybody:
even if nobody reaps it, and whoever started it.
"""

import asyncio
import fcntl
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from runpod_emulator.workers import reaper as reaper_module
from runpod_emulator.workers.output import MAX_LINE_BYTES, MAX_LOG_BYTES
from runpod_emulator.workers.process import WorkerNotStarted, WorkerProcess
from runpod_emulator.workers.reaper import Reaper

SRC = Path(reaper_module.__file__).resolve().parents[1]
PYTHON = (sys.executable, "-I", "-S", "-c")
DEADLINE_S = 30

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write("held"); lock.flush()
while True:
    time.sleep(0.005); lock.write("."); lock.flush()
"""
"""Takes the lock, then grows the file for as long as it runs."""

HOLD_WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {HOLD!r}, sys.argv[2]])
{HOLD}
"""

LEAVE_CHILD = f"""
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-I", "-S", "-c", {HOLD!r}, sys.argv[1]], start_new_session=%s
)
while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
    time.sleep(0.005)
print("child", child.pid, flush=True)
os._exit(7)
"""

EMULATOR = """
import asyncio, json, pathlib, sys
from runpod_emulator.workers.reaper import Reaper
from runpod_emulator.workers.process import WorkerProcess

async def main(command, folder):
    reaper = Reaper()
    await reaper.start()
    await WorkerProcess.start(
        command, environ={}, workdir=folder, home=pathlib.Path(folder),
        log=pathlib.Path(folder, "log"), reaper=reaper, echo=None,
    )
    await asyncio.sleep(600)

asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2]))
"""


def on_a_loop(test):
    """Run an async test; what it leaks is found in this test, not in a later one."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 2 * DEADLINE_S))
        gc.collect()

    return run


class Listening(Reaper):
    """Kills nothing."""

    def __init__(self):
        self.lines = []

    def add(self, pgid):
        self.lines.append(f"+{pgid}")

    def remove(self, pgid):
        self.lines.append(f"-{pgid}")


@asynccontextmanager
async def running_reaper():
    reaper = Reaper()
    await reaper.start()
    try:
        yield reaper
    finally:
        await reaper.stop()


async def start(source, *args, tmp_path, reaper, echo=None):
    return await WorkerProcess.start(
        (*PYTHON, source, *map(str, args)),
        environ={"WORKER": "1"},
        workdir=tmp_path,
        home=tmp_path / "worker",
        log=tmp_path / "worker.log",
        reaper=reaper,
        echo=echo,
    )


@asynccontextmanager
async def running(source, *args, tmp_path, echo=None):
    async with running_reaper() as reaper:
        worker = await start(source, *args, tmp_path=tmp_path, reaper=reaper, echo=echo)
        try:
            yield worker
        finally:
            worker.kill()
            await worker.wait()


@contextmanager
def holder(lock):
    """A process in a group of its own that the emulator knows nothing of."""
    with subprocess.Popen([*PYTHON, HOLD, str(lock)], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def is_assigned(lock):
    """Whether a process that holds this lock lives."""
    if not lock.exists() or lock.stat().st_size == 0:
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


async def until_held(*locks):
    await until(lambda: all(map(is_assigned, locks)), "processes run")


async def until_free(*locks):
    await until(lambda: not any(map(is_assigned, locks)), "processes are gone")


async def until_still(file):
    """The file does not grow for a while: its process is frozen."""

    async def has_grown():
        size = file.stat().st_size
        await asyncio.sleep(0.3)
        return file.stat().st_size > size

    deadline = time.monotonic() + DEADLINE_S
    while await has_grown():
        assert time.monotonic() < deadline, f"{file} still grows"


async def until_growing(file):
    size = file.stat().st_size
    await until(lambda: file.stat().st_size > size, f"{file} grows")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("1/0", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
@on_a_loop
async def test_exit_code_is_that_of_the_process(source, code, tmp_path):
    async with running(source, tmp_path=tmp_path) as worker:
        assert await worker.wait() == code
        assert not worker.is_running


@on_a_loop
async def test_all_who_wait_get_the_code_even_if_one_gives_up(tmp_path):
    async with running("input(); import time; time.sleep(600)", tmp_path=tmp_path) as worker:
        impatient, first, second = (asyncio.create_task(worker.wait()) for _ in range(3))
        await asyncio.sleep(0)
        impatient.cancel()
        assert [await first, await second] == [1, 1]  # input() found the end of stdin
        assert await worker.wait() == 1


@on_a_loop
async def test_worker_has_session_folder_and_environment_of_its_own(tmp_path):
    source = """
import json, os, stat, sys
mode = stat.S_IMODE(os.stat("worker").st_mode)
is_leader = os.getpid() == os.getsid(0)
environ = [os.environ["WORKER"], "HOME" in os.environ]
print(json.dumps([is_leader, os.getcwd(), mode, sys.stdin.read(), environ]))
"""
    async with running(source, tmp_path=tmp_path) as worker:
        assert await worker.wait() == 0
        (line,) = worker.log_tail()
        folder = str(tmp_path.resolve())
        assert json.loads(line) == [True, folder, 0o700, "", ["1", False]]


@pytest.mark.parametrize("command", [("/no/such/program", "--flag"), ("\0",)])
@on_a_loop
async def test_command_that_cannot_run_is_named(command, tmp_path):
    async with running_reaper() as reaper:
        with pytest.raises(WorkerNotStarted, match="not started: ") as refused:
            await WorkerProcess.start(
                command,
                environ={},
                workdir=tmp_path,
                home=tmp_path,
                log=tmp_path / "log",
                reaper=reaper,
                echo=None,
            )
    assert command[0] in str(refused.value)


@on_a_loop
async def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "worker").touch()
    async with running_reaper() as reaper:
        with pytest.raises(WorkerNotStarted, match="worker'"):
            await start("", tmp_path=tmp_path, reaper=reaper)


@on_a_loop
async def test_terminate_reaches_the_main_process_only(tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"
    source = f"""
import signal
signal.signal(signal.SIGTERM, lambda *_: print("drains", flush=True))
{HOLD_WITH_CHILD}"""
    async with running(source, main, child, tmp_path=tmp_path) as worker:
        await until_held(main, child)
        worker.terminate()
        await until(worker.log_tail, "main process got the signal")
        assert worker.is_running
        await until_growing(child)


@on_a_loop
async def test_terminated_worker_tells_the_signal(tmp_path):
    lock = tmp_path / "lock"
    async with running(HOLD, lock, tmp_path=tmp_path) as worker:
        await until_held(lock)
        worker.terminate()
        assert await worker.wait() == -signal.SIGTERM


@on_a_loop
async def test_kill_takes_the_whole_group(tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"
    async with running(HOLD_WITH_CHILD, main, child, tmp_path=tmp_path) as worker:
        await until_held(main, child)
        worker.kill()
        assert await worker.wait() == -signal.SIGKILL
        await until_free(main, child)


@on_a_loop
async def test_group_ends_with_its_main_process(tmp_path):
    child = tmp_path / "child"
    async with running(LEAVE_CHILD % False, child, tmp_path=tmp_path) as worker:
        assert await worker.wait() == 7
        await until_free(child)


@on_a_loop
async def test_end_is_reported_although_another_process_keeps_the_pipe_open(tmp_path):
    child = tmp_path / "child"
    async with running(LEAVE_CHILD % True, child, tmp_path=tmp_path) as worker:
        assert await worker.wait() == 7
        (line,) = worker.log_tail()
        assert is_assigned(child)  # it left the group
        os.kill(int(line.removeprefix("child ")), signal.SIGKILL)
        await until_free(child)


@on_a_loop
async def test_frozen_group_stands_still_until_thawed(tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"
    async with running(HOLD_WITH_CHILD, main, child, tmp_path=tmp_path) as worker:
        await until_held(main, child)
        worker.freeze()
        await until_still(main)
        await until_still(child)
        assert worker.is_running
        worker.thaw()
        await until_growing(main)
        await until_growing(child)


@on_a_loop
async def test_frozen_main_process_leaves_its_children_going(tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"
    async with running(HOLD_WITH_CHILD, main, child, tmp_path=tmp_path) as worker:
        await until_held(main, child)
        worker.freeze(whole_group=False)
        await until_still(main)
        await until_growing(child)
        worker.kill()  # works on a frozen process, too
        assert await worker.wait() == -signal.SIGKILL


@on_a_loop
async def test_signals_after_the_end_do_nothing(tmp_path):
    async with running("", tmp_path=tmp_path) as worker:
        await worker.wait()
        for send in (worker.terminate, worker.kill, worker.freeze, worker.thaw):
            send()
        assert await worker.wait() == 0


@on_a_loop
async def test_both_outputs_reach_log_echo_and_tail_in_order(tmp_path):
    source = """
import sys
for number in range(30):
    print(number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)
sys.stdout.write("no end of line")
"""
    echoed: list[str] = []
    async with running(source, tmp_path=tmp_path, echo=echoed.append) as worker:
        await worker.wait()
        lines = [*map(str, range(30)), "no end of line"]
        assert echoed == lines
        assert worker.log_tail(1000) == lines
        assert worker.log_tail() == lines[-20:]
        assert worker.log_tail(0) == []
        log = tmp_path / "worker.log"
        assert log.read_text().split("\n") == lines
        assert log.stat().st_mode & 0o077 == 0


@on_a_loop
async def test_log_of_an_earlier_worker_is_kept(tmp_path):
    for word in ("first", "second"):
        async with running(f"print({word!r})", tmp_path=tmp_path) as worker:
            await worker.wait()
            assert worker.log_tail() == [word]
    assert (tmp_path / "worker.log").read_text() == "first\nsecond\n"


@on_a_loop
async def test_rubbish_and_endless_lines_are_shown_as_well_as_can_be(tmp_path):
    source = """
import sys
out = sys.stdout.buffer
out.write(b"\\xff\\x00caf\\xc3\\xa9\\n\\n10%\\r20%\\rdone\\r\\n" + b"x" * 1_000_000)
"""
    async with running(source, tmp_path=tmp_path) as worker:
        await worker.wait()
        rubbish, empty, progress, *pieces = worker.log_tail(1000)
        assert (rubbish, empty, progress) == ("\\xff\x00café", "", "done")
        assert "".join(pieces) == "x" * 1_000_000
        assert max(map(len, pieces)) <= MAX_LINE_BYTES
        assert (tmp_path / "worker.log").read_bytes().startswith(b"\xff\x00caf\xc3\xa9\n\n10%\r20%")


@on_a_loop
async def test_endless_line_is_not_kept_until_it_ends(tmp_path):
    source = "import time; print('x' * 100_000, end='', flush=True); time.sleep(600)"
    async with running(source, tmp_path=tmp_path) as worker:
        await until(worker.log_tail, "its beginning is shown")
        assert worker.is_running


@on_a_loop
async def test_log_does_not_grow_without_bounds(tmp_path):
    source = "for number in range(250_000): print(number, '.' * 93)\nprint('last')"
    async with running(source, tmp_path=tmp_path) as worker:
        assert await worker.wait() == 0
        newer, older = tmp_path / "worker.log", tmp_path / "worker.log.1"
        assert max(newer.stat().st_size, older.stat().st_size) <= MAX_LOG_BYTES
        assert newer.read_text().endswith("\nlast\n")
        assert worker.log_tail(1) == ["last"]
        assert sorted(path.name for path in tmp_path.glob("*.log*")) == [newer.name, older.name]


@on_a_loop
async def test_log_that_cannot_be_written_does_not_stop_the_worker(tmp_path, caplog):
    (tmp_path / "worker.log").symlink_to("/dev/full")
    async with running("print('one', flush=True); print('two')", tmp_path=tmp_path) as worker:
        assert await worker.wait() == 0
        assert worker.log_tail() == ["one", "two"]
    assert [record.message for record in caplog.records] == ["worker log given up"]


@on_a_loop
async def test_echo_that_raises_costs_neither_worker_nor_log(tmp_path):
    def echo(line):
        raise BrokenPipeError

    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with running("print('one')", tmp_path=tmp_path, echo=echo) as worker:
        assert await worker.wait() == 0
    assert (tmp_path / "worker.log").read_text() == "one\n"
    assert [type(fault["exception"]) for fault in faults] == [BrokenPipeError]


@on_a_loop
async def test_stopped_reaper_kills_what_is_registered_and_nothing_else(tmp_path):
    listed, delisted = tmp_path / "listed", tmp_path / "delisted"
    with holder(listed) as first, holder(delisted) as second:
        async with running_reaper() as reaper:
            await until_held(listed, delisted)
            reaper.add(first.pid)
            reaper.add(second.pid)
            reaper.remove(second.pid)
        await until_free(listed)
        assert first.wait() == -signal.SIGKILL
        assert is_assigned(delisted)


@on_a_loop
async def test_ended_worker_is_no_longer_registered(tmp_path):
    """Its number may belong to somebody else by then."""
    reaper = Listening()
    worker = await start("", tmp_path=tmp_path, reaper=reaper)
    await worker.wait()
    assert reaper.lines == [f"+{worker.pid}", f"-{worker.pid}"]


@on_a_loop
async def test_reaper_refuses_the_group_of_the_emulator():
    async with running_reaper() as reaper:
        for pgid in (os.getpgrp(), 1, 0, -5):
            with pytest.raises(ValueError, match=f"pgid: .*got {pgid}"):
                reaper.add(pgid)


@on_a_loop
async def test_lost_reaper_is_reported_and_stops_nothing(tmp_path, caplog):
    async with running_reaper() as reaper:
        reaper._process.kill()
        await reaper._process.wait()
        worker = await start("", tmp_path=tmp_path, reaper=reaper)
        assert await worker.wait() == 0
    assert [record.message for record in caplog.records] == [
        "reaper has ended: workers may outlive the emulator"
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_reaper_outlives_polite_signals(number, tmp_path):
    lock = tmp_path / "lock"
    with holder(lock) as victim, reaper_program() as reaper:
        asyncio.run(until_held(lock))
        reaper.stdin.write(b"+%d\n" % victim.pid)
        reaper.stdin.flush()
        asyncio.run(until(lambda: ignores(reaper.pid, number), "reaper is ready"))
        reaper.send_signal(number)
        reaper.stdin.close()
        assert reaper.wait(DEADLINE_S) == 0
        assert victim.wait(DEADLINE_S) == -signal.SIGKILL


def test_reaper_ignores_what_is_no_group_of_a_worker(tmp_path):
    lock = tmp_path / "lock"
    with holder(lock) as bystander, reaper_program() as reaper:
        asyncio.run(until_held(lock))
        lines = (b"+0\n", b"+%d\n" % reaper.pid, b"+-%d\n" % bystander.pid, b"+\n", b"x\n")
        unfinished = b"+%d" % bystander.pid
        reaper.communicate(b"".join(lines) + unfinished, timeout=DEADLINE_S)
        assert reaper.returncode == 0
        assert is_assigned(lock)


@contextmanager
def reaper_program():
    with subprocess.Popen(
        [sys.executable, "-m", "runpod_emulator.workers.reaper"],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ignores(pid, number):
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line
    )
    return int(line.split()[1], 16) >> (number - 1) & 1


@pytest.mark.parametrize("whole_group", [False, True])
def test_nothing_is_left_of_an_emulator_that_was_killed(whole_group, tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"
    command = json.dumps([*PYTHON, HOLD_WITH_CHILD, str(main), str(child)])
    with subprocess.Popen(
        [sys.executable, "-c", EMULATOR, command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        start_new_session=True,
    ) as emulator:
        asyncio.run(until_held(main, child))
        (os.killpg if whole_group else os.kill)(emulator.pid, signal.SIGKILL)
        assert emulator.wait(DEADLINE_S) == -signal.SIGKILL
        asyncio.run(until_free(main, child))


def test_worker_ends_with_the_event_loop(tmp_path):
    main, child = tmp_path / "main", tmp_path / "child"

    async def leave():
        await start(HOLD_WITH_CHILD, main, child, tmp_path=tmp_path, reaper=Listening())
        await until_held(main, child)

    asyncio.run(leave())
    gc.collect()
    asyncio.run(until_free(main, child))
