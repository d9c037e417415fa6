"""Acks and pushes that happen together or not at all (wire-api 3.10)."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.client import Client, Message, Pop, as_pop, drain, eventually, unique


def push_operation(
    queue: str,
    payloads: Sequence[Any],
    *,
    partition: str | None = None,
    ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A push of *payloads* to one partition; with *ids* they carry these transaction ids."""
    items: list[dict[str, Any]] = []
    for position, payload in enumerate(payloads):
        item = {"queue": queue, "payload": payload}
        if partition is not None:
            item["partition"] = partition
        if ids is not None:
            item["transactionId"] = ids[position]
        items.append(item)
    return {"type": "push", "items": items}


def ack_operation(
    message: Message,
    status: str = "completed",
    *,
    group: str | None = None,
    fenced: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """An ack of *message*. Unless *fenced*, it names no lease."""
    operation = {
        "type": "ack",
        "transactionId": message["transactionId"],
        "partitionId": message["partitionId"],
        "status": status,
    }
    if fenced:
        operation["leaseId"] = message["leaseId"]
    if group is not None:
        operation["consumerGroup"] = group
    return operation | fields


async def try_transaction(
    client: Client, operations: list[dict[str, Any]], required_leases: list[str] | None = None
) -> dict[str, Any]:
    """Send a transaction; the answer, which is a 200 also when all was rolled back."""
    body: dict[str, Any] = {"operations": operations}
    if required_leases is not None:
        body["requiredLeases"] = required_leases
    answer = await client.post("/api/v1/transaction", body)
    assert answer.status == 200, answer
    value = answer.json
    assert isinstance(value, dict), answer
    assert isinstance(value["transactionId"], str), answer
    assert isinstance(value["success"], bool), answer
    return value


async def transaction(
    client: Client, operations: list[dict[str, Any]], required_leases: list[str] | None = None
) -> list[dict[str, Any]]:
    """Send a transaction that must succeed; its results."""
    answer = await try_transaction(client, operations, required_leases)
    assert answer["success"] is True, answer
    results = answer["results"]
    assert [result["index"] for result in results] == list(range(len(results))), answer
    for result in results:
        # A success never carries an error (wire-api 2.7).
        assert result["success"] is True, answer
        assert result.get("error") is None, answer
    return list(results)


async def leased(
    client: Client, queue: str, payloads: list[Any], *, partition: str | None = None, **pop: Any
) -> list[Message]:
    """Push *payloads* and lease them all."""
    await client.push(queue, payloads, partition=partition)
    answer = await client.pop(queue, partition=partition, **pop)
    assert answer.data == payloads
    return answer.messages


async def refused(
    client: Client,
    operations: list[dict[str, Any]],
    required_leases: list[str] | None = None,
    *,
    reason: str = "rejected_ack",
) -> str:
    """Send a transaction that must be rolled back for *reason*; its error text."""
    answer = await try_transaction(client, operations, required_leases)
    assert answer["success"] is False, answer
    assert answer["reason"] == reason, answer
    assert answer["results"] == [], answer
    assert "rolled back" in answer["error"], answer
    return str(answer["error"])


async def dead_letters(client: Client, queue: str) -> list[dict[str, Any]]:
    answer = await client.get(f"/api/v1/dlq?queue={queue}")
    assert answer.status == 200, answer
    return list(answer.json["messages"])


async def none_left(client: Client, queue: str, *, group: str | None = None) -> bool:
    return (await client.pop(queue, group=group)).status == 204


# ── all of it ───────────────────────────────────────────────────────────────────────────────────


async def test_acks_of_partitions_groups_and_leases_and_pushes_happen_together(
    client: Client, queue: str
) -> None:
    """Two queues, three partitions, two groups, queue mode, four leases; pushes to two queues."""
    other, out_one, out_two = unique("other"), unique("out-one"), unique("out-two")
    a = await leased(client, queue, [1, 2], partition="a")
    b = await leased(client, queue, [3], partition="b", group="g")
    c = (await client.pop(queue, partition="a", group="h")).messages
    d = await leased(client, other, [4])
    assert len({message["leaseId"] for message in (*a, *b, *c, *d)}) == 4
    results = await transaction(
        client,
        [
            push_operation(out_one, ["x", "y"], partition="p"),
            *(ack_operation(message) for message in a),
            ack_operation(b[0], group="g"),
            push_operation(out_two, ["z"]),
            *(ack_operation(message, group="h") for message in c),
            ack_operation(d[0]),
        ],
    )
    assert [result["type"] for result in results] == [
        "push", "push", "ack", "ack", "ack", "push", "ack", "ack", "ack",
    ]  # fmt: skip
    assert [message["data"] for message in await drain(client, out_one)] == ["x", "y"]
    assert [message["data"] for message in await drain(client, out_two)] == ["z"]
    assert await none_left(client, other)
    # Queue mode has nothing left of a but did not touch b; g and h the other way round.
    assert [message["data"] for message in await drain(client, queue)] == [3]
    assert [message["data"] for message in await drain(client, queue, group="g")] == [1, 2]
    assert [message["data"] for message in await drain(client, queue, group="h")] == [3]


async def test_results_have_one_flat_index_in_the_order_written(client: Client, queue: str) -> None:
    """Every pushed item and every ack takes one index; each entry says what it is about."""
    out = unique("out")
    messages = await leased(client, queue, [1, 2])
    answer = await try_transaction(
        client,
        [
            ack_operation(messages[0]),
            push_operation(out, ["a", "b"], ids=["id-a", "id-b"]),
            ack_operation(messages[1]),
            {"type": "push", "queue": out, "payload": "c", "transactionId": "id-c"},
        ],
    )
    results = answer["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
    assert [result["type"] for result in results] == ["ack", "push", "push", "ack", "push"]
    assert [result["transactionId"] for result in results] == [
        messages[0]["transactionId"],
        "id-a",
        "id-b",
        messages[1]["transactionId"],
        "id-c",
    ]
    stored = (await client.pop(out)).messages
    pushes = [result for result in results if result["type"] == "push"]
    for push, message in zip(pushes, stored, strict=True):
        assert push["messageId"] == message["id"]
        assert push["partitionId"] == message["partitionId"]
        assert push["queueName"] == out
        assert push["status"] == "queued"
        assert not push.get("duplicate")
    for ack in (results[0], results[3]):
        assert ack["dlq"] is False
        assert ack["error"] is None
        assert not ack.get("noop")


async def test_a_push_is_written_as_items_or_flat_with_payload_or_data(
    client: Client, queue: str
) -> None:
    trace = "8f1c9a52-6f0e-4c1e-9d42-1b7f0f3f2a77"
    flat = {"type": "push", "queue": queue, "partition": "p"}
    await transaction(
        client,
        [
            {"type": "push", "items": [{"queue": queue, "partition": "p", "payload": {"n": 1}}]},
            {"type": "push", "items": [{"queue": queue, "partition": "p", "data": {"n": 2}}]},
            flat | {"payload": {"n": 3}, "transactionId": "three"},
            flat | {"data": {"n": 4}, "traceId": trace},
            flat | {"payload": None},
            flat | {"data": None},
            flat,  # absent: null
            {"type": "push", "items": [{"queue": queue, "partition": "p", "payload": False}]},
        ],
    )
    messages = (await client.pop(queue, partition="p")).messages
    assert [message["data"] for message in messages] == [
        {"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}, None, None, None, False,
    ]  # fmt: skip
    assert messages[2]["transactionId"] == "three"
    assert messages[3]["traceId"] == trace
    assert len({message["transactionId"] for message in messages}) == len(messages)


async def test_pushes_alone_and_acks_alone_are_transactions_too(client: Client, queue: str) -> None:
    await transaction(client, [push_operation(queue, [1]), push_operation(queue, [2, 3])])
    pop = await client.pop(queue)
    assert pop.data == [1, 2, 3]
    await transaction(client, [ack_operation(message) for message in pop.messages])
    assert (await client.extend(pop.lease_id))["success"] is False
    assert await none_left(client, queue)


async def test_a_transaction_creates_missing_queues_and_partitions(
    client: Client, queue: str
) -> None:
    space = unique("space")
    dotted = f"{space}.bills.{queue}"
    await transaction(client, [push_operation(dotted, [1], partition="new")])
    assert as_pop(await client.get(f"/api/v1/pop?namespace={space}&task=bills")).data == [1]


async def test_what_was_pushed_is_visible_to_an_immediate_pop_on_any_worker(
    client: Client, fresh_client: Client, queue: str
) -> None:
    out = unique("out")
    for number in range(20):
        message = (await leased(client, queue, [number]))[0]
        await transaction(client, [push_operation(out, [number]), ack_operation(message)])
        pop = await fresh_client.pop(out)
        assert pop.data == [number]
        await client.complete(pop)
        assert await none_left(fresh_client, queue)


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_waiting_pop_wakes_for_a_pushed_message(
    client: Client, fresh_client: Client, queue: str, group: str | None
) -> None:
    out = unique("out")
    message = (await leased(client, queue, [1]))[0]
    for partition in (None, "p"):
        waiting = asyncio.create_task(
            fresh_client.pop(out, wait_ms=20_000, group=group, partition=partition)
        )
        await asyncio.sleep(0.1)
        assert not waiting.done()
        operations = [push_operation(out, ["new"], partition="p")]
        if partition is None:
            operations.append(ack_operation(message))
        started = time.monotonic()
        await transaction(client, operations)
        pop = await waiting
        assert pop.data == ["new"]
        assert time.monotonic() - started < 1
        await client.complete(pop, group=group)


async def test_a_waiting_pop_wakes_when_a_transaction_releases_the_lease(
    client: Client, fresh_client: Client, queue: str
) -> None:
    """By finishing the batch, and by a nack."""
    await client.push(queue, [1, 2])
    for status in ("completed", "retry"):
        held = (await client.pop(queue, batch=1)).messages
        waiting = asyncio.create_task(fresh_client.pop(queue, batch=1, wait_ms=20_000))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        started = time.monotonic()
        await transaction(client, [ack_operation(held[0], status)])
        pop = await waiting
        assert pop.data == [2]
        assert time.monotonic() - started < 1
        await client.ack(pop.messages[0], "retry")


async def test_acks_of_one_batch_in_any_order_finish_it(client: Client, queue: str) -> None:
    """In any order within the transaction, and in several operations: one commit of the cursor."""
    messages = await leased(client, queue, [1, 2, 3])
    results = await transaction(client, [ack_operation(m) for m in reversed(messages)])
    assert all(not result["dlq"] for result in results)
    assert (await client.extend(messages[0]["leaseId"]))["success"] is False
    assert await none_left(client, queue)
    await client.push(queue, [4])
    assert (await client.pop(queue)).data == [4]


async def test_a_part_of_a_batch_leaves_the_lease_alive(client: Client, queue: str) -> None:
    messages = await leased(client, queue, [1, 2, 3])
    await transaction(client, [ack_operation(messages[0])])
    assert await none_left(client, queue)
    assert (await client.extend(messages[0]["leaseId"]))["renewed"] == 1
    await transaction(client, [ack_operation(messages[2])])
    assert (await client.extend(messages[0]["leaseId"]))["renewed"] == 0
    assert await none_left(client, queue)


async def test_the_default_group_of_an_ack_is_queue_mode(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    mine = (await client.pop(queue)).messages
    theirs = (await client.pop(queue, group="g")).messages
    operations = [ack_operation(mine[0]), ack_operation(theirs[0], group="g")]
    del operations[0]["leaseId"]
    await transaction(client, [operations[0]])
    assert (await client.extend(theirs[0]["leaseId"]))["renewed"] == 1
    await transaction(client, [operations[1]])
    # Without its group the ack names another (partition, group), whose lease it does not hold.
    await client.push(queue, [2])
    theirs = (await client.pop(queue, group="g")).messages
    await refused(client, [ack_operation(theirs[0])])
    assert (await client.extend(theirs[0]["leaseId"]))["renewed"] == 1


# ── or nothing ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("position", [0, 1, 2], ids=["first", "middle", "last"])
async def test_an_ack_under_a_stale_lease_undoes_everything_around_it(
    client: Client, queue: str, position: int
) -> None:
    other, out = unique("other"), unique("out")
    await client.push(queue, [1])
    stale = (await client.pop(queue, leaseSeconds=1)).messages[0]
    live = (await leased(client, other, [2]))[0]
    await asyncio.sleep(1.1)
    operations = [push_operation(out, ["x"]), ack_operation(live)]
    operations.insert(position, ack_operation(stale))
    assert "lease" in await refused(client, operations)
    assert await none_left(client, out)
    assert (await client.extend(live["leaseId"]))["renewed"] == 1
    assert (await client.pop(queue)).data == [1]
    # Nothing is left of it that would hinder the same without the stale ack.
    operations.pop(position)
    await transaction(client, operations)
    assert (await client.pop(out)).data == ["x"]


async def test_a_lease_id_that_is_none_is_stale(client: Client, queue: str) -> None:
    message = (await leased(client, queue, [1]))[0]
    for lease_id in ("gibberish", "00000000-0000-0000-0000-000000000000"):
        error = await refused(client, [ack_operation(message, leaseId=lease_id)])
        assert "lease" in error
    for none in ("", None):  # as if not sent
        await transaction(client, [ack_operation(message, "retry", leaseId=none)])
        message = (await client.pop(queue)).messages[0]
    assert message["deliveryAttempt"] == 3


async def test_one_group_s_lease_is_no_good_for_another_group(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    mine = (await client.pop(queue, group="g")).messages[0]
    theirs = (await client.pop(queue, group="h")).messages[0]
    assert "lease" in await refused(client, [ack_operation(mine, group="h")])
    await transaction(client, [ack_operation(mine, group="g"), ack_operation(theirs, group="h")])


async def test_one_partition_s_lease_is_no_good_for_another_partition(
    client: Client, queue: str
) -> None:
    a = (await leased(client, queue, [1], partition="a"))[0]
    b = (await leased(client, queue, [2], partition="b"))[0]
    await refused(client, [ack_operation(a), ack_operation(b, leaseId=a["leaseId"])])
    assert (await client.extend(a["leaseId"]))["renewed"] == 1
    await transaction(client, [ack_operation(a), ack_operation(b)])


@pytest.mark.parametrize("status", ["completed", "failed", "retry", "dlq"])
async def test_an_unknown_message_undoes_everything(
    client: Client, queue: str, status: str
) -> None:
    out = unique("out")
    message = (await leased(client, queue, [1]))[0]
    for ghost in (
        message | {"transactionId": "never pushed"},
        message | {"partitionId": "999999999999"},
        message | {"partitionId": "no partition"},
    ):
        for fenced in (True, False):
            await refused(
                client,
                [
                    push_operation(out, ["x"]),
                    ack_operation(message),
                    ack_operation(ghost, status, fenced=fenced),
                ],
            )
    assert await none_left(client, out)
    assert (await client.extend(message["leaseId"]))["renewed"] == 1
    assert await dead_letters(client, queue) == []


async def test_a_message_beyond_the_leased_batch_undoes_everything(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2, 3], ids=["one", "two", "three"])
    held = (await client.pop(queue, batch=1)).messages[0]
    beyond = held | {"transactionId": "two"}
    await refused(client, [ack_operation(held), ack_operation(beyond)])
    await refused(client, [ack_operation(held), ack_operation(beyond, fenced=False)])
    assert (await client.extend(held["leaseId"]))["renewed"] == 1


async def test_a_group_that_got_nothing_has_nothing_to_acknowledge(
    client: Client, queue: str
) -> None:
    message = (await leased(client, queue, [1]))[0]
    await refused(client, [ack_operation(message, group="stranger", fenced=False)])
    assert (await client.pop(queue, group="stranger")).data == [1]


# ── which lease an ack names ────────────────────────────────────────────────────────────────────


async def test_a_single_required_lease_is_lent_to_acks_without_one(
    client: Client, queue: str
) -> None:
    """Live, it lets them through; stale, it undoes the transaction; repeated, it is still one."""
    message = (await leased(client, queue, [1]))[0]
    bare = ack_operation(message, fenced=False)
    await client.ack(message, "retry")
    held = (await client.pop(queue)).messages[0]
    assert "lease" in await refused(client, [bare], [message["leaseId"]])
    assert "lease" in await refused(client, [bare], [message["leaseId"]] * 2)
    await transaction(client, [bare], [held["leaseId"]] * 2)
    assert await none_left(client, queue)


@pytest.mark.parametrize("count", [0, 2])
async def test_any_other_number_of_required_leases_lends_none(
    client: Client, queue: str, count: int
) -> None:
    """The ack is then not fenced at all: it is applied whoever holds the partition."""
    message = (await leased(client, queue, [1]))[0]
    required = [message["leaseId"], "11111111-1111-1111-1111-111111111111"][:count]
    await transaction(client, [ack_operation(message, fenced=False)], required)
    assert await none_left(client, queue)


async def test_a_required_lease_is_not_lent_to_an_ack_with_its_own(
    client: Client, queue: str
) -> None:
    """And that it is required does not make a lease that nobody uses count."""
    a = (await leased(client, queue, [1], partition="a"))[0]
    b = (await leased(client, queue, [2], partition="b"))[0]
    await transaction(client, [ack_operation(a)], [b["leaseId"]])
    assert (await client.extend(b["leaseId"]))["renewed"] == 1
    await transaction(client, [ack_operation(b)], ["11111111-1111-1111-1111-111111111111"])


async def test_a_lent_lease_covers_several_partitions_of_one_pop(
    client: Client, queue: str
) -> None:
    for partition in "abc":
        await client.push(queue, [partition], partition=partition)
    pop = await client.pop(queue, partitions=3)
    assert sorted(pop.data) == ["a", "b", "c"]
    operations = [ack_operation(message, fenced=False) for message in pop.messages]
    await transaction(client, operations, [pop.lease_id])
    assert (await client.extend(pop.lease_id))["renewed"] == 0
    assert await none_left(client, queue)


async def test_a_lent_lease_fences_an_ack_of_another_partition(client: Client, queue: str) -> None:
    """It is lent to every ack without one, also where it is not the live lease."""
    a = (await leased(client, queue, [1], partition="a"))[0]
    b = (await leased(client, queue, [2], partition="b"))[0]
    await refused(client, [ack_operation(a), ack_operation(b, fenced=False)], [a["leaseId"]])
    assert (await client.extend(a["leaseId"]))["renewed"] == 1


# ── below the cursor ────────────────────────────────────────────────────────────────────────────


async def test_completed_below_the_cursor_is_a_noop_and_the_rest_commits(
    client: Client, queue: str
) -> None:
    """Under the live lease, and without any."""
    out = unique("out")
    messages = await leased(client, queue, [1, 2, 3])
    await client.ack(messages[1])
    await transaction(client, [ack_operation(messages[0]), push_operation(out, ["live"])])
    await transaction(
        client, [ack_operation(messages[0], fenced=False), push_operation(out, ["bare"])]
    )
    assert (await client.pop(out)).data == ["live", "bare"]
    assert (await client.extend(messages[0]["leaseId"]))["renewed"] == 1
    await transaction(client, [ack_operation(messages[2])])
    # Nobody holds a lease now.
    await transaction(
        client, [ack_operation(messages[0], fenced=False), push_operation(out, ["none"])]
    )
    assert await none_left(client, queue)


async def test_there_is_no_resend_rule_in_a_transaction(client: Client, queue: str) -> None:
    """The lease that brought its batch to the end is stale here, unlike in a plain ack."""
    out = unique("out")
    message = (await leased(client, queue, [1]))[0]
    operations = [ack_operation(message), push_operation(out, ["x"])]
    await transaction(client, operations)
    assert (await client.ack(message))["success"] is True
    assert "lease" in await refused(client, operations)
    assert (await client.pop(out)).data == ["x"]


@pytest.mark.parametrize("status", ["failed", "retry", "dlq"])
async def test_a_nack_below_the_cursor_undoes_everything(
    client: Client, queue: str, status: str
) -> None:
    out = unique("out")
    messages = await leased(client, queue, [1, 2, 3])
    await client.ack(messages[1])
    for fenced in (True, False):
        await refused(
            client,
            [
                ack_operation(messages[0], status, fenced=fenced),
                ack_operation(messages[2]),
                push_operation(out, ["x"]),
            ],
        )
    assert await none_left(client, out)
    assert (await client.extend(messages[0]["leaseId"]))["renewed"] == 1
    assert await dead_letters(client, queue) == []


# ── nacks ───────────────────────────────────────────────────────────────────────────────────────


async def test_failed_with_no_retries_is_a_dead_letter_and_the_push_is_applied(
    client: Client, queue: str
) -> None:
    out = unique("out")
    await client.configure(queue, {"retryLimit": 0})
    message = (await leased(client, queue, [{"n": 1}]))[0]
    results = await transaction(
        client,
        [ack_operation(message, "failed", error="tax service down"), push_operation(out, ["x"])],
    )
    assert results[0]["dlq"] is True
    assert await none_left(client, queue)
    assert (await client.pop(out)).data == ["x"]
    (letter,) = await dead_letters(client, queue)
    assert (letter["data"], letter["errorMessage"]) == ({"n": 1}, "tax service down")


async def test_failed_is_charged_and_redelivered_while_the_budget_lasts(
    client: Client, queue: str
) -> None:
    out = unique("out")
    await client.configure(queue, {"retryLimit": 2})
    await client.push(queue, [1, 2])
    for attempt in (1, 2, 3):
        pop = await client.pop(queue)
        assert pop.data == [1, 2]
        assert pop.attempts == {attempt}
        assert {message["retryCount"] for message in pop.messages} == {attempt - 1}
        results = await transaction(
            client, [ack_operation(pop.messages[0], "failed"), push_operation(out, [attempt])]
        )
        assert results[0]["dlq"] is (attempt == 3)
    assert (await client.pop(queue)).data == [2]
    assert (await client.pop(out)).data == [1, 2, 3]
    assert len(await dead_letters(client, queue)) == 1


async def test_failed_in_two_operations_is_charged_once(client: Client, queue: str) -> None:
    """The acks of a transaction count as one call."""
    await client.configure(queue, {"retryLimit": 1})
    messages = await leased(client, queue, [1, 2, 3])
    await transaction(client, [ack_operation(message, "failed") for message in messages])
    pop = await client.pop(queue)
    assert pop.data == [1, 2, 3]
    assert {message["retryCount"] for message in pop.messages} == {1}
    assert await dead_letters(client, queue) == []


async def test_a_nack_is_not_swallowed_by_a_later_success(client: Client, queue: str) -> None:
    messages = await leased(client, queue, [1, 2, 3])
    await transaction(
        client,
        [
            ack_operation(messages[0]),
            ack_operation(messages[1], "failed"),
            ack_operation(messages[2]),
        ],
    )
    assert (await client.pop(queue)).data == [2, 3]


async def test_retry_redelivers_without_a_charge_and_dlq_buries_at_once(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"retryLimit": 0})
    messages = await leased(client, queue, [1, 2])
    results = await transaction(client, [ack_operation(messages[0], "retry")])
    assert results[0]["dlq"] is False
    pop = await client.pop(queue)
    assert pop.data == [1, 2]
    results = await transaction(client, [ack_operation(pop.messages[0], "dlq", error="poison")])
    assert results[0]["dlq"] is True
    assert [letter["errorMessage"] for letter in await dead_letters(client, queue)] == ["poison"]
    assert (await client.pop(queue)).data == [2]


async def test_a_dead_letter_of_a_refused_transaction_was_never_one(
    client: Client, queue: str
) -> None:
    """Nor is a retry charged."""
    await client.configure(queue, {"retryLimit": 0})
    messages = await leased(client, queue, [1, 2])
    ghost = messages[0] | {"transactionId": "never pushed"}
    await refused(
        client,
        [ack_operation(messages[0], "dlq"), ack_operation(messages[1], "failed"),
         ack_operation(ghost)],
    )  # fmt: skip
    assert await dead_letters(client, queue) == []
    await transaction(client, [ack_operation(message) for message in messages])


# ── duplicates ──────────────────────────────────────────────────────────────────────────────────


async def test_a_stored_id_undoes_everything(client: Client, queue: str) -> None:
    """That is what makes a transaction that is sent twice harmless."""
    out, new = unique("out"), unique("new")
    await client.push(out, ["old"], ids=["taken"])
    message = (await leased(client, queue, [1]))[0]
    await refused(
        client,
        [
            push_operation(new, ["x"]),
            ack_operation(message),
            push_operation(out, ["fresh", "again"], ids=["free", "taken"]),
        ],
        reason="duplicate",
    )
    assert await none_left(client, new)
    assert (await client.pop(out)).data == ["old"]
    assert (await client.extend(message["leaseId"]))["renewed"] == 1
    # Another partition is another name space; and the id that was refused beside it is free.
    await transaction(
        client, [push_operation(out, ["p"], partition="p", ids=["taken"]), ack_operation(message)]
    )
    (result,) = await client.push(out, ["fresh"], ids=["free"])
    assert result["status"] == "queued"


async def test_an_id_of_a_consumed_message_is_still_taken(client: Client, queue: str) -> None:
    await client.push(queue, [1], ids=["one"])
    await client.complete(await client.pop(queue))
    await refused(client, [push_operation(queue, [1], ids=["one"])], reason="duplicate")


async def test_a_repeat_within_the_transaction_is_stored_once(client: Client, queue: str) -> None:
    """In one push operation and in two; the later entries carry the first one's message id."""
    results = await transaction(
        client,
        [
            push_operation(queue, ["first", "second"], ids=["one", "one"]),
            push_operation(queue, ["third", "other"], ids=["one", "two"]),
        ],
    )
    assert [bool(result.get("duplicate")) for result in results] == [False, True, True, False]
    assert results[0]["messageId"] == results[1]["messageId"] == results[2]["messageId"]
    assert results[1]["duplicate"] is True
    messages = (await client.pop(queue)).messages
    assert [message["data"] for message in messages] == ["first", "other"]
    assert messages[0]["id"] == results[0]["messageId"]


async def test_without_a_deduplication_window_nothing_is_a_duplicate(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"dedupWindowSeconds": 0})
    await client.push(queue, ["old"], ids=["one"])
    await transaction(client, [push_operation(queue, ["new"], ids=["one"])])
    assert (await client.pop(queue)).data == ["old", "new"]


async def test_acks_are_judged_before_pushes(client: Client, queue: str) -> None:
    """When both would refuse, the reason is the ack's."""
    await client.push(queue, [1], ids=["one"])
    message = (await client.pop(queue)).messages[0]
    ghost = message | {"transactionId": "never pushed"}
    await refused(client, [push_operation(queue, [1], ids=["one"]), ack_operation(ghost)])
    stale = ack_operation(message, leaseId="11111111-1111-1111-1111-111111111111")
    await refused(client, [push_operation(queue, [1], ids=["one"]), stale])


async def test_concurrent_transactions_with_one_id_commit_once(
    fresh_client: Client, queue: str
) -> None:
    """Over both workers: one wins, the others are told and leave nothing."""
    out = unique("out")
    answers = await asyncio.gather(
        *(
            try_transaction(
                fresh_client, [push_operation(queue, [n], ids=["one"]), push_operation(out, [n])]
            )
            for n in range(10)
        )
    )
    winners = [number for number, answer in enumerate(answers) if answer["success"]]
    assert len(winners) == 1, answers
    assert {answer.get("reason") for answer in answers if not answer["success"]} == {"duplicate"}
    assert (await fresh_client.pop(queue)).data == winners
    assert (await fresh_client.pop(out)).data == winners


async def test_a_transaction_sent_again_is_refused_and_changes_nothing(
    client: Client, queue: str
) -> None:
    """After a lost answer: fenced acks and stored ids stop the second one."""
    out = unique("out")
    message = (await leased(client, queue, [1]))[0]
    operations = [ack_operation(message), push_operation(out, ["x"], ids=["once"])]
    await transaction(client, operations)
    for _ in range(2):
        assert (await try_transaction(client, operations))["success"] is False
    assert [message["data"] for message in await drain(client, out)] == ["x"]


# ── concurrency ─────────────────────────────────────────────────────────────────────────────────


async def test_crossing_transactions_neither_deadlock_nor_lose(
    fresh_client: Client, queue: str
) -> None:
    """Each acks in two queues and pushes to both, written in opposite orders, on both workers."""
    queues = [queue, unique("other")]
    for name in queues:
        for partition in range(8):
            await fresh_client.push(name, [partition], partition=str(partition))
    held = {
        name: {m["partition"]: m for m in (await fresh_client.pop(name, partitions=64)).messages}
        for name in queues
    }

    async def cross(partition: str, order: int) -> None:
        operations = [
            operation
            for name in queues
            for operation in (
                ack_operation(held[name][partition]),
                push_operation(name, [f"{partition}-done"], partition="shared"),
            )
        ]
        await transaction(fresh_client, operations if order else operations[::-1])

    async with asyncio.timeout(10):
        await asyncio.gather(*(cross(str(p), p % 2) for p in range(8)))
    for name in queues:
        data = [message["data"] for message in await drain(fresh_client, name)]
        assert sorted(data) == [f"{p}-done" for p in range(8)]


async def test_a_lease_completes_once_whoever_transacts(fresh_client: Client, queue: str) -> None:
    """The same batch is committed by ten transactions at once with different pushes."""
    out = unique("out")
    message = (await leased(fresh_client, queue, [1]))[0]
    answers = await asyncio.gather(
        *(
            try_transaction(fresh_client, [ack_operation(message), push_operation(out, [n])])
            for n in range(10)
        )
    )
    winners = [number for number, answer in enumerate(answers) if answer["success"]]
    assert len(winners) == 1, answers
    assert (await fresh_client.pop(out)).data == winners


# ── the official client's two ───────────────────────────────────────────────────────────────────


async def test_a_bundle_with_an_ack_under_an_expired_lease_is_refused_whole(
    client: Client, queue: str
) -> None:
    """The old holder takes a live ack along; both live holders can still commit."""
    other = unique("other")
    await client.push(queue, [1])
    await client.push(other, [2])
    old = (await client.pop(queue, leaseSeconds=1)).messages[0]
    live = (await client.pop(other)).messages[0]

    async def again() -> Pop | None:
        pop = await client.pop(queue, leaseSeconds=30)
        return pop if pop.messages else None

    new = (await eventually(again)).messages[0]
    assert new["transactionId"] == old["transactionId"]
    assert new["leaseId"] != old["leaseId"]
    required = [old["leaseId"], live["leaseId"]]
    await refused(client, [ack_operation(old), ack_operation(live)], required)
    await transaction(client, [ack_operation(new)], [new["leaseId"]])
    await transaction(client, [ack_operation(live)], [live["leaseId"]])
    assert await none_left(client, queue)
    assert await none_left(client, other)


async def test_a_bundle_of_two_live_leases_completes_both(client: Client, queue: str) -> None:
    other = unique("other")
    a = (await leased(client, queue, [1]))[0]
    b = (await leased(client, other, [2]))[0]
    await transaction(client, [ack_operation(a), ack_operation(b)], [a["leaseId"], b["leaseId"]])
    for message in (a, b):
        assert (await client.extend(message["leaseId"]))["success"] is False
    assert await none_left(client, queue)
    assert await none_left(client, other)


# ── malformed ───────────────────────────────────────────────────────────────────────────────────

GOOD = {"type": "push", "items": [{"queue": "never-made", "payload": 1}]}
ACK = {"type": "ack", "transactionId": "t", "partitionId": "1"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "operations array required"),
        ({"operations": None}, "operations array required"),
        ({"operations": {}}, "operations array required"),
        ({"operations": "push"}, "operations array required"),
        ({"operations": []}, "operations array cannot be empty"),
        ({"operations": [], "kv": [], "timers": []}, "operations array cannot be empty"),
    ],
    ids=str,
)
async def test_operations_are_required(client: Client, body: dict[str, Any], text: str) -> None:
    answer = await client.post("/api/v1/transaction", body)
    assert answer.status == 400, answer
    assert text in answer.error


@pytest.mark.parametrize(
    "body",
    [
        {"operations": [GOOD, {"type": "pop"}]},
        {"operations": [GOOD, {"type": ""}]},
        {"operations": [GOOD, {"items": []}]},
        {"operations": [GOOD, {"type": 7}]},
        {"operations": [GOOD, {"type": "kv", "op": "put"}]},
        {"operations": [GOOD, {"type": "timer"}]},
        {"operations": [GOOD, "push"]},
        {"operations": [GOOD, {"type": "push"}]},
        {"operations": [GOOD, {"type": "push", "items": [{"payload": 1}]}]},
        {"operations": [GOOD, {"type": "push", "items": [{"queue": 1}]}]},
        {"operations": [GOOD, {"type": "push", "items": {}}]},
        {"operations": [GOOD, {"type": "ack", "partitionId": "1"}]},
        {"operations": [GOOD, {"type": "ack", "transactionId": "t"}]},
        {"operations": [GOOD, ACK | {"status": "gibberish"}]},
        {"operations": [GOOD], "kv": {}},
        {"operations": [GOOD], "timers": "soon"},
    ],
    ids=str,
)
async def test_a_malformed_transaction_is_a_400_and_nothing_was_tried(
    client: Client, body: dict[str, Any]
) -> None:
    name = unique("never-made")
    operations = [
        {"type": "push", "items": [{"queue": name, "payload": 1}]} if one is GOOD else one
        for one in body["operations"]
    ]
    answer = await client.post("/api/v1/transaction", body | {"operations": operations})
    assert answer.status == 400, answer
    assert answer.error
    assert answer.json["reason"] == "bad_request", answer
    assert await none_left(client, name)


async def test_malformed_json_is_a_400(client: Client) -> None:
    for body in (b"", b"{", b"[]", b'{"operations":[' + b"["):
        answer = await client.send(
            "POST",
            "/api/v1/transaction",
            body=body,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status == 400, (body, answer)
        assert answer.error


async def test_unknown_fields_are_ignored(client: Client, queue: str) -> None:
    body = {
        "operations": [push_operation(queue, [1]) | {"color": "red"}],
        "requiredLeases": [],
        "config": {},
    }
    answer = await client.post("/api/v1/transaction", body)
    assert answer.json["success"] is True
    assert (await client.pop(queue)).data == [1]
