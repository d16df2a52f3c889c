"""One of the project's scripts as a user runs it, in an environment that has nothing of ours."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300


def rehearse(script: str, *options: object, **environ: str) -> str:
    """Standard output of a script that must succeed."""
    done = subprocess.run(
        [ROOT / "scripts" / script, *map(str, options)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
