"""Log lines as JSON objects that carry the job's id. No prompt, no secret, no signed link.

Each process has one log, hence one set of texts that are masked in it.
"""

import io
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from pixpod.masking import Masks

_job_id: ContextVar[str | None] = ContextVar("job_id", default=None)

_masks = Masks()
"""Not a context variable: threads and libraries log without a job's context."""

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

CHATTY_LIBRARIES = (
    "PIL",
    "boto3",
    "botocore",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "s3transfer",
    "torch.utils._pytree",
    "torchao",
    "urllib3",
)
"""Loggers of which only errors are written to a worker's log."""

MAX_JOB_ID_CHARACTERS = 200


@contextmanager
def job_context(job_id: object, sensitive: Iterable[str] = ()) -> Iterator[None]:
    """Add the job's id to each line logged in the block, by any module; a long id is cut.

    Until some time after the block, `sensitive` texts are masked in the lines of all threads.
    """
    token = _job_id.set(str(job_id)[:MAX_JOB_ID_CHARACTERS])
    try:
        with _masks.hiding(sensitive):
            yield
    finally:
        _job_id.reset(token)


def keep_masked(secrets: Iterable[str]) -> None:
    """Mask these in all lines from now on."""
    _masks.keep(secrets)


def masked(stream: TextIO) -> TextIO:
    """Return a stream for what is printed, by the SDK, by warnings, by loggers of libraries."""
    return MaskedStream(stream, _masks)


class JsonFormatter(logging.Formatter):
    """Formats a line as a JSON object: time, level, message, job_id, and the fields of `extra`.

    Sensitive texts are masked in values only, so a prompt cannot change the form of a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _masks.mask(record.getMessage()),
            "job_id": _job_id.get(),
        }
        known = _STANDARD_FIELDS | line.keys()
        extra = {key: val for key, val in vars(record).items() if key not in known}
        line |= {key: _masks.mask_value(val) for key, val in extra.items()}
        if record.exc_info:
            line["traceback"] = _masks.mask(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class MaskedStream(io.TextIOWrapper):
    """Writes to another stream what `print`, the SDK and other loggers write, masked.

    A text is masked by itself: a line that is written in parts may keep one that spans them.
    `target` is the other stream, for those who mask themselves.
    """

    def __init__(self, stream: TextIO, masks: Masks) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )
        self.target = stream
        self._masks = masks

    def write(self, text: str) -> int:
        masked = self._masks.mask(text)
        super().write(text if masked == text else self._mask_json(text) or masked)
        return len(text)

    def _mask_json(self, text: str) -> str | None:
        """Return a JSON object with its values masked, its names and its form as they are."""
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(line, dict):
            return None
        end = text[len(text.rstrip()) :]
        return json.dumps({name: self._masks.mask_value(each) for name, each in line.items()}) + end


def configure_logging(level: str) -> None:
    """Send all logs to standard error as JSON; standard output stays free for results."""
    stream = sys.stderr
    handler = logging.StreamHandler(stream.target if isinstance(stream, MaskedStream) else stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
