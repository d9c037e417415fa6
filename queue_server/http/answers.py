"""What the administration routes have in common: JSON answers, pages, the address of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http import StreamWriter

from queue_server.domain.names import PartitionId, check_text, parse_partition_id
from queue_server.http import wire
from queue_server.http.memory import memory_of
from queue_server.http.request import query_int
from queue_server.http.state import STATE
from queue_server.http.whole_answer import SLICE_BYTES, write_slices

_HOLE = msgspec.Raw(b"\x01")

_LIMIT_MAX = 1000
# Partitions of one answer: a page of them by default, and at most. A thousand take a worker ten
# milliseconds, in which it does nothing else.
PARTITIONS_LIMIT = 1000
PARTITIONS_LIMIT_MAX = 10_000
# Who wants what lies deeper asks with times.
_OFFSET_MAX = 1_000_000


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encoder.encode(value),
        content_type="application/json",
        charset="utf-8",
    )


class Payloads:
    """The payloads of an answer, which are not copied into its text but sent between its parts.

    In the text a payload is a hole, the control byte 0x01, as in a segment's body.
    """

    def __init__(self) -> None:
        self._payloads: list[bytes] = []

    def place(self, payload: bytes | None) -> msgspec.Raw | None:
        """Stand in for *payload* in the answer's value. To be called in the order of the text."""
        if payload is None:
            return None
        self._payloads.append(payload)
        return _HOLE

    def pieces(self, value: Any) -> list[bytes]:
        """The answer's text; a payload that has several places is in each."""
        texts = wire.encoder.encode(value).split(b"\x01")
        assert len(texts) == len(self._payloads) + 1, "each payload has one place"
        return [one for pair in zip(texts, [*self._payloads, b""], strict=True) for one in pair]


class PayloadAnswer:
    """An answer with payloads, which counts as memory of its request until it is sent.

    Errors: `Overloaded` when there is no room for it.
    """

    def __init__(self, request: web.Request, value: Any, payloads: Payloads) -> None:
        self._request = request
        self._pieces = payloads.pieces(value)
        self._size_bytes = sum(map(len, self._pieces))
        if self._size_bytes > SLICE_BYTES:
            distinct = {id(piece): len(piece) for piece in self._pieces}
            memory_of(request).grow(sum(distinct.values()))

    async def send(self) -> web.StreamResponse:
        """Errors: `ConnectionError`."""
        if self._size_bytes <= SLICE_BYTES:
            return web.Response(
                body=b"".join(self._pieces), content_type="application/json", charset="utf-8"
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        response.content_length = self._size_bytes
        await response.prepare(self._request)
        writer = cast(StreamWriter, self._request.writer)
        for text in _joined(self._pieces):
            await write_slices(self._request, writer, text)
        await response.write_eof()
        return response


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same text in fewer pieces, of about a slice; large ones are not copied."""
    small: list[bytes] = []
    size_bytes = 0
    for piece in pieces:
        if len(piece) > SLICE_BYTES:
            yield b"".join(small)
            yield piece
            small, size_bytes = [], 0
            continue
        small.append(piece)
        size_bytes += len(piece)
        if size_bytes > SLICE_BYTES:
            yield b"".join(small)
            small, size_bytes = [], 0
    yield b"".join(small)


async def shared_answer(
    request: web.Request, key: Hashable, make: Callable[[], Awaitable[Any]]
) -> web.Response:
    """Answer with what *make* reads: read and encoded once for all callers with the same *key*."""

    async def look() -> bytes:
        return wire.encoder.encode(await make())

    found = await request.app[STATE].looks.share(key, look)
    return web.Response(body=found.value, content_type="application/json", charset="utf-8")


def page_of(request: web.Request, limit: int, limit_max: int = _LIMIT_MAX) -> tuple[int, int]:
    """`limit` and `offset` of the query; *limit* is the default."""
    return (
        query_int(request, "limit", limit, 1, limit_max),
        query_int(request, "offset", 0, 0, _OFFSET_MAX),
    )


def page_of_partitions(request: web.Request) -> tuple[int, int]:
    """`limit` and `offset` of the query, for partitions in the order of their names."""
    return page_of(request, PARTITIONS_LIMIT, PARTITIONS_LIMIT_MAX)


def message_address(request: web.Request) -> tuple[PartitionId | None, str]:
    """The partition and the transaction id in the path; None for what cannot be a partition."""
    transaction_id = check_text(request.match_info["transaction_id"], "transactionId")
    return parse_partition_id(request.match_info["partition_id"]), transaction_id


# Listings with payloads that are read at the same time, a page each; the others wait.
PAYLOAD_READS: web.AppKey[asyncio.Semaphore] = web.AppKey("payload_reads", asyncio.Semaphore)
