"""A worker's log to a table and a picture of its boot."""

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest

from pixpod.timeline import Span
from pixpod_tools.boot_report import cli
from pixpod_tools.boot_report.report import (
    NoTimeline,
    format_boot,
    make_boot_report,
    read_log,
    until_ready,
)

GB = 10**9
BOOT = (
    Span(phase="start", began_s=0.0, ended_s=0.3),
    Span(phase="import", began_s=0.3, ended_s=4.3),
    Span(phase="read", subject="flux/vae/a", began_s=2.5, ended_s=3.0, size_bytes=GB),
    Span(phase="read", subject="flux/transformer/2", began_s=1.5, ended_s=2.5, size_bytes=2 * GB),
    Span(phase="read", subject="flux/transformer/1", began_s=0.5, ended_s=1.5, size_bytes=4 * GB),
    Span(phase="bind", subject="flux/transformer", began_s=4.5, ended_s=4.6),
    Span(phase="taking_jobs", began_s=1.2, ended_s=1.2),
    Span(phase="ready", subject="flux", began_s=5.0, ended_s=5.0),
    Span(phase="first_image", subject="flux", began_s=7.25, ended_s=7.25),
)


def line(spans, **extra):
    spans = [asdict(span) for span in spans]
    return json.dumps({"level": "INFO", "message": "boot timeline", "spans": spans, **extra}) + "\n"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "worker.log"
    path.write_text("not JSON\n" + line(BOOT) + '{"message": "job done"}\n')
    return path


def test_last_boot_counts_and_other_lines_do_not():
    others = ["", "{", "[1]", '"boot timeline"', '{"message": "no boot timeline"}']
    assert read_log([*others, line(BOOT[:1]), "x", line(BOOT), *others]) == BOOT


def test_words_before_the_line_are_passed_over():
    assert read_log(["2026-11-22T10:00:00Z worker-1 " + line(BOOT)]) == BOOT


def test_log_without_a_boot_says_what_is_accepted():
    with pytest.raises(NoTimeline, match="logs it with its first image"):
        read_log(['{"message": "model ready"}'])


@pytest.mark.parametrize("spans", [None, 3, [3], [{"phase": "read"}], [{"unknown": 1}]])
def test_spans_of_another_version_are_refused(spans):
    with pytest.raises(NoTimeline, match="another form"):
        read_log([json.dumps({"message": "boot timeline", "spans": spans})])


def test_boot_without_phases_is_refused():
    with pytest.raises(NoTimeline, match="no phases"):
        make_boot_report(read_log([line(())]))


def test_files_of_a_component_are_one_bar():
    transformer = next(
        phase for phase in make_boot_report(BOOT).phases if phase.subject == "flux/transformer"
    )
    assert (transformer.began_s, transformer.ended_s) == (0.5, 2.5)
    assert transformer.gigabytes_per_s == 3.0


def test_all_reading_of_a_model_is_summed():
    (reading,) = make_boot_report(BOOT).reads
    assert (reading.subject, reading.size_bytes) == ("flux", 7 * GB)
    assert reading.gigabytes_per_s == 2.8


def test_bars_come_as_they_began_and_moments_apart():
    report = make_boot_report(BOOT)
    assert [phase.name for phase in report.phases] == ["start", "import", "read", "read", "bind"]
    assert [moment.name for moment in report.moments] == ["taking_jobs", "ready", "first_image"]
    assert report.total_s == 7.25


def test_table_has_each_phase_with_its_speed():
    rows = [row.split() for row in format_boot(make_boot_report(BOOT)).splitlines()]
    assert ["read", "flux/transformer", "0.50", "2.50", "2.00", "6.00", "3.00"] in rows
    assert ["read,", "in", "all", "flux", "0.50", "3.00", "2.50", "7.00", "2.80"] in rows
    assert ["bind", "flux/transformer", "4.50", "4.60", "0.10"] in rows
    assert ["first", "image", "flux", "7.25"] in rows


def test_first_image_can_be_left_out():
    spans = until_ready(BOOT)
    assert {*BOOT} - {*spans} == {BOOT[-1]}
    with pytest.raises(NoTimeline, match="ready"):
        until_ready(BOOT[:2])


def test_picture_names_phases_moments_and_speed(log, tmp_path, capsys):
    picture = tmp_path / "boot.svg"
    assert cli.main([str(log), "--out", str(picture)]) == 0
    text = picture.read_text()
    ET.fromstring(text)
    # matplotlib draws letters as outlines and keeps the words in comments
    assert "<!-- flux: first image after 7.2 s -->" in text
    assert "<!-- read flux transformer -->" in text
    assert "<!-- 6.00 GB, 3.0 GB/s -->" in text
    assert "<!-- taking jobs  1.20 s -->" in text
    assert "flux/transformer" in capsys.readouterr().out


def test_same_log_gives_the_same_picture(log, tmp_path):
    for name in ("a.svg", "b.svg"):
        cli.main([str(log), "--out", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_log_comes_from_standard_input_too(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(line(BOOT)))
    assert cli.main(["-"]) == 0
    assert "first image" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.log", "empty.log"])
def test_log_that_tells_nothing_ends_with_one_line(name, tmp_path, capsys):
    (tmp_path / "empty.log").touch()
    assert cli.main([str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_kind_of_picture_is_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit):
        cli.main(["no.log", "--out", "boot.bmp"])
    assert ".svg, .png, .pdf" in capsys.readouterr().err
