"""What a log record looks like."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from queue_server.observability.logging import (
    client_text,
    configure_logging,
    request_id,
    set_worker,
)

logger = logging.getLogger("queue_server.test")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers.clear()  # or `force=True` would close those of pytest
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def logged(form: str, message: str, *args: object, **extra: object) -> str:
    stream = io.StringIO()
    configure_logging("info", form, stream=stream)
    set_worker(1)
    logger.info(message, *args, extra=extra)
    logger.debug("too fine")
    return stream.getvalue()


def record(message: str, *args: object, **extra: object) -> dict[str, Any]:
    (line,) = logged("json", message, *args, **extra).splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(form: str, message: str, *, level: int = logging.WARNING) -> str:
    stream = Terminal()
    configure_logging("info", form, stream=stream)
    logger.log(level, message)
    return stream.getvalue()


def test_warnings_and_errors_stand_out_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    # Escapes in a text stay visible, and cannot end the colour.
    assert re.fullmatch(
        r"\x1b\[33m.* warning .* a\\x1b\[0mb\x1b\[0m\n", shown("console", "a\x1b[0mb")
    )
    assert shown("console", "x", level=logging.ERROR).startswith("\x1b[1;31m")
    assert "\x1b" not in shown("console", "x", level=logging.INFO)
    assert "\x1b" not in shown("json", "x")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown("console", "x")
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b" in shown("console", "x")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown("console", "x")


def test_json_has_every_field() -> None:
    found = record("pushed %d", 3, queue="orders", took_ms=1.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "info",
        "worker": 1,
        "logger": "queue_server.test",
        "message": "pushed 3",
        "queue": "orders",
        "took_ms": 1.5,
    }


def test_a_record_names_the_request_it_belongs_to() -> None:
    assert "request_id" not in record("outside")
    token = request_id.set("r-17")
    try:
        assert record("inside")["request_id"] == "r-17"
    finally:
        request_id.reset(token)


def test_a_record_is_one_line_of_json_whatever_it_holds() -> None:
    found = record("a\nb %s", object, odd={1: {2}, "path": io}, text="\ud800")
    assert found["message"].startswith("a\nb")


def test_an_exception_is_part_of_its_record() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: why" in json.loads(line)["exception"]


def test_console_is_readable() -> None:
    line = logged("console", "pushed", queue="orders", event="pushed")
    assert re.search(r"Z info +worker 1 +pushed queue=orders\n$", line)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunter2@db/q",
        "host=db password=hunter2 user=me",
        "password='hunter2 \\' hunter2' user=me",
        "password='hunter2 without an end",
        "x" * 1990 + " postgresql://me:hunter2@db/q",
        "x" * 3990 + " postgresql://me:hunter2@db/q",
        ValueError("postgresql://me:hunter2@db/q"),
    ],
)
def test_passwords_of_connection_strings_are_masked(form: str, text: object) -> None:
    assert "hunter2" not in logged(form, "cannot connect to %s", text, conninfo=text)


FORGED = "/\n2026-01-01T00:00:00.000Z info    supervisor API key admin created\x1b[31m\u202e\x85"


@pytest.mark.parametrize("place", ["message", "field", "exception"])
def test_no_text_forges_a_line_or_speaks_to_a_terminal(place: str) -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    if place == "message":
        logger.info("GET %s failed", FORGED)
    elif place == "field":
        logger.info("failed", extra={"path": FORGED, FORGED: [FORGED]})
    else:
        logger.info("failed", exc_info=ValueError(FORGED))
    first, *others = stream.getvalue().removesuffix("\n").split("\n")
    assert all(line.startswith("    ") for line in others)
    assert "supervisor API key" not in "".join(re.findall(r"^\S.*", "\n".join(others)))
    assert all(line.isprintable() for line in (first, *others))
    assert "\\x1b[31m\\u202e" in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_text_is_as_long_as_somebody_reads(form: str) -> None:
    line = logged(form, "%s", "m" * 1_000_000, error="e" * 1_000_000)
    assert len(line) < 5_000
    assert client_text("\n" + "p" * 1_000_000) == "\\n" + "p" * 299 + "…"
