"""The next SDK, which scripts/setup installs beside the pinned one."""

from pathlib import Path

from support.missing import end_test_without

DIRECTORY = Path(__file__).resolve().parents[2] / ".venv" / "sdk2"


def sdk2_environ() -> dict[str, str]:
    """The variables with which a worker runs SDK 2.0."""
    if not (DIRECTORY / "runpod").is_dir():
        end_test_without("SDK 2.0 in .venv/sdk2 (scripts/setup)")
    return {"PYTHONPATH": str(DIRECTORY)}
