"""Masks the sensitive texts of jobs, and the secrets of a deployment, in whatever is printed.

One object serves all threads of a process. Knows no payload: `contract.sensitive` reads the texts.
"""

import re
import sys
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from pixpod.sensitive_forms import MASK, MIN_CHARACTERS, Block, Hidden, mask_pieces

MAX_ENDED_JOBS = 8
"""Jobs whose texts stay masked after their end: threads and tasks may log later than that."""

_SIGNATURES = re.compile(
    r"(?i)(?<![a-z])((?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig)"
    r"=[^&\s\"'<>\\]+"
)
"""Parameters of presigned URLs, of which the worker itself makes some."""


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
        return mask_pieces(text, blocks)


def _hidden(texts: Iterable[str]) -> Hidden:
    return Hidden(tuple(text for text in texts if len(text) >= MIN_CHARACTERS))


def _longest_first(text: str) -> int:
    return -len(text)
