"""Words in all that is private in a job, and where they are found again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPTS: tuple[str, ...] = ("zanzibar", "tanganyika", "marmalade")
CREDENTIALS: tuple[str, ...] = (
    "pomegranate",
    "persimmon",
    "mangosteen",
    "tamarind",
    "rambutan",
    "kumquat",
    "quincejam",
    "blackcurrant",
)
TENANT = "lingonberry"
"""Begins keys of images, which callers and receivers of webhooks see."""

IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")

FIELDS: dict[str, Any] = {
    "prompt": 'a "zanzibar" lighthouse\nat the caf\u00e9, ' + " ".join(["marmalade"] * 300),
    "negative_prompt": "tanganyika & 5% frame",
    "idempotency_key": "kumquat-1234",
}
"""Of a job that is accepted."""

REFUSED: dict[str, Any] = {
    **FIELDS,
    "api_key": "quincejam in an unknown field",
    "image": "https://bucket.example/in.png?X-Amz-Signature=blackcurrant",
    "prompt_2": "tanganyika\0",
    "idempotency_key": "kumquat, too long and with other characters",
    "width": 7,
}
S3_CONFIG = {"accessId": "AKIAtamarind", "accessSecret": "rambutan/secret+key"}


def put_url(url: str) -> dict[str, Any]:
    return {
        "url": f"{url}?X-Amz-Signature=persimmon%2Fabc",
        "headers": {"x-amz-meta-token": "mangosteen-token"},
    }


def webhook_url(url: str) -> str:
    return f"{url}?token=pomegranate%20token"


def words_in(text: str | bytes, words: tuple[str, ...]) -> list[str]:
    """Return the words that are found, whatever their case."""
    data = (text.encode() if isinstance(text, str) else text).lower()
    return [word for word in words if word.lower().encode() in data]


def words_in_file(data: bytes) -> list[str]:
    """Return the words in a stored file; images may have prompts in their metadata."""
    words = CREDENTIALS if data.startswith(IMAGES) else (*CREDENTIALS, *PROMPTS)
    return words_in(data, words)


def words_below(folder: Path) -> Iterator[str]:
    """Yield each file in which a word is found, with the words."""
    for path in folder.rglob("*"):
        if path.is_file() and (
            found := [*words_in_file(path.read_bytes()), *words_in(path.name, PROMPTS)]
        ):
            yield f"{path.relative_to(folder)}: {found}"


def words_in_document(document: object) -> list[str]:
    """Return the words in what callers and receivers get; keys begin with the tenant."""
    return words_in(json.dumps(document, ensure_ascii=False), (*CREDENTIALS, *PROMPTS))
