"""Reads what a request says: its body within limits, its query with defaults."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Callable, Collection, Sequence

import msgspec
from aiohttp import web

from queue_server.domain.access import Grants, Principal
from queue_server.domain.errors import (
    BadParameter,
    BadRequest,
    BodyTimeout,
    BodyTooLarge,
    TooManyItems,
)
from queue_server.domain.nesting import NESTING_MAX, depths, may_exceed
from queue_server.domain.subscription import TIME_FORM, parse_time
from queue_server.http.connection import EXPECTATION, Connection
from queue_server.http.memory import RequestMemory, body_weight, memory_of

_INT = re.compile(r"[+-]?[0-9]+")
# A longer one is beyond every bound.
_INT_CHARS_MAX = 19
_SWITCHES = {"true": True, "1": True, "false": False, "0": False, "": False}
# Slices of a payload that are measured before others get the worker: 2 ms at most.
_SLICES_IN_A_ROW = 16
# A body that comes in small pieces may take this many times BODY_TIMEOUT, and a second more for
# each 16 KiB of it: the slowest of lines are faster.
_PATIENCES = 5
_RATE_MIN = 16 * 1024
# The largest body of a single thing: an acknowledgement, a trace, a queue's options.
SINGLE_BODY_BYTES_MAX = 1024 * 1024


def producer_sub(request: web.Request) -> str | None:
    """Who pushes, as the token says; None without authentication."""
    principal = request.get(PRINCIPAL)
    return None if principal is None else principal.subject


def grants_of(request: web.Request) -> Grants | None:
    """The queues that the credential is for; None: all of them, or nobody asks."""
    principal = request.get(PRINCIPAL)
    return None if principal is None else principal.grants


async def read_body(request: web.Request, *, is_batch: bool = False) -> bytes:
    """Read the body of a request. Only one of many items (*is_batch*) may be large.

    Errors: `BodyTooLarge` before more than the limit is read; `Overloaded` when it would take more
    memory than is left, before it is read if its size is announced; `BodyTimeout` when it stops
    coming, or comes too slowly; `BadRequest` when it ends early.
    """
    limit = request.app[MAX_BODY_BYTES]
    if not is_batch:
        limit = min(limit, SINGLE_BODY_BYTES_MAX)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise BadRequest("compressed request bodies are not accepted: send it without")
    size_bytes = request.content_length
    if size_bytes is not None and size_bytes > limit:
        raise BodyTooLarge(f"the request body is larger than {limit} bytes")
    if not request.can_read_body:
        return b""
    content = request.content
    memory = memory_of(request)
    if not content.is_eof():
        if size_bytes is not None:
            memory.check(body_weight(size_bytes))
        if EXPECTATION in request:
            await _ask_for_body(request)
    if content.is_eof():
        # All of it came with the headers, as with most requests.
        body = content.read_nowait()
        if len(body) > limit:
            raise BodyTooLarge(f"the request body is larger than {limit} bytes")
        memory.grow(body_weight(len(body)))
        return body
    return await _read_pieces(request, limit, memory)


async def _ask_for_body(request: web.Request) -> None:
    """Answer `Expect: 100-continue`: the headers are well, its body may come."""
    del request[EXPECTATION]
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer has not begun yet


async def _read_pieces(request: web.Request, limit: int, memory: RequestMemory) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    loop = asyncio.get_running_loop()
    patience_s = request.app[BODY_TIMEOUT_S]
    end_at = loop.time() + patience_s * _PATIENCES
    try:
        async with asyncio.timeout(patience_s) as timeout:
            async for piece in request.content.iter_any():
                size_bytes += len(piece)
                if size_bytes > limit:
                    raise BodyTooLarge(f"the request body is larger than {limit} bytes")
                memory.grow(body_weight(size_bytes))
                pieces.append(piece)
                slowest_at = end_at + size_bytes / _RATE_MIN
                timeout.reschedule(min(loop.time() + patience_s, slowest_at))
    except TimeoutError:
        if isinstance(request.protocol, Connection):
            request.protocol.expect_no_body()
        raise BodyTimeout from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_count(count: int, limit: int, what: str) -> None:
    """Errors: `TooManyItems`."""
    if count > limit:
        raise TooManyItems(f"{count} {what} in one request, {limit} at most: send several")


async def check_nesting(payloads: Sequence[msgspec.Raw], place: Callable[[int], str]) -> None:
    """Refuse payloads nested deeper than `NESTING_MAX`; *place* names the one at an index.

    Errors: `BadRequest`.
    """
    if max(map(len, payloads), default=0) <= 2 * NESTING_MAX:
        return  # most payloads are too small for it
    for index, payload in enumerate(payloads):
        if not may_exceed(payload):
            continue
        for number, depth in enumerate(depths(bytes(payload)), 1):
            if depth > NESTING_MAX:
                raise BadRequest(
                    f"{place(index)} is nested too deeply: {NESTING_MAX} levels of arrays and"
                    " objects at most"
                )
            if number % _SLICES_IN_A_ROW == 0:
                await asyncio.sleep(0)


# A parameter that is empty counts as absent. One that cannot be read is refused: with what would
# stand for it, a request does something else than its sender meant.


def query_int(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A number from the query, brought into [low, high]. Errors: `BadParameter`."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not _INT.fullmatch(text):
        raise BadParameter(name, text, "a whole number")
    if len(text) > _INT_CHARS_MAX:
        return low if text[0] == "-" else high
    return min(max(int(text), low), high)


def query_count(request: web.Request, name: str) -> int | None:
    """A number of things, 1 or more; None when none is given. Errors: `BadParameter`."""
    text = request.query.get(name, "")
    if not text:
        return None
    if not _INT.fullmatch(text) or len(text) > _INT_CHARS_MAX or int(text) < 1:
        raise BadParameter(name, text, "a whole number, 1 or more")
    return int(text)


def query_bool(request: web.Request, name: str, *, default: bool = False) -> bool:
    """Whether a switch of the query is on. Errors: `BadParameter`."""
    text = request.query.get(name)
    if text is None:
        return default
    switch = _SWITCHES.get(text.lower())
    if switch is None:
        raise BadParameter(name, text, "true or false")
    return switch


def is_waiting(request: web.Request) -> bool:
    """Whether a pop waits for messages, as far as its query can be read."""
    return _SWITCHES.get(request.query.get("wait", "").lower(), False)


def query_time(request: web.Request, name: str) -> datetime.datetime | None:
    """A time from the query; None when none is given. Errors: `BadParameter`."""
    text = request.query.get(name, "")
    if not text:
        return None
    moment = parse_time(text)
    if moment is None:
        raise BadParameter(name, text, TIME_FORM)
    return moment


def query_choice(request: web.Request, name: str, choices: Collection[str]) -> str | None:
    """One of *choices*; None when none is given. Errors: `BadParameter`."""
    text = request.query.get(name, "")
    if not text:
        return None
    if text.lower() not in choices:
        raise BadParameter(name, text, f"one of {', '.join(choices)}")
    return text.lower()


PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
MAX_BODY_BYTES: web.AppKey[int] = web.AppKey("max_body_bytes", int)
BODY_TIMEOUT_S: web.AppKey[float] = web.AppKey("body_timeout_s", float)
