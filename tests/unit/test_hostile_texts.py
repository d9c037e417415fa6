"""Whatever reads a client's text takes a time that grows with its length, and no faster.

A pattern with two ways to match the same text may try all of them: one request of 300 bytes could
keep a worker busy for ever. Each pattern in the server's sources is found here by itself and tried
on texts made of repetitions of its own words.
"""

import ast
import functools
import itertools
import logging
import operator
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import queue_server
from queue_server.domain.access import Grants, Use
from queue_server.domain.names import parse_partition_id
from queue_server.domain.subscription import parse_time
from queue_server.http.pages import _is_local
from queue_server.http.uniform import read_uniform_acks
from queue_server.observability.logging import ConsoleFormatter, JsonFormatter, client_text

SOURCES = Path(queue_server.__file__).parent
FUNCTIONS = ("compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer")
# Patterns that are made while the server runs; what they are made from is tried below.
MADE_AT_RUN_TIME = {"domain/access.py"}

# Repetitions: of few, an exponential pattern is slow already; of many, a quadratic one.
COUNTS = (24, 4_000)
SECONDS_MAX = 0.5
PUMPS = (
    "a",
    " ",
    "0",
    "-",
    "'",
    '"',
    "\\a",
    "\\",
    "://a:",
    ":",
    "@",
    "/",
    "\n",
    "\r\n",
    "{a}",
    "_",
)


def patterns() -> Iterator[tuple[str, re.Pattern[Any] | None]]:
    """Each pattern of the sources, by its file; None for one that is no literal there."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr in FUNCTIONS
            ):
                file = path.relative_to(SOURCES).as_posix()
                if not isinstance(node.args[0], ast.Constant):
                    yield file, None
                    continue
                flags = node.args[1:2] if node.func.attr == "compile" else []
                flags += [one.value for one in node.keywords if one.arg == "flags"]
                names = [
                    name for one in flags for name in re.findall(r"re\.(\w+)", ast.unparse(one))
                ]
                value = functools.reduce(operator.or_, [re.RegexFlag[name] for name in names], 0)
                yield file, re.compile(node.args[0].value, value)


FOUND = list(patterns())


def words(source: str) -> list[str]:
    """The literal texts in a pattern."""
    return [one for one in re.split(r"[\\^$.|?*+()\[\]{}]+", source) if len(one) > 1]


def hostile(pattern: re.Pattern[Any], count: int) -> Iterator[Any]:
    is_text = isinstance(pattern.pattern, str)
    source = pattern.pattern if is_text else pattern.pattern.decode()
    own = words(source)
    # A word, its repetitions, and all that may stand between a word and the next one.
    pumps = [*PUMPS, *own, *(word + pump for word in own for pump in (" ", "'", '"', ":"))]
    for start, pump, end in itertools.product(
        ["", *own, *(o + "'" for o in own)], pumps, ("", "!")
    ):
        text = start + pump * count + end
        yield text if is_text else text.encode()


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def test_every_pattern_is_found() -> None:
    assert len(FOUND) >= 15
    assert {file for file, pattern in FOUND if pattern is None} == MADE_AT_RUN_TIME


@pytest.mark.parametrize(
    "pattern",
    [one for _, one in FOUND if one is not None],
    ids=[file for file, one in FOUND if one is not None],
)
def test_a_pattern_is_linear(pattern: re.Pattern[Any]) -> None:
    for count in COUNTS:
        for text in hostile(pattern, count):
            took = seconds(functools.partial(pattern.match, text))
            took += seconds(functools.partial(pattern.findall, text))
            assert took < SECONDS_MAX, (took, text[:200])


def logged(form: type[JsonFormatter] | type[ConsoleFormatter], text: str) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "error": text})
    form(0).format(record)


PATTERNS = Grants(("*a*a*a*b", "?" * 50 + "*", "[!a]*[ab]*c"), (), ())
READERS: dict[str, Callable[[str], object]] = {
    "a record in JSON": lambda text: logged(JsonFormatter, text),
    "a record to be read": lambda text: logged(ConsoleFormatter, text),
    "a client's text in a record": client_text,
    "a time": parse_time,
    "a partition's id": parse_partition_id,
    "a Host": _is_local,
    "a batch of acknowledgements": lambda text: read_uniform_acks(
        text.encode(errors="surrogateescape")
    ),
    "a queue's name": lambda text: PATTERNS.allow(Use.PUSH, text),
    # One that a token may hold, as far as it gets.
    "a pattern of queues": lambda text: Grants((text[:6000],), (), ()).allow(Use.PUSH, "a" * 999),
}
TEXTS: dict[str, tuple[str, str, str]] = {
    "the review's": ("/password='", "\\a", ""),
    "passwords": ("", "password='", ""),
    "addresses": ("", "://a:", ""),
    "addresses with passwords": ("", "postgresql://a:b", "@"),
    "control characters": ("", "\x1b[31m\n", ""),
    "half pairs": ("", "\udcff", ""),
    "digits": ("", "9", ""),
    "times": ("2026-01-01T00:00:00.", "0", "Z"),
    "blanks": ("", " ", ""),
    "colons": ("[", ":", "]"),
    "stars": ("", "*a", "b"),
    "brackets": ("", "[!", "]"),
    "acknowledgements": ("", '"transactionId"  ', ""),
    "ids": ("", '"transactionId":"00000000-0000-7000-8000-000000000000"', ""),
}


@pytest.mark.parametrize("what", READERS)
def test_what_reads_a_clients_text_is_linear(what: str) -> None:
    read = READERS[what]
    for name, (start, pump, end) in TEXTS.items():
        for count in COUNTS:
            text = start + pump * count + end
            took = seconds(functools.partial(read, text))
            assert took < SECONDS_MAX, (took, name, count)
