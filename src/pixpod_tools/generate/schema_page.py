"""Render the JSON Schemas that ship with the contract."""

import json

from pixpod.contract.json_schema import json_schemas


def render_request() -> str:
    """Return the text of request.json."""
    return _render("request.json")


def render_reply() -> str:
    """Return the text of reply.json."""
    return _render("reply.json")


def _render(name: str) -> str:
    return json.dumps(json_schemas()[name], indent=2, ensure_ascii=False) + "\n"
