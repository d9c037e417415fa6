"""Conflation: a group that wants nothing but the last value of a partition (wire-api 7.2)."""

import asyncio
import time
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.client import Answer, Client, Message, Pop, segment, unique

ECHO = ("conflation", "conflationConflict")


async def send_pop(client: Client, target: str, **parameters: Any) -> Answer:
    return await client.get(f"/api/v1/pop{target}?{urlencode(parameters, quote_via=quote)}")


async def pop(
    client: Client,
    queue: str,
    *,
    partition: str | None = None,
    group: str = "g",
    asked: bool = True,
    batch: int = 1000,
    **parameters: Any,
) -> Pop:
    """A pop that asks for conflation unless told otherwise; an empty answer has a body too."""
    target = f"/queue/{segment(queue)}"
    if partition is not None:
        target += f"/partition/{segment(partition)}"
    query: dict[str, Any] = {"batch": batch, "consumerGroup": group, **parameters}
    if asked:
        query["conflation"] = "true"
    answer = await send_pop(client, target, **query)
    if answer.status == 204:
        assert not asked, "a client that asked for conflation gets an echo, so a body"
        return Pop(204, {})
    assert answer.status == 200, answer
    body = answer.json
    assert body["success"] is True, answer
    assert isinstance(body["messages"], list), answer
    # Written only when true.
    assert all(body[key] is True for key in ECHO if key in body), answer
    return Pop(200, body)


def echo(popped: Pop) -> set[str]:
    return {key for key in ECHO if key in popped.body}


async def last_values(client: Client, queue: str, group: str = "g") -> list[Message]:
    """Pop and complete until nothing comes."""
    messages: list[Message] = []
    while (popped := await pop(client, queue, group=group)).messages:
        messages += popped.messages
        await client.complete(popped, group=group)
    return messages


# ── the newest and nothing else ─────────────────────────────────────────────────────────────────


async def test_only_the_newest_message_comes_and_its_ack_completes_the_span(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(10)))
    await client.push(queue, [10, 11, 12])
    first = await pop(client, queue)
    assert (first.data, first.offsets) == ([12], [12])
    assert echo(first) == {"conflation"}
    result = await client.ack(first.messages[0], group="g")
    assert result["success"] is True
    assert result["leaseReleased"] is True
    assert result.get("noop") is None
    # What was skipped never comes, by no route and not without the parameter.
    assert (await pop(client, queue)).messages == []
    assert (await pop(client, queue, partition="Default")).messages == []
    assert (await pop(client, queue, asked=False)).messages == []
    await client.push(queue, [13])
    assert (await pop(client, queue)).data == [13]


async def test_the_batch_does_not_bring_more(client: Client, queue: str) -> None:
    await client.push(queue, list(range(50)))
    for batch in (1, 2, 200):
        group = f"g{batch}"
        popped = await pop(client, queue, group=group, batch=batch)
        assert popped.data == [49]
        assert popped.body["partitionsClaimed"] == 1


async def test_long_backlogs_end_with_one_delivery(client: Client, queue: str) -> None:
    for start in range(0, 6000, 1000):
        await client.push(queue, list(range(start, start + 1000)))
    assert [m["data"] for m in await last_values(client, queue)] == [5999]


async def test_by_partition(client: Client, queue: str) -> None:
    for name in "ab":
        await client.push(queue, [f"{name}1", f"{name}2"], partition=name)
    assert (await pop(client, queue, partition="a")).data == ["a2"]
    assert (await pop(client, queue)).data == ["b2"]
    assert (await pop(client, queue)).messages == []


async def test_by_label(client: Client) -> None:
    namespace = unique("ns")
    names = [f"{namespace}.{number}" for number in range(2)]
    for name in names:
        await client.push(name, [f"{name} old", f"{name} new"])
    query = {"consumerGroup": "g", "conflation": "true", "batch": 100, "partitions": 2}
    answer = await send_pop(client, "", namespace=namespace, **query)
    assert answer.status == 200
    body = answer.json
    assert sorted(m["data"] for m in body["messages"]) == [f"{name} new" for name in names]
    assert body["conflation"] is True
    answer = await send_pop(client, "", namespace=namespace, **query)
    assert answer.status == 200
    assert answer.json["messages"] == []
    assert answer.json["conflation"] is True


async def test_other_groups_get_everything(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3])
    assert (await pop(client, queue)).data == [3]
    plain = await client.pop(queue, group="plain")
    assert plain.data == [1, 2, 3]
    assert not echo(plain)
    assert (await client.pop(queue)).data == [1, 2, 3]


async def test_several_partitions_bring_one_message_each(client: Client, queue: str) -> None:
    for number in range(6):
        await client.push(queue, list(range(number + 1)), partition=f"p{number}")
    first = await pop(client, queue, partitions=4, batch=100)
    assert len(first.messages) == first.body["partitionsClaimed"] == 4
    assert {m["leaseId"] for m in first.messages} == {first.lease_id}
    second = await pop(client, queue, partitions=4, batch=100)
    assert len(second.messages) == 2
    newest = {m["partition"]: m["data"] for m in [*first.messages, *second.messages]}
    assert newest == {f"p{number}": number for number in range(6)}
    await client.complete(first, group="g")
    await client.complete(second, group="g")
    assert (await pop(client, queue, partitions=64)).messages == []


async def test_the_batch_caps_the_partitions(client: Client, queue: str) -> None:
    for number in range(5):
        await client.push(queue, [1, 2], partition=f"p{number}")
    assert (await pop(client, queue, partitions=5, batch=3)).data == [2, 2, 2]


# ── the lease ───────────────────────────────────────────────────────────────────────────────────


async def test_messages_after_the_claim_stay_pending(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    first = await pop(client, queue)
    await client.push(queue, [3, 4])
    assert (await pop(client, queue)).messages == []  # leased
    await client.complete(first, group="g")
    second = await pop(client, queue)
    assert (second.data, second.attempts) == ([4], {1})
    await client.complete(second, group="g")
    assert (await pop(client, queue)).messages == []


async def test_the_last_push_is_always_handled(fresh_client: Client, queue: str) -> None:
    """At least one handler run starts after the last push of a partition."""
    handled: list[int] = []
    pushing = True

    async def consume() -> None:
        while pushing or not handled or handled[-1] != 199:
            popped = await pop(fresh_client, queue)
            for message in popped.messages:
                handled.append(message["data"])
                await fresh_client.ack(message, group="g")

    async def produce() -> None:
        nonlocal pushing
        for number in range(200):
            await fresh_client.push(queue, [number])
        pushing = False

    await asyncio.wait_for(asyncio.gather(produce(), consume(), consume()), 40)
    assert handled == sorted(set(handled))
    assert handled[-1] == 199


async def test_a_nack_brings_the_newest_of_that_time(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    first = await pop(client, queue)
    await client.push(queue, [3])
    result = await client.ack(first.messages[0], "failed", group="g")
    assert result["success"] is True
    second = await pop(client, queue)
    assert second.data == [3]
    result = await client.ack(second.messages[0], "retry", group="g")
    assert result["success"] is True
    # Nothing newer: the same again.
    third = await pop(client, queue)
    assert third.data == [3]
    await client.complete(third, group="g")
    assert (await pop(client, queue)).messages == []


async def test_an_expiry_brings_the_newest_of_that_time(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    first = await pop(client, queue, leaseSeconds=1)
    assert first.data == [2]
    await client.push(queue, [3])
    second = await pop(client, queue, wait="true", timeout=10_000)
    assert second.data == [3]
    assert second.attempts == {2}
    late = await client.ack(first.messages[0], group="g")
    assert late["success"] is False
    assert "lease" in late["error"]


async def test_a_message_of_the_span_can_be_acknowledged(client: Client, queue: str) -> None:
    """The lease covers everything up to the newest message; a partial ack keeps it alive."""
    await client.push(queue, [1, 2, 3])
    whole = (await client.pop(queue, group="plain")).messages
    popped = await pop(client, queue)
    older = whole[1] | {"leaseId": popped.lease_id}
    result = await client.ack(older, group="g")
    assert result["success"] is True
    assert (await pop(client, queue)).messages == []
    await client.complete(popped, group="g")
    assert (await pop(client, queue)).messages == []


async def test_a_message_beyond_the_claim_cannot_be_acknowledged(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    popped = await pop(client, queue)
    await client.push(queue, [2])
    newer = (await client.pop(queue, group="plain")).messages[1]
    result = await client.ack(newer | {"leaseId": popped.lease_id}, group="g")
    assert result["success"] is False
    await client.complete(popped, group="g")
    assert (await pop(client, queue)).data == [2]


async def test_an_ack_sent_twice_is_a_success_twice(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3])
    popped = await pop(client, queue)
    for _ in range(2):
        result = await client.ack(popped.messages[0], group="g")
        assert result["success"] is True
        assert result["leaseReleased"] is True
        assert result.get("noop") is None


@pytest.mark.alone
async def test_a_push_wakes_a_waiting_pop(client: Client, queue: str) -> None:
    assert (await pop(client, queue)).messages == []
    waiting = asyncio.create_task(pop(client, queue, wait="true", timeout=10_000))
    await asyncio.sleep(0.3)
    pushed = time.monotonic()
    await client.push(queue, [1, 2])
    popped = await waiting
    assert time.monotonic() - pushed < 1.5
    assert popped.data == [2]
    assert echo(popped) == {"conflation"}


async def test_extension(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    popped = await pop(client, queue, leaseSeconds=1)
    assert (await client.extend(popped.lease_id, 30))["success"] is True
    await asyncio.sleep(1.2)
    assert (await pop(client, queue)).messages == []
    await client.complete(popped, group="g")


# ── retries and dead letters ────────────────────────────────────────────────────────────────────


async def dead_letters(client: Client, queue: str) -> list[Any]:
    answer = await client.get(f"/api/v1/dlq?{urlencode({'queue': queue})}")
    assert answer.status == 200, answer
    return [entry["data"] for entry in answer.json["messages"]]


async def test_the_counter_stays_with_the_partition_and_the_newest_is_dead_lettered(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"retryLimit": 2})
    for number in range(3):
        await client.push(queue, [number])
        popped = await pop(client, queue)
        assert popped.data == [number]
        result = await client.ack(popped.messages[0], "failed", group="g", error="boom")
        assert result["success"] is True
        assert result["dlq"] is (number == 2)
    assert await dead_letters(client, queue) == [2]
    # The whole span is behind the group, and the budget is new.
    assert (await pop(client, queue)).messages == []
    await client.push(queue, [3])
    popped = await pop(client, queue)
    assert (popped.data, popped.attempts) == ([3], {1})
    result = await client.ack(popped.messages[0], "failed", group="g")
    assert result["dlq"] is False
    assert (await pop(client, queue)).data == [3]


async def test_a_newer_message_does_not_renew_the_budget(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryLimit": 1})
    await client.push(queue, ["first"])
    await client.ack((await pop(client, queue)).messages[0], "failed", group="g")
    await client.push(queue, ["second"])
    popped = await pop(client, queue)
    assert popped.data == ["second"]
    await client.push(queue, ["third"])
    result = await client.ack(popped.messages[0], "failed", group="g")
    assert result["dlq"] is True
    assert await dead_letters(client, queue) == ["second"]
    assert (await pop(client, queue)).data == ["third"]


async def test_a_dlq_ack_records_the_newest_only(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3])
    popped = await pop(client, queue)
    result = await client.ack(popped.messages[0], "dlq", group="g", error="poison")
    assert result["dlq"] is True
    assert await dead_letters(client, queue) == [3]
    assert (await pop(client, queue)).messages == []


# ── visibility ──────────────────────────────────────────────────────────────────────────────────


async def test_the_newest_visible_message_under_a_delay(client: Client, queue: str) -> None:
    await client.configure(queue, {"delayedProcessing": 2})
    await client.push(queue, [1, 2])
    await asyncio.sleep(1.2)
    await client.push(queue, [3])
    empty = await pop(client, queue)
    assert empty.messages == []
    assert echo(empty) == {"conflation"}
    first = await pop(client, queue, wait="true", timeout=10_000)
    assert first.data == [2]
    await client.complete(first, group="g")
    second = await pop(client, queue, wait="true", timeout=10_000)
    assert second.data == [3]
    await client.complete(second, group="g")
    assert (await pop(client, queue)).messages == []


async def test_a_new_subscription(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    assert (await pop(client, queue, subscriptionMode="new")).messages == []
    assert (await pop(client, queue)).messages == []
    await client.push(queue, [2, 3])
    assert (await pop(client, queue)).data == [3]


# ── the policy ──────────────────────────────────────────────────────────────────────────────────


async def test_the_stored_policy_wins_over_a_pop_without_the_wish(
    fresh_client: Client, queue: str
) -> None:
    await fresh_client.push(queue, [1, 2])
    await fresh_client.complete(await pop(fresh_client, queue), group="g")
    for number in range(6):  # whichever worker answers
        await fresh_client.push(queue, [number, number + 1])
        popped = await pop(fresh_client, queue, asked=False)
        assert popped.data == [number + 1]
        assert echo(popped) == {"conflation", "conflationConflict"}
        await fresh_client.complete(popped, group="g")


@pytest.mark.parametrize("registered_by", ["a delivery", "an empty pop"])
async def test_a_group_that_is_registered_without_it_stays_so(
    fresh_client: Client, queue: str, registered_by: str
) -> None:
    if registered_by == "a delivery":
        await fresh_client.push(queue, [0])
        await fresh_client.complete(await fresh_client.pop(queue, group="g"), group="g")
    else:
        await fresh_client.configure(queue)
        assert (await fresh_client.pop(queue, group="g")).status == 204
    for _ in range(6):
        empty = await pop(fresh_client, queue)
        assert empty.messages == []
        assert echo(empty) == {"conflationConflict"}
    await fresh_client.push(queue, [1, 2, 3])
    popped = await pop(fresh_client, queue)
    assert popped.data == [1, 2, 3]
    assert echo(popped) == {"conflationConflict"}


async def test_the_policy_belongs_to_the_group_and_the_queue(client: Client, queue: str) -> None:
    other = unique("other")
    for name in (queue, other):
        await client.push(name, [1, 2])
    assert (await pop(client, queue)).data == [2]
    assert (await pop(client, other, asked=False)).data == [1, 2]
    plain = await pop(client, queue, asked=False, group="h")
    assert plain.data == [1, 2]
    assert not echo(plain)


async def test_the_first_pop_stores_the_policy_even_when_it_is_empty(
    client: Client, queue: str
) -> None:
    """A queue that does not exist yet is no exception (2.5)."""
    assert echo(await pop(client, queue)) == {"conflation"}
    await client.push(queue, [1, 2])
    popped = await pop(client, queue, asked=False)
    assert popped.data == [2]
    assert echo(popped) == {"conflation", "conflationConflict"}


async def test_a_partition_pop_that_conflates_registers_the_group(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2], partition="a")
    await client.push(queue, [3, 4], partition="b")
    assert (await pop(client, queue, partition="a")).data == [2]
    popped = await pop(client, queue, asked=False)
    assert popped.data == [4]
    assert echo(popped) == {"conflation", "conflationConflict"}


async def test_deleting_the_group_lets_it_choose_again(fresh_client: Client, queue: str) -> None:
    await fresh_client.push(queue, [1, 2])
    assert (await pop(fresh_client, queue)).data == [2]
    await fresh_client.delete_group("g", queue)
    plain = await pop(fresh_client, queue, asked=False)
    assert plain.data == [1, 2]
    assert not echo(plain)
    await fresh_client.delete_group("g", queue)
    assert (await pop(fresh_client, queue)).data == [2]


async def test_configure_cannot_set_it(client: Client, queue: str) -> None:
    answer = await client.configure(queue, {"conflation": True}, conflation=True)
    assert "conflation" not in answer["options"]
    await client.push(queue, [1, 2])
    assert (await pop(client, queue, asked=False)).data == [1, 2]


async def test_concurrent_first_pops_agree_on_one_policy(fresh_client: Client, queue: str) -> None:
    await fresh_client.configure(queue)
    await asyncio.gather(
        *[pop(fresh_client, queue, asked=bool(number % 2)) for number in range(20)]
    )
    await fresh_client.push(queue, [1, 2])
    policies = [echo(await pop(fresh_client, queue)) for _ in range(8)]
    assert policies in ([{"conflation"}] * 8, [{"conflationConflict"}] * 8)


# ── echo and refusals ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "how", ["unknown queue", "unknown partition", "empty", "consumed", "leased", "timeout", "label"]
)
async def test_every_empty_answer_carries_the_echo(client: Client, queue: str, how: str) -> None:
    target, query = f"/queue/{queue}", {"consumerGroup": "g", "conflation": "true"}
    if how in ("unknown partition", "consumed", "leased"):
        await client.push(queue, [1])
    if how == "unknown partition":
        target += "/partition/absent"
    elif how == "empty":
        await client.configure(queue)
    elif how == "consumed":
        await client.complete(await pop(client, queue), group="g")
    elif how == "leased":
        assert (await pop(client, queue)).data == [1]
    elif how == "timeout":
        query |= {"wait": "true", "timeout": "300"}
    elif how == "label":
        target, query = "", query | {"namespace": unique("ns")}
    answer = await send_pop(client, target, **query)
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json == {"success": True, "messages": [], "conflation": True}


@pytest.mark.parametrize(
    "query",
    [
        {"conflation": "true"},
        {"conflation": "1"},
        {"conflation": "true", "consumerGroup": ""},
        {"conflation": "true", "consumerGroup": "__QUEUE_MODE__"},
        {"conflation": "true", "consumerGroup": "g", "autoAck": "true"},
        {"conflation": "true", "consumerGroup": "g", "commitOnDelivery": "true"},
    ],
)
@pytest.mark.parametrize("route", ["queue", "partition", "label"])
async def test_a_wish_that_cannot_be_granted_is_refused(
    client: Client, queue: str, route: str, query: dict[str, str]
) -> None:
    await client.push(queue, [1, 2])
    target = {
        "queue": f"/queue/{queue}",
        "partition": f"/queue/{queue}/partition/Default",
        "label": "",
    }[route]
    labels = {"namespace": queue} if route == "label" else {}
    answer = await send_pop(client, target, **query, **labels)
    assert answer.status == 400
    body = answer.json
    assert (body["success"], body["messages"]) == (False, [])
    assert answer.error
    # Nothing was registered, delivered or committed.
    plain = await pop(client, queue, asked=False)
    assert plain.data == [1, 2]
    assert not echo(plain)


@pytest.mark.parametrize("value", ["false", "0", ""])
async def test_anything_but_true_is_no_wish(client: Client, queue: str, value: str) -> None:
    await client.push(queue, [1, 2])
    popped = await pop(client, queue, asked=False, conflation=value)
    assert popped.data == [1, 2]
    assert not echo(popped)
    assert (await pop(client, queue, asked=False, conflation=value)).status == 204


async def test_depth_and_listing_tell(client: Client, queue: str) -> None:
    for name in "ab":
        await client.push(queue, [1, 2, 3], partition=name)
    group = unique("group")
    assert (await pop(client, queue, group=group, partition="a")).data == [3]
    answer = await client.get(f"/api/v1/resources/queues/{queue}/depth?group={group}")
    assert answer.status == 200, answer
    assert answer.json["conflation"] is True
    assert answer.json["effectivePending"] == 2
