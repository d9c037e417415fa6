"""Queues, their partitions, and the groups registered on them."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec
import psycopg

from queue_server.domain.access import Grants
from queue_server.domain.errors import QueueExists
from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionKey,
    PartitionName,
    PartitionRef,
    QueueName,
    SubscriptionId,
    implicit_labels,
)
from queue_server.domain.options import OptionChanges, QueueOptions
from queue_server.domain.subscription import Start
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

# Partitions that one transaction of a backfill visits, whose pushes wait for it meanwhile: about
# ten milliseconds' worth.
_BACKFILL_PARTITIONS = 1000

# A queue that nobody configured (wire-api 2.2).
_IMPLICIT_LEASE_TIME_S = 60


class Subscription(msgspec.Struct, frozen=True, gc=False):
    """A group's registration; whether the group reads only the newest message of a partition."""

    id: SubscriptionId
    conflation: bool


class QueueRank(msgspec.Struct, frozen=True, gc=False):
    """A queue that a pop by labels sees."""

    name: QueueName
    priority: int


class NewPartition(msgspec.Struct, frozen=True, gc=False):
    """A partition to create; the labels are those of its queue, should that not exist either."""

    queue: QueueName
    name: PartitionName
    namespace: str
    task: str


class Configured(msgspec.Struct, frozen=True):
    """A queue after `configure`."""

    queue_id: str
    default_partition_id: PartitionId
    namespace: str
    task: str
    options: QueueOptions


def labels_of_new(queue: QueueName, creator: Grants | None) -> tuple[str, str]:
    """Namespace and task of a queue that *creator* makes without saying more of it."""
    return implicit_labels(queue) if creator is None else creator.labels_of_new(queue)


async def expect_group(
    transactions: Transactions,
    queue: QueueName,
    group: ConsumerGroup,
    start: Start,
    *,
    conflation: bool,
) -> str | None:
    """Return the id of a queue, or note that the group reads it as soon as it exists.

    Shape: None when it does not exist. Its creation registers the group then, which starts where it
    would have started now.
    """
    rows = await transactions.call(
        STATEMENTS["expect_group"],
        {
            "queue": queue,
            "consumer_group": group,
            "mode": start.mode,
            "starts_at": start.at,
            "conflation": conflation,
        },
    )
    return None if rows[0][0] is None else str(rows[0][0])


async def create_partitions(
    connection: Connection, partitions: Collection[NewPartition]
) -> list[PartitionRef]:
    """Create partitions and their queues as a part of the transaction of *connection*.

    Shape: those that exist by now are found.
    """
    by_queue: dict[QueueName, list[NewPartition]] = {}
    for partition in partitions:
        by_queue.setdefault(partition.queue, []).append(partition)
    # In one order for all workers: two that create the same names wait for one another, not both.
    groups = [by_queue[queue] for queue in sorted(by_queue)]
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["create_partitions"],
        {
            "shard": SHARD,
            "ids": [uuid.uuid4() for _ in groups],
            "queues": [group[0].queue for group in groups],
            "namespaces": [group[0].namespace for group in groups],
            "tasks": [group[0].task for group in groups],
            "lease_time": _IMPLICIT_LEASE_TIME_S,
            "counts": [len(group) for group in groups],
            "names": [partition.name for group in groups for partition in group],
        },
    )
    return [
        PartitionRef(queue, name, str(queue_id), id_)
        for queue, queue_id, name, id_ in await cursor.fetchall()
    ]


async def find_partitions(
    transactions: Transactions, keys: Sequence[PartitionKey]
) -> list[PartitionRef]:
    """Partitions by name; those that do not exist are left out."""
    rows = await transactions.call(
        STATEMENTS["find_partitions"],
        {
            "shard": SHARD,
            "queues": [key.queue for key in keys],
            "names": [key.partition for key in keys],
        },
    )
    return [PartitionRef(queue, name, str(queue_id), id_) for queue, name, queue_id, id_ in rows]


async def find_encrypted_queues(transactions: Transactions, names: Iterable[str]) -> list[str]:
    """Those of *names* that are queues whose messages are to be encrypted."""
    rows = await transactions.call(STATEMENTS["find_encrypted_queues"], {"names": list(names)})
    return [row[0] for row in rows]


async def find_partition(transactions: Transactions, key: PartitionKey) -> PartitionRef | None:
    """A partition by name, if it exists."""
    found = await find_partitions(transactions, [key])
    return found[0] if found else None


async def name_partitions(
    transactions: Transactions, ids: Sequence[PartitionId]
) -> list[PartitionRef]:
    """Partitions by id; those that do not exist are left out."""
    rows = await transactions.call(
        STATEMENTS["name_partitions"], {"shard": SHARD, "ids": list(ids)}
    )
    return [PartitionRef(queue, name, str(queue_id), id_) for id_, name, queue, queue_id in rows]


async def subscribe(
    transactions: Transactions,
    queue_id: str,
    group: ConsumerGroup,
    start: Start,
    *,
    queue_wide: bool,
    conflation: bool = False,
) -> Subscription | None:
    """Register a group on a queue, or find its registration; what is stored wins over *start*.

    Shape: None when the queue is gone.
    Visits the queue's partitions once when the group is new and reads history.
    """
    try:
        rows = await transactions.call(
            STATEMENTS["subscribe"],
            {
                "queue_id": queue_id,
                "consumer_group": group,
                "queue_wide": queue_wide,
                "mode": start.mode,
                "starts_at": start.at,
                "conflation": conflation,
            },
        )
    except psycopg.errors.ForeignKeyViolation:
        return None
    subscription_id, backfill, stored_conflation = rows[0]
    while backfill:
        rows = await transactions.call(
            STATEMENTS["backfill_subscription"],
            {"shard": SHARD, "subscription_id": subscription_id, "limit": _BACKFILL_PARTITIONS},
        )
        backfill = rows[0][0]
    return Subscription(subscription_id, stored_conflation)


async def find_queues(
    transactions: Transactions, namespace: str | None, task: str | None
) -> list[QueueRank]:
    """The queues with these labels (None = any), highest priority first."""
    rows = await transactions.call(
        STATEMENTS["find_queues"], {"namespace": namespace, "task": task}
    )
    return [QueueRank(*row) for row in rows]


async def find_subscription(
    transactions: Transactions, queue_id: str, group: ConsumerGroup
) -> Subscription | None:
    """The registration of a group on a queue, if there is one."""
    rows = await transactions.call(
        STATEMENTS["find_subscription"], {"queue_id": queue_id, "consumer_group": group}
    )
    return Subscription(*rows[0]) if rows else None


async def seed_cursor(
    transactions: Transactions,
    subscription_id: SubscriptionId,
    partition_id: PartitionId,
    start: Start,
) -> None:
    """Give a group its place in a partition that its pop named, unless it has one."""
    await transactions.call(
        STATEMENTS["seed_cursor"],
        {
            "shard": SHARD,
            "subscription_id": subscription_id,
            "partition_id": partition_id,
            "mode": start.mode,
            "starts_at": start.at,
        },
    )


ConfigureMode = Literal["create", "merge", "replace"]


async def configure(
    transactions: Transactions,
    queue: QueueName,
    namespace: str | None,
    task: str | None,
    changes: OptionChanges,
    *,
    mode: ConfigureMode,
    grants: Grants | None = None,
) -> Configured:
    """Create a queue or change its options; labels that are None stay.

    *grants* of a credential for some queues bound the labels and the priority that are new.
    Errors: `BadRequest` for an option that is out of bounds, `Forbidden`, `QueueExists` with the
    mode "create"; nothing changes then.
    """
    changes.check()
    # One id for all attempts: a repeated transaction recognises the queue that it made itself.
    new_id = uuid.uuid4()

    async def work(connection: Connection) -> Configured:
        cursor = connection.cursor(binary=True)
        await cursor.execute(
            STATEMENTS["ensure_queue"],
            {
                "id": new_id,
                "name": queue,
                "namespace": "",
                "task": "",
                "lease_time": QueueOptions().lease_time,
            },
        )
        ensured = await cursor.fetchone()
        assert ensured is not None
        queue_id = ensured[0]
        if mode == "create" and queue_id != new_id:
            raise QueueExists(
                f"Queue '{queue}' exists already; nothing was changed. Choose another name, or "
                'configure it with the mode "merge"'
            )
        await cursor.execute(STATEMENTS["lock_queue"], {"name": queue})
        row = await cursor.fetchone()
        if row is None:
            # Deleted between the two statements.
            raise QueueVanished
        stored = QueueOptions(*row[3:])
        options = changes.apply_to(QueueOptions() if mode == "replace" else stored)
        labels = {
            "namespace": row[1] if namespace is None else namespace,
            "task": row[2] if task is None else task,
        }
        if grants is not None:
            # What the queue was given by another credential stays.
            grants.require_labels(
                "" if labels["namespace"] == row[1] else labels["namespace"],
                "" if labels["task"] == row[2] else labels["task"],
            )
            if options.priority != stored.priority:
                grants.require_priority(options.priority)
        await cursor.execute(
            STATEMENTS["update_queue"], msgspec.structs.asdict(options) | labels | {"id": queue_id}
        )
        await cursor.execute(
            STATEMENTS["ensure_partitions"],
            {"shard": SHARD, "queue_id": queue_id, "names": ["Default"]},
        )
        partition = await cursor.fetchone()
        assert partition is not None
        return Configured(str(queue_id), partition[1], options=options, **labels)

    while True:
        try:
            return await transactions.run(work)
        except QueueVanished:
            continue


class QueueVanished(Exception):
    """The queue was deleted while it was being configured."""


async def lock_limited_queues(
    connection: Connection, queue_ids: Collection[str], names: Collection[str] = ()
) -> None:
    """Lock those of the queues that have a maxSize, before anything else in a transaction."""
    await connection.execute(
        STATEMENTS["lock_limited_queues"], {"queue_ids": list(queue_ids), "names": list(names)}
    )


async def delete_queue(transactions: Transactions, queue: QueueName) -> bool:
    """Delete a queue and all that hangs on it; whether it existed."""
    rows = await transactions.call(STATEMENTS["delete_queue"], {"shard": SHARD, "name": queue})
    return bool(rows[0][0])


class Limits(msgspec.Struct, frozen=True):
    """How many queues there may be, and how many groups and partitions of each.

    `group_idle_s`: after how long a group that does not pop counts as idle; 0 = never.
    """

    queues: int
    groups_of_queue: int
    partitions_of_queue: int
    group_idle_s: int


async def set_limits(transactions: Transactions, limits: Limits) -> None:
    """Have *limits* hold for all workers of all servers on the database."""
    await transactions.call(STATEMENTS["set_limits"], msgspec.structs.asdict(limits))


async def ping(transactions: Transactions) -> datetime.timedelta:
    """How long the database takes to answer the smallest question."""
    begin = datetime.datetime.now(datetime.UTC)
    await transactions.call(STATEMENTS["ping"], {})
    return datetime.datetime.now(datetime.UTC) - begin
