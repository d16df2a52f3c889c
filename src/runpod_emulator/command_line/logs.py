"""The emulator's own log on standard error: a line of text, or of JSON, for each record."""

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from textwrap import indent

from runpod_emulator.sdk_text import WORKER_OUTPUT

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """Formats `12:00:00 INFO job taken  job=... worker=...`; further lines are indented.

    A worker's own output becomes `12:00:00 INFO [worker] text  job=...`.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in _extra(record).items() if value is not None}
        if record.name == WORKER_OUTPUT:
            record.message = f"[{extra.pop('worker')}] {record.message}"
        first, _, others = super().formatMessage(record).rstrip().partition("\n")
        pairs = " ".join(f"{name}={value}" for name, value in extra.items())
        line = "  ".join((first, pairs)).rstrip()
        return f"{line}\n{indent(others, '    ')}" if others else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    LogFormat.TEXT: TextFormatter,
    LogFormat.JSON: JsonFormatter,
}


def configure_logging(level: str, log_format: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[log_format]())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
