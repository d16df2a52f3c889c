"""Ids as the platform makes them; user code sometimes looks inside them."""

import secrets
import string
import uuid

WORKER_ID_LETTERS = string.ascii_lowercase + string.digits


def new_job_id(*, is_sync: bool) -> str:
    """Return `<uuid4>-u1`, for `/runsync` with `sync-` before it; `-u1` seems to be a region."""
    return f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"


def new_worker_id() -> str:
    """Return fourteen lower-case letters and digits, the form of pod ids."""
    return "".join(secrets.choice(WORKER_ID_LETTERS) for _ in range(14))
