"""Documents name only files, modules, settings and stages that exist."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

from pixpod.methods import StageName
from pixpod.settings import VARIABLES

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")
PATH = re.compile(r"(?<![\w/.-])(?:src|scripts|tests|docs|model_cache|\.runpod)/[\w./-]*\w")
MODULE = re.compile(r"\b(?:pixpod|pixpod_tools|pixpod_bench|runpod_emulator)(?:\.[a-z_]\w*)+")

OF_READERS = {("src/runpod_emulator/README.md", "src/handler.py")}
"""Paths in a reader's own project."""


def documents():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    names = [name for name in listed if (ROOT / name).exists()]
    assert "README.md" in names
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


DOCUMENTS = documents()


def test_relative_links_lead_to_files():
    missing = [
        (name, link)
        for name, text in DOCUMENTS.items()
        for link in LINK.findall(text)
        if "://" not in link and not ((ROOT / name).parent / link).exists()
    ]
    assert not missing


def test_paths_exist():
    missing = [
        (name, path)
        for name, text in DOCUMENTS.items()
        for path in PATH.findall(text)
        if not (ROOT / path).exists() and f"{path} (deleted)" not in text.replace("`", "")
    ]
    assert set(missing) == OF_READERS


def is_importable(name):
    """Return whether it is a module, or a name in one."""
    parent, _, last = name.rpartition(".")
    spec = find_spec(parent)
    if spec is None or spec.origin is None:
        return False
    file = Path(spec.origin)
    is_module = (file.parent / f"{last}.py").exists() or (file.parent / last).is_dir()
    return is_module or re.search(rf"\b{last}\b", file.read_text(encoding="utf-8"))


def test_modules_exist():
    missing = [
        (name, module)
        for name, text in DOCUMENTS.items()
        for module in MODULE.findall(text)
        if not is_importable(module)
    ]
    assert not missing


def test_settings_exist():
    unknown = {
        (name, variable)
        for name, text in DOCUMENTS.items()
        if name != "CHANGELOG.md"  # it names old ones
        for variable in re.findall(r"PIXPOD_[A-Z0-9_]*[A-Z0-9]", text)
        if variable not in VARIABLES
    }
    assert not unknown


def test_architecture_lists_the_stages_in_their_order():
    text = DOCUMENTS["docs/architecture.md"].partition("## Stages\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == list(StageName)


def test_readme_is_short():
    lines = DOCUMENTS["README.md"].splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 120
