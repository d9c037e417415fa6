"""As much of AMQP 0-9-1 as a load needs; written for the same reason as `bench/client.py`.

A connection has one channel. Frames are `type, channel, length, payload, 0xCE`; a method's payload
begins with its class and number, a message is a method, a header and its body, a frame each.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self, cast

from bench.client import RequestFailed
from bench.peers.inbox import Inbox

_METHOD, _HEADER, _BODY = 1, 2, 3
_END = b"\xce"
_CHANNEL = 1

_CONNECTION_START = (10, 10)
_CONNECTION_START_OK = (10, 11)
_CONNECTION_TUNE = (10, 30)
_CONNECTION_TUNE_OK = (10, 31)
_CONNECTION_OPEN = (10, 40)
_CONNECTION_OPEN_OK = (10, 41)
_CONNECTION_CLOSE = (10, 50)
_CHANNEL_OPEN = (20, 10)
_CHANNEL_OPEN_OK = (20, 11)
_CHANNEL_CLOSE = (20, 40)
_QUEUE_DECLARE = (50, 10)
_QUEUE_DECLARE_OK = (50, 11)
_BASIC_QOS = (60, 10)
_BASIC_QOS_OK = (60, 11)
_BASIC_CONSUME = (60, 20)
_BASIC_CONSUME_OK = (60, 21)
_BASIC_PUBLISH = (60, 40)
_BASIC_DELIVER = (60, 60)
_BASIC_ACK = (60, 80)
_BASIC_NACK = (60, 120)
_CONFIRM_SELECT = (85, 10)
_CONFIRM_SELECT_OK = (85, 11)

_NO_ARGUMENTS = struct.pack(">I", 0)
_PERSISTENT = struct.pack(">HB", 1 << 12, 2)  # the one property that is given: delivery mode 2
_DURABLE, _PASSIVE = 2, 1
_QUORUM = b"\x0cx-queue-typeS" + struct.pack(">I", 6) + b"quorum"

_VERSION = re.compile(rb"\x07versionS....([0-9.]+)", re.DOTALL)

Method = tuple[int, int]


class Delivered(NamedTuple):
    tag: int
    payload: bytes


class AmqpConnection(asyncio.Protocol):
    """A connection with one channel, for one task at a time."""

    def __init__(self) -> None:
        self.version = ""
        self.inbox: Inbox[Delivered] = Inbox()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._awaited: tuple[Method, asyncio.Future[bytes]] | None = None
        self._tag = 0  # of the message that is arriving
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._confirmed: asyncio.Future[None] | None = None
        self._failure: RequestFailed | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(cls, host, port)
        except OSError as exc:
            raise RequestFailed(f"no broker at {host}:{port}: {exc}") from exc
        await connection._begin()
        return connection

    async def _begin(self) -> None:
        start = self._expect(_CONNECTION_START)
        self._write(b"AMQP\x00\x00\x09\x01")
        if found := _VERSION.search(await start):
            self.version = found[1].decode("ascii")
        tune = self._expect(_CONNECTION_TUNE)
        credentials = b"\0guest\0guest"
        self._send(
            _CONNECTION_START_OK,
            _NO_ARGUMENTS,
            _short("PLAIN"),
            struct.pack(">I", len(credentials)) + credentials,
            _short("en_US"),
            channel=0,
        )
        # Its limits are taken as they are, but no heartbeat: a busy load answers none in time.
        channel_max, frame_max, _ = struct.unpack_from(">HIH", await tune)
        opened = self._expect(_CONNECTION_OPEN_OK)
        limits = struct.pack(">HIH", channel_max, frame_max, 0)
        self._send(_CONNECTION_TUNE_OK, limits, channel=0)
        self._send(_CONNECTION_OPEN, _short("/"), _short(""), b"\0", channel=0)
        await opened
        await self._call(_CHANNEL_OPEN, _CHANNEL_OPEN_OK, _short(""))

    # -- what a load does --

    async def declare(self, queue: str) -> None:
        """A durable quorum queue."""
        arguments = struct.pack(">I", len(_QUORUM)) + _QUORUM
        head = b"\0\0" + _short(queue) + bytes([_DURABLE])
        await self._call(_QUEUE_DECLARE, _QUEUE_DECLARE_OK, head, arguments)

    async def message_count(self, queue: str) -> int:
        """How many messages it has that nobody holds."""
        head = b"\0\0" + _short(queue) + bytes([_PASSIVE])
        answer = await self._call(_QUEUE_DECLARE, _QUEUE_DECLARE_OK, head, _NO_ARGUMENTS)
        return int.from_bytes(answer[1 + answer[0] :][:4], "big")

    async def confirm(self) -> None:
        """Have every message that is published from now on confirmed."""
        await self._call(_CONFIRM_SELECT, _CONFIRM_SELECT_OK, b"\0")

    async def publish(self, queue: str, payloads: Sequence[bytes]) -> None:
        """Publish persistent messages in one write, and wait for all their confirms."""
        publish = _method_frame(_BASIC_PUBLISH, b"\0\0", _short(""), _short(queue), b"\0")
        frames = []
        for payload in payloads:
            header = struct.pack(">HHQ", 60, 0, len(payload)) + _PERSISTENT
            frames += [publish, _frame(_HEADER, header), _frame(_BODY, payload)]
        first = self._published + 1
        self._published += len(payloads)
        self._unconfirmed.update(range(first, self._published + 1))
        self._confirmed = asyncio.get_running_loop().create_future()
        self._write(b"".join(frames))
        await self._confirmed

    async def consume(self, queue: str, prefetch: int) -> None:
        """Have messages sent to the inbox, *prefetch* ahead of their acknowledgement."""
        await self._call(_BASIC_QOS, _BASIC_QOS_OK, struct.pack(">IHB", 0, prefetch, 0))
        head = b"\0\0" + _short(queue) + _short("bench") + b"\0"
        await self._call(_BASIC_CONSUME, _BASIC_CONSUME_OK, head, _NO_ARGUMENTS)

    def acknowledge(self, tag: int) -> None:
        """All messages up to *tag*; there is no answer to it."""
        self._send(_BASIC_ACK, struct.pack(">QB", tag, 1))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- frames --

    async def _call(self, method: Method, answer: Method, *arguments: bytes) -> bytes:
        answered = self._expect(answer)
        self._send(method, *arguments)
        return await answered

    def _expect(self, answer: Method) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._awaited = (answer, future)
        return future

    def _send(self, method: Method, *arguments: bytes, channel: int = _CHANNEL) -> None:
        self._write(_method_frame(method, *arguments, channel=channel))

    def _write(self, data: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        assert self._transport is not None
        self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the broker closed a connection: {exc or 'end of stream'}")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 8:
            kind, _, size = struct.unpack_from(">BHI", buffer, at)
            end = at + 7 + size
            if len(buffer) <= end:
                break
            payload = bytes(buffer[at + 7 : end])
            at = end + 1
            if kind == _BODY:
                # Bodies are smaller than the smallest frame limit, so each is one frame.
                self.inbox.add(Delivered(self._tag, payload))
            elif kind == _METHOD:
                self._on_method(struct.unpack_from(">HH", payload), payload[4:])
        del buffer[:at]

    def _on_method(self, method: Method, arguments: bytes) -> None:
        if method == _BASIC_DELIVER:
            (self._tag,) = struct.unpack_from(">Q", arguments, 1 + arguments[0])
        elif method == _BASIC_ACK:
            self._on_confirm(*struct.unpack_from(">QB", arguments))
        elif method == _BASIC_NACK:
            self._fail("the broker refused a message that was published")
        elif method in (_CONNECTION_CLOSE, _CHANNEL_CLOSE):
            code, size = struct.unpack_from(">HB", arguments)
            text = arguments[3 : 3 + size].decode("utf-8", "replace")
            self._fail(f"the broker closed a channel: {code} {text}")
        elif self._awaited is not None and self._awaited[0] == method:
            _, future = self._awaited
            self._awaited = None
            future.set_result(arguments)

    def _on_confirm(self, tag: int, is_multiple: int) -> None:
        if is_multiple:
            self._unconfirmed = {one for one in self._unconfirmed if one > tag}
        else:
            self._unconfirmed.discard(tag)
        if not self._unconfirmed and self._confirmed is not None:
            self._confirmed.set_result(None)
            self._confirmed = None

    def _fail(self, text: str) -> None:
        self._failure = self._failure or RequestFailed(text)
        self.inbox.fail(self._failure)
        waiting = [self._confirmed, self._awaited[1] if self._awaited else None]
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(self._failure)


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("ascii")


def _frame(kind: int, payload: bytes, channel: int = _CHANNEL) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _END


def _method_frame(method: Method, *arguments: bytes, channel: int = _CHANNEL) -> bytes:
    return _frame(_METHOD, struct.pack(">HH", *method) + b"".join(arguments), channel)
