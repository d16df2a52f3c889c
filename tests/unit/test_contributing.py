"""The examples of CONTRIBUTING.md hold."""

import re
from pathlib import Path

from pixpod.catalog import load_catalog
from pixpod.families import SD15

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title):
    return TEXT.partition(f"### {title}\n")[2].partition("\n### ")[0]


def table_rows(text):
    """Files below src/pixpod, and the code that the row names for each."""
    rows = re.findall(r"^\| `([\w/{},.]+)` \| (.*) \|$", text, re.MULTILINE)
    for name, meaning in rows:
        head, _, rest = name.partition("{")
        options, _, tail = rest.partition("}")
        for option in options.split(","):
            yield (
                ROOT / "src" / "pixpod" / f"{head}{option}{tail}",
                re.findall(r"`([^`]+)`", meaning),
            )


def test_model_can_be_added(tmp_path):
    entry = re.search(r"```toml\n(.*?)```", section("A model of a family that exists"), re.DOTALL)
    assert entry is not None
    path = tmp_path / "my_models.toml"
    path.write_text(entry[1], encoding="utf-8")
    added = load_catalog(path)["my-finetune"]
    assert added.family is SD15
    assert added.default_request().width == added.defaults.width


def test_files_of_the_tables_exist():
    files = [path for path, _ in table_rows(TEXT.partition("## Where things go")[2])]
    assert len(files) >= 15
    assert not [path for path in files if not path.exists()]


def test_setting_is_wired_as_described():
    rows = list(table_rows(section("A setting")))
    assert [path.name for path, _ in rows] == ["settings.py", "bootstrap.py"]
    for path, quoted in rows:
        source = re.sub(r"\s", "", path.read_text(encoding="utf-8"))
        for code in quoted:
            start = re.sub(r"\s", "", code.partition(', "...')[0])
            assert start in source, (path.name, code)


def test_scheduler_example_is_a_line_of_the_source():
    line = section("A name for a scheduler").partition("```python\n")[2].partition("\n")[0]
    source = (ROOT / "src/pixpod/families/schedulers.py").read_text(encoding="utf-8")
    assert line in source
