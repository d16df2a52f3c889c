"""Lists the texts of a raw job that no log may show, be the job well formed or not.

All texts count but the names that a job chooses among: nobody knows what an unknown field means.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

NAMES = frozenset(
    {
        "model",
        "quality",
        "scheduler",
        "stack",
        "resize",
        "on_long_prompt",
        "format",
        "delivery",
        "webhook_events",
    }
)
"""Fields whose texts are names of ours, which log lines need."""

FIRST = ("prompt", "prompt_2", "negative_prompt", "idempotency_key", "webhook_url")

MAX_TEXTS = 128
MAX_CHARACTERS = 16_384
MAX_ALL_CHARACTERS = 131_072
"""Bounds of what masking costs, whatever a caller sends. A prompt has at most 10,000 characters,
and an image in base64 is never logged whole."""


def sensitive_texts(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return prompts, URLs and what is secret in them, credentials and keys of a job.

    Never raises. Any: a JSON document.
    """
    given = raw.get("input")
    fields = given if isinstance(given, dict) else {"": given}
    first = [fields.get(name) for name in FIRST]
    rest = {name: each for name, each in fields.items() if name not in FIRST}
    found: dict[str, None] = {}
    left = MAX_ALL_CHARACTERS
    for text in _texts([*first, raw.get("s3Config"), rest, raw.get("webhook")]):
        if not text or text in found:
            continue
        left -= len(text)
        if left < 0 or len(found) == MAX_TEXTS:
            break
        found[text] = None
    return tuple(found)


def _texts(value: object) -> Iterator[str]:
    """Yield the sensitive texts in a JSON value in their order; it may be deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [item for name, item in reversed(each.items()) if name not in NAMES]
        elif isinstance(each, list):
            waiting += reversed(each)
        elif isinstance(each, str):
            text = each[:MAX_CHARACTERS]
            yield text
            if "://" in text:
                yield from _parts_of_url(text)


def _parts_of_url(url: str) -> Iterator[str]:
    """Yield what may be secret in a URL: all but its host, as it is sent and decoded."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query)
    except ValueError:
        return
    user = parts.netloc.rpartition("@")[0]
    yield from (user, parts.path, unquote(parts.path), parts.query, parts.fragment)
    yield from (value for _, value in islice(query, MAX_TEXTS))
