"""One line for each log record, as JSON for machines or in columns for people.

Every record has its time (UTC, milliseconds), level, who wrote it (a worker's index or
"supervisor"), the request it belongs to when there is one, logger, message, and the fields given as
`extra=`. All processes write to the same stderr; a record is one `write`, so lines do not mix.
"""

import json
import logging
import os
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

import msgspec

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the running task serves; set by the HTTP middleware, "" outside of one."""

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# A last line of defence for texts that are not ours, such as a driver's error. Clients' texts come
# here too, so it has to be linear: no character matches two alternatives, and none is in the way of
# two matches that begin at different places (what follows `://` ends at the next `/`).
_PASSWORD = re.compile(
    r"(://[^:/@\s]*:)[^@/\s]+(?=@)|(password=)(?:'(?:[^'\\]|\\.)*'?|[^\s'\"]+)",
    re.IGNORECASE | re.DOTALL,
)
# Most texts hold no connection string, which is found out at a hundredth of the pattern's price.
_SECRET_MARKS = ("://", "password=")

# Names and paths are as long as a request may be; nobody reads that much of one in a log.
_TEXT_CHARS_MAX = 2_000
_TRACEBACK_CHARS_MAX = 20_000
_CLIENT_TEXT_CHARS_MAX = 300

_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure_logging(
    level: str, form: str, worker: int | str = "supervisor", stream: TextIO | None = None
) -> None:
    """Send this process's records to *stream* (stderr) as *form*, "json" or "console"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        JsonFormatter(worker)
        if form == "json"
        else ConsoleFormatter(worker, is_coloured=_wants_colours(handler.stream))
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A closed stderr must not turn each record into a traceback, or a request into a failure.
    logging.raiseExceptions = False
    # It quotes the subprotocols that a client offers, and a credential is one of them.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


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
        fields["message"] = _bounded(record.getMessage())
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS:
                fields[name] = (
                    _bounded(str(value)) if isinstance(value, str | BaseException) else value
                )
        if record.exc_info:
            # Its end names the error.
            text = self.formatException(record.exc_info)[-2 * _TRACEBACK_CHARS_MAX :]
            fields["exception"] = _mask(text)[-_TRACEBACK_CHARS_MAX:]
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
    """Columns for people; *is_coloured*: warnings and errors stand out."""

    def __init__(self, worker: int | str, *, is_coloured: bool = False) -> None:
        super().__init__(worker)
        self.is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        who = fields.pop("worker")
        who = who if isinstance(who, str) else f"worker {who}"
        start = f"{fields.pop('time')} {fields.pop('level'):<7} {who:<10}"
        message, exception = fields.pop("message"), fields.pop("exception", None)
        fields.pop("logger")
        fields.pop("event", None)  # a name for machines; the message says it to people
        rest = "".join(f" {name}={value}" for name, value in fields.items())
        line = _printable(f"{start} {message}{rest}")
        if self.is_coloured and (colour := _COLOURS.get(record.levelname)):
            line = f"{colour}{line}{_RESET}"
        if exception is None:
            return line
        # Its own lines stay lines, but none of them may begin as a record does.
        return "\n    ".join([line, *map(_printable, exception.splitlines())])


# Select Graphic Rendition of ECMA-48: yellow, bold red, dim.
_COLOURS = {
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[1;31m",
    "CRITICAL": "\x1b[1;31m",
    "DEBUG": "\x1b[2m",
}
_RESET = "\x1b[0m"


def _wants_colours(stream: TextIO) -> bool:
    """Whether *stream* is a terminal on which colours are wanted (https://no-color.org)."""
    try:
        is_terminal = stream.isatty()
    except ValueError:  # closed
        return False
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def client_text(text: str) -> str:
    """The beginning of a text that a client chose, such as a path or a name, for a log record.

    Escapes stand for what cannot be printed, in either form of the log.
    """
    if len(text) > _CLIENT_TEXT_CHARS_MAX:
        text = text[:_CLIENT_TEXT_CHARS_MAX] + "…"
    return _printable(text)


def _bounded(text: str) -> str:
    """*text*, shortened, without passwords."""
    # Twice as much is masked, or a password might lose the `@` by which it is known.
    masked = _mask(text[: 2 * _TEXT_CHARS_MAX])
    return masked if len(masked) <= _TEXT_CHARS_MAX else masked[:_TEXT_CHARS_MAX] + "…"


def _mask(text: str) -> str:
    lowered = text.lower()
    if not any(mark in lowered for mark in _SECRET_MARKS):
        return text
    return _PASSWORD.sub(lambda found: (found[1] or found[2]) + "***", text)


def _printable(text: str) -> str:
    """*text* on one line, with escapes for control characters, so that it can forge no record."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
