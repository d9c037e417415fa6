"""A partition of a queue that a credential knows nothing of is like one that does not exist."""

from typing import Any, cast

from queue_server.broker.directory import Directory
from queue_server.domain.names import PartitionId
from queue_server.storage.transactions import Transactions


class Stored:
    """A database with one partition, that counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, statement: Any, parameters: Any) -> list[tuple[Any, ...]]:
        self.calls += 1
        return [(7, "Default", "theirs", "queue id")] if 7 in parameters["ids"] else []


async def test_neither_the_answer_nor_its_cost_says_that_a_partition_exists() -> None:
    stored = Stored()
    directory = Directory(cast("Transactions", stored))
    known = await directory.name_partitions([PartitionId(7)])
    assert known[PartitionId(7)].queue == "theirs"
    assert stored.calls == 1
    for id_ in (7, 8, 7):
        stored.calls = 0
        found = await directory.name_partitions([PartitionId(id_)], lambda queue: queue == "mine")
        assert (found, stored.calls) == ({}, 1)
    stored.calls = 0
    assert await directory.name_partitions([PartitionId(7)]) == known
    assert stored.calls == 0
