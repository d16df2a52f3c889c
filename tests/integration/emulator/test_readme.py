"""The README's first job, word for word, with another port."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.emulator_process import LIMIT_S, environ, running

README = Path(__file__).resolve().parents[3] / "src" / "runpod_emulator" / "README.md"
BASE_URL = "http://127.0.0.1:8008/v2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def first_group(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, pattern
    return found[1]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    handler, _, test, *_ = blocks("python")
    assert len(handler.strip().splitlines()) <= 20
    (folder / "handler.py").write_text(handler, encoding="utf-8")
    (folder / "test_words.py").write_text(test, encoding="utf-8")
    return folder


def test_client_of_the_readme_gets_what_the_readme_says(folder):
    _, start, export, *_ = blocks("sh")
    client = blocks("python")[1]
    assert start == "runpod-emulator\n"
    assert BASE_URL in export
    with running(folder, "--port", 0, "--quiet") as (_, text):
        base_url = first_group(r"emulator at (\S+)", text)
        script = (
            f"{export.replace(BASE_URL, base_url)}\nexec {sys.executable} -c '{quoted(client)}'"
        )
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=folder,
            env=environ(folder),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == first_group(r"run_sync\(.*?\)\)  # (\{.*\})", client)
    assert "{'words': 1, 'longest': 'again'}" in second


def quoted(text: str) -> str:
    return text.replace("'", "'\\''")


def test_pytest_example_of_the_readme_passes(folder):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_words.py"],
        cwd=folder,
        env=environ(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "1 passed" in done.stdout, done.stdout
