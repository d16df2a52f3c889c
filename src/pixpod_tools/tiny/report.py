"""Writes what an evaluation found: JSON for machines, tables for people, a sheet of samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixpod_tools.tiny.scenes import Pixels, Scene
from pixpod_tools.tiny.suites import SHOWN

_COLUMNS = ("background", "colour", "shape", "all_three", "size", "position")
_START, _END = "<!-- accuracy: written by scripts/train_tiny evaluate -->", "<!-- end -->"
_SCALE, _GAP, _LABEL_HEIGHT, _MARGIN = 2, 12, 34, 104


def write_json(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier evaluation wrote; empty if there was none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def accuracy_table(result: dict[str, Any]) -> str:
    """One model's scores as a Markdown table, in percent."""
    lines = [
        "| asked | pictures | background | colour | shape | all three | size | position |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, score in result["scores"].items():
        shares = " | ".join(f"{100 * score[column]:.1f}" for column in _COLUMNS)
        lines.append(f"| {name} | {score['num_pictures']} | {shares} |")
    return "\n".join(lines)


def summary_table(results: dict[str, Any]) -> str:
    """All three right, by suite and model, in percent; empty where a model was not asked."""
    names = list(results)
    suites = dict.fromkeys(suite for result in results.values() for suite in result["scores"])
    lines = [f"| all three right | {' | '.join(names)} |", "|---" + "|--:" * len(names) + "|"]
    for suite in suites:
        scores = [results[name]["scores"].get(suite) for name in names]
        shares = [f"{100 * score['all_three']:.1f}" if score else "" for score in scores]
        lines.append(f"| {suite} | {' | '.join(shares)} |")
    return "\n".join(lines)


def write_between_marks(text: str, path: Path) -> None:
    """Replace what stands between the two marks of a Markdown file, which has to hold them."""
    before, _, rest = path.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n\n{text}\n\n{_END}{after}")


def save_sheet(rows: Mapping[str, Sequence[Pixels]], path: Path) -> None:
    """A sheet of samples: a row for each model, a column for each case of `SHOWN`."""
    font = ImageFont.load_default(size=12)
    side = 64 * _SCALE
    width = _MARGIN + len(SHOWN.cases) * (side + _GAP)
    height = 2 * _LABEL_HEIGHT + len(rows) * (side + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, scene in enumerate(case.scene for case in SHOWN.cases):
        middle = _MARGIN + column * (side + _GAP) + side / 2
        label = _in_two_lines(scene)
        pen.multiline_text((middle, 8), label, fill="#333", font=font, anchor="ma", align="center")
    for row, (name, pictures) in enumerate(rows.items()):
        top = 2 * _LABEL_HEIGHT + row * (side + _GAP)
        pen.text((_GAP, top + side / 2), name, fill="#333", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            image = Image.fromarray(np.asarray(picture)).resize(
                (side, side), Image.Resampling.LANCZOS
            )
            sheet.paste(image, (_MARGIN + column * (side + _GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _in_two_lines(scene: Scene) -> str:
    words = " ".join(filter(None, (scene.size, scene.colour, scene.shape)))
    return "\n".join(filter(None, (words, scene.position, f"on {scene.background}")))
