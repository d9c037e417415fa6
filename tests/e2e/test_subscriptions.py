"""Where a consumer group starts to read, decided at its first pop and then remembered (2.5).

Only what can be seen through push and pop; administration of groups has tests of its own.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.client import Client, Pop, drain, segment, unique

BOTH_WAYS_TO_SAY_NEW = [
    {"subscriptionMode": "new"},
    {"subscriptionMode": "new-only"},
    {"subscriptionFrom": "now"},
    {"subscriptionFrom": "now", "subscriptionMode": "all"},
]


async def subscribe(client: Client, queue: str, group: str | None = "g", **parameters: str) -> Pop:
    return await client.pop(queue, group=group, **parameters)  # type: ignore[arg-type]


async def read(client: Client, queue: str, group: str | None = "g") -> list[object]:
    """Everything that the group still gets, by pops that say nothing about subscriptions."""
    return [message["data"] for message in await drain(client, queue, group=group)]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"subscriptionMode": "all"},
        {"subscriptionMode": "from_beginning"},
        {"subscriptionMode": ""},
        {"subscriptionFrom": "all"},
        {"subscriptionFrom": ""},
        {"subscriptionMode": "ALL"},
        {"subscriptionFrom": "2020-06-30t12:00:00z"},
    ],
    ids=str,
)
async def test_a_group_reads_from_the_beginning_unless_it_says_new(
    client: Client, queue: str, parameters: dict[str, str]
) -> None:
    await client.push(queue, [1, 2])
    assert (await subscribe(client, queue, **parameters)).data == [1, 2]


@pytest.mark.parametrize("parameters", BOTH_WAYS_TO_SAY_NEW, ids=str)
async def test_a_new_subscription_skips_the_history_and_is_stored_by_an_empty_pop(
    client: Client, queue: str, parameters: dict[str, str]
) -> None:
    await client.push(queue, [1, 2])
    assert (await subscribe(client, queue, **parameters)).status == 204
    await client.push(queue, [3, 4])
    assert await read(client, queue) == [3, 4]
    assert await read(client, queue, "another") == [1, 2, 3, 4]


async def test_a_stored_subscription_wins_over_later_parameters(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    await subscribe(client, queue, subscriptionMode="new")
    await client.push(queue, [2])
    for parameters in (
        {"subscriptionMode": "all"},
        {"subscriptionFrom": "2020-01-01T00:00:00Z"},
        {"subscriptionFrom": "now"},
    ):
        pop = await subscribe(client, queue, **parameters)
        assert pop.data == [2]
        await client.ack(pop.messages[0], "retry", group="g")
    assert await read(client, queue) == [2]


async def test_a_group_that_has_consumed_keeps_its_place_whatever_it_sends(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2, 3])
    await client.complete(await client.pop(queue, group="g", batch=1), group="g")
    assert (await subscribe(client, queue, subscriptionMode="new")).data == [2, 3]


async def test_the_official_test_of_the_server_default(client: Client, queue: str) -> None:
    """`all`, then no mode keeps the place; explicit `new` skips; both see new messages."""
    await client.push(queue, [1, 2])
    pop = await subscribe(client, queue, "all", subscriptionMode="all")
    await client.complete(pop, group="all")
    assert pop.data == [1, 2]
    assert await read(client, queue, "all") == []
    assert (await subscribe(client, queue, "new", subscriptionMode="new")).status == 204
    await client.push(queue, [3])
    assert await read(client, queue, "all") == [3]
    assert await read(client, queue, "new") == [3]


async def test_a_timestamp_starts_at_the_messages_created_at_or_after_it(
    client: Client, queue: str
) -> None:
    """The instants are the server's own: the creation times of two of its messages."""
    await client.push(queue, [1])
    await client.push(queue, [2])
    await client.push(queue, [3])
    messages = (await client.pop(queue, group="peek")).messages
    times = [message["createdAt"] for message in messages]
    assert times == sorted(set(times))
    for number, time in enumerate(times):
        group = f"from-{number}"
        pop = await subscribe(client, queue, group, subscriptionFrom=time)
        assert pop.data == [1, 2, 3][number:]
    between = datetime.fromisoformat(times[1]) + timedelta(microseconds=1)
    late = datetime.now(UTC) + timedelta(hours=1)
    early = datetime.now(UTC) - timedelta(hours=1)
    for name, instant, expected in (
        ("between", between.isoformat(), [3]),
        ("early", early.isoformat(), [1, 2, 3]),
        ("early-zulu", early.strftime("%Y-%m-%dT%H:%M:%SZ"), [1, 2, 3]),
        ("early-ms", early.strftime("%Y-%m-%dT%H:%M:%S.000Z"), [1, 2, 3]),
        ("late", late.isoformat(), []),
    ):
        pop = await subscribe(client, queue, name, subscriptionFrom=instant)
        assert pop.data == expected, name


async def test_a_timestamp_is_stored_by_an_empty_pop(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    soon = datetime.now(UTC) + timedelta(milliseconds=1)
    assert (await subscribe(client, queue, subscriptionFrom=soon.isoformat())).status == 204
    await client.push(queue, [2])
    assert await read(client, queue) == [2]


async def test_a_timestamp_in_the_future_skips_what_is_pushed_until_then(
    client: Client, queue: str
) -> None:
    """In partitions that the group has met already and in those that are born meanwhile."""
    await client.push(queue, ["old"], partition="met")
    soon = datetime.now(UTC) + timedelta(seconds=1)
    assert (await subscribe(client, queue, subscriptionFrom=soon.isoformat())).status == 204
    await client.push(queue, ["early"], partition="met")
    await client.push(queue, ["early"], partition="born meanwhile")
    early = await read(client, queue)
    await asyncio.sleep(1.1)
    await client.push(queue, ["late"], partition="met")
    await client.push(queue, ["late"], partition="born meanwhile")
    assert (early, await read(client, queue)) == ([], ["late", "late"])


async def test_a_new_subscription_covers_partitions_that_it_never_visited(
    client: Client, queue: str
) -> None:
    """200 partitions with history, one empty pop, and then exactly the new messages of all."""
    names = [f"p{number}" for number in range(200)]
    for round_number in range(2):
        if round_number == 1:
            assert (await subscribe(client, queue, subscriptionMode="new")).status == 204
        await client.push_items(
            [{"queue": queue, "partition": name, "payload": [round_number, name]} for name in names]
        )
    assert sorted(map(str, await read(client, queue))) == sorted(str([1, name]) for name in names)


async def test_a_partition_born_after_a_new_subscription_is_delivered_in_full(
    client: Client, queue: str
) -> None:
    await client.push(queue, ["old"], partition="old")
    assert (await subscribe(client, queue, subscriptionMode="new")).status == 204
    await client.push(queue, [1, 2], partition="born later")
    await client.push(queue, [3], partition="born later")
    assert await read(client, queue) == [1, 2, 3]


@pytest.mark.parametrize("configured", [True, False], ids=["configured queue", "unknown queue"])
async def test_an_empty_pop_subscribes_even_before_the_first_push(
    client: Client, queue: str, configured: bool
) -> None:
    """2.x registers the group in every case: what is pushed next is not skipped by a later mode."""
    if configured:
        await client.configure(queue)
    for group, mode in (("new", "new"), ("none", None), ("all", "all")):
        parameters = {"subscriptionMode": mode} if mode else {}
        assert (await subscribe(client, queue, group, **parameters)).status == 204
    await client.push(queue, [1, 2])
    for group in ("new", "none", "all"):
        assert (await subscribe(client, queue, group, subscriptionMode="new")).data == [1, 2], group


async def test_a_waiting_pop_subscribes_when_it_starts_to_wait(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, group="g", subscriptionMode="new", wait_ms=100)
    assert pop.status == 204
    await client.push(queue, [2])
    assert await read(client, queue) == [2]


@pytest.mark.parametrize("parameters", BOTH_WAYS_TO_SAY_NEW, ids=str)
async def test_queue_mode_always_starts_at_the_beginning(
    client: Client, queue: str, parameters: dict[str, str]
) -> None:
    await client.push(queue, [1, 2])
    assert (await subscribe(client, queue, None, **parameters)).data == [1, 2]
    other = unique("explicit")
    await client.push(other, [3])
    assert (await subscribe(client, other, "__QUEUE_MODE__", **parameters)).data == [3]


async def test_a_partition_route_pop_registers_nothing_for_the_queue(
    client: Client, queue: str
) -> None:
    """`new` on one partition seeds that partition's cursor; the others are read from the start."""
    for name in "ab":
        await client.push(queue, [f"{name} old"], partition=name)
    pop = await client.pop(queue, partition="a", group="g", subscriptionMode="new")
    assert pop.status == 204
    for name in "ab":
        await client.push(queue, [f"{name} new"], partition=name)
    assert sorted(map(str, await read(client, queue))) == ["a new", "b new", "b old"]


async def test_groups_subscribe_independently_on_each_queue(client: Client) -> None:
    one, two = unique("one"), unique("two")
    for name in (one, two):
        await client.push(name, ["old"])
    assert (await subscribe(client, one, subscriptionMode="new")).status == 204
    assert await read(client, two) == ["old"]
    await client.push(one, ["new"])
    assert await read(client, one) == ["new"]


async def test_deleting_the_queue_forgets_its_subscriptions(client: Client, queue: str) -> None:
    await client.push(queue, ["old"])
    await subscribe(client, queue, subscriptionMode="new")
    await client.delete(queue)
    await client.push(queue, ["reborn"])
    assert await read(client, queue) == ["reborn"]


async def test_every_worker_knows_a_subscription_at_once(fresh_client: Client) -> None:
    for _ in range(8):
        queue = unique("known")
        await fresh_client.push(queue, ["old"])
        assert (await subscribe(fresh_client, queue, subscriptionMode="new")).status == 204
        await fresh_client.push(queue, ["new"])
        assert (await subscribe(fresh_client, queue)).data == ["new"]


async def test_a_group_that_keeps_its_start_misses_nothing_since(
    client: Client, queue: str
) -> None:
    """A push comes between the deletion of its cursors and its next pop."""
    group = unique("kept")
    await client.pop(queue, group=group, subscriptionMode="new")
    await client.push(queue, [1])
    await client.delete_group(group, deleteMetadata="false")
    await client.push(queue, [2])
    assert (await client.pop(queue, group=group)).data == [1, 2]


async def test_the_place_a_partition_pop_chose_wins_over_a_later_registration(
    client: Client, queue: str
) -> None:
    group = unique("placed")
    await client.push(queue, [0])
    assert (await client.pop(queue, partition="Default", group=group, autoAck="true")).data == [0]
    await client.push(queue, [1])
    later = "2199-01-01T00:00:00Z"
    assert (await client.pop(queue, group=group, subscriptionFrom=later)).data == [1]


async def test_a_partition_that_was_made_anew_is_found_by_every_worker(
    fresh_client: Client,
) -> None:
    for _ in range(8):
        queue = unique("anew")
        for payload in ("old", "new"):
            await fresh_client.push(queue, [payload])
            popped = await fresh_client.pop(queue, partition="Default", group=unique("g"))
            assert popped.data == [payload]
            await fresh_client.delete(queue)


async def exists(client: Client, queue: str) -> bool:
    return (await client.get(f"/api/v1/resources/queues/{segment(queue)}")).status == 200


async def test_a_pop_of_a_queue_that_does_not_exist_creates_nothing_and_says_so(
    client: Client, queue: str
) -> None:
    path = f"/api/v1/pop/queue/{segment(queue)}"
    for query in ("", "?consumerGroup=g", "?consumerGroup=g&wait=true&timeout=100"):
        answer = await client.get(path + query)
        assert (answer.status, answer.raw, answer.headers["X-Missing"]) == (204, b"", "queue")
    answer = await client.get(f"{path}/partition/p")
    assert (answer.status, answer.headers["X-Missing"]) == (204, "partition")
    assert not await exists(client, queue)
    await client.configure(queue)
    assert "X-Missing" not in (await client.get(path)).headers


async def test_a_group_that_waits_for_a_queue_starts_with_its_first_pop(
    fresh_client: Client, queue: str
) -> None:
    waiting = asyncio.create_task(
        fresh_client.pop(queue, group="parked", wait_ms=20_000, subscriptionMode="new")
    )
    for group in ("new", "all"):
        await fresh_client.pop(queue, group=group, subscriptionMode=group)
    path = f"/api/v1/pop/queue/{segment(queue)}?consumerGroup=newest&conflation=true"
    assert (await fresh_client.get(path)).json["messages"] == []
    await fresh_client.push(queue, [1, 2])
    assert (await waiting).data == [1, 2]
    assert (await fresh_client.pop(queue, group="new", batch=10)).data == [1, 2]
    assert (await fresh_client.pop(queue, group="all", batch=10)).data == [1, 2]
    assert (await fresh_client.pop(queue, group="newest", batch=10, conflation="true")).data == [2]
    # One that comes later is new.
    await fresh_client.push(queue, [3])
    assert (await fresh_client.pop(queue, group="late", subscriptionMode="new")).status == 204


@pytest.mark.parametrize("everywhere", [True, False])
async def test_a_deleted_group_no_longer_waits_for_a_queue(
    client: Client, queue: str, everywhere: bool
) -> None:
    gone, kept, other = unique("gone"), unique("kept"), unique("other")
    for group, name in ((gone, queue), (kept, queue), (gone, other)):
        await client.pop(name, group=group)
    await client.delete_group(gone, None if everywhere else queue)
    for name in (queue, other):
        await client.configure(name)
    assert await groups_of(client, queue) == {kept}
    assert await groups_of(client, other) == (set() if everywhere else {gone})


async def groups_of(client: Client, queue: str) -> set[str]:
    rows = (await client.get(f"/api/v1/dashboard/queues/{segment(queue)}/groups")).json["groups"]
    return {row["name"] for row in rows}


async def test_first_pops_beside_the_first_push_miss_nothing(
    fresh_client: Client, queue: str
) -> None:
    """Whichever of the two is first: who was answered before the push reads from it on."""
    for number in range(10):
        name = f"{queue}-{number}"
        groups = [f"g{n}" for n in range(4)]
        first = [
            fresh_client.pop(name, group=group, subscriptionMode="new", autoAck="true")
            for group in groups
        ]
        push = asyncio.create_task(fresh_client.push(name, [1]))
        pops = await asyncio.gather(*first)
        await push
        await fresh_client.push(name, [2])
        for group, pop in zip(groups, pops, strict=True):
            got = pop.data + [m["data"] for m in await drain(fresh_client, name, group=group)]
            # The first message was stored before or after its first pop; the second after it.
            assert got in ([1, 2], [2]), (name, group)
