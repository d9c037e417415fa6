"""Administration of consumer groups: delete, seek, change the start (wire-api 3.12)."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client import Client, drain, segment, unique


async def read(client: Client, queue: str, group: str | None = "g", **options: Any) -> list[object]:
    return [message["data"] for message in await drain(client, queue, group=group, **options)]


async def push_in_three_moments(client: Client, queue: str) -> list[str]:
    """Push 1, 2, 3 at least 20 ms apart; the time of each."""
    times = []
    for number in (1, 2, 3):
        await client.push(queue, [number])
        pop = await client.pop(queue, group=f"clock-{number}", autoAck="true")
        times.append(pop.messages[-1]["createdAt"])
        await asyncio.sleep(0.02)
    return times


# ── delete ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_deleted_group_reads_everything_again(fresh_client: Client, queue: str) -> None:
    """Through all workers: what they remember of the group is outlived, not wrong."""
    group = unique("group")
    for partition in ("a", "b", "c"):
        await fresh_client.push(queue, [1, 2], partition=partition)
    for _ in range(3):
        assert sorted(map(str, await read(fresh_client, queue, group))) == sorted("112212")
        assert await read(fresh_client, queue, group) == []
        answer = await fresh_client.delete_group(group)
        assert answer["deletedPartitions"] == 3
        assert answer["metadataDeleted"] is True
    assert len(await read(fresh_client, queue, group)) == 6


async def test_deleting_an_unknown_group_is_a_success_with_nothing_deleted(
    client: Client, queue: str
) -> None:
    nobody = unique("nobody")
    assert await client.delete_group(nobody) == {
        "success": True,
        "consumerGroup": nobody,
        "deletedPartitions": 0,
        "metadataDeleted": True,
    }
    assert (await client.delete_group(nobody, queue))["deletedPartitions"] == 0


async def test_a_group_is_deleted_everywhere_or_on_one_queue(client: Client, queue: str) -> None:
    other, group = unique("other"), unique("group")
    for name in (queue, other):
        await client.push(name, [1])
        assert await read(client, name, group) == [1]
    answer = await client.delete_group(group, queue)
    assert answer["queueName"] == queue
    assert answer["deletedPartitions"] == 1
    assert await read(client, queue, group) == [1]
    assert await read(client, other, group) == []
    assert (await client.delete_group(group))["deletedPartitions"] == 2
    assert await read(client, queue, group) == [1]
    assert await read(client, other, group) == [1]


async def test_metadata_that_is_kept_tells_where_the_group_starts_again(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    assert (await client.pop(queue, group="g", subscriptionMode="new")).status == 204
    await client.push(queue, [2])
    assert await read(client, queue) == [2]
    answer = await client.delete_group("g", queue, deleteMetadata="false")
    assert answer["metadataDeleted"] is False
    assert await read(client, queue) == [2]
    await client.delete_group("g", queue, deleteMetadata="true")
    assert await read(client, queue) == [1, 2]


async def test_a_lease_of_a_deleted_group_is_over(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    before = await client.pop(queue, group="g")
    await client.delete_group("g", queue)
    result = await client.ack(before.messages[0], group="g")
    assert result["success"] is False
    assert "lease" in result["error"].lower()
    after = await client.pop(queue, group="g")
    assert after.data == [1]
    assert after.attempts == {1}
    assert (await client.ack(after.messages[0], group="g"))["success"] is True


async def test_deleting_a_group_leaves_others_alone(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    held = await client.pop(queue, group="other", batch=1)
    assert await read(client, queue, None) == [1, 2]
    assert await read(client, queue) == [1, 2]
    await client.delete_group("g", queue)
    assert (await client.complete(held, group="other"))[0]["success"] is True
    assert await read(client, queue, "other") == [2]
    assert await read(client, queue, None) == []


async def test_queue_mode_can_be_deleted_too(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    assert await read(client, queue, None) == [1]
    assert (await client.delete_group("__QUEUE_MODE__", queue))["deletedPartitions"] == 1
    assert await read(client, queue, None) == [1]


async def test_a_parked_pop_of_a_deleted_group_gets_the_history(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    assert await read(client, queue) == [1]
    parked = asyncio.create_task(client.pop(queue, group="g", wait_ms=10_000))
    await asyncio.sleep(0.3)
    await client.delete_group("g", queue)
    assert (await asyncio.wait_for(parked, 5)).data == [1]


async def test_acknowledgements_find_a_group_that_another_worker_registered_anew(
    fresh_client: Client, queue: str
) -> None:
    """A worker may remember the group, or the queue, from before it was deleted."""
    for number in range(20):
        await fresh_client.push(queue, [number])
        if number % 2:
            await fresh_client.delete_group("g", queue)
        pop = await fresh_client.pop(queue, group="g")
        assert pop.data[-1] == number
        assert (await fresh_client.ack(pop.messages[-1], group="g"))["success"] is True
        if not number % 2:
            await fresh_client.delete(queue)


async def test_groups_are_deleted_while_everybody_pushes(client: Client, queue: str) -> None:
    """No message is lost to the group that comes after, none of a partition is left over."""
    stop = asyncio.Event()
    pushed = 0

    async def produce() -> None:
        nonlocal pushed
        while not stop.is_set():
            await client.push_items(
                [{"queue": queue, "partition": f"p{n}", "payload": n} for n in range(20)]
            )
            pushed += 20

    producers = [asyncio.create_task(produce()) for _ in range(4)]
    for _ in range(15):
        await client.pop(queue, group="g", partitions=64)
        await client.delete_group("g", queue)
    stop.set()
    await asyncio.gather(*producers)
    assert len(await read(client, queue)) == pushed


# ── seek ────────────────────────────────────────────────────────────────────────────────────────


async def test_seek_to_the_end_skips_what_there_is(client: Client, queue: str) -> None:
    for partition in ("a", "b"):
        await client.push(queue, [1, 2], partition=partition)
    held = await client.pop(queue, group="g", batch=1)
    assert held.data == [1]
    answer = await client.seek("g", queue, toEnd=True)
    assert answer == {
        "success": True,
        "consumerGroup": "g",
        "queueName": queue,
        "seekToEnd": True,
        "targetTimestamp": None,
        "partitionsUpdated": 2,
    }
    assert await read(client, queue) == []
    await client.push(queue, [3], partition="a")
    await client.push(queue, [4], partition="later")
    assert sorted(map(str, await read(client, queue))) == ["3", "4"]


async def test_seek_to_the_end_works_for_a_group_that_never_popped(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    assert (await client.seek("g", queue, toEnd=True))["partitionsUpdated"] == 1
    assert (await client.pop(queue, group="g", subscriptionMode="all")).status == 204
    await client.push(queue, [2])
    await client.push(queue, [3], partition="later")
    assert await read(client, queue) == [2, 3]


async def test_seek_to_a_time_goes_to_the_first_message_at_or_after_it(
    client: Client, queue: str
) -> None:
    times = await push_in_three_moments(client, queue)
    between = datetime.fromisoformat(times[1]) + timedelta(milliseconds=5)
    assert await read(client, queue) == [1, 2, 3]
    for to, rest in (
        (times[1], [2, 3]),
        (between.isoformat(), [3]),
        ("2020-01-01T00:00:00Z", [1, 2, 3]),
        ((datetime.now(UTC) + timedelta(hours=1)).isoformat(), []),
        (times[2], [3]),
    ):
        answer = await client.seek("g", queue, timestamp=to)
        assert answer["seekToEnd"] is False
        assert answer["targetTimestamp"] == to
        assert answer["partitionsUpdated"] == 1
        assert await read(client, queue) == rest
    # A group that did not exist before.
    await client.seek("fresh", queue, timestamp=times[2])
    assert await read(client, queue, "fresh") == [3]


async def test_seek_ends_leases_and_begins_all_counts_again(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryLimit": 1})
    await client.push(queue, [1, 2])
    first = await client.pop(queue, group="g", batch=1)
    await client.ack(first.messages[0], "failed", group="g")
    second = await client.pop(queue, group="g", batch=1)
    assert second.attempts == {2}
    await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    assert (await client.ack(second.messages[0], group="g"))["success"] is False
    third = await client.pop(queue, group="g", batch=1)
    assert third.attempts == {1}
    # The retry budget is whole again: the failure is no dead letter.
    assert (await client.ack(third.messages[0], "failed", group="g"))["dlq"] is False
    assert await read(client, queue) == [1, 2]


async def test_a_resent_ack_from_before_a_seek_is_no_success(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, group="g")
    await client.complete(pop, group="g")
    assert (await client.ack(pop.messages[0], group="g"))["success"] is True
    await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    assert (await client.ack(pop.messages[0], group="g"))["success"] is False
    assert await read(client, queue) == [1]


async def test_seek_back_wakes_parked_pops(client: Client, queue: str) -> None:
    for partition in ("a", "b"):
        await client.push(queue, [partition], partition=partition)
    assert sorted(map(str, await read(client, queue))) == ["a", "b"]
    parked = [asyncio.create_task(client.pop(queue, group="g", wait_ms=10_000)) for _ in range(2)]
    await asyncio.sleep(0.3)
    await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    pops = await asyncio.wait_for(asyncio.gather(*parked), 5)
    assert sorted(pop.data[0] for pop in pops) == ["a", "b"]


async def test_seek_back_finds_partitions_that_were_quiet_for_long(
    client: Client, queue: str
) -> None:
    """Quiet partitions that were read to the end are not looked at any more until they are used."""
    await client.push(queue, [1])
    assert await read(client, queue) == [1]
    await asyncio.sleep(10.5)
    # An acknowledgement of a quiet partition takes it off the list at once.
    await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    assert await read(client, queue) == [1]
    await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    assert await read(client, queue) == [1]


async def test_seek_of_one_partition(client: Client, queue: str) -> None:
    for partition in ("a", "b"):
        await client.push(queue, [f"{partition}1", f"{partition}2"], partition=partition)
    answer = await client.seek("g", queue, partition="a")
    assert answer["updated"] is True
    assert answer["partitionName"] == "a"
    assert answer["queueName"] == queue
    assert answer["consumerGroup"] == "g"
    assert datetime.fromisoformat(answer["cursorMovedTo"]) <= datetime.now(UTC)
    assert await read(client, queue) == ["b1", "b2"]
    answer = await client.seek("g", queue, partition="a", timestamp="2020-01-01T00:00:00Z")
    assert answer["cursorMovedTo"] == "2020-01-01T00:00:00Z"
    assert await read(client, queue) == ["a1", "a2"]
    await client.seek("g", queue, partition="b", timestamp="2020-01-01T00:00:00Z")
    await client.seek("g", queue, partition="b", toEnd=True)
    assert await read(client, queue) == []


@pytest.mark.parametrize("body", [{}, {"toEnd": False}, {"timestamp": None}, None], ids=str)
async def test_a_seek_to_nowhere_is_refused(
    client: Client, queue: str, body: dict[str, Any] | None
) -> None:
    """Also without a body, which the official client sends when it is given no options."""
    await client.push(queue, [1])
    path = f"/api/v1/consumer-groups/g/queues/{segment(queue)}/seek"
    answer = await (client.send("POST", path) if body is None else client.post(path, body))
    assert answer.status == 400
    assert answer.error == "Must specify either 'toEnd': true or 'timestamp'"
    assert await read(client, queue) == [1]


async def test_bad_seeks(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    answer = await client.try_seek("g", queue, timestamp="yesterday")
    assert answer.status == 400
    assert "timestamp" in answer.error
    answer = await client.try_seek("g", queue, toEnd="yes")
    assert answer.status == 400
    answer = await client.try_seek("g", unique("missing"), toEnd=True)
    assert answer.status == 404
    assert answer.json["success"] is False
    assert answer.json["partitionsUpdated"] == 0
    assert answer.error == "Queue not found or has no partitions"
    answer = await client.try_seek("g", queue, partition="missing")
    assert answer.status == 404
    assert answer.error == "Partition not found"


async def test_names_of_any_kind(client: Client) -> None:
    queue, group, partition = unique("a/b c?"), unique("g/%2F ü'"), "p/ö; --"
    await client.push(queue, [1], partition=partition)
    await client.seek(group, queue, toEnd=True)
    assert await read(client, queue, group) == []
    await client.seek(group, queue, partition=partition, timestamp="2020-01-01T00:00:00Z")
    assert await read(client, queue, group) == [1]
    assert (await client.delete_group(group, queue))["deletedPartitions"] == 1


async def test_many_partitions_are_sought_and_deleted_in_pieces(client: Client, queue: str) -> None:
    count = 2500
    await client.push_items(
        [{"queue": queue, "partition": f"p{n}", "payload": n} for n in range(count)]
    )
    assert (await client.seek("g", queue, toEnd=True))["partitionsUpdated"] == count
    assert await read(client, queue) == []
    answer = await client.seek("g", queue, timestamp="2020-01-01T00:00:00Z")
    assert answer["partitionsUpdated"] == count
    assert len(await read(client, queue)) == count
    assert (await client.delete_group("g", queue))["deletedPartitions"] == count
    assert len(await read(client, queue)) == count


# ── the stored start ────────────────────────────────────────────────────────────────────────────


async def restart(client: Client, group: str, timestamp: str) -> dict[str, Any]:
    answer = await client.post(
        f"/api/v1/consumer-groups/{segment(group)}/subscription",
        {"subscriptionTimestamp": timestamp},
    )
    assert answer.status == 200, answer
    body = answer.json
    assert isinstance(body, dict)
    return body


async def test_another_start_counts_where_the_group_has_not_been(
    client: Client, queue: str
) -> None:
    group = unique("group")
    await client.push(queue, [1], partition="old")
    assert (await client.pop(queue, group=group, subscriptionMode="new")).status == 204
    await client.push(queue, [2], partition="seen")
    assert await read(client, queue, group) == [2]
    assert await restart(client, group, "2020-01-01T00:00:00Z") == {
        "success": True,
        "consumerGroup": group,
        "newTimestamp": "2020-01-01T00:00:00Z",
        "rowsUpdated": 1,
    }
    # The place in `seen` stays; `old` was never met.
    assert await read(client, queue, group) == [1]
    await client.push(queue, [3], partition="later")
    assert await read(client, queue, group) == [3]


async def test_bad_starts(client: Client) -> None:
    path = "/api/v1/consumer-groups/nobody/subscription"
    answer = await client.post(path, {})
    assert answer.status == 400
    assert answer.error == "Missing subscriptionTimestamp in request body"
    answer = await client.post(path, {"subscriptionTimestamp": "soon"})
    assert answer.status == 400
    answer = await client.send("POST", path)
    assert answer.status == 400
    assert answer.error == "Empty request body"
    assert (await restart(client, unique("nobody"), "2020-01-01T00:00:00Z"))["rowsUpdated"] == 0
