"""Generated documents are those in the repository."""

from pathlib import Path

import pytest

from pixpod_tools.generate.__main__ import main
from pixpod_tools.generate.pages import PAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_document_is_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == PAGES[name](), "run scripts/generate"


@pytest.fixture
def checkout(tmp_path):
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    assert main([], tmp_path) == 0
    return tmp_path


def test_stale_document_is_named_and_left_alone_by_check(checkout, capsys):
    page = checkout / "docs/models.md"
    page.write_text("old", encoding="utf-8")
    capsys.readouterr()
    assert main(["--check"], checkout) == 1
    assert capsys.readouterr().out == "docs/models.md is not up to date\n"
    assert page.read_text(encoding="utf-8") == "old"


def test_stale_document_is_written_again(checkout, capsys):
    (checkout / "docs/models.md").write_text("old", encoding="utf-8")
    capsys.readouterr()
    assert main([], checkout) == 0
    assert capsys.readouterr().out == "docs/models.md\n"
    assert main(["--check"], checkout) == 0
