"""Pops by label: any queue of a namespace, of a task, or of both (wire-api 3.6 and 2.10)."""

import asyncio
import time
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.client import Client, Message, Pop, as_pop, unique


async def pop_labelled(
    client: Client,
    *,
    batch: int = 1000,
    group: str | None = None,
    wait_ms: int | None = None,
    **parameters: Any,
) -> Pop:
    """Pop from any queue with the labels given as *namespace* and *task*."""
    query: dict[str, Any] = {"batch": batch, **parameters}
    if group is not None:
        query["consumerGroup"] = group
    if wait_ms is not None:
        query |= {"wait": "true", "timeout": wait_ms}
    return as_pop(await client.get(f"/api/v1/pop?{urlencode(query, quote_via=quote)}"))


async def drain_labelled(client: Client, **parameters: Any) -> list[Message]:
    """Pop and acknowledge until nothing comes any more; in the order of delivery."""
    messages: list[Message] = []
    while (pop := await pop_labelled(client, **parameters)).status == 200:
        messages += pop.messages
        await client.complete(pop, group=parameters.get("group"))
    return messages


def received(messages: list[Message]) -> list[tuple[str, Any]]:
    return [(message["queue"], message["data"]) for message in messages]


@pytest.fixture
def namespace() -> str:
    return unique("ns")


@pytest.fixture
def task() -> str:
    return unique("task")


# ── which queues ────────────────────────────────────────────────────────────────────────────────


async def test_configured_labels_choose_the_queues(
    client: Client, namespace: str, task: str
) -> None:
    both, only_namespace, only_task = (unique(name) for name in ("both", "namespace", "task"))
    await client.configure(both, {}, namespace=namespace, task=task)
    await client.configure(only_namespace, {}, namespace=namespace, task=unique("other"))
    await client.configure(only_task, {}, namespace=unique("other"), task=task)
    unlabelled = unique("unlabelled")
    await client.configure(unlabelled)
    for name in (both, only_namespace, only_task, unlabelled):
        await client.push(name, [name])

    async def queues(group: str, **labels: str) -> list[str]:
        messages = await drain_labelled(client, group=group, **labels)
        assert all(message["queue"] == message["data"] for message in messages)
        return sorted(message["queue"] for message in messages)

    assert await queues("n", namespace=namespace) == sorted([both, only_namespace])
    assert await queues("t", task=task) == sorted([both, only_task])
    assert await queues("nt", namespace=namespace, task=task) == [both]
    assert await queues("x", namespace=namespace, task=unique("absent")) == []
    assert await queues("y", namespace=task) == []
    assert await queues("z", task=namespace) == []


async def test_a_queue_made_by_a_push_has_the_labels_of_its_name(
    client: Client, namespace: str, task: str
) -> None:
    deep, shallow, bare = f"{namespace}.{task}.rest.more", f"{namespace}.{task}", namespace
    for name in (deep, shallow, bare):
        await client.push(name, [name])

    async def queues(group: str, **labels: str) -> list[str]:
        return sorted(m["queue"] for m in await drain_labelled(client, group=group, **labels))

    assert await queues("n", namespace=namespace) == sorted([deep, shallow, bare])
    assert await queues("t", task=task) == sorted([deep, shallow])
    assert await queues("nt", namespace=namespace, task=task) == sorted([deep, shallow])
    assert await queues("rest", task="rest", namespace=namespace) == []
    assert await queues("whole", namespace=f"{namespace}.{task}") == []


async def test_a_configured_queue_has_no_labels_of_its_name(
    client: Client, namespace: str, task: str
) -> None:
    name = f"{namespace}.{task}.rest"
    await client.configure(name)
    await client.push(name, [1])
    assert (await pop_labelled(client, namespace=namespace)).status == 204
    assert (await pop_labelled(client, task=task)).status == 204
    # Labels that come later count from then on; null and absence keep them.
    await client.configure(name, {}, namespace=namespace)
    assert (await pop_labelled(client, namespace=namespace, group="a")).data == [1]
    await client.configure(name, {}, namespace=None)
    assert (await pop_labelled(client, namespace=namespace, group="b")).data == [1]
    assert (await pop_labelled(client, task=task, group="b")).status == 204


async def test_changed_labels_count_on_all_workers(fresh_client: Client, namespace: str) -> None:
    name, later = unique("moved"), unique("later")
    await fresh_client.configure(name, {}, namespace=namespace)
    await fresh_client.push(name, [1])
    for number in range(8):
        group = f"before{number}"
        assert (await pop_labelled(fresh_client, namespace=namespace, group=group)).data == [1]
    await fresh_client.configure(name, {}, namespace=later)
    for number in range(8):
        group = f"after{number}"
        pop = await pop_labelled(fresh_client, namespace=later, group=group, wait_ms=4000)
        assert pop.data == [1]
        assert (await pop_labelled(fresh_client, namespace=namespace, group=group)).status == 204


async def test_a_deleted_queue_is_seen_no_more(fresh_client: Client, namespace: str) -> None:
    gone, stays = unique("gone"), unique("stays")
    for name in (gone, stays):
        await fresh_client.configure(name, {}, namespace=namespace)
        await fresh_client.push(name, [1])
    await fresh_client.delete(gone)
    for number in range(6):
        messages = await drain_labelled(fresh_client, namespace=namespace, group=f"g{number}")
        assert received(messages) == [(stays, 1)]


@pytest.mark.parametrize(
    "name", ["with space", 'quote"s', "semi;colon' OR 1=1 --", "ü.ä", "a/b", "100%"]
)
async def test_labels_are_arbitrary_text(client: Client, name: str) -> None:
    namespace, queue = unique(name), unique("text")
    await client.configure(queue, {}, namespace=namespace, task=name)
    await client.push(queue, [name])
    pop = await pop_labelled(client, namespace=namespace, task=name)
    assert received(pop.messages) == [(queue, name)]


async def test_unknown_labels_are_empty_and_create_nothing(
    client: Client, namespace: str, task: str
) -> None:
    assert (await pop_labelled(client, namespace=namespace, task=task)).status == 204
    assert (await client.get(f"/api/v1/resources/queues/{namespace}")).status == 404
    assert (await client.get(f"/api/v1/resources/queues/{namespace}.{task}")).status == 404


@pytest.mark.parametrize("query", ["", "?batch=10&wait=true&timeout=100", "?consumerGroup=g"])
async def test_without_a_label_the_pop_is_refused(client: Client, query: str) -> None:
    answer = await client.get(f"/api/v1/pop{query}")
    assert answer.status == 400
    assert answer.json == {"success": False, "error": answer.error, "messages": []}


async def test_labels_on_the_queue_routes_are_ignored(
    client: Client, queue: str, namespace: str, task: str
) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, namespace=namespace, task=task, group="q")
    assert pop.data == [1]
    pop = await client.pop(queue, partition="Default", namespace=namespace, task=task, group="p")
    assert pop.data == [1]


# ── order ───────────────────────────────────────────────────────────────────────────────────────


async def test_queues_come_by_priority_then_by_their_oldest_message(
    client: Client, namespace: str
) -> None:
    priorities = {"low": -1, "old": 0, "young": 0, "high": 5, "highest": 9}
    names = {name: unique(name) for name in priorities}
    for name, priority in priorities.items():
        await client.configure(names[name], {"priority": priority}, namespace=namespace)
    # The newest messages are the most urgent ones.
    for name in ("low", "old", "young", "high", "highest"):
        await client.push(names[name], [name])
        await asyncio.sleep(0.02)
    await client.push(names["old"], ["old again"])
    for group in ("g", "h"):
        messages = await drain_labelled(client, namespace=namespace, group=group)
        assert received(messages) == [
            (names["highest"], "highest"),
            (names["high"], "high"),
            (names["old"], "old"),
            (names["old"], "old again"),
            (names["young"], "young"),
            (names["low"], "low"),
        ]
        assert {message["priority"] for message in messages} == set(priorities.values())


async def test_the_age_is_that_of_the_oldest_message_the_group_still_waits_for(
    client: Client, namespace: str
) -> None:
    first, second = unique("first"), unique("second")
    for name in (first, second):
        await client.configure(name, {}, namespace=namespace)
    await client.push(first, ["consumed"])
    await asyncio.sleep(0.02)
    await client.push(second, [1])
    await asyncio.sleep(0.02)
    await client.push(first, [2])
    await client.complete(await client.pop(first, batch=1, group="g"), group="g")
    assert received(await drain_labelled(client, namespace=namespace, group="g")) == [
        (second, 1),
        (first, 2),
    ]


async def test_partitions_too_come_longest_waiting_first(client: Client, namespace: str) -> None:
    queue, other = unique("parts"), unique("other")
    for name in (queue, other):
        await client.configure(name, {}, namespace=namespace)
    expected = []
    for number in range(6):
        name = (queue, other)[number % 2]
        await client.push(name, [number], partition=f"p{number}")
        expected.append((name, number))
        await asyncio.sleep(0.02)
    messages = await drain_labelled(client, namespace=namespace)
    assert received(messages) == expected


async def test_a_changed_priority_counts_at_once(fresh_client: Client, namespace: str) -> None:
    old, young = unique("old"), unique("young")
    for name in (old, young):
        await fresh_client.configure(name, {"priority": 3}, namespace=namespace)
        await fresh_client.push(name, [1])
        await asyncio.sleep(0.02)
    assert (await pop_labelled(fresh_client, namespace=namespace, group="a")).body["queue"] == old
    await fresh_client.configure(young, {"priority": 4})
    for number in range(6):
        pop = await pop_labelled(fresh_client, namespace=namespace, group=f"g{number}")
        assert pop.body["queue"] == young
        assert {message["priority"] for message in pop.messages} == {4}


async def test_an_urgent_queue_with_nothing_to_give_is_in_nobodys_way(
    client: Client, namespace: str
) -> None:
    empty, delayed, leased, plain = (unique(n) for n in ("empty", "delayed", "leased", "plain"))
    await client.configure(empty, {"priority": 9}, namespace=namespace)
    await client.configure(delayed, {"priority": 8, "delayedProcessing": 60}, namespace=namespace)
    await client.configure(leased, {"priority": 7}, namespace=namespace)
    await client.configure(plain, {"priority": 1}, namespace=namespace)
    await client.push_items(
        [{"queue": delayed, "partition": f"p{n}", "payload": n} for n in range(100)]
    )
    await client.push(leased, [1])
    await client.push(plain, ["plain"])
    assert (await client.pop(leased, batch=1)).data == [1]
    assert received((await pop_labelled(client, namespace=namespace)).messages) == [
        (plain, "plain")
    ]
    assert (await pop_labelled(client, namespace=namespace, partitions=64)).status == 204


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


async def test_several_partitions_of_several_queues_share_one_lease(
    client: Client, namespace: str
) -> None:
    names = [unique(f"q{number}") for number in range(3)]
    for name in names:
        await client.configure(name, {}, namespace=namespace)
        for partition in "ab":
            await client.push(name, list(range(4)), partition=partition)
            await asyncio.sleep(0.01)
    pop = await pop_labelled(client, namespace=namespace, group="g", partitions=5)
    assert pop.body["success"] is True
    assert pop.body["partitionsClaimed"] == 5
    assert pop.body["consumerGroup"] == "g"
    assert len(pop.messages) == 20
    assert {message["leaseId"] for message in pop.messages} == {pop.lease_id}
    assert pop.lease_id
    first = pop.messages[0]
    assert [pop.body[key] for key in ("queue", "partition", "partitionId")] == [
        first[key] for key in ("queue", "partition", "partitionId")
    ]
    claimed = {(message["queue"], message["partition"]) for message in pop.messages}
    assert claimed == {(name, p) for name in names for p in "ab"} - {(names[2], "b")}
    for name, partition in claimed:
        assert [
            message["data"]
            for message in pop.messages
            if (message["queue"], message["partition"]) == (name, partition)
        ] == [0, 1, 2, 3]
    # The rest is one partition; what is leased comes neither by label nor by name.
    rest = await pop_labelled(client, namespace=namespace, group="g", partitions=64)
    assert {(m["queue"], m["partition"]) for m in rest.messages} == {(names[2], "b")}
    assert (await client.pop(names[0], group="g")).status == 204
    assert (await client.extend(pop.lease_id))["success"] is True
    await client.complete(pop, group="g")
    await client.complete(rest, group="g")
    assert (await pop_labelled(client, namespace=namespace, group="g")).status == 204


async def test_the_batch_is_a_cap_over_all_queues(client: Client, namespace: str) -> None:
    names = [unique(f"q{number}") for number in range(5)]
    for name in names:
        await client.configure(name, {}, namespace=namespace)
        await client.push(name, list(range(6)))
        await asyncio.sleep(0.01)
    pop = await pop_labelled(client, namespace=namespace, batch=10, partitions=5)
    assert received(pop.messages) == [
        *((names[0], number) for number in range(6)),
        *((names[1], number) for number in range(4)),
    ]
    assert pop.body["partitionsClaimed"] == 2
    await client.complete(pop)
    # The queue that was cut short has been waiting for no longer than its next message.
    assert len(await drain_labelled(client, namespace=namespace, batch=7, partitions=3)) == 20


async def test_one_partition_without_a_count(client: Client, namespace: str) -> None:
    for number in range(3):
        name = unique(f"q{number}")
        await client.configure(name, {}, namespace=namespace)
        await client.push(name, [1, 2])
    pop = await pop_labelled(client, namespace=namespace)
    assert pop.body["partitionsClaimed"] == 1
    assert pop.data == [1, 2]


async def test_the_lease_is_as_long_as_the_queue_says(client: Client, namespace: str) -> None:
    short, long = unique("short"), unique("long")
    await client.configure(short, {"leaseTime": 1, "priority": 1}, namespace=namespace)
    await client.configure(long, {"leaseTime": 60}, namespace=namespace)
    for name in (short, long):
        await client.push(name, [name])
    first = await pop_labelled(client, namespace=namespace, partitions=2)
    assert first.data == [short, long]
    again = await pop_labelled(client, namespace=namespace, partitions=2, wait_ms=5000)
    assert again.data == [short]
    assert again.attempts == {2}


async def test_commit_on_delivery(client: Client, namespace: str) -> None:
    names = [unique(f"q{number}") for number in range(2)]
    for name in names:
        await client.configure(name, {}, namespace=namespace)
        await client.push(name, [1, 2])
    pop = await pop_labelled(client, namespace=namespace, partitions=2, autoAck="true")
    assert pop.lease_id == ""
    assert {message["leaseId"] for message in pop.messages} == {""}
    assert len(pop.messages) == 4
    for name in names:
        assert (await client.pop(name)).status == 204


async def test_a_nack_and_a_dead_letter_by_label(client: Client, namespace: str) -> None:
    queue = unique("q")
    await client.configure(queue, {"retryLimit": 1}, namespace=namespace)
    await client.push(queue, [1, 2])
    for attempt in (1, 2):
        pop = await pop_labelled(client, namespace=namespace)
        assert (pop.data, pop.attempts) == ([1, 2], {attempt})
        result = await client.ack(pop.messages[0], "failed")
    assert result["dlq"] is True
    assert (await pop_labelled(client, namespace=namespace)).data == [2]


async def test_concurrent_pops_by_label_never_share_a_partition(
    fresh_client: Client, namespace: str
) -> None:
    names = [unique(f"q{number}") for number in range(4)]
    for name in names:
        await fresh_client.configure(name, {}, namespace=namespace)
    await fresh_client.push_items(
        [
            {"queue": name, "partition": str(partition), "payload": [name, str(partition), number]}
            for number in range(10)
            for partition in range(5)
            for name in names
        ]
    )
    seen: list[Any] = []
    deadline = time.monotonic() + 30

    async def consume() -> None:
        while len(seen) < 200 and time.monotonic() < deadline:
            pop = await pop_labelled(fresh_client, namespace=namespace, batch=6, partitions=2)
            if pop.status == 204:
                await asyncio.sleep(0.01)
                continue
            for message in pop.messages:
                assert message["data"][:2] == [message["queue"], message["partition"]]
            seen.extend(pop.data)
            await fresh_client.complete(pop)

    await asyncio.gather(*[consume() for _ in range(8)])
    assert len(seen) == 200
    for name in names:
        for partition in range(5):
            assert [n for q, p, n in seen if (q, p) == (name, str(partition))] == list(range(10))


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.alone
@pytest.mark.parametrize("by", ["namespace", "task", "both"])
async def test_a_push_to_a_known_queue_wakes_a_waiting_pop(
    fresh_client: Client, namespace: str, task: str, by: str
) -> None:
    queue = unique("known")
    await fresh_client.configure(queue, {}, namespace=namespace, task=task)
    labels: dict[str, Any] = {"namespace": namespace, "task": task}
    if by != "both":
        labels = {by: labels[by]}
    took = []
    for number in range(4):
        waiting = asyncio.create_task(pop_labelled(fresh_client, wait_ms=20_000, **labels))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        pushed = time.monotonic()
        await fresh_client.push(queue, [number], partition=f"p{number}")
        pop = await waiting
        took.append(time.monotonic() - pushed)
        assert received(pop.messages) == [(queue, number)]
        await fresh_client.complete(pop)
    assert max(took) < 1, took


@pytest.mark.parametrize("how", ["configured", "pushed"])
async def test_a_queue_that_is_created_meanwhile_wakes_a_waiting_pop(
    fresh_client: Client, namespace: str, how: str
) -> None:
    """Once with nothing known under the label, once with a queue."""
    for number in range(2):
        waiting = asyncio.create_task(
            pop_labelled(fresh_client, wait_ms=20_000, namespace=namespace)
        )
        await asyncio.sleep(0.5)
        assert not waiting.done()
        queue = f"{namespace}.t{number}"
        if how == "configured":
            await fresh_client.configure(queue, {}, namespace=namespace)
        pushed = time.monotonic()
        await fresh_client.push(queue, [number])
        pop = await waiting
        took = time.monotonic() - pushed
        assert received(pop.messages) == [(queue, number)]
        assert took < 3.5
        await fresh_client.complete(pop)


async def test_a_queue_that_gets_the_label_meanwhile_wakes_a_waiting_pop(
    fresh_client: Client, namespace: str
) -> None:
    queue = unique("late")
    await fresh_client.push(queue, [1])
    waiting = asyncio.create_task(pop_labelled(fresh_client, wait_ms=20_000, namespace=namespace))
    await asyncio.sleep(0.5)
    changed = time.monotonic()
    await fresh_client.configure(queue, {}, namespace=namespace)
    assert received((await waiting).messages) == [(queue, 1)]
    assert time.monotonic() - changed < 3.5


async def test_a_nack_wakes_a_waiting_pop(fresh_client: Client, namespace: str) -> None:
    queue = unique("q")
    await fresh_client.configure(queue, {}, namespace=namespace)
    await fresh_client.push(queue, [1])
    first = await pop_labelled(fresh_client, namespace=namespace)
    waiting = asyncio.create_task(pop_labelled(fresh_client, wait_ms=20_000, namespace=namespace))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    nacked = time.monotonic()
    await fresh_client.ack(first.messages[0], "retry")
    assert (await waiting).data == [1]
    assert time.monotonic() - nacked < 2


async def test_the_end_of_a_delay_wakes_a_waiting_pop(client: Client, namespace: str) -> None:
    queue = unique("delayed")
    await client.configure(queue, {"delayedProcessing": 2}, namespace=namespace)
    pushed = time.monotonic()
    await client.push(queue, [1])
    pop = await pop_labelled(client, namespace=namespace, wait_ms=20_000)
    assert pop.data == [1]
    assert 1.8 < time.monotonic() - pushed < 4.5


async def test_nothing_ends_with_the_timeout(client: Client, queue: str, namespace: str) -> None:
    await client.configure(unique("q"), {}, namespace=namespace)
    started = time.monotonic()
    waiting = asyncio.create_task(pop_labelled(client, namespace=namespace, wait_ms=1500))
    await client.push(queue, ["of another label"])
    assert (await waiting).status == 204
    assert 1.3 < time.monotonic() - started < 4


# ── subscriptions ───────────────────────────────────────────────────────────────────────────────


async def test_a_new_subscription_counts_for_every_queue_seen(
    client: Client, namespace: str
) -> None:
    full, empty = unique("full"), unique("empty")
    for name in (full, empty):
        await client.configure(name, {}, namespace=namespace)
    await client.push(full, ["old"])
    await client.push(full, ["old"], partition="other")
    pop = await pop_labelled(client, namespace=namespace, group="g", subscriptionMode="new")
    assert pop.status == 204
    await client.push(full, ["new"])
    await client.push(full, ["new"], partition="other")
    await client.push(full, ["new 1", "new 2"], partition="born later")
    await client.push(empty, ["new"])
    # By label and by queue, with whatever mode: what is stored wins.
    pop = await client.pop(empty, group="g", subscriptionMode="all")
    assert pop.data == ["new"]
    messages = await drain_labelled(client, namespace=namespace, group="g", subscriptionMode="all")
    assert sorted((m["partition"], m["data"]) for m in messages) == [
        ("Default", "new"),
        ("born later", "new 1"),
        ("born later", "new 2"),
        ("other", "new"),
    ]
    # Queues that were not seen are read from the beginning, and so does another group.
    everything = await drain_labelled(client, namespace=namespace, group="h")
    assert [m["data"] for m in everything].count("old") == 2


async def test_a_new_subscription_skips_what_was_pushed_just_before_it(
    fresh_client: Client, namespace: str
) -> None:
    queue = unique("q")
    await fresh_client.configure(queue, {}, namespace=namespace)
    for number in range(10):
        group = f"g{number}"
        await fresh_client.push(queue, ["old"])
        await pop_labelled(fresh_client, namespace=namespace, group=group, subscriptionMode="new")
        await fresh_client.push(queue, [number])
        pop = await pop_labelled(fresh_client, namespace=namespace, group=group)
        assert pop.data == [number]


async def test_a_timestamp_subscription(client: Client, namespace: str) -> None:
    queue = unique("q")
    await client.configure(queue, {}, namespace=namespace)
    for number in range(3):
        await client.push(queue, [number])
        await asyncio.sleep(0.02)
    moment = (await client.pop(queue)).messages[1]["createdAt"]
    pop = await pop_labelled(client, namespace=namespace, group="g", subscriptionFrom=moment)
    assert pop.data == [1, 2]


async def test_queue_mode_ignores_the_subscription(client: Client, namespace: str) -> None:
    queue = unique("q")
    await client.configure(queue, {}, namespace=namespace)
    await client.push(queue, [1])
    pop = await pop_labelled(client, namespace=namespace, subscriptionMode="new")
    assert pop.data == [1]
    assert pop.body["consumerGroup"] == "__QUEUE_MODE__"
