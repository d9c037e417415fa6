"""Listings leave nothing out, whatever partitions the messages of a window lie in."""

import datetime
import os
import random
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from queue_server.broker import stored_messages as broker
from queue_server.broker.directory import Directory
from queue_server.broker.push import Pusher
from queue_server.broker.stored_messages import OFFSET_MAX, PAGE_BYTES, Listed, StoredMessages
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadRequest
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QueueName
from queue_server.domain.status import MessageStatus
from queue_server.observability.counters import Counters
from queue_server.storage import stored_messages as storage
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.stored_messages import MessageFilter
from queue_server.storage.transactions import Parameters, Transactions

PARTITIONS = 400
ROUNDS = 6
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


class Place(NamedTuple):
    """A stored message, in the order of listings."""

    created_at: datetime.datetime
    partition_id: int
    base_offset: int
    offset: int


class Log:
    """Two queues of several hundred partitions, filled as a server does."""

    def __init__(self, conninfo: str, transactions: Transactions, seed: int) -> None:
        self.conninfo = conninfo
        self.random = random.Random(seed)
        self.messages = StoredMessages(transactions, transactions, Keyring(), Rooms())
        row = Counters(1).worker(0)
        self._pusher = Pusher(transactions, Directory(transactions), Rooms(), row, Keyring())

    async def push(self, queue: str, partitions: list[str], payload: bytes = b"1") -> None:
        items = [NewMessage(queue, msgspec.Raw(payload), partition) for partition in partitions]
        await self._pusher.push(items, 1000)

    async def fill(self) -> None:
        names = [f"p{number}" for number in range(PARTITIONS)]
        for _ in range(ROUNDS):
            for queue in ("q", "other"):
                chosen = [name for name in names if self.random.random() < 0.4]
                await self.push(
                    queue,
                    [name for name in chosen for _ in range(self.random.choice([1, 2, 3]))],
                )

    async def ask(self, query: str, *parameters: Any) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True) as own:
            cursor = await own.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def spread(self) -> None:
        """Give the segments other times: some hours, with many at the same minute."""
        segments = await self.ask(
            "SELECT partition_id, base_offset FROM queen.segments ORDER BY 1, 2"
        )
        times: dict[int, datetime.datetime] = {}
        ids, bases, moments = [], [], []
        for partition_id, base_offset in segments:
            time = times.get(partition_id, LONG_AGO)
            time += datetime.timedelta(minutes=self.random.choice([0, 1, 60, 600]))
            times[partition_id] = time
            ids.append(partition_id)
            bases.append(base_offset)
            moments.append(time)
        await self.ask(
            "UPDATE queen.segments s SET created_at = u.moment"
            " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[]) AS u (id, base, moment)"
            " WHERE s.shard = 1 AND s.partition_id = u.id AND s.base_offset = u.base",
            ids, bases, moments,
        )  # fmt: skip
        await self.ask(
            "UPDATE queen.allocators a SET last_segment_at = u.moment"
            " FROM unnest(%s::bigint[], %s::timestamptz[]) AS u (id, moment)"
            " WHERE a.partition_id = u.id",
            list(times), list(times.values()),
        )  # fmt: skip

    async def consume(self) -> None:
        """Groups somewhere in half of the partitions, leases, dead letters and holes."""
        await self.ask(
            "INSERT INTO queen.subscriptions"
            " (queue_id, consumer_group, queue_wide, mode, starts_at)"
            " SELECT q.id, g.name, true, 'all', now() FROM queen.queues q,"
            " unnest(ARRAY['__QUEUE_MODE__', 'a', 'b']) AS g (name)"
            " WHERE g.name <> '__QUEUE_MODE__' OR q.name = 'q'"
        )
        rows = await self.ask(
            "SELECT a.partition_id, u.id, u.consumer_group, a.next_offset"
            " FROM queen.allocators a JOIN queen.subscriptions u ON u.queue_id = a.queue_id"
            " WHERE a.next_offset > 0 ORDER BY 1, 2"
        )
        cursors = []
        for partition_id, subscription_id, group, next_offset in rows:
            if self.random.random() < 0.5:
                continue
            committed = self.random.randint(0, next_offset)
            lease_end = None
            if group == "__QUEUE_MODE__" and self.random.random() < 0.5:
                lease_end = self.random.randint(committed, next_offset)
            cursors.append((partition_id, subscription_id, committed, lease_end))
        await self.insert(
            "INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset,"
            "  lease_end, lease_expires_at)"
            " VALUES (1, %s, %s, %s, %s, now() + interval '1 hour')",
            cursors,
        )
        places = await self.places()
        gone = self.random.sample(places, len(places) // 5)
        half = len(gone) // 2
        await self.insert(
            "INSERT INTO queen.holes (shard, partition_id, message_offset) VALUES (1, %s, %s)",
            keys(gone[:half]),
        )
        await self.bury([(place, uuid.uuid4()) for place in gone[half:]])

    async def bury(self, messages: list[tuple[Place, uuid.UUID]]) -> None:
        """Make dead letters of messages with these ids."""
        await self.insert(
            "INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            "  message_offset, message_id, transaction_id, payload, error_message, retry_count,"
            "  created_at)"
            " SELECT 1, gen_random_uuid(), p.id, p.queue_id, 'a', %s, %s, 'dead', '1', 'bad', 0, %s"
            " FROM queen.partitions p WHERE p.id = %s",
            [(one.offset, id_, one.created_at, one.partition_id) for one, id_ in messages],
        )

    async def insert(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        async with await psycopg.AsyncConnection.connect(self.conninfo) as own:
            await own.cursor().executemany(query.encode(), rows)

    async def places(self, queue: str | None = None) -> list[Place]:
        """The messages that are not holes, in the order of listings."""
        rows = await self.ask(
            "SELECT s.created_at, s.partition_id, s.base_offset, n FROM queen.segments s"
            " JOIN queen.partitions p ON p.id = s.partition_id"
            " JOIN queen.queues q ON q.id = p.queue_id"
            " CROSS JOIN generate_series(s.base_offset, s.next_offset - 1) n"
            " WHERE (%s::text IS NULL OR q.name = %s) AND NOT EXISTS (SELECT 1 FROM queen.holes h"
            "  WHERE h.partition_id = s.partition_id AND h.message_offset = n)",
            queue, queue,
        )  # fmt: skip
        return sorted((Place(*row) for row in rows), reverse=True)

    async def page(
        self, filter_: MessageFilter, limit: int = 1000, offset: int = 0
    ) -> list[tuple[int, int]]:
        listing = await self.messages.page(filter_, limit, offset)
        assert not listing.truncated
        found = listing.messages
        if filter_.status is not None:
            assert {one.status for one in found} <= {filter_.status}
        return [(one.message.partition.id, one.message.offset) for one in found]


@pytest.fixture
async def log(conninfo: str, transactions: Transactions) -> Log:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    log = Log(conninfo, transactions, seed)
    await log.fill()
    return log


def keys(places: list[Place]) -> list[tuple[int, int]]:
    return [(place.partition_id, place.offset) for place in places]


async def test_every_page_of_every_window_is_whole(log: Log) -> None:
    """Compared with all there is, sorted."""
    await log.spread()
    everything = {queue: await log.places(queue) for queue in ("q", "other", None)}
    moments = sorted({place.created_at for place in everything[None]})
    half_a_minute = datetime.timedelta(seconds=30)
    for _ in range(80):
        queue = log.random.choice(["q", "other", None])
        start = log.random.choice([LONG_AGO, log.random.choice(moments)])
        end = log.random.choice([None, log.random.choice(moments) + half_a_minute])
        expected = [
            place
            for place in everything[queue]
            if place.created_at >= start and (end is None or place.created_at < end)
        ]
        limit = log.random.choice([1, 7, 50, 200, 1000])
        offset = log.random.choice([0, limit, log.random.randint(0, len(expected) + 1)])
        filter_ = MessageFilter(start=start, end=end, queue=queue)
        assert await log.page(filter_, limit, offset) == keys(expected[offset : offset + limit]), (
            filter_, limit, offset,
        )  # fmt: skip


async def test_every_status_is_found_in_every_window(log: Log) -> None:
    await log.spread()
    await log.consume()
    places = await log.places()
    moments = sorted({place.created_at for place in places})
    listed: list[Listed] = []
    everything = MessageFilter(start=LONG_AGO)
    while page := (await log.messages.page(everything, 1000, len(listed))).messages:
        listed += page
    assert [(one.message.partition.id, one.message.offset) for one in listed] == keys(places)
    seen = set()
    for _ in range(80):
        status = log.random.choice(
            [MessageStatus.PENDING, MessageStatus.PROCESSING, MessageStatus.COMPLETED]
        )
        queue = log.random.choice(["q", "other", None])
        end = log.random.choice([None, log.random.choice(moments)])
        expected = [
            place
            for place, one in zip(places, listed, strict=True)
            if one.status is status
            and queue in (None, one.message.partition.queue)
            and (end is None or place.created_at < end)
        ]
        limit = log.random.choice([1, 7, 50, 1000])
        offset = log.random.choice([0, 0, log.random.randint(0, len(expected))])
        filter_ = MessageFilter(start=LONG_AGO, end=end, queue=queue, status=status)
        assert await log.page(filter_, limit, offset) == keys(expected[offset : offset + limit]), (
            filter_, limit, offset,
        )  # fmt: skip
        seen |= {status for _ in expected}
    assert len(seen) == 3


async def test_what_was_taken_out_before_a_page_does_not_end_it(
    transactions: Transactions, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(conninfo, transactions, 0)
    for _ in range(300):
        await log.push("q", ["p"])
    places = await log.places()
    assert len({place.base_offset for place in places}) == 300
    await log.ask(
        "INSERT INTO queen.holes (shard, partition_id, message_offset)"
        " SELECT 1, %s, n FROM generate_series(10, 299) n",
        places[0].partition_id,
    )
    filter_ = MessageFilter(start=LONG_AGO)
    assert await log.page(filter_, 1) == keys(places[290:291])
    assert await log.page(filter_, 5, 8) == keys(places[298:])
    monkeypatch.setattr(broker, "_SEGMENTS_MAX", 100)
    with pytest.raises(BadRequest, match="were taken out"):
        await log.page(filter_, 1)
    assert await log.page(filter_, 301) == keys(places[290:])


async def test_a_window_that_takes_too_long_to_search_says_what_to_name(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.spread()
    monkeypatch.setattr(broker, "_WINDOW_S", 0)
    middle = (await log.places())[1000].created_at
    with pytest.raises(BadRequest, match="name a queue or a partition, or leave `to` out"):
        await log.page(MessageFilter(start=LONG_AGO, end=middle), 1)
    assert len(await log.page(MessageFilter(start=middle), 50)) == 50
    # Nothing was pushed after it, so nothing has to be searched.
    end = datetime.datetime.now(datetime.UTC)
    assert len(await log.page(MessageFilter(start=LONG_AGO, end=end), 50)) == 50


async def test_how_far_a_page_may_begin_is_told(log: Log) -> None:
    assert await log.page(MessageFilter(start=LONG_AGO), 1, OFFSET_MAX) == []
    for status in (None, MessageStatus.DEAD_LETTER):
        with pytest.raises(BadRequest, match="10000 at most: give from and to, or a partition"):
            await log.page(MessageFilter(start=LONG_AGO, status=status), 1, OFFSET_MAX + 1)


async def test_a_page_reads_its_segments_together(
    log: Log, transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    call = transactions.call

    async def counting(statement: str, parameters: Parameters) -> list[Any]:
        asked.append(statement)
        return await call(statement, parameters)

    monkeypatch.setattr(transactions, "call", counting)
    assert len(await log.page(MessageFilter(start=LONG_AGO, queue="q"), 50)) == 50
    assert asked.count(STATEMENTS["read_segments"]) == 1
    assert len(asked) <= 6
    # Of large ones, so many that a worker can hold.
    payloads = [b'"%d%s"' % (number, b"x" * 1_000_000) for number in range(10)]
    for number, payload in enumerate(payloads):
        await log.push("large", [f"p{number}"], payload)
    asked.clear()
    large = MessageFilter(start=LONG_AGO, queue="large")
    page = await log.messages.page(large, 50, 0)
    assert [one.message.payload for one in page.messages] == payloads[::-1]
    assert asked.count(STATEMENTS["read_segments"]) == 3


async def test_a_page_ends_behind_so_many_bytes_of_payloads(log: Log) -> None:
    payloads = [b'"%03d%s"' % (number, b"x" * 3_000_000) for number in range(14)]
    for number, payload in enumerate(payloads):
        await log.push("large", [f"p{number % 3}"], payload)
    large = MessageFilter(start=LONG_AGO, queue="large")
    listed: list[Listed] = []
    truncated = True
    pages = 0
    while truncated:
        page = await log.messages.page(large, 1000, len(listed))
        listed += page.messages
        truncated = page.truncated
        pages += 1
        # With the last one it is more than allowed, without it is not.
        assert sum(len(one.message.payload or b"") for one in page.messages[:-1]) <= PAGE_BYTES
    assert [one.message.payload for one in listed] == payloads[::-1]
    assert pages == 3
    # As many as fit are no part of a page; and without payloads a page is as long as asked for.
    assert not (await log.messages.page(large, 5, 0)).truncated
    bare = await log.messages.page(large, 1000, 0, with_payloads=False)
    assert [one.message.payload for one in bare.messages] == [b""] * 14
    assert not bare.truncated


# ── by message id ───────────────────────────────────────────────────────────────────────────────


async def ids(log: Log) -> list[tuple[Place, uuid.UUID, str]]:
    """Every message with its id and queue, in random order."""
    rows = await log.ask(
        "SELECT s.created_at, s.partition_id, s.base_offset, n, s.first_message_id, q.name"
        " FROM queen.segments s JOIN queen.partitions p ON p.id = s.partition_id"
        " JOIN queen.queues q ON q.id = p.queue_id"
        " CROSS JOIN generate_series(s.base_offset, s.next_offset - 1) n"
    )
    found = [
        (Place(*row[:4]), uuid.UUID(int=row[4].int + row[3] - row[2]), str(row[5])) for row in rows
    ]
    log.random.shuffle(found)
    return found


@pytest.mark.parametrize("partitions", [5000, 100])
async def test_a_message_is_found_by_its_message_id(
    log: Log, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    # At the second size several statements are needed for all partitions.
    monkeypatch.setattr(storage, "_SEARCH_PARTITIONS", partitions)
    everything = await ids(log)
    other = {"q": "other", "other": "q"}
    for place, id_, queue in everything[:40]:
        for within in (None, QueueName(queue)):
            found = await log.messages.find(id_, within)
            assert found is not None
            assert found.message.id == str(id_)
            assert (found.message.partition.id, found.message.offset) == keys([place])[0]
            assert found.message.partition.queue == queue
        assert await log.messages.find(id_, QueueName(other[queue])) is None
    assert await log.messages.find(everything[0][1], QueueName("absent")) is None
    for absent in (
        uuid.UUID(int=everything[0][1].int + 2000),
        uuid.UUID("00000000-0000-7000-8000-000000000000"),
        uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"),
    ):
        assert await log.messages.find(absent, None) is None

    place, id_, _ = everything[50]
    await log.ask(
        "INSERT INTO queen.holes (shard, partition_id, message_offset) VALUES (1, %s, %s)",
        place.partition_id, place.offset,
    )  # fmt: skip
    assert await log.messages.find(id_, None) is None


async def test_a_message_is_found_by_its_message_id_when_clocks_disagree(log: Log) -> None:
    """The id was made by a worker's clock, the time by the database's."""
    place, id_, _ = (await ids(log))[0]
    for seconds in (40, -80):
        for table, column in (("segments", "created_at"), ("allocators", "last_segment_at")):
            await log.ask(
                f"UPDATE queen.{table} SET {column} = {column} + make_interval(secs => %s)", seconds
            )
        found = await log.messages.find(id_, None)
        assert found is not None
        assert (found.message.partition.id, found.message.offset) == keys([place])[0]


async def test_a_dead_letter_is_found_by_its_message_id_when_the_log_has_it_no_more(
    log: Log,
) -> None:
    place, id_, queue = (await ids(log))[0]
    await log.bury([(place, id_)])
    await log.ask("DELETE FROM queen.segments")
    for within in (None, QueueName(queue)):
        found = await log.messages.find(id_, within)
        assert found is not None
        assert found.status is MessageStatus.DEAD_LETTER
        assert found.message.payload == b"1"
    assert await log.messages.find(id_, QueueName("absent")) is None


async def test_a_search_for_a_message_id_that_takes_too_long_says_what_to_name(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "_WINDOW_S", 0)
    with pytest.raises(BadRequest, match="name its queue"):
        await log.messages.find((await ids(log))[0][1], None)
