"""A transaction id alone is looked for in all partitions: by index, and not for ever."""

import time

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.push import Pusher, PushResult
from queue_server.broker.stored_messages import StoredMessages
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadRequest
from queue_server.domain.message import NewMessage
from queue_server.observability.counters import Counters
from queue_server.storage.transactions import Transactions
from tests.client import uuid7

# More than one statement visits.
PARTITIONS = 6000
MESSAGES = 3


@pytest.fixture
def messages(transactions: Transactions) -> StoredMessages:
    return StoredMessages(transactions, transactions, Keyring(), Rooms())


@pytest.fixture
async def ids(transactions: Transactions) -> dict[int, str]:
    """Some messages in each of many partitions; the ids of the last ones, by partition."""
    pusher = Pusher(
        transactions, Directory(transactions), Rooms(), Counters(1).worker(0), Keyring()
    )
    ids: dict[int, str] = {}
    for round_ in range(MESSAGES):
        for start in range(0, PARTITIONS, 2000):
            items = [
                # Time-ordered ids, whose ranges may overlap, and others.
                NewMessage("q", msgspec.Raw(b"1"), f"p{n}", uuid7() if n % 2 else f"{round_}-{n}")
                for n in range(start, start + 2000)
            ]
            results = msgspec.json.decode(await pusher.push(items, 1000), type=list[PushResult])
            ids.update({int(r.partition_id): r.transaction_id for r in results})
    return ids


@pytest.mark.parametrize("analysed", [False, True])
async def test_every_partition_is_searched_by_a_few_rows_of_an_index(
    conninfo: str,
    transactions: Transactions,
    messages: StoredMessages,
    ids: dict[int, str],
    analysed: bool,
) -> None:
    if analysed:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await connection.execute("VACUUM ANALYZE")
    partition_ids = sorted(ids)
    before = await fetched(conninfo)
    searches = 0
    for partition_id in partition_ids[:: PARTITIONS // 5] + partition_ids[-2:]:
        begin = time.perf_counter()
        assert await messages.locate(ids[partition_id]) == partition_id
        print(f"{PARTITIONS} partitions in {(time.perf_counter() - begin) * 1000:.0f} ms")
        searches += 1
    assert await messages.locate("in no partition") is None
    searches += 1
    await transactions.close()
    after = await fetched(conninfo)
    # Of segments only what was found, of ranges what a second of pushes may have left.
    assert after["partitions"] - before["partitions"] <= searches * PARTITIONS
    assert after["id_ranges"] - before["id_ranges"] < searches * PARTITIONS
    assert after["segments"] - before["segments"] < searches * 10
    assert after["scans"] == before["scans"]


async def fetched(conninfo: str) -> dict[str, int]:
    """Rows read so far, by table, and how often one was read from end to end."""
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT relname, idx_tup_fetch, seq_scan FROM pg_stat_user_tables"
            " WHERE relname IN ('partitions', 'id_ranges', 'segments')"
        )
        rows = await cursor.fetchall()
    return {row[0]: row[1] for row in rows} | {"scans": sum(row[2] for row in rows)}


async def test_a_search_that_takes_too_long_says_how_to_name_the_message(
    messages: StoredMessages,
) -> None:
    with pytest.raises(BadRequest, match="/api/v1/messages/:partitionId/:transactionId"):
        await messages.locate("a", within_s=0)
