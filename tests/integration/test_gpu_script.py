"""The command for a CUDA machine, rehearsed with tiny architectures on this one."""

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pixpod.baking.architectures import ARCHITECTURES
from pixpod_bench.random_models import build_flux_transformer, build_random_module
from pixpod_bench.report import COLUMNS
from pixpod_bench.requirements import MissingPackages, find_missing, provide, read_pins

ROOT = Path(__file__).parents[2]
NEEDS_A_CARD = {"driver", "memory_bytes", "cuda", "cudnn"}
UNKNOWN_ON_A_CPU = {"weights_bytes", "peak_bytes", "teraflop_per_s"}
MAY_BE_ZERO = {"float8_layers", "spread_percent"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of one rehearsal, and the folder with its files."""
    out = tmp_path_factory.mktemp("gpu")
    command = [ROOT / "scripts" / "gpu", "--device", "cpu", "--tiny", "--out", out]
    finished = subprocess.run(
        [*command, "--warmups", "1", "--repeats", "1"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout, out


@pytest.fixture(scope="module")
def report(run):
    return json.loads(run[0].splitlines()[-1])


def test_tests_for_a_card_are_run_too(run, report):
    assert report["tests"]["exit_code"] == 0
    assert "passed" in report["tests"]["summary"]
    assert (run[1] / "pytest.xml").is_file()
    assert report["tests"]["summary"] in (run[1] / "pytest.txt").read_text()


def test_last_line_is_the_file(run, report):
    assert json.loads((run[1] / "gpu-bench.json").read_text()) == report


def test_table_has_all_columns_and_rows(run, report):
    lines = run[0].splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("scenario"))
    assert [title for title, _ in COLUMNS] == _cells(lines[header])
    for row, line in zip(report["rows"], lines[header + 2 : -1], strict=True):
        assert _cells(line)[0] == row["scenario"]


def test_machine_and_command_are_told(report):
    assert "--tiny" in report["command"]
    machine = report["machine"]
    assert {name for name, value in machine.items() if value is None} == NEEDS_A_CARD
    assert machine["torch"] == torch.__version__


def test_figures_are_finite_and_positive(report):
    assert report["failures"] == []
    assert len(report["rows"]) == 6
    for row in report["rows"]:
        assert {name for name, value in row.items() if value is None} == UNKNOWN_ON_A_CPU
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert math.isfinite(value)
                assert value > 0 or name in MAY_BE_ZERO, name


def test_float8_rows_are_really_quantised(report):
    for row in report["rows"]:
        assert (row["float8_layers"] > 30) == (row["precision"] == "float8_dynamic")


def test_both_sides_are_compared_in_one_run(report):
    flux = {(row["precision"], row["batch"]): row for row in report["rows"][:4]}
    for batch in (1, 2):
        in_float8, in_bfloat16 = flux["float8_dynamic", batch], flux["bfloat16", batch]
        ratio = in_bfloat16["denoise_ms"] / in_float8["denoise_ms"]
        assert in_float8["speedup"] == pytest.approx(ratio)
        assert in_bfloat16["speedup"] == 1


def test_phases_fit_into_the_total(report):
    for row in report["rows"]:
        phases = row["text_encode_ms"] + row["denoise_ms"] + row["decode_ms"]
        assert phases <= row["total_ms"] + 1
        assert row["same_pixels"]


def test_full_size_parts_have_the_published_number_of_parameters():
    """In millions, of FLUX.1-dev and SDXL 1.0."""
    found = [sum(p.numel() for p in part.parameters()) / 1e6 for part in _full_size_parts()]
    assert [round(count, 1) for count in found] == [
        *(11901.4, 4762.3, 123.1, 83.8),  # FLUX: transformer, T5, CLIP, VAE
        *(2567.5, 83.7),  # SDXL: UNet, VAE
    ]


def _full_size_parts() -> Iterator[nn.Module]:
    meta, dtype = torch.device("meta"), torch.bfloat16
    flux, sdxl = ARCHITECTURES["flux-dev"], ARCHITECTURES["sdxl"]
    assert flux.second_text_encoder is not None
    t5, clip = T5Config(**flux.second_text_encoder), CLIPTextConfig(**flux.text_encoder)
    yield build_flux_transformer(flux.denoiser, meta, dtype)
    yield build_random_module(lambda: T5EncoderModel(t5), meta, dtype)
    yield build_random_module(lambda: CLIPTextModel(clip), meta, dtype)
    yield build_random_module(lambda: AutoencoderKL(**flux.vae), meta, dtype)
    yield build_random_module(lambda: UNet2DConditionModel(**sdxl.denoiser), meta, dtype)
    yield build_random_module(lambda: AutoencoderKL(**sdxl.vae), meta, dtype)


def test_missing_packages_are_named_with_the_command_to_type(tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text("# a comment\nno-such-package==1.2\ntorch==1.0.0\ndiffusers==999.0\n")
    assert find_missing(read_pins(pins)) == {"no-such-package": "1.2", "diffusers": "999.0"}
    with pytest.raises(MissingPackages, match=r"--no-deps no-such-package==1\.2"):
        provide(pins, None, tmp_path / "site")


def test_missing_packages_are_installed_from_wheels(tmp_path):
    """A wheel is a zip with metadata; nothing but `--target` is written."""
    pins = tmp_path / "pins.txt"
    pins.write_text("pixpod-bench-probe==1.2\n")
    _write_wheel(tmp_path / "wheels")
    code = (
        "import sys; from pathlib import Path; from pixpod_bench.requirements import provide; "
        "provide(*map(Path, sys.argv[1:])); import pixpod_bench_probe; print('imported')"
    )
    arguments = [pins, tmp_path / "wheels", tmp_path / "site"]
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "imported\n", finished.stderr


def _write_wheel(folder: Path) -> None:
    folder.mkdir()
    info = "pixpod_bench_probe-1.2.dist-info"
    files = {
        "pixpod_bench_probe.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: pixpod-bench-probe\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "pixpod_bench_probe-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def _cells(line: str) -> list[str]:
    """Columns are two spaces apart, words within one space."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]
