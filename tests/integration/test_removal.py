"""What removes something settles what points at it, also beside what another left half done."""

from collections.abc import Sequence

import msgspec
import pytest

from queue_server.broker.activity import Activity
from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.stored_messages import StoredMessages
from queue_server.broker.traces import Traces
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import QueueFull
from queue_server.domain.message import NewMessage
from queue_server.domain.names import (
    QUEUE_MODE,
    ConsumerGroup,
    PartitionId,
    QueueName,
)
from queue_server.domain.options import OptionChanges
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import groups, maintenance, queues, traces
from queue_server.storage.stored_messages import NotPending
from queue_server.storage.traces import NewTrace
from queue_server.storage.transactions import Connection, Transactions
from tests.fix_db import make_partitions, make_queue

Q = QueueName("q")


class Server:
    """A worker's parts on one database, and a queue `q`."""

    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions
        row, keyring = Counters(1).worker(0), Keyring()
        directory, rooms = Directory(transactions), Rooms()
        self.activity = Activity()
        self.pusher = Pusher(transactions, directory, rooms, row, keyring, self.activity)
        self.popper = Popper(transactions, directory, rooms, row, keyring, Pace())
        self.groups = Groups(transactions, directory, rooms)
        self.stored = StoredMessages(transactions, transactions, keyring, rooms)
        self.traces = Traces(transactions, transactions, self.stored, keyring)
        self.maintenance = Maintenance(
            transactions, self.pusher, keyring, self.activity, on_pops_resumed=lambda: None
        )

    async def push(self, *ids: str, partition: str = "p") -> list[str]:
        """Push messages with these ids; the status of each."""
        items = [NewMessage("q", msgspec.Raw(b'"x"'), partition, id_) for id_ in ids]
        results = msgspec.json.decode(await self.pusher.push(items, 100))
        return [result["status"] for result in results]

    async def pop(self, group: str = QUEUE_MODE, limit: int = 1) -> int:
        """Lease up to *limit* messages; how many there were."""
        request = PopRequest(
            queue=Q, group=ConsumerGroup(group), start=ALL, message_limit=limit, partition_limit=1,
            lease_seconds=60,
        )  # fmt: skip
        answer = await self.popper.pop(request)
        return 0 if answer.delivery is None else answer.delivery.message_count

    async def partition_id(self, name: str = "p") -> PartitionId:
        [ref] = await make_partitions(self.transactions, Q, [name])
        return ref.id

    async def interrupt_deletion(self, group: str) -> None:
        """The first step of a group's deletion; the second, which takes its cursors, never came."""
        queue_id = await groups.find_queue(self.transactions, Q)
        assert queue_id is not None
        await groups.delete(self.transactions, queue_id, ConsumerGroup(group), delete_metadata=True)

    async def rows(self, statement: str) -> list[tuple[object, ...]]:
        return list(await self.transactions.call(statement, {}))


@pytest.fixture
def server(transactions: Transactions) -> Server:
    return Server(transactions)


@pytest.mark.parametrize("others", [[], ["behind"], ["behind", "done"]])
async def test_a_message_given_up_beside_the_deletion_of_a_group_is_a_dead_letter(
    server: Server, others: Sequence[str]
) -> None:
    """A cursor whose registration is gone is no group that waits: without another the message is
    given up for queue mode, and never leaves the log without a dead letter.
    """
    await server.push("a", "b")
    for group in ("old", *others):
        assert await server.pop(group, limit=2 if group == "done" else 1) > 0
    if "done" in others:
        await server.rows(
            "UPDATE queen.cursors c SET committed_offset = 2, lease_id = NULL"
            " FROM queen.subscriptions u"
            " WHERE u.id = c.subscription_id AND u.consumer_group = 'done' RETURNING 1"
        )
    await server.interrupt_deletion("old")
    expected = ["behind"] if others else [QUEUE_MODE]
    assert await server.stored.bury(await server.partition_id(), "b") == expected
    found = await server.rows("SELECT consumer_group, transaction_id FROM queen.dead_letters")
    assert found == [(group, "b") for group in expected]
    assert await server.rows("SELECT message_offset FROM queen.holes") == [(1,)]


async def test_a_message_that_all_registered_groups_have_read_is_not_given_up(
    server: Server,
) -> None:
    await server.push("a")
    for group in ("old", "done"):
        await server.pop(group)
    await server.rows(
        "UPDATE queen.cursors c SET committed_offset = 1 FROM queen.subscriptions u"
        " WHERE u.id = c.subscription_id AND u.consumer_group = 'done' RETURNING 1"
    )
    await server.interrupt_deletion("old")
    with pytest.raises(NotPending):
        await server.stored.bury(await server.partition_id(), "a")
    assert await server.rows("SELECT 1 FROM queen.holes") == []


async def test_what_a_deleted_group_has_not_read_does_not_fill_a_queue(server: Server) -> None:
    await queues.configure(
        server.transactions, Q, None, None, OptionChanges(max_size=2), mode="merge"
    )
    await server.push("a", "b")
    assert await server.pop("old") == 1
    assert await server.pop("done", limit=2) == 2
    await server.rows(
        "UPDATE queen.cursors c SET committed_offset = 2 FROM queen.subscriptions u"
        " WHERE u.id = c.subscription_id AND u.consumer_group = 'done' RETURNING 1"
    )
    with pytest.raises(QueueFull):
        await server.push("c")
    await server.interrupt_deletion("old")
    assert await server.push("c") == ["queued"]


async def test_traces_belong_to_the_message_that_is_there(server: Server) -> None:
    """Not to one with the same id that was deleted, nor to one that nobody can get any more."""
    partition_id = await server.partition_id()
    await server.push("a")

    def trace(id_: str) -> NewTrace:
        return NewTrace(partition_id, id_, "g", "event", b"{}", [f"name-{id_}"])

    assert await server.traces.add(trace("a")) is not None
    await server.stored.delete(partition_id, "a")
    assert await traces.names(server.transactions, 10, 0) == ([], 0)
    assert await server.traces.add(trace("a")) is None
    # What has left the log and then the dead letters goes with its traces, too.
    await server.push("b")
    await server.stored.bury(partition_id, "b")
    assert await server.traces.add(trace("b")) is not None
    assert await server.stored.delete(partition_id, "b") == 1
    assert await server.rows("SELECT 1 FROM queen.traces") == []


async def test_nothing_of_a_deleted_queue_is_left(server: Server) -> None:
    partition_id = await server.partition_id()
    await server.push("a", "b", "c")
    await server.traces.add(NewTrace(partition_id, "a", "g", "event", b"{}", ["name"]))
    await server.stored.delete(partition_id, "b")
    await server.stored.bury(partition_id, "c")
    assert await server.pop("g") == 1
    await server.traces.add(NewTrace(partition_id, "a", "g", "event", b"{}", ["name", "other"]))
    await queues.delete_queue(server.transactions, Q)
    kept = {"shards", "leaderships", "limits", "maintenance", "write_probe", "workers"}
    tables = await server.rows(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'queen'"
    )
    counts = {
        str(name): (await server.rows(f"SELECT count(*) FROM queen.{name}"))[0][0]
        for (name,) in tables
        if name not in kept
    }
    assert {name for name, count in counts.items() if count} == set()


async def test_what_is_held_for_a_deleted_queue_does_not_bring_it_back(server: Server) -> None:
    await make_queue(server.transactions, Q)
    await server.maintenance.switch(push=True)

    async def hold(*names: str) -> None:
        items = [NewMessage(name, msgspec.Raw(b"1"), "p", f"{name}-1") for name in names]
        _, is_stored = await server.maintenance.push(items, 10, None, None)
        assert not is_stored

    await hold("q")
    await hold("q", "other")
    read = await maintenance.read_held(server.transactions, 0, 1000)
    await queues.delete_queue(server.transactions, Q)

    # A worker that had read them before stores nothing of the old.
    async def delete(connection: Connection) -> int:
        return await maintenance.delete_held_in(connection, read)

    assert await server.transactions.run(delete) == 0
    await hold("late")
    await server.maintenance.switch(push=False)
    await server.maintenance.push_held()
    assert await server.rows("SELECT name FROM queen.queues ORDER BY 1") == [("late",), ("other",)]
    assert (await server.maintenance.count_held()).total == 0


async def test_a_deleted_group_leaves_no_lease(server: Server) -> None:
    await server.push("a")
    assert await server.pop("g") == 1
    assert len(await server.rows("SELECT 1 FROM queen.leases")) == 1
    await server.groups.delete(ConsumerGroup("g"), None, delete_metadata=True)
    assert await server.rows("SELECT 1 FROM queen.leases") == []
