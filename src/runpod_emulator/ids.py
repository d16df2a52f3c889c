"""Ids as the platform makes them; user code sometimes looks inside them."""

import secrets
import string
import uuid

WORKER_ID_LETTERS = string.ascii_lowercase + string.digits


def new_job_id(*, is_sync: bool) -> str:
    """`<uuid4>-u1`, for `/runsync` with `sync-` before it; `-u1` looks like a region's mark."""
    return f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"


def new_worker_id() -> str:
    """Fourteen lower-case letters and digits, as pod ids are."""
    return "".join(secrets.choice(WORKER_ID_LETTERS) for _ in range(14))
