"""Generated documents are those in the repository."""

from pathlib import Path

import pytest

from pixpod_tools.generate.pages import PAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_document_is_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == PAGES[name](), "run scripts/generate"
