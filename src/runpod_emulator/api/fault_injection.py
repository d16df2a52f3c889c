"""Applies the faults of a plan to HTTP requests: delays, drops, statuses, slow answers."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from runpod_emulator.faults import FaultAction, FaultPlan, FaultPoint, FaultRule

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

SLICE_S = 0.05
"""The time between two pieces of a slow answer."""


async def answer_with_faults(
    plan: FaultPlan, point: FaultPoint, request: web.Request, answer: Answer
) -> web.StreamResponse:
    """Answer the request by `answer`, with the faults that the plan selects for this point."""
    if not plan.rules:
        return await answer(request)
    found = request.match_info
    rules = plan.select(
        point,
        endpoint_id=found.get("endpoint", ""),
        worker_id=found.get("worker"),
        job_id=found.get("job"),
    )
    for rule in rules:
        spoilt = await _before(rule, request)
        if spoilt is not None:
            return spoilt
    response = await answer(request)
    for rule in rules:
        response = await _after(rule, request, response)
    return response


def drop(request: web.Request) -> web.Response:
    """Cut the connection; the response is for aiohttp only and is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)


async def _before(rule: FaultRule, request: web.Request) -> web.StreamResponse | None:
    if rule.action is FaultAction.DELAY:
        await asyncio.sleep(rule.value or 0)
    elif rule.action is FaultAction.STATUS:
        return web.json_response({"error": f"fault {rule.id}"}, status=int(rule.value or 500))
    elif rule.action is FaultAction.DROP:
        return drop(request)
    return None


async def _after(
    rule: FaultRule, request: web.Request, response: web.StreamResponse
) -> web.StreamResponse:
    if rule.action is FaultAction.DROP_REPLY:
        return drop(request)
    if rule.action is FaultAction.SLOW and isinstance(response, web.Response):
        return await _send_slowly(request, response, rule.value or 1)
    return response


async def _send_slowly(
    request: web.Request, response: web.Response, bytes_per_s: float
) -> web.StreamResponse:
    body = response.body if isinstance(response.body, bytes) else b""
    slow = web.StreamResponse(status=response.status, headers=response.headers)
    slow.content_length = len(body)
    await slow.prepare(request)
    step = max(1, int(bytes_per_s * SLICE_S))
    for at in range(0, len(body), step):
        await slow.write(body[at : at + step])
        await asyncio.sleep(min(step, len(body) - at) / bytes_per_s)
    await slow.write_eof()
    return slow
