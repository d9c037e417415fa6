"""An ack that was carried out, whose answer is lost: it is sent again, and is never called refused.

Meanwhile another consumer may have taken what comes next, and have settled it: then nothing in the
database tells any more that the ack was carried out.
"""

import uuid
from collections import Counter

import psycopg
import pytest

from queue_server.broker.ack import Ack, Acker
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.fix_proxy import Proxy
from tests.integration.test_torn_transactions import new


def take_and_settle(conninfo: str, partition_id: int) -> None:
    """What another consumer does: pop all that is left of the partition, and acknowledge it."""
    lease_id = uuid.uuid4()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute(
            "SELECT subscription_id, committed_offset FROM queen.cursors WHERE partition_id = %s",
            (partition_id,),
        ).fetchone()
        assert row is not None
        subscription_id, committed_offset = row
        popped = connection.execute(
            "SELECT o_from, o_to FROM queen.pop(1::smallint, %s, %s, '{0}', '{100}', '{1}',"
            " '{60}', %s, '{false}', 1000000, 0, '{}', '{}')",
            ([subscription_id], [partition_id], [lease_id]),
        ).fetchall()
        assert popped[0][0] == committed_offset
        ids = connection.execute(
            "SELECT string_agg(ids, '' ORDER BY base_offset) FROM queen.segments"
            " WHERE partition_id = %s AND base_offset >= %s",
            (partition_id, committed_offset),
        ).fetchone()
        assert ids is not None
        acked = connection.execute(
            "SELECT o_applied, o_released FROM queen.ack(1::smallint, '{0}', %s, %s, %s, %s)",
            ([partition_id], [subscription_id], [lease_id], [ids[0]]),
        ).fetchone()
        assert acked == (True, True)


@pytest.mark.parametrize("somebody_came_between", [False, True])
async def test_a_lost_ack_is_not_called_refused(
    conninfo: str, proxy: Proxy, somebody_came_between: bool
) -> None:
    reasons: Counter[str] = Counter()
    partition_ids: list[int] = []

    def on_retry(reason: str) -> None:
        reasons[reason] += 1
        if somebody_came_between:
            take_and_settle(conninfo, partition_ids[0])

    async with open_pool(
        proxy.leads_to(conninfo),
        size=2,
        connection_timeout_ms=3000,
        statement_timeout_ms=10_000,
        lock_timeout_ms=5000,
    ) as pool:
        transactions = Transactions(pool, on_retry)
        directory, rooms, row = Directory(transactions), Rooms(), Counters(1).worker(0)
        keyring, pace = Keyring(), Pace()
        pusher = Pusher(transactions, directory, rooms, row, keyring)
        popper = Popper(transactions, directory, rooms, row, keyring, pace)
        acker = Acker(transactions, directory, rooms, row, keyring, pace)
        # Two segments: the second is left for somebody else.
        await pusher.push([new("q", "p", "a")], 10)
        delivery = (
            await popper.pop(PopRequest(QueueName("q"), QUEUE_MODE, ALL, lease_seconds=300))
        ).delivery
        assert delivery is not None
        assert delivery.lease_id is not None
        await pusher.push([new("q", "p", "b")], 10)
        partition_ids.append(delivery.claims[0].partition_id)

        ack = Ack("a", str(partition_ids[0]), lease_id=str(delivery.lease_id))
        proxy.swallow = delivery.lease_id.bytes
        if somebody_came_between:
            with pytest.raises(StorageUnavailable, match="may or may not"):
                await acker.ack([ack], QUEUE_MODE)
        else:
            (outcome,) = await acker.ack([ack], QUEUE_MODE)
            assert (outcome.result.success, outcome.result.lease_released) == (True, True)
        assert proxy.swallowed.is_set()
        assert reasons == {"connection_lost": 1}

    with psycopg.connect(conninfo) as connection:
        committed = connection.execute("SELECT committed_offset FROM queen.cursors").fetchone()
    assert committed == (2 if somebody_came_between else 1,)
