"""One line for each log record, as JSON for machines or in columns for people.

Every record has its time (UTC, milliseconds), level, who wrote it (a worker's index or
"supervisor"), the request it belongs to when there is one, logger, message, and the fields given as
`extra=`. All processes write to the same stderr; a record is one `write`, so lines do not mix.
"""

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

import msgspec

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the running task serves; set by the HTTP middleware, "" outside of one."""

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# A last line of defence for texts that are not ours, such as a driver's error.
_PASSWORD = re.compile(
    r"(://[^:/@\s]+:)[^@\s]+(?=@)|(password=)(?:'(?:\\.|[^'])*'|[^\s'\"]+)", re.I
)

_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure_logging(
    level: str, form: str, worker: int | str = "supervisor", stream: TextIO | None = None
) -> None:
    """Send this process's records to *stream* (stderr) as *form*, "json" or "console"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if form == "json" else ConsoleFormatter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A closed stderr must not turn each record into a traceback, or a request into a failure.
    logging.raiseExceptions = False


def set_worker(worker: int) -> None:
    """Name the writer of this process's records; called after the fork."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Formatter):
            handler.formatter.worker = worker


class _Formatter(logging.Formatter):
    def __init__(self, worker: int | str) -> None:
        super().__init__()
        self.worker = worker

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a record says, in the order of writing."""
        milliseconds = f"{int(record.msecs):03d}"
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{milliseconds}Z",
            "level": record.levelname.lower(),
            "worker": self.worker,
        }
        if current := request_id.get():
            fields["request_id"] = current
        fields["logger"] = record.name
        fields["message"] = _mask(record.getMessage())
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS:
                fields[name] = _mask(value) if isinstance(value, str) else value
        if record.exc_info:
            fields["exception"] = _mask(self.formatException(record.exc_info))
        return fields


class JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        try:
            return _encode(fields).decode()
        except Exception:
            # Half a surrogate pair, or a field whose str() fails: no record may be lost by that.
            plain = {k: v if isinstance(v, str) else ascii(v) for k, v in fields.items()}
            return json.dumps(plain)


class ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        who = fields.pop("worker")
        who = who if isinstance(who, str) else f"worker {who}"
        start = f"{fields.pop('time')} {fields.pop('level'):<7} {who:<10}"
        message, exception = fields.pop("message"), fields.pop("exception", None)
        fields.pop("logger")
        fields.pop("event", None)  # a name for machines; the message says it to people
        rest = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{start} {message}{rest}" + (f"\n{exception}" if exception else "")


def _mask(text: str) -> str:
    return _PASSWORD.sub(lambda found: (found[1] or found[2]) + "***", text)
