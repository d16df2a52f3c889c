"""The Dockerfile: clean, and within what every builder understands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]

NOT_EVERYWHERE = {
    "heredoc": r"^(RUN|COPY)\b.*<<",
    "copy-link": r"^(COPY|ADD)\b.*--link",
    "copy-parents": r"^COPY\b.*--parents",
    "run-network": r"--network=",
    "secret-as-variable": r"--mount=type=secret[^ ]*,env=",
}
"""What buildah 1.28 refuses although Docker builds it."""


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    run = subprocess.run((hadolint, str(DOCKERFILE)), capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("feature", NOT_EVERYWHERE)
def test_feature_that_not_every_builder_has_is_not_used(feature):
    assert not [line for line in LINES if re.search(NOT_EVERYWHERE[feature], line)]


def test_token_is_mounted_in_one_instruction():
    assert TEXT.count("id=hf_token") == 1


def test_each_weights_layer_is_copied_once_in_order():
    copied = re.findall(r"^COPY --from=weights /layers/(\d)/ /weights/$", TEXT, re.MULTILINE)
    assert copied == [str(number) for number in range(8)]
    assert "{0..7}" in TEXT


def test_what_reaches_the_builder_is_listed():
    entries = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {entry[1:] for entry in entries if entry.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    assert "*" in entries
    assert {name for names in copied for name in names.split()} == allowed
