"""Sensitive texts in the forms in which they are printed, and pieces of them in other texts."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from urllib.parse import quote_from_bytes

MASK = "***"

MIN_CHARACTERS = 8
"""Shorter texts are not masked: they are words that lines have for other reasons."""

BLOCK_CHARACTERS = 16
MIN_PIECE_CHARACTERS = 2 * BLOCK_CHARACTERS - 1
"""A piece of a longer text is masked from this length on, because it contains a whole block."""

_ESCAPED = re.compile(r"""[^ -~]|['"\\]""")
"""Characters that Python and JSON do not write as they are."""

Block = tuple[str, int]
"""A text, and where in it the block begins."""


@dataclass(frozen=True, eq=False)
class Hidden:
    """Sensitive texts of one origin. What is derived from them is made when it is needed."""

    texts: tuple[str, ...]

    @cached_property
    def shortest(self) -> int:
        """Length of the shortest line that can show one of them, or a piece of one."""
        return min(MIN_PIECE_CHARACTERS, *map(len, self.texts))

    @cached_property
    def forms(self) -> frozenset[str]:
        """The texts in all forms in which they may be printed."""
        forms = chain.from_iterable((*_printed(text), *_quoted(text)) for text in self.texts)
        return frozenset(form for form in forms if len(form) >= MIN_CHARACTERS)

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        return dict(chain.from_iterable(map(_blocks, self.texts)))


def _printed(text: str) -> set[str]:
    """Return a text as Python and JSON write it, as JSON that contains these, and the parts that
    are the same however often they are escaped."""
    forms = {text}
    if _ESCAPED.search(text):
        forms |= {repr(text)[1:-1], repr(_encode(text))[2:-1]}
        for is_ascii in (True, False):
            forms |= {json.dumps(each, ensure_ascii=is_ascii)[1:-1] for each in forms}
        forms |= set(_ESCAPED.split(text))
    return forms


def _quoted(text: str) -> set[str]:
    """Return a text as URLs write it."""
    quoted = quote_from_bytes(_encode(text), safe="")
    return {quoted, quoted.replace("%2F", "/"), quoted.replace("%20", "+")}


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _blocks(text: str) -> Iterator[tuple[str, Block]]:
    """Yield the last block first: where one is repeated, a dictionary keeps the first place."""
    if len(text) < MIN_PIECE_CHARACTERS:
        return
    for begin in reversed(range(0, len(text) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS)):
        yield text[begin : begin + BLOCK_CHARACTERS], (text, begin)


def mask_pieces(text: str, blocks: Mapping[str, Block]) -> str:
    """Mask what long texts have in common with this one: libraries cut what they print."""
    if len(blocks) < len(text) and not any(block in text for block in blocks):
        return text  # found without the loop over characters
    parts, done, at = [], 0, 0
    while at <= len(text) - BLOCK_CHARACTERS:
        block = blocks.get(text[at : at + BLOCK_CHARACTERS])
        begin, end = _piece(text, at, *block, done) if block else (at, at)
        if end - begin < MIN_PIECE_CHARACTERS:
            at += 1
            continue
        parts += [text[done:begin], MASK]
        done = at = end
    return "".join([*parts, text[done:]]) if parts else text


def _piece(text: str, at: int, source: str, begin: int, done: int) -> tuple[int, int]:
    """Return the bounds of the longest piece of `source` around a block at `at`, after `done`."""
    before, most = 0, min(at - done, begin)
    while before < most and text[at - before - 1] == source[begin - before - 1]:
        before += 1
    after = BLOCK_CHARACTERS
    most = min(len(text) - at, len(source) - begin)
    while after < most and text[at + after] == source[begin + after]:
        after += 1
    return at - before, at + after
