"""Decodes odd images in a process of its own: `python -m support.image_runs DIRECTORY`.

The directory has the files, by their numbers in ODD_IMAGES. Prints one JSON line for each: what is
wrong with the outcome, seconds and MiB.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from support.odd_images import ODD_IMAGES

from pixpod.errors import ImageRefused
from pixpod.inputs.images import decode_image
from pixpod.inputs.refusals import Refused

ROOT = Path(__file__).resolve().parents[2]


def run_images(directory, *, is_big):
    """Make and decode images; returns a list of what `measure` says, with their names."""
    chosen = {at: odd for at, odd in enumerate(ODD_IMAGES) if odd.is_big is is_big}
    for at, odd in chosen.items():
        (directory / str(at)).write_bytes(odd.build())
    command = [sys.executable, "-m", "support.image_runs", str(directory)]
    environ = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in found] == [odd.name for odd in chosen.values()]
    return found


def main(directory):
    for at in sorted(int(path.name) for path in directory.iterdir()):
        odd = ODD_IMAGES[at]
        found = {"name": odd.name, **measure(odd, directory / str(at))}
        sys.stdout.write(json.dumps(found) + "\n")


def measure(odd, path):
    """Decode a file. Memory is what the process grows by, the file included."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.perf_counter()
    outcome = decode(path.read_bytes())
    seconds = time.perf_counter() - started
    mib = (status("VmHWM") - before) / 1024
    return {"wrong": compare(outcome, odd), "seconds": seconds, "mib": mib}


def decode(data):
    """Return the image or its refusal."""
    try:
        return decode_image(data)
    except Refused as refused:
        return refused


def status(name):
    """Return a figure of this process in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0])


def compare(outcome, odd):
    """Return what is wrong with an outcome, or None."""
    if isinstance(outcome, Refused):
        if outcome.error is not ImageRefused:
            return f"code {outcome.error.code}"
        return None if odd.size is None and (odd.refused or "") in str(outcome) else str(outcome)
    if odd.refused is not None:
        return f"pixels of {outcome.width}x{outcome.height}"
    if odd.size is None:
        return None
    if (outcome.width, outcome.height) != odd.size:
        return f"size {outcome.width}x{outcome.height}"
    found = quarters(outcome)
    if any(
        abs(one - other) > odd.tolerance
        for colour, expected in zip(found, odd.quarters, strict=False)
        for one, other in zip(colour, expected, strict=True)
    ):
        return f"quarters {found}"
    return None


def quarters(image):
    """Return the colours in the middle of the quarters."""
    places = [(y, x) for y in (1, 3) for x in (1, 3)]
    return [
        tuple(image.pixels[3 * at : 3 * at + 3])
        for y, x in places
        for at in [image.height * y // 4 * image.width + image.width * x // 4]
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
