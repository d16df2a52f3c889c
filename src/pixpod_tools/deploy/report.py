"""Texts for the user: the plan, its price, and how to send the first job. No secrets."""

import json
from collections.abc import Iterable

from pixpod.gpus import price_basis
from pixpod_tools.deploy.documents import ENV, Endpoint, is_reference
from pixpod_tools.deploy.endpoint import EndpointSpec
from pixpod_tools.deploy.plan import Action, Change, Plan

SECONDS_A_DAY = 86_400
_SHOWN = ("PIXPOD_", "RUNPOD_")
_HIDDEN = ("KEY", "SECRET", "TOKEN", "PASSWORD", "URL")


def plan_text(plan: Plan, spec: EndpointSpec) -> str:
    """Return the text of the whole plan, which ends with a line end."""
    known = f" ({plan.endpoint.id})" if plan.endpoint else ""
    lines = [f"endpoint {spec.configuration.name!r}{known}: {plan.action}"]
    lines += [f"  {change_text(change, plan.action)}" for change in plan.changes]
    lines += [f"  note: {remark}" for remark in spec.remarks]
    lines += _cost_lines(spec)
    return "\n".join(lines) + "\n"


def change_text(change: Change, action: Action) -> str:
    """Return e.g. `workers.max: 3 -> 5`, or only the new value of a field that is created."""
    new = _shown(change.place, change.new)
    if action is Action.CREATE:
        return f"{change.place}: {new}"
    old = _shown(change.place, change.old)
    if old == new:
        return f"{change.place}: changes"
    return f"{change.place}: {old} -> {new}"


def _shown(place: str, value: object) -> str:
    """Return a value as text; hide a variable that is no setting and no reference: it may be a
    secret.
    """
    if value is None or value == []:
        return "(not set)"
    if place.startswith(ENV) and not is_reference(value):
        name = place.removeprefix(ENV)
        if not name.startswith(_SHOWN) or any(word in name for word in _HIDDEN):
            return "(not shown)"
    return value if isinstance(value, str) else json.dumps(value)


def _cost_lines(spec: EndpointSpec) -> list[str]:
    if not spec.pools:
        return [f"cost: no price is known for CPU workers of kind {spec.cpu}"]
    lines = [f"cost while a worker starts, works or idles ({price_basis()}):"]
    prices = [pool.usd_per_second for pool in spec.pools]
    for pool, price in zip(spec.pools, prices, strict=True):
        words = "no price is known" if price is None else f"${price:.5f} a second"
        hourly = "" if price is None else f", ${price * 3_600:.2f} an hour"
        lines.append(f"  {pool.id:<13} {words}{hourly}")
    known = [price for price in prices if price is not None]
    if known:
        least, most = spec.configuration.min_workers, spec.configuration.max_workers
        span = _dollars(min(known), max(known), least * SECONDS_A_DAY)
        lines.append(f"  min_workers {least}: {span} a day, even without a job")
        span = _dollars(min(known), max(known), most * 3_600)
        lines.append(f"  max_workers {most}: {span} an hour, if all work")
    return lines


def _dollars(low: float, high: float, seconds: float) -> str:
    ends = [f"${low * seconds:.2f}", f"${high * seconds:.2f}"]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def done_text(endpoint: Endpoint, model: str) -> str:
    """Return the endpoint's id and addresses, and a first job to paste; ends with a line end."""
    urls = endpoint.request_urls
    lines = [f"endpoint id: {endpoint.id}"]
    if urls is None or not urls.run_sync:
        return lines[0] + "\n"
    lines += [f"  {name:<8} {url}" for name, url in urls.model_dump().items() if url]
    body = json.dumps({"input": {"model": model, "prompt": "a lighthouse in a storm"}})
    lines += [
        "first job:",
        f"  curl -X POST {urls.run_sync} \\",
        '    -H "Authorization: Bearer $RUNPOD_API_KEY" -H "Content-Type: application/json" \\',
        f"    -d '{body}'",
    ]
    return "\n".join(lines) + "\n"


def left_text(changes: Iterable[Change]) -> str:
    """Return the fields that the platform has not set as requested; empty if there are none."""
    lines = [f"  {change_text(change, Action.UPDATE)}\n" for change in changes]
    return "the platform did not take:\n" + "".join(lines) if lines else ""
