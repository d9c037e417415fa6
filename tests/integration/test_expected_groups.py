"""Groups that popped a queue before it exists are remembered, a bounded number of them."""

from psycopg import AsyncConnection

from queue_server.domain.names import ConsumerGroup, QueueName
from queue_server.domain.subscription import NEW
from queue_server.storage import queues
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue


async def test_the_group_that_asked_least_recently_makes_room(
    transactions: Transactions, conninfo: str
) -> None:
    async with await AsyncConnection.connect(conninfo, autocommit=True) as database:
        await database.execute("UPDATE queen.limits SET queues = 3")
        for number in range(4):
            found = await queues.expect_group(
                transactions, QueueName(f"q{number}"), ConsumerGroup("g"), NEW, conflation=False
            )
            assert found is None
        await database.execute("UPDATE queen.limits SET queues = 10")
        for number in range(4):
            await make_queue(transactions, f"q{number}")
        cursor = await database.execute(
            "SELECT q.name FROM queen.subscriptions u JOIN queen.queues q ON q.id = u.queue_id"
            " ORDER BY q.name"
        )
        assert await cursor.fetchall() == [("q1",), ("q2",), ("q3",)]
