"""What a newcomer runs first."""

import subprocess
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def test_demo_shows_two_images_that_match_their_prompts(tmp_path):
    command = [str(ROOT / "scripts" / "demo"), "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("matches its prompt: yes") == 2
    assert run.stdout.count("Webhook: job") == 2
    assert "float8_dynamic" in run.stdout
    for model in ("flux-tiny", "sdxl-tiny"):
        with Image.open(tmp_path / f"{model}.png") as image:
            assert image.size == (64, 64)
