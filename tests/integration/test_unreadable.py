"""Messages that cannot be opened: passed over, not lost, and not in the way of others."""

import datetime
import time
import uuid
from typing import Any

import msgspec
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.key_check import KeyCheck
from queue_server.broker.pace import Pace
from queue_server.broker.pop import PopAnswer, Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.stored_messages import StoredMessages
from queue_server.broker.wakeup import RoomKey, Rooms
from queue_server.domain.encryption import KEY_BYTES, EncryptionKeyMissing, Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counter, Counters, Life
from queue_server.storage.stored_messages import MessageFilter
from queue_server.storage.transactions import Transactions

QUEUE = QueueName("q")
OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES


class Worker:
    """The broker of a worker with these keys."""

    def __init__(self, transactions: Transactions, keyring: Keyring) -> None:
        self.transactions = transactions
        self.row = Counters(1).worker(0)
        directory, rooms = Directory(transactions), Rooms()
        self.pusher = Pusher(transactions, directory, rooms, self.row, keyring)
        self.popper = Popper(transactions, directory, rooms, self.row, keyring, Pace())
        self.stored = StoredMessages(transactions, transactions, keyring, rooms)
        self.check = KeyCheck(transactions, keyring, self.row, is_logging=True)

    async def push(self, *places: tuple[str, int]) -> None:
        items = [NewMessage("q", msgspec.Raw(b"%d" % n), partition) for partition, n in places]
        await self.pusher.push(items, 100)

    async def pop(self, **wish: Any) -> list[Any]:
        """The payloads of a pop, which is acknowledged unless it says otherwise."""
        request = PopRequest(queue=QUEUE, group=QUEUE_MODE, start=ALL, message_limit=100)
        request = msgspec.structs.replace(request, **({"auto_ack": True} | wish))
        answer: PopAnswer = await self.popper.pop(request)
        if answer.delivery is None:
            return []
        chunks = self.popper.chunks(answer.delivery, lambda *_: b"")
        text = b"[" + b"".join([chunk async for chunk in chunks]) + b"]"
        return [one["data"] for one in msgspec.json.decode(text)]


async def encrypt(transactions: Transactions) -> None:
    await transactions.call("UPDATE queen.queues SET encryption_enabled = true RETURNING 1", {})


@pytest.fixture
async def old(transactions: Transactions) -> Worker:
    """A worker with the old key, on a queue that is encrypted."""
    worker = Worker(transactions, Keyring(OLD))
    await worker.push(("first", 0))
    assert await worker.pop() == [0]
    await encrypt(transactions)
    return worker


async def test_thousands_of_partitions_do_not_hide_the_one_that_is_readable(
    transactions: Transactions, old: Worker
) -> None:
    await old.push(*[(f"p{n}", n) for n in range(2500)])
    new = Worker(transactions, Keyring(NEW))
    await new.push(("readable", -1))
    assert await new.pop() == [-1]
    assert new.row.get(Counter.POPS_UNREADABLE) == 2500
    # Found out once, and not again by each pop.
    begin = time.monotonic()
    for n in range(20):
        await new.push(("readable", n))
        assert await new.pop() == [n]
    assert (time.monotonic() - begin) / 20 < 0.5
    assert new.row.get(Counter.POPS_UNREADABLE) == 2500
    assert new.row.get(Life.PARTITIONS_UNREADABLE) == 2500
    assert await new.pop() == []
    assert len(await old.pop(partition_limit=64)) == 64


async def test_consumers_that_wait_are_not_woken_for_them(
    transactions: Transactions, old: Worker
) -> None:
    await old.push(("a", 1), ("b", 2))
    new = Worker(transactions, Keyring(NEW))
    assert await new.pop() == []
    before = new.row.get(Counter.POP_TRANSACTIONS)
    key = RoomKey(QUEUE, QUEUE_MODE, None, None, None, None)
    with new.popper._rooms.enter(key) as room:
        room.subscription_ids = list(new.popper._rounds)
        assert await new.popper._poll() is None
    assert new.row.get(Counter.FLOOR_POLL_HITS) == 0
    assert new.row.get(Counter.POP_TRANSACTIONS) == before
    # Nobody else's consumers: another worker has the key.
    assert sorted(await old.pop(partition_limit=2)) == [1, 2]


@pytest.mark.parametrize("auto_ack", [True, False])
async def test_damage_is_found_out_by_opening_and_the_claim_is_taken_back(
    transactions: Transactions, old: Worker, auto_ack: bool
) -> None:
    """Also in the middle of an answer; what goes out before it stays delivered."""
    for n in range(3):
        await old.push(("a", n))
    await old.push(("b", 10))
    await transactions.call(
        "UPDATE queen.segments SET body = overlay(body PLACING '\\x00' FROM 40) WHERE base_offset"
        " = 1 RETURNING 1",
        {},
    )
    got = await old.pop(partition_limit=10, auto_ack=auto_ack)
    assert sorted(got) == [0, 10]
    rows = await transactions.call(
        "SELECT c.committed_offset FROM queen.cursors c JOIN queen.partitions p"
        " ON p.id = c.partition_id WHERE p.name = 'a'",
        {},
    )
    assert rows[0][0] == (1 if auto_ack else 0)
    assert await old.pop(partition_limit=10, auto_ack=auto_ack) == []


async def test_segments_from_before_there_was_a_place_are_read(
    transactions: Transactions, old: Worker
) -> None:
    await old.push(("a", 1))
    # As the version before stored them: without associated data and version byte.
    keyring = Keyring(OLD)
    cipher, key_id = keyring._ciphers[keyring.key_ids[0]], keyring.key_ids[0]
    (row,) = await transactions.call(
        "SELECT s.partition_id, s.first_message_id FROM queen.segments s"
        " ORDER BY s.created_at DESC LIMIT 1",
        {},
    )
    first: uuid.UUID = row[1]
    text = f'{{"offset":\x01,"id":"{first}","transactionId":"t","traceId":null,"data":7,'
    plain = (text + '"producerSub":null}').encode()
    nonce = b"n" * 12
    await transactions.call(
        "UPDATE queen.segments SET codec = 2, body = %(body)b WHERE first_message_id = %(id)s"
        " RETURNING 1",
        {"body": key_id + nonce + cipher.encrypt(nonce, plain, None), "id": first},
    )
    assert await Worker(transactions, Keyring(NEW)).pop() == []
    assert await old.pop() == [7]
    new = Worker(transactions, Keyring(NEW))
    await new.check.run_once()
    assert new.check.state.unknown_keys == {key_id.hex(): ["segments"]}
    assert new.row.get(Life.KEYS_MISSING) == 1
    await old.check.run_once()
    assert old.check.state.problems() == []


async def test_a_message_claimed_too_often_waits_for_its_key(
    transactions: Transactions, old: Worker
) -> None:
    """It would become a dead letter, which cannot be written."""
    await transactions.call("UPDATE queen.queues SET delivery_limit = 1 RETURNING 1", {})
    await old.push(("a", 1))
    assert await old.pop(auto_ack=False) == [1]
    await transactions.call(
        "UPDATE queen.cursors SET lease_expires_at = now() - interval '1 s'"
        " WHERE lease_id IS NOT NULL RETURNING 1",
        {},
    )
    new = Worker(transactions, Keyring(NEW))
    await new.push(("b", 2))
    assert await new.pop(partition_limit=10, auto_ack=False) == [2]
    assert await old.pop(auto_ack=False) == []
    letters = await transactions.call("SELECT error_message FROM queen.dead_letters", {})
    assert [row[0] for row in letters] == [""]


async def test_refused_pushes_cost_others_nothing(transactions: Transactions, old: Worker) -> None:
    """A queue without a key is not tried again and again in the flushes of others."""
    keyless = Worker(transactions, Keyring())
    for _ in range(50):
        with pytest.raises(EncryptionKeyMissing):
            await keyless.push(("a", 1))
    assert keyless.pusher._coalescer.flush_count <= 2
    await transactions.call("UPDATE queen.queues SET encryption_enabled = false RETURNING 1", {})
    keyless.pusher._keyless.clear()
    await keyless.push(("a", 1))
    assert await keyless.pop() == [1]


async def test_a_listing_shows_what_is_known(transactions: Transactions, old: Worker) -> None:
    await old.push(("a", 1))
    new = Worker(transactions, Keyring(NEW))
    await new.push(("b", 2))
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    listed = (await new.stored.page(MessageFilter(start=start, queue="q"), 10, 0)).messages
    assert [one.message.payload for one in listed] == [b"2", None, b"0"]


async def test_the_check_reads_a_row_for_each_key_whatever_is_stored(
    transactions: Transactions, old: Worker
) -> None:
    await old.push(("a", 1))
    for codec, key in ((6, b"\x03" + b"k" * 8), (2, b"l" * 8), (1, b"")):
        await transactions.call(
            "INSERT INTO queen.segments (shard, partition_id, base_offset, next_offset, created_at,"
            " first_message_id, raw_bytes, codec, ids, body) SELECT 1, %(partition)s, n, n + 1,"
            " now(), gen_random_uuid(), 1, %(codec)s, '', %(key)b || sha512('x')"
            " FROM generate_series(1, 10000) n RETURNING 1",
            {"partition": 10**12 + codec, "codec": codec, "key": key},
        )
        await transactions.call(
            "INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            " message_offset, message_id, transaction_id, payload, error_message, retry_count,"
            " created_at) SELECT 1, gen_random_uuid(), 1, gen_random_uuid(), 'g', n,"
            " gen_random_uuid(), 't', %(payload)b, '', 0, now()"
            " FROM generate_series(1, 5000) n RETURNING 1",
            {"payload": b"{}" if codec == 1 else b"\x03" + key[-8:] + b"x" * 30},
        )
    await old.check.run_once()
    assert old.check.state.unknown_keys == {
        (b"k" * 8).hex(): ["segments", "dead letters"],
        (b"l" * 8).hex(): ["segments", "dead letters"],
    }
    plan = await transactions.call(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM queen.keys_in_use(1::smallint)", {}
    )
    top = plan[0][0][0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 200, top
