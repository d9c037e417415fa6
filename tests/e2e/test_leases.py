"""Leases: one per partition and group, ended by ack, nack or time (wire-api 2.6 and 3.9)."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.client import Client, Pop, drain, unique


def seconds_left(timestamp: str) -> float:
    return (datetime.fromisoformat(timestamp) - datetime.now(UTC)).total_seconds()


# ── one holder ──────────────────────────────────────────────────────────────────────────────────


async def test_a_leased_partition_gives_nothing_more_not_even_to_its_holder(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(10)))
    pop = await client.pop(queue, batch=3)
    assert pop.data == [0, 1, 2]
    for _ in range(3):
        assert (await client.pop(queue)).status == 204
        assert (await client.pop(queue, partition="Default")).status == 204
    await client.push(queue, [10])
    assert (await client.pop(queue)).status == 204
    await client.complete(pop)
    assert (await client.pop(queue)).data == list(range(3, 11))


async def test_groups_hold_leases_independently(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    pops = [await client.pop(queue, group=group) for group in (None, "a", "b")]
    assert [pop.data for pop in pops] == [[1, 2]] * 3
    assert len({pop.lease_id for pop in pops}) == 3
    await client.complete(pops[1], group="a")
    await client.push(queue, [3])
    assert (await client.pop(queue, group="a")).data == [3]
    assert (await client.pop(queue, group="b")).status == 204
    assert (await client.pop(queue)).status == 204


async def test_concurrent_pops_of_one_partition_have_one_winner(
    fresh_client: Client, queue: str
) -> None:
    for round_number in range(5):
        await fresh_client.push(queue, [round_number])
        pops = await asyncio.gather(*[fresh_client.pop(queue) for _ in range(30)])
        winners = [pop for pop in pops if pop.messages]
        assert [pop.data for pop in winners] == [[round_number]]
        await fresh_client.complete(winners[0])


async def test_concurrent_pops_of_a_queue_get_different_partitions(
    fresh_client: Client, queue: str
) -> None:
    """As many consumers as partitions: everyone gets one, nobody the same."""
    names = [f"p{number}" for number in range(12)]
    await fresh_client.push_items(
        [
            {"queue": queue, "partition": name, "payload": [name, number]}
            for number in range(5)
            for name in names
        ]
    )
    pops = await asyncio.gather(*[fresh_client.pop(queue) for _ in range(len(names) + 8)])
    winners = [pop for pop in pops if pop.messages]
    # A pop that raced for its last candidates may go home empty, a second look finds the rest.
    while (pop := await fresh_client.pop(queue)).messages:
        winners.append(pop)
    assert sorted(pop.body["partition"] for pop in winners) == sorted(names)
    for pop in winners:
        assert pop.data == [[pop.body["partition"], number] for number in range(5)]
        assert pop.body["partitionsClaimed"] == 1


async def test_a_third_consumer_gets_nothing_until_a_partition_is_released(
    client: Client, queue: str
) -> None:
    for name in "ab":
        await client.push(queue, list(range(4)), partition=name)
    first = await client.pop(queue, group="g", batch=2)
    second = await client.pop(queue, group="g", batch=2)
    assert {first.body["partition"], second.body["partition"]} == {"a", "b"}
    assert (await client.pop(queue, group="g")).status == 204
    await client.complete(first, group="g")
    third = await client.pop(queue, group="g")
    assert third.body["partition"] == first.body["partition"]
    assert third.data == [2, 3]


async def test_ten_consumers_on_one_partition_get_every_message_once_in_strict_order(
    fresh_client: Client, queue: str
) -> None:
    """As the official test does: `batch=1`, empty answers are polled again, no long poll."""
    for number in range(100):
        await fresh_client.push(queue, [number])
    seen: list[int] = []

    async def consume() -> None:
        while len(seen) < 100:
            pop = await fresh_client.pop(queue, batch=1)
            if pop.status == 204:
                await asyncio.sleep(0.005)
                continue
            seen.extend(pop.data)
            await fresh_client.complete(pop)

    await asyncio.gather(*[consume() for _ in range(10)])
    assert seen == list(range(100))


async def test_a_busy_partition_does_not_starve_a_quiet_one(client: Client, queue: str) -> None:
    await client.push(queue, list(range(1000)), partition="busy")
    await client.push(queue, ["quiet"], partition="quiet")
    for _ in range(60):
        pop = await client.pop(queue, batch=5)
        await client.complete(pop)
        if pop.data == ["quiet"]:
            return
    raise AssertionError("60 pops, and all of them from the busy partition")


# ── expiry ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group", [None, "g"], ids=["queue mode", "group"])
async def test_after_expiry_the_same_messages_come_again_in_the_same_order(
    client: Client, queue: str, group: str | None
) -> None:
    await client.push(queue, list(range(20)))
    await client.push(queue, list(range(20, 40)))
    started = time.monotonic()
    first = await client.pop(queue, group=group, leaseSeconds=1)
    assert (await client.pop(queue, group=group)).status == 204
    second = await client.pop(queue, group=group, wait_ms=10_000)
    # How soon it comes is the subject of test_long_poll.py; here, that it is not too soon.
    assert time.monotonic() - started > 0.9
    assert second.lease_id != first.lease_id
    assert second.data == first.data == list(range(40))
    assert second.ids == first.ids
    assert second.offsets == first.offsets
    assert [message["id"] for message in second.messages] == [
        message["id"] for message in first.messages
    ]
    assert (first.attempts, second.attempts) == ({1}, {2})


async def test_after_expiry_a_smaller_batch_starts_at_the_cursor(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(10)))
    first = await client.pop(queue, batch=6, leaseSeconds=1)
    await client.ack(first.messages[1])
    second = await client.pop(queue, batch=2, wait_ms=10_000)
    assert second.data == [2, 3]
    await client.complete(second)
    assert (await client.pop(queue, batch=3)).data == [4, 5, 6]


async def test_the_lease_lasts_as_long_as_the_queue_says_unless_the_pop_says_otherwise(
    client: Client,
) -> None:
    """Measured with `extend`, which never shortens: it answers the expiry that the lease had."""
    queue = unique("length")
    await client.configure(queue, {"leaseTime": 120})
    expected: dict[str, tuple[dict[str, Any], int]] = {
        "the queue's": ({}, 120),
        "0 means the queue's": ({"leaseSeconds": 0}, 120),
        "negative means the queue's": ({"leaseSeconds": -5}, 120),
        "the pop's, longer": ({"leaseSeconds": 600}, 600),
        "the pop's, shorter": ({"leaseSeconds": 20}, 20),
    }
    for name, (parameters, seconds) in expected.items():
        await client.push(queue, [name])
        pop = await client.pop(queue, **parameters)
        left = seconds_left((await client.extend(pop.lease_id, 1))["newExpiresAt"])
        assert seconds - 10 < left <= seconds + 1, name
        await client.complete(pop)
    await client.configure(queue, {"leaseTime": 0})
    await client.push(queue, ["60 when the queue has none"])
    pop = await client.pop(queue)
    assert 50 < seconds_left((await client.extend(pop.lease_id, 1))["newExpiresAt"]) <= 61


async def test_an_expired_lease_blocks_nobody_even_if_nobody_waited(
    client: Client, queue: str
) -> None:
    """No background job: the first pop after the expiry gets the messages."""
    await client.push(queue, [1])
    await client.pop(queue, leaseSeconds=1)
    await client.pop(queue, group="g", leaseSeconds=1)
    await asyncio.sleep(1.1)
    assert (await client.pop(queue)).data == [1]
    assert (await client.pop(queue, group="g")).data == [1]


# ── several partitions under one lease ──────────────────────────────────────────────────────────


async def pushed_partitions(client: Client, queue: str, *, partitions: int, each: int) -> None:
    await client.push_items(
        [
            {"queue": queue, "partition": f"p{p}", "payload": [p, number]}
            for p in range(partitions)
            for number in range(each)
        ]
    )


async def test_all_partitions_of_a_pop_share_one_lease_id(client: Client, queue: str) -> None:
    await pushed_partitions(client, queue, partitions=3, each=2)
    pop = await client.pop(queue, batch=100, partitions=3)
    assert len(pop.messages) == 6
    assert pop.body["partitionsClaimed"] == 3
    assert len({message["partitionId"] for message in pop.messages}) == 3
    assert {message["leaseId"] for message in pop.messages} == {pop.lease_id}
    assert pop.body["partitionId"] == pop.messages[0]["partitionId"]
    assert pop.body["partition"] == pop.messages[0]["partition"]
    for p in range(3):
        assert [data[1] for data in pop.data if data[0] == p] == [0, 1]


async def test_the_batch_is_a_cap_over_all_partitions(client: Client, queue: str) -> None:
    await pushed_partitions(client, queue, partitions=5, each=100)
    pop = await client.pop(queue, batch=10, partitions=5)
    assert len(pop.messages) == 10
    everything = pop.messages + await drain_beside(client, queue, pop)
    assert len(everything) == 500


async def drain_beside(client: Client, queue: str, pop: Pop) -> list[dict]:
    await client.complete(pop)
    return await drain(client, queue)


async def test_the_partition_cap_holds_and_defaults_to_one(client: Client, queue: str) -> None:
    await pushed_partitions(client, queue, partitions=5, each=3)
    one = await client.pop(queue, batch=100)
    assert len({message["partition"] for message in one.messages}) == 1
    assert len(one.messages) == 3
    two = await client.pop(queue, batch=100, partitions=2)
    assert len({message["partition"] for message in two.messages}) == 2
    assert len(two.messages) == 6
    rest = await client.pop(queue, batch=100, partitions=64)
    assert len(rest.messages) == 6
    assert rest.body["partitionsClaimed"] == 2


async def test_a_partition_without_messages_does_not_use_up_the_cap(
    client: Client, queue: str
) -> None:
    """Ten partitions have been read to their end, two have something new."""
    await pushed_partitions(client, queue, partitions=12, each=1)
    assert len(await drain(client, queue)) == 12
    await client.push(queue, ["new"], partition="p3")
    await client.push(queue, ["new"], partition="p9")
    pop = await client.pop(queue, partitions=2)
    assert {message["partition"] for message in pop.messages} == {"p3", "p9"}


async def test_each_partition_of_a_shared_lease_is_released_on_its_own(
    client: Client, queue: str
) -> None:
    await pushed_partitions(client, queue, partitions=3, each=2)
    pop = await client.pop(queue, partitions=3)
    parts = {p: [m for m in pop.messages if m["data"][0] == p] for p in range(3)}
    for message in parts[0]:
        await client.ack(message)
    await client.push(queue, ["new 0"], partition="p0")
    await client.push(queue, ["new 1"], partition="p1")
    assert (await client.pop(queue, partitions=3)).data == ["new 0"]
    assert (await client.ack(parts[1][0], "retry"))["leaseReleased"] is True
    assert (await client.pop(queue, partitions=3)).data == [[1, 0], [1, 1], "new 1"]
    assert (await client.pop(queue, partitions=3)).status == 204
    results = await client.ack_batch([(message, "completed") for message in parts[2]])
    assert all(result["leaseReleased"] for result in results)


async def test_the_lease_of_a_partition_ends_where_its_part_of_the_batch_ends(
    client: Client, queue: str
) -> None:
    """The global cap cut the last partition short; acking what came must release it."""
    await pushed_partitions(client, queue, partitions=2, each=4)
    pop = await client.pop(queue, batch=6, partitions=2)
    assert len(pop.messages) == 6
    results = await client.complete(pop)
    assert all(result["leaseReleased"] for result in results)
    rest = await client.pop(queue, partitions=2)
    assert len(rest.messages) == 2
    assert len({message["partition"] for message in rest.messages}) == 1


# ── extend ──────────────────────────────────────────────────────────────────────────────────────


async def test_extending_keeps_a_lease_alive(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, leaseSeconds=1)
    body = await client.extend(pop.lease_id, 3)
    assert (body["success"], body["renewed"], body["error"]) == (True, 1, None)
    assert 2 < seconds_left(body["newExpiresAt"]) <= 3.5
    await asyncio.sleep(1.3)
    assert (await client.pop(queue)).status == 204
    await client.complete(pop)


async def test_extending_without_a_body_adds_sixty_seconds(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, leaseSeconds=5)
    body = await client.extend(pop.lease_id)
    assert body["success"] is True
    assert 50 < seconds_left(body["newExpiresAt"]) <= 61
    for form in ({}, {"seconds": None}):
        answer = await client.post(f"/api/v1/lease/{pop.lease_id}/extend", form)
        assert answer.json["success"] is True


async def test_extending_never_shortens_a_lease(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, leaseSeconds=300)
    body = await client.extend(pop.lease_id, 1)
    assert seconds_left(body["newExpiresAt"]) > 250


async def test_extending_counts_the_partitions_that_are_still_leased(
    client: Client, queue: str
) -> None:
    await pushed_partitions(client, queue, partitions=3, each=1)
    pop = await client.pop(queue, partitions=3)
    for left in (3, 2, 1):
        body = await client.extend(pop.lease_id, 400)
        assert (body["success"], body["renewed"]) == (True, left)
        assert seconds_left(body["newExpiresAt"]) > 350
        await client.ack(pop.messages[left - 1])
    body = await client.extend(pop.lease_id, 400)
    assert (body["success"], body["renewed"], body["newExpiresAt"]) == (False, 0, None)


async def test_extending_after_the_ack_reports_failure(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    assert (await client.extend(pop.lease_id))["renewed"] == 1
    await client.complete(pop)
    body = await client.extend(pop.lease_id)
    assert (body["success"], body["renewed"], body["newExpiresAt"]) == (False, 0, None)
    assert body["error"]


async def test_an_expired_lease_cannot_be_revived(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, leaseSeconds=1)
    await asyncio.sleep(1.2)
    body = await client.extend(pop.lease_id, 60)
    assert (body["success"], body["renewed"], body["newExpiresAt"]) == (False, 0, None)
    assert (await client.pop(queue)).data == [1]
    body = await client.extend(pop.lease_id, 60)
    assert (body["success"], body["renewed"]) == (False, 0)


async def test_extending_one_group_leaves_the_other_alone(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    one = await client.pop(queue, group="one", leaseSeconds=1)
    await client.pop(queue, group="two", leaseSeconds=1)
    await client.extend(one.lease_id, 30)
    assert (await client.pop(queue, group="two", wait_ms=5000)).data == [1]
    assert (await client.pop(queue, group="one")).status == 204


# ── commit on delivery ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parameter", ["autoAck", "commitOnDelivery"])
async def test_commit_on_delivery_leaves_no_lease_and_moves_the_cursor(
    client: Client, queue: str, parameter: str
) -> None:
    commit: dict[str, Any] = {parameter: "true"}
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue, batch=2, group="g", **commit)
    assert pop.data == [1, 2]
    assert pop.body["leaseId"] == ""
    assert {message["leaseId"] for message in pop.messages} == {""}
    assert pop.attempts == {1}
    pop = await client.pop(queue, batch=2, group="g", **commit)
    assert pop.data == [3]
    assert (await client.pop(queue, group="g")).status == 204
    assert (await client.pop(queue, group="other")).data == [1, 2, 3]


async def test_commit_on_delivery_respects_the_lease_of_somebody_else(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    assert (await client.pop(queue, autoAck="true")).status == 204
    await client.ack(pop.messages[0], "retry")
    assert (await client.pop(queue, autoAck="true")).data == [1]


async def test_an_ack_of_what_was_committed_on_delivery_is_a_noop(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2])
    first, second = (await client.pop(queue, autoAck="true")).messages
    assert (await client.ack(first))["noop"] is True  # the lease id is empty: no fence
    result = await client.ack(second, "failed")
    assert result["success"] is False
    assert "committed" in result["error"]


async def test_commit_on_delivery_takes_several_partitions_at_once(
    client: Client, queue: str
) -> None:
    await pushed_partitions(client, queue, partitions=3, each=2)
    pop = await client.pop(queue, partitions=3, autoAck="true")
    assert len(pop.messages) == 6
    assert pop.body["leaseId"] == ""
    assert (await client.pop(queue, partitions=3)).status == 204


async def test_concurrent_commits_on_delivery_give_every_message_once(
    fresh_client: Client, queue: str
) -> None:
    await fresh_client.push(queue, list(range(300)))
    seen: list[int] = []

    async def take() -> None:
        empty = 0
        while empty < 3:
            pop = await fresh_client.pop(queue, batch=7, autoAck="true")
            seen.extend(pop.data)
            empty = 0 if pop.messages else empty + 1

    await asyncio.gather(*[take() for _ in range(8)])
    assert sorted(seen) == list(range(300))
