"""The README's first two minutes, word for word, with another port."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[3] / "src" / "runpod_emulator" / "README.md"
START_LIMIT_S = 30


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def first_group(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, pattern
    return found[1]


@pytest.fixture
def emulator(tmp_path):
    handler = blocks("python")[0]
    assert len(handler.strip().splitlines()) <= 20
    (tmp_path / "handler.py").write_text(handler)
    flags = first_group(r"runpod-emulator (.*?)  #", blocks("sh")[0]).split()
    command = [sys.executable, "-m", "runpod_emulator", *flags, "--port", "0", "--quiet"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_client_of_the_readme_gets_what_the_readme_says(emulator, tmp_path):
    client = blocks("python")[1].replace("http://127.0.0.1:8008/v2", emulator)
    run = subprocess.run(
        [sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == first_group(r"run_sync\(.*?\)\)  # (\{.*\})", client)
    assert "{'words': 1, 'longest': 'again'}" in second
