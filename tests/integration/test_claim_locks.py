"""What a claim locks: the cursors it takes, and none in vain."""

import msgspec
import psycopg

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, PartitionName, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage.transactions import Transactions

_CLAIM = """
    SELECT o_status FROM queen.pop(
        1::smallint, ARRAY[%(group)s::integer], ARRAY[%(partition)s::bigint], ARRAY[0::bigint],
        ARRAY[10], ARRAY[1], ARRAY[60], ARRAY[gen_random_uuid()], ARRAY[false], 1000000, 1000000,
        '{}', '{}'
    )
"""
_CURSOR = "SELECT partition_id, subscription_id FROM queen.cursors"


async def test_a_pop_that_finds_nothing_leaves_the_cursor_to_the_next(
    direct_conninfo: str, transactions: Transactions
) -> None:
    """It would pass over a cursor that another pop had locked, and with it over a new message.

    The worker that hears of a push asks while the empty pop of another may not be over yet.
    """
    row = Counters(1).worker(0)
    directory, rooms, keyring = Directory(transactions), Rooms(), Keyring()
    pusher = Pusher(transactions, directory, rooms, row, keyring)
    popper = Popper(transactions, directory, rooms, row, keyring, Pace())
    wish = PopRequest(
        queue=QueueName("q"), group=QUEUE_MODE, start=ALL, partition=PartitionName("p"),
        message_limit=10, partition_limit=1, auto_ack=True,
    )  # fmt: skip
    await pusher.push([NewMessage("q", msgspec.Raw(b"1"), "p")], 100)
    assert (await popper.pop(wish)).delivery is not None

    async with await psycopg.AsyncConnection.connect(direct_conninfo) as empty:
        place = await (await empty.execute(_CURSOR)).fetchone()
        assert place is not None
        await empty.commit()
        wanted = {"partition": place[0], "group": place[1]}
        assert await (await empty.execute(_CLAIM, wanted)).fetchall() == []
        # Its transaction is open yet.
        await pusher.push([NewMessage("q", msgspec.Raw(b"2"), "p")], 100)
        assert (await popper.pop(wish)).delivery is not None
