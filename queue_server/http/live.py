"""The WebSocket on which dashboards hear what happens: wire-api 5.10.

Events that sum up (throughput, depths) are made by each worker that has sockets, and only while it
has. Those of single messages are made where they happen and told to the other workers of the host
by datagram, and only while somebody listens: then each worker tells so many a second and no more.
It is something to look at, not a feed to rely on: nothing of it is stored or repeated.

A reader that does not keep up is cut off: what waits for it is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from queue_server.broker.snapshot import Looks
from queue_server.broker.throughput import LIVE_WINDOW_S, Throughput
from queue_server.broker.wakeup import Rooms
from queue_server.domain.errors import Overloaded, QueueServerError
from queue_server.domain.message import NewMessage
from queue_server.domain.names import DEFAULT_PARTITION
from queue_server.domain.segment import wire_time
from queue_server.observability.counters import Counters, Life, Row
from queue_server.observability.tasks import keep_running
from queue_server.storage import statistics
from queue_server.storage.statistics import (
    Counts,
    PartitionPage,
    PartitionStatistics,
    QueueStatistics,
)
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# What a browser offers beside its credential: it cannot send a header with a WebSocket.
PROTOCOL = "queue-server"

_THROUGHPUT_INTERVAL_S = 1.0
_DEPTH_INTERVAL_S = 5.0
_STATS_INTERVAL_S = 10.0
# Depths may take this part of the time.
_DEPTH_SHARE = 0.05
# How soon a worker notices that another one has a socket.
_LOOK_INTERVAL_S = 0.2
_RECENT_S = 60  # "recent" means the last minute

_FRAME_BYTES_MAX = 16 * 1024  # of what a client sends
_IDLE_S = 60.0
_HEARTBEAT_S = 20.0
# What may wait for one reader.
WAITING_BYTES_MAX = 4 * 1024 * 1024
# Depths are left out where more than this would wait.
SUMS_BYTES_MAX = WAITING_BYTES_MAX // 2
# Depths are sent in parts of this size, with a pause for the readers to take each.
_PART_BYTES = 256 * 1024
_PART_PAUSE_S = 0.05
# The partitions in one event of a queue's depth; each has an event of its own besides.
_DEPTH_EVENT_BYTES = 256 * 1024
# Who sends more while so much waits for it is not answered.
ANSWERED_BYTES_MAX = 64 * 1024
# With credentials a socket ends after this time, so that one which was revoked ends too; who still
# may connects again.
_LIFE_S = 60.0

_MESSAGES_A_SECOND_MAX = 100
_QUEUES_MAX = 1000
_PARTITIONS_MAX = 1000
_SUBSCRIBED_MAX = 100
# An answer is read again for its events only when it is no longer than this.
_ANSWER_BYTES_MAX = 64 * 1024
# An id may be as long as a body: a longer one than this is not told.
_ID_CHARS_MAX = 1000
_ERROR_CHARS_MAX = 500
# What is read for the dashboard alone must not fail a request, however deep it is nested.
_UNREADABLE = (msgspec.MsgspecError, RecursionError)

_encode = msgspec.json.encode
# The figures of one partition, with room for large numbers.
_DEPTH_BYTES = 120


class _Pushed(msgspec.Struct):
    index: int
    status: str
    transaction_id: str


class _Delivered(msgspec.Struct, rename="camel"):
    queue: str
    partition: str
    transaction_id: str


_pushed_decoder = msgspec.json.Decoder(list[_Pushed])
_delivered_decoder = msgspec.json.Decoder(list[_Delivered])


class _Subscribe(msgspec.Struct):
    type: str
    queues: list[str] = []


class Sender(Protocol):
    """What a frame is sent with; it waits while the reader takes nothing."""

    async def send_str(self, data: str) -> None: ...


class Socket:
    """One reader, and what waits for it."""

    def __init__(self, ws: Sender) -> None:
        self.id = secrets.token_hex(8)
        self.queues: list[str] = []
        self._ws = ws
        self._waiting: deque[str] = deque()
        self.waiting_bytes = 0
        self._news = asyncio.Event()
        self.fell_behind = asyncio.Event()  # more than may waits for it

    def put(self, frame: str) -> None:
        if self.waiting_bytes + len(frame) > WAITING_BYTES_MAX:
            self.fell_behind.set()
        else:
            self.waiting_bytes += len(frame)
            self._waiting.append(frame)
            self._news.set()

    def answer(self, frame: str) -> None:
        """Answer what it sent, unless it does not even take what waits for it."""
        if self.waiting_bytes <= ANSWERED_BYTES_MAX:
            self.put(frame)

    async def send_all(self) -> None:
        """Send what is put; runs until cancelled, or until the socket ends."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._ws.send_str(self._waiting[0])
                self.waiting_bytes -= len(self._waiting.popleft())


class Live:
    """The sockets of one worker, and the events for them."""

    def __init__(
        self,
        transactions: Transactions,
        looks: Looks,
        throughput: Throughput,
        rooms: Rooms,
        counters: Counters,
        row: Row,
        *,
        sockets_max: int,
        worker_name: str,
        has_authentication: bool,
    ) -> None:
        self._transactions = transactions
        self._looks = looks
        self._throughput = throughput
        self._rooms = rooms
        self._counters = counters
        self._row = row
        self._sockets_max = sockets_max
        self._worker_name = worker_name
        self._life_s = _LIFE_S if has_authentication else None
        self._sockets: set[Socket] = set()
        self._connections: set[web.WebSocketResponse] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._look_again_at = float("-inf")
        self._is_listened_to = False
        # What single messages may still be told in this second.
        self._second = 0
        self._left = 0
        rooms.on_event = self._hear

    # -- sockets --

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one socket until it ends.

        Errors: `Overloaded` when there are too many or the worker stops.
        """
        if self._is_closing or sum(self._counters.states(Life.SOCKETS)) >= self._sockets_max:
            raise Overloaded("too many WebSockets are open here; try again later")
        ws = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            heartbeat=_HEARTBEAT_S,
            receive_timeout=_IDLE_S,
            max_msg_size=_FRAME_BYTES_MAX,
            compress=False,
        )
        await ws.prepare(request)
        socket = Socket(ws)
        self._open(socket, ws)
        tasks = {
            asyncio.create_task(work, name="live-socket")
            for work in (socket.send_all(), self._read(ws, socket), socket.fell_behind.wait())
        }
        try:
            await asyncio.wait(tasks, timeout=self._life_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._close(socket, ws)
        if not socket.fell_behind.is_set():
            await ws.close()
        elif request.transport is not None:
            # It takes nothing, so a word of farewell would wait too.
            request.transport.abort()
        return ws

    def _open(self, socket: Socket, ws: web.WebSocketResponse) -> None:
        self._connections.add(ws)
        socket.put(_frame("connected", {"connectionId": socket.id, "version": "v2"}))
        self._sockets.add(socket)
        self._row.words[Life.SOCKETS] = len(self._sockets)
        self.tell("client.connected", {"clientId": socket.id})
        if not self._tasks:
            self._tasks = [
                keep_running(loop, "live")
                for loop in (self._tell_throughput, self._tell_depths, self._tell_stats)
            ]

    def _close(self, socket: Socket, ws: web.WebSocketResponse) -> None:
        self._connections.discard(ws)
        self._sockets.discard(socket)
        self._row.words[Life.SOCKETS] = len(self._sockets)
        self.tell("client.disconnected", {"clientId": socket.id})
        if not self._sockets:
            for task in self._tasks:
                task.cancel()
            self._tasks = []

    async def _read(self, ws: web.WebSocketResponse, socket: Socket) -> None:
        with contextlib.suppress(TimeoutError):
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    continue
                if message.data == "ping":
                    socket.answer("pong")
                    continue
                try:
                    wish = msgspec.json.decode(message.data, type=_Subscribe)
                except _UNREADABLE:
                    continue  # whatever it is, it is nothing to us
                if wish.type == "subscribe":
                    socket.queues = wish.queues[:_SUBSCRIBED_MAX]
                    socket.answer(_frame("subscribed", {"queues": socket.queues}))

    async def close(self) -> None:
        """End all sockets: the worker stops."""
        self._is_closing = True
        await asyncio.gather(
            *(
                ws.close(code=WSCloseCode.GOING_AWAY, message=b"the worker stops")
                for ws in list(self._connections)
            ),
            return_exceptions=True,
        )

    # -- events --

    @property
    def is_listened_to(self) -> bool:
        """Whether a worker of this host has sockets, or had a moment ago."""
        now = time.monotonic()
        if now > self._look_again_at:
            # Asked with every request.
            self._look_again_at = now + _LOOK_INTERVAL_S
            self._is_listened_to = any(self._counters.states(Life.SOCKETS))
        return self._is_listened_to or bool(self._sockets)

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Tell the sockets of all workers of this host."""
        if self.is_listened_to:
            frame = _frame(event, data)
            self._hear(frame)
            self._rooms.broadcast(frame)

    def _hear(self, frame: str) -> None:
        for socket in self._sockets:
            socket.put(frame)

    def _sum_up(self, frame: str) -> None:
        """Send what comes again in a few seconds, where it does not take up all there is room for.

        A reader that is cut off for the mere size of what the server sends could never stay.
        """
        for socket in self._sockets:
            if socket.waiting_bytes + len(frame) <= SUMS_BYTES_MAX:
                socket.put(frame)

    def _may_tell(self) -> bool:
        """Whether somebody listens, and single messages may still be told of in this second."""
        if not self.is_listened_to:
            return False
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._left = second, _MESSAGES_A_SECOND_MAX
        return self._left > 0

    def _tell_some(self, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Tell as many of *events* as may be told; the others are not even looked at."""
        for event, data in islice(events, self._left):
            self._left -= 1
            self.tell(event, data)

    def pushed(self, items: Sequence[NewMessage], answer: bytes) -> None:
        """*items* were pushed; *answer* has their ids."""
        if len(answer) > _ANSWER_BYTES_MAX or not self._may_tell():
            return
        try:
            results = _pushed_decoder.decode(answer)
        except _UNREADABLE:
            return
        self._tell_some(
            (
                "message.pushed",
                {
                    "queue": items[one.index].queue,
                    "partition": items[one.index].partition or DEFAULT_PARTITION,
                    "transactionId": one.transaction_id,
                },
            )
            for one in results
            if one.status == "queued"
        )

    def delivered(self, messages: bytes) -> None:
        """*messages*, objects separated by commas, go out to a consumer."""
        if len(messages) > _ANSWER_BYTES_MAX or not self._may_tell():
            return
        try:
            found = _delivered_decoder.decode(b"[" + messages.removeprefix(b",") + b"]")
        except _UNREADABLE:
            return
        self._tell_some(
            (
                "message.processing",
                {
                    "queue": one.queue,
                    "partition": one.partition,
                    "transactionId": one.transaction_id,
                    "workerId": self._worker_name,
                },
            )
            for one in found
        )

    def acknowledged(self, results: Iterable[tuple[str, bool, str | None]]) -> None:
        """Messages were acknowledged: id, whether as completed, and the reason if not."""
        if not self._may_tell():
            return
        self._tell_some(
            ("message.completed", {"transactionId": transaction_id})
            if completed
            else (
                "message.failed",
                {"transactionId": transaction_id, "error": error and error[:_ERROR_CHARS_MAX]},
            )
            for transaction_id, completed, error in results
            if len(transaction_id) <= _ID_CHARS_MAX
        )

    # -- what sums up, while there are sockets here --

    async def _tell_throughput(self) -> None:
        while True:
            await asyncio.sleep(_THROUGHPUT_INTERVAL_S)
            rates = self._throughput.everywhere(LIVE_WINDOW_S)
            self._hear(
                _frame(
                    "throughput",
                    {
                        "pushedPerSecond": round(rates.pushed, 2),
                        "poppedPerSecond": round(rates.popped, 2),
                        "ackedPerSecond": round(rates.acked, 2),
                    },
                )
            )

    async def _tell_stats(self) -> None:
        while True:
            await asyncio.sleep(_STATS_INTERVAL_S)
            try:
                counts = (await self._looks.overview.current()).value.counts
            except QueueServerError:
                continue  # the next one is due soon
            except Exception:
                logger.exception("the sums for the dashboard failed")
                continue
            rates = self._throughput.everywhere(_RECENT_S)
            self._hear(
                _frame(
                    "system.stats",
                    {
                        "pending": counts.pending,
                        "processing": counts.processing,
                        "recentCreated": round(rates.pushed * _RECENT_S),
                        "recentCompleted": round(rates.acked * _RECENT_S),
                        "connections": sum(self._counters.states(Life.SOCKETS)),
                    },
                )
            )

    async def _tell_depths(self) -> None:
        pause_s = _DEPTH_INTERVAL_S
        while True:
            await asyncio.sleep(pause_s)
            begin = time.monotonic()
            try:
                found = await self._depths()
            except QueueServerError:
                continue
            except Exception:
                logger.exception("the depths for the dashboard failed")
                continue
            pause_s = max(_DEPTH_INTERVAL_S, (time.monotonic() - begin) / _DEPTH_SHARE)
            sent_bytes = 0
            for frame in _depth_frames(found):
                self._sum_up(frame)
                sent_bytes += len(frame)
                if sent_bytes > _PART_BYTES:
                    # So that a reader that keeps up gets them all.
                    await asyncio.sleep(_PART_PAUSE_S)
                    sent_bytes = 0

    async def _depths(self) -> list[tuple[QueueStatistics, list[PartitionStatistics]]]:
        """The deepest queues; with partitions when there are few, or those subscribed to."""
        overview = (await self._looks.overview.current()).value
        queues = sorted(overview.queues, key=lambda queue: -queue.counts.pending)[:_QUEUES_MAX]
        wanted = queues
        if overview.partition_count > _PARTITIONS_MAX:
            names = {name for socket in self._sockets for name in socket.queues}
            left = _PARTITIONS_MAX
            wanted = []
            for queue in queues:
                if queue.name in names and queue.partition_count <= left:
                    left -= queue.partition_count
                    wanted.append(queue)
        partitions: dict[str, list[PartitionStatistics]] = {}
        if wanted:
            partitions = await statistics.partitions_of(
                self._transactions,
                [PartitionPage(queue.id, 0, queue.partition_count) for queue in wanted],
            )
        return [(queue, partitions.get(queue.id, [])) for queue in queues]


def _depth_frames(
    found: Iterable[tuple[QueueStatistics, Sequence[PartitionStatistics]]],
) -> Iterator[str]:
    for queue, partitions in found:
        yield _frame("queue.depth", _queue_depth(queue, partitions))
        for one in partitions:
            data = {"queue": queue.name, "partition": one.name} | _depth(one.counts)
            yield _frame("partition.depth", data | {"total": one.counts.total})


def _queue_depth(queue: QueueStatistics, partitions: Sequence[PartitionStatistics]) -> Any:
    depths: dict[str, dict[str, int]] = {}
    left_bytes = _DEPTH_EVENT_BYTES
    # Of many with long names those with the most to read.
    for one in sorted(partitions, key=lambda one: -one.counts.pending):
        left_bytes -= len(_encode(one.name)) + _DEPTH_BYTES
        if left_bytes < 0:
            break
        depths[one.name] = _depth(one.counts)
    return {
        "queue": queue.name,
        "namespace": queue.namespace,
        "task": queue.task,
        "totalDepth": queue.counts.pending,
        "totalProcessing": queue.counts.processing,
        "partitions": depths,
    }


def _depth(counts: Counts) -> dict[str, int]:
    return {
        "depth": counts.pending,
        "processing": counts.processing,
        "completed": counts.completed,
        "failed": 0,  # a nacked message is pending again at once
    }


def _frame(event: str, data: Any) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return _encode({"event": event, "data": data, "timestamp": wire_time(now)}).decode()
