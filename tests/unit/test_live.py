"""What waits for a reader of events is bounded, and what is told never harms a request."""

import asyncio
import datetime
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from queue_server.broker.snapshot import Looks
from queue_server.broker.throughput import Throughput
from queue_server.broker.wakeup import Rooms
from queue_server.domain.message import NewMessage
from queue_server.domain.names import PartitionId
from queue_server.http.live import (
    ANSWERED_BYTES_MAX,
    SUMS_BYTES_MAX,
    WAITING_BYTES_MAX,
    Live,
    Socket,
    _depth_frames,
)
from queue_server.observability.counters import Counters, Life
from queue_server.storage.statistics import Counts, PartitionStatistics, QueueStatistics
from queue_server.storage.transactions import Transactions

Found = tuple[QueueStatistics, list[PartitionStatistics]]


class Stopped:
    """A reader that takes nothing until told to."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.taken: list[str] = []

    async def send_str(self, data: str) -> None:
        await self.goes_on.wait()
        self.taken.append(data)


async def test_a_reader_that_stops_falls_behind() -> None:
    reader = Stopped()
    socket = Socket(reader)
    sending = asyncio.create_task(socket.send_all())
    frame = "x" * 1000
    for _ in range(WAITING_BYTES_MAX // 1000):
        socket.put(frame)
        await asyncio.sleep(0)
    assert not socket.fell_behind.is_set()
    socket.put(frame)
    socket.put(frame)
    assert socket.fell_behind.is_set()
    assert reader.taken == []
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_reader_that_goes_on_gets_all_in_order() -> None:
    reader = Stopped()
    socket = Socket(reader)
    sending = asyncio.create_task(socket.send_all())
    for number in range(100):
        socket.put(str(number))
    reader.goes_on.set()
    async with asyncio.timeout(5):
        while len(reader.taken) < 100:
            await asyncio.sleep(0)
    assert reader.taken == [str(number) for number in range(100)]
    assert not socket.fell_behind.is_set()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def test_a_reader_that_stops_is_not_answered() -> None:
    socket = Socket(Stopped())
    frame = "x" * 1000
    for _ in range(ANSWERED_BYTES_MAX // 1000 * 2):
        socket.answer(frame)
    assert ANSWERED_BYTES_MAX < socket.waiting_bytes < ANSWERED_BYTES_MAX + 2 * len(frame)


class Heard:
    """A worker's events, and all that it told."""

    def __init__(self) -> None:
        counters = Counters(1)
        self._frames: list[str] = []
        rooms = Rooms()
        self.live = Live(
            cast(Transactions, None),
            cast(Looks, None),
            Throughput(counters),
            rooms,
            counters,
            counters.worker(0),
            sockets_max=1,
            worker_name="w",
            has_authentication=False,
        )
        counters.worker(0).words[Life.SOCKETS] = 1  # somebody listens
        rooms.broadcast = self._note  # type: ignore[method-assign]

    def _note(self, event: str) -> None:
        self._frames.append(event)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        frames = [json.loads(frame) for frame in self._frames]
        return [(frame["event"], frame["data"]) for frame in frames]


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_acknowledgements_are_told_cut(heard: Heard) -> None:
    heard.live.acknowledged([("i" * 1001, True, None), ("a", True, None), ("b", False, "e" * 600)])
    assert heard.events == [
        ("message.completed", {"transactionId": "a"}),
        ("message.failed", {"transactionId": "b", "error": "e" * 500}),
    ]


def test_what_may_not_be_told_is_not_looked_at(heard: Heard) -> None:
    looked_at = 0

    def results() -> Iterator[tuple[str, bool, str | None]]:
        nonlocal looked_at
        for number in range(1000):
            looked_at += 1
            yield str(number), True, None

    for _ in range(50):
        heard.live.acknowledged(results())
    # So many a second; the clock's second may end under the test.
    assert looked_at == len(heard.events) <= 200


def test_what_cannot_be_read_is_not_told_and_harms_nobody(heard: Heard) -> None:
    deep = b"[" * 20_000 + b"]" * 20_000
    heard.live.pushed([NewMessage("q")], b'[{"trace_id":' + deep + b"}]")
    heard.live.delivered(b'{"data":' + deep + b"}")
    heard.live.pushed([NewMessage("q")], b"no JSON")
    heard.live.delivered(b"no JSON")
    assert heard.events == []


def test_what_is_pushed_and_delivered_is_told(heard: Heard) -> None:
    items = [NewMessage("q"), NewMessage("r", partition="p")]
    heard.live.pushed(
        items,
        b'[{"index":0,"status":"duplicate","transaction_id":"a"},'
        b'{"index":1,"status":"queued","transaction_id":"b"}]',
    )
    heard.live.delivered(b',{"queue":"q","partition":"Default","transactionId":"c"}')
    assert heard.events == [
        ("message.pushed", {"queue": "r", "partition": "p", "transactionId": "b"}),
        (
            "message.processing",
            {"queue": "q", "partition": "Default", "transactionId": "c", "workerId": "w"},
        ),
    ]


def depths_of(queue: str, partitions: int, label: str) -> Found:
    moment = datetime.datetime(2026, 2, 3, tzinfo=datetime.UTC)
    return (
        QueueStatistics(
            "id", queue, label, label, 0, moment, 0, 0, partitions, Counts(9, 0, 0, 0), 9, 0, 9, 0,
            None, None, None, None, 0.0, 0,
        ),
        [
            PartitionStatistics(
                PartitionId(number), "\x01" * 400 + str(number), moment,
                Counts(number, 0, 0, 0), 0, 0, None, None, None, None,
            )
            for number in range(partitions)
        ],
    )  # fmt: skip


def test_depths_larger_than_the_buffer_cut_no_reader_off(heard: Heard) -> None:
    """The worst names there may be; the deepest queues and partitions come first."""
    reader, other = Socket(Stopped()), Socket(Stopped())
    heard.live._sockets = {reader, other}
    frames = list(_depth_frames([depths_of(f"q{n}", 1000, "\x01" * 411) for n in range(3)]))
    assert sum(map(len, frames)) > WAITING_BYTES_MAX
    for frame in frames:
        heard.live._sum_up(frame)
    for socket in (reader, other):
        assert not socket.fell_behind.is_set()
        assert SUMS_BYTES_MAX - max(map(len, frames)) < socket.waiting_bytes <= SUMS_BYTES_MAX
    first = json.loads(frames[0])["data"]
    assert first["queue"] == "q0"
    assert 50 < len(first["partitions"]) < 1000
    assert all(name.endswith(str(999 - n)) for n, name in enumerate(first["partitions"]))


def test_a_frame_that_is_too_large_is_left_out(heard: Heard) -> None:
    socket = Socket(Stopped())
    heard.live._sockets = {socket}
    heard.live._sum_up("x" * (WAITING_BYTES_MAX + 1))
    assert not socket.fell_behind.is_set()
    assert socket.waiting_bytes == 0
