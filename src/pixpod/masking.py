"""Masks the sensitive texts of jobs, and the secrets of a deployment, in whatever is printed.

One object serves all threads of a process. Knows no payload: `contract.sensitive` reads the texts.
"""

import json
import re
import sys
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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

MAX_ENDED_JOBS = 8
"""Jobs whose texts stay masked after their end: threads and tasks may log later than that."""

_SIGNATURES = re.compile(
    r"(?i)(?<![a-z])((?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig)"
    r"=[^&\s\"'<>\\]+"
)
"""Parameters of presigned URLs, of which the worker itself makes some."""

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


class Masks:
    """The texts that are masked now. Its methods may be called by any thread.

    Most jobs have no line that is long enough to show one of their texts, and cost little.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # handlers of signals log between any two instructions
        self._secrets: list[Hidden] = []
        self._running: list[Hidden] = []
        self._ended: deque[Hidden] = deque(maxlen=MAX_ENDED_JOBS)
        self._shortest = sys.maxsize
        self._is_stale = False
        self._forms: tuple[str, ...] = ()
        self._blocks: Mapping[str, Block] = {}

    def keep(self, secrets: Iterable[str]) -> None:
        """Mask these for as long as the process lives."""
        self._add(self._secrets, _hidden(secrets))

    @contextmanager
    def hiding(self, texts: Iterable[str]) -> Iterator[None]:
        """Mask these in the block, and until MAX_ENDED_JOBS later blocks have ended."""
        hidden = _hidden(texts)
        self._add(self._running, hidden)
        try:
            yield
        finally:
            if hidden.texts:
                with self._lock:
                    self._running.remove(hidden)
                    self._ended.append(hidden)

    def mask(self, text: str) -> str:
        """Return the text with MASK in place of each sensitive one, the longest first."""
        if len(text) >= self._shortest:
            text = self._mask_texts(text)
        if "=" in text:
            text = _SIGNATURES.sub(rf"\1={MASK}", text)
        return text

    def mask_value(self, value: object) -> object:
        """Return a JSON value with all its texts masked; other types become texts."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.mask(str(name)): self.mask_value(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_value(each) for each in value]
        return self.mask(value if isinstance(value, str) else str(value))

    def _add(self, hidden: list[Hidden], new: Hidden) -> None:
        if not new.texts:
            return
        with self._lock:
            hidden.append(new)
            self._shortest = min(each.shortest for each in self._all())
            self._is_stale = True

    def _all(self) -> Iterator[Hidden]:
        return chain(self._secrets, self._running, self._ended)

    def _refresh(self) -> None:
        hidden = list(self._all())
        forms = frozenset[str]().union(*(each.forms for each in hidden))
        self._forms = tuple(sorted(forms, key=_longest_first))
        self._blocks = dict(chain.from_iterable(each.blocks.items() for each in hidden))
        self._is_stale = False

    def _mask_texts(self, text: str) -> str:
        with self._lock:
            if self._is_stale:
                self._refresh()
            forms, blocks = self._forms, self._blocks
        for form in forms[bisect_left(forms, -len(text), key=_longest_first) :]:
            if form in text:
                text = text.replace(form, MASK)
        return _mask_pieces(text, blocks)


def _hidden(texts: Iterable[str]) -> Hidden:
    return Hidden(tuple(text for text in texts if len(text) >= MIN_CHARACTERS))


def _longest_first(text: str) -> int:
    return -len(text)


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


def _mask_pieces(text: str, blocks: Mapping[str, Block]) -> str:
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
