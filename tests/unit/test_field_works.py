"""The users' benchmark: what is compared with what, and what it costs."""

import re
from typing import Any

import pytest
from support.field import FIGURE, figure_of

from pixpod.catalog import load_catalog
from pixpod.pricing import PriceList
from pixpod_bench.field.report import format_table, make_document, make_lines
from pixpod_bench.field.results import NotMeasured
from pixpod_bench.field.works import is_card, load_published, load_works, published_of

PUBLISHED = load_published()
PRICES = PriceList.load()
RTX_4090, H100, RTX_5090 = "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3", "NVIDIA RTX 5090"


def work_of(model, size_px, steps, batch):
    wanted = (model, size_px, steps, batch)
    return next(
        work
        for work in load_works(tiny=False)
        if (work.model, work.size_px, work.steps, work.batch) == wanted
    )


@pytest.mark.parametrize(
    ("card", "device", "same"),
    [
        ("RTX 4090", RTX_4090, True),
        ("H100", H100, True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("L40S", "NVIDIA L40S", True),
        ("H100", "NVIDIA GH100", False),
        ("6000 Ada", "NVIDIA RTX 6000 Ada Generation", True),
        ("H200", "cpu", False),
    ],
)
def test_card_is_known_by_its_name(card, device, same):
    assert is_card(card, device) is same


@pytest.mark.parametrize("tiny", [True, False], ids=["tiny", "full"])
def test_works_are_what_the_catalog_serves(tiny):
    catalog = load_catalog()
    for work in load_works(tiny=tiny):
        spec = catalog[work.model]
        assert spec.limits.min_side_px <= work.size_px <= spec.limits.max_side_px
        assert work.size_px**2 <= spec.limits.max_pixels
        assert work.steps <= spec.limits.max_steps
        assert work.batch <= spec.limits.max_images
        assert work.scheduler is None or work.scheduler in spec.schedulers


def test_works_of_a_model_follow_each_other():
    """Each model is loaded once."""
    models = [work.model for work in load_works(tiny=False)]
    changes = [one for one, other in zip(models, [*models[1:], ""], strict=True) if one != other]
    assert len(changes) == len(set(changes))


def test_every_published_figure_has_its_work():
    works = load_works(tiny=False)
    for figure in PUBLISHED:
        assert any(figure.is_of(work) for work in works), figure
        assert figure.seconds > 0
        assert figure.source
        assert re.fullmatch(r"20\d\d(-\d\d){0,2}", figure.date)


def test_figures_of_the_own_card_come_first():
    work = work_of("sd15", 512, 50, 4)
    cards = [figure.card for figure in published_of(work, PUBLISHED, "NVIDIA L40S")]
    assert cards[:2] == ["L40S", "RTX 4090"]
    assert published_of(work, PUBLISHED, RTX_5090)[0].card == "RTX 4090"


def test_guided_and_unguided_work_are_not_compared():
    few_steps = work_of("sdxl", 1024, 4, 1)
    assert not few_steps.is_guided
    assert all(not figure.is_guided for figure in published_of(few_steps, PUBLISHED, H100))


def test_thousand_images_cost_the_device_time_of_each():
    """8 images in 4 s of a card at $0.00031 a second: 1,000 take 500 s."""
    figure = figure_of(work_of("sd15", 512, 50, 8), seconds=4.2, device_ms=4000.0)
    (line,) = make_lines([figure], PUBLISHED, PRICES, RTX_4090)
    assert line.usd_per_1000 == pytest.approx(500 * 0.00031)
    assert line.ratio == pytest.approx(15.5 / 4.2)


def test_unknown_card_has_no_price():
    (line,) = make_lines([FIGURE], PUBLISHED, PRICES, "cpu")
    assert line.usd_per_1000 is None


def test_table_tells_source_and_doubt_and_what_is_missing():
    doubted = figure_of(work_of("flux-dev", 1024, 30, 1), seconds=8.2, device_ms=8200.0)
    missing = NotMeasured(work=work_of("sdxl", 1024, 30, 1), reason="no time was left")
    lines = make_lines([doubted], PUBLISHED, PRICES, RTX_4090)
    table = format_table(lines, [missing], "RTX 4090: some list")
    row = next(line for line in table.splitlines() if line.startswith("FLUX.1-dev"))
    assert row.split()[-5:] == ["4.10", "878", "RTX", "4090?", "0.50x"]
    assert "330 in FP8 at best" in table
    assert "SDXL, 1024 px, 30 steps, x1: no time was left" in table
    assert "RTX 4090: some list" in table


def test_document_has_all_published_figures():
    lines = make_lines([FIGURE], PUBLISHED, PRICES, RTX_4090)
    document: Any = make_document({}, "scripts/bench", lines, [], "basis")
    (row,) = document["rows"]
    assert row["published"][0]["card"] == "RTX 4090"
    assert {each["card"] for each in row["published"]} == {"RTX 4090", "RTX 3090", "L40S", "A100"}
