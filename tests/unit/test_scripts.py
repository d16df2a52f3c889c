"""The scripts: one dialect, one list, and no mention of one that does not exist."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "scripts").iterdir()
    if not path.suffix and path.is_file()
}
LISTED = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")


def test_readme_lists_all_scripts():
    rows = re.findall(r"^\| `(\w+)` \|", LISTED, re.MULTILINE)
    assert sorted(rows) == sorted(SCRIPTS.keys() - {"_run"})


def test_scripts_are_sh_with_a_comment_and_underscores():
    odd = {
        name
        for name, text in SCRIPTS.items()
        if not re.match(r"#!/bin/sh\n# [A-Z].*\n", text)
        or "set -eu\n" not in text
        or not re.fullmatch(r"[a-z_]+", name)
    }
    assert not odd


def test_modules_are_run_by_the_helper_only():
    alone = {name for name, text in SCRIPTS.items() if " -m pixpod" in text}
    modules = re.findall(r"_run\"? (pixpod[\w.]+)", "".join(SCRIPTS.values()))
    files = [ROOT / "src" / module.replace(".", "/") for module in modules]
    assert alone == {"gpu"}  # its Python has a torch of its own, and needs no quiet libraries
    assert len(files) >= 10
    assert all(
        path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() for path in files
    )


def test_scripts_that_are_mentioned_exist():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "*.md", "*.py", "*.toml", "Dockerfile", ".ci", "scripts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {
        (name, script)
        for name in listed.split("\0")[:-1]
        if (ROOT / name).is_file() and name != "CHANGELOG.md"
        for script in re.findall(
            r"(?<![\w/])scripts/([a-z_]+)(?![\w.]|` \(deleted\))",
            (ROOT / name).read_text(encoding="utf-8"),
        )
    }
    assert {script for _, script in found} >= {"demo", "test", "bake", "deploy"}
    assert not {each for each in found if each[1] not in SCRIPTS}


def test_every_long_test_is_in_a_run_of_scripts_acceptance():
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.acceptance" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    listed = set(re.findall(r"tests/\S+\.py", SCRIPTS["acceptance"]))
    assert found == listed
