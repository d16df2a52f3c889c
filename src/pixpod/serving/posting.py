"""Posts results to the platform: again while that can help, smaller if they are too large.

Knows nothing of RunPod's SDK. A result that cannot be delivered is dropped: the platform then gives
the job out again.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from pixpod.serving.replies import BulkyReply

log = logging.getLogger(__name__)

LIMIT_S = 60.0
TRY_LIMIT_S = 30.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0

TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})
TOO_LARGE = frozenset({400, 413})
"""The platform answers 400 to a result above its limit (runpod-python #309). Other refusals mean
that the job is no longer this worker's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The destination of one job's results. `limit_s` is for all tries of one body."""

    session: ClientSession
    url: str
    job_id: str
    limit_s: float = LIMIT_S


async def post_result(address: Address, result: Mapping[str, Any]) -> None:
    """Deliver a job's result. Any: a JSON document with `output` or `error`, and maybe `stopPod`.

    Does not raise for a fault of the network or of the platform.
    """
    status = await _post_until_taken(address, result)
    if status in TOO_LARGE:
        log.warning("result refused", extra={"status": status})
        status = await _post_until_taken(address, await _shrink(result))
    if status is None or status >= 400:
        log.error("result not delivered", extra={"status": status})


async def post_update(address: Address, update: Mapping[str, Any]) -> None:
    """Deliver an update about a running job, by one try. Any: a JSON document."""
    try:
        status = await _post(address, _encode(update), TRY_LIMIT_S)
    except (ClientError, TimeoutError):
        status = None
    if status is None or status >= 400:
        log.warning("update not delivered", extra={"status": status})


async def _shrink(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the result with the smaller reply, or as it is if there is none."""
    reply = result.get("output")
    if not isinstance(reply, BulkyReply):
        return result
    smaller = await reply.shrink()
    rest = {name: value for name, value in result.items() if name != "output"}
    return {**rest, **(smaller if "error" in smaller else {"output": smaller})}


async def _post_until_taken(address: Address, result: Mapping[str, Any]) -> int | None:
    """Return the last status, None if no answer came."""
    body = _encode(result)
    deadline = time.monotonic() + address.limit_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            left_s = deadline - time.monotonic()
            status = await _post(address, body, min(TRY_LIMIT_S, left_s))
        except (ClientError, TimeoutError) as error:
            status, reason = None, type(error).__name__
        else:
            if status not in TRANSIENT:
                return status
            reason = str(status)
        if time.monotonic() + pause_s >= deadline:
            return status
        log.warning("result is posted again", extra={"reason": reason, "pause_s": pause_s})
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _post(address: Address, body: bytes, limit_s: float) -> int:
    """Return the status. Raises ClientError and TimeoutError."""
    headers = {
        "charset": "utf-8",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Request-ID": address.job_id,
    }
    async with address.session.post(
        address.url, data=body, headers=headers, timeout=ClientTimeout(total=limit_s)
    ) as response:
        return response.status


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
