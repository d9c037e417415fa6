"""Options that refuse or bury messages (wire-api 2.4, 3.4, 3.5; docs/queue-options.md)."""

import asyncio
from typing import Any

import pytest

from tests.client import Answer, Client, drain, eventually, segment, unique


async def try_push(client: Client, items: list[dict[str, Any]]) -> Answer:
    return await client.post("/api/v1/push", {"items": items})


def items_of(queue: str, payloads: list[Any]) -> list[dict[str, Any]]:
    return [{"queue": queue, "payload": payload} for payload in payloads]


def assert_full(answer: Answer) -> None:
    assert answer.status == 409, answer
    assert "max capacity" in answer.error
    assert answer.json["code"] == "queue_full"


def data(messages: list[dict[str, Any]]) -> list[Any]:
    return [message["data"] for message in messages]


async def dead_letters(client: Client, queue: str) -> list[dict[str, Any]]:
    answer = await client.get(f"/api/v1/dlq?queue={segment(queue)}")
    assert answer.status == 200, answer
    return list(answer.json["messages"])


# ── maxSize ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_push_beyond_max_size_is_refused_as_a_whole(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 5})
    await client.push(queue, [1, 2, 3])
    refused = await try_push(client, items_of(queue, [4, 5, 6]))
    assert_full(refused)
    assert queue in refused.error
    await client.push(queue, ["fits", "exactly"])
    assert_full(await try_push(client, items_of(queue, ["one more"])))
    assert data(await drain(client, queue)) == [1, 2, 3, "fits", "exactly"]


async def test_nothing_of_a_refused_request_is_stored_in_any_queue(
    client: Client, queue: str
) -> None:
    other = unique("other")
    await client.configure(queue, {"maxSize": 1})
    items = [*items_of(other, ["a"]), *items_of(queue, [1, 2]), *items_of(other, ["b"])]
    assert_full(await try_push(client, items))
    assert await drain(client, queue) == []
    assert await drain(client, other) == []


async def test_max_size_counts_over_all_partitions(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 4})
    for name in "ab":
        await client.push(queue, [1, 2], partition=name)
    assert_full(await try_push(client, [{"queue": queue, "partition": "c", "payload": 3}]))


async def test_there_is_room_again_after_acks(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 3})
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue)
    assert_full(await try_push(client, items_of(queue, [4])))  # leased is not yet read
    await client.ack(pop.messages[1])  # commits two
    await client.push(queue, [4, 5])
    assert_full(await try_push(client, items_of(queue, [6])))


async def test_a_group_that_has_not_read_it_keeps_a_message_unread(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"maxSize": 2})
    await client.push(queue, [1, 2])
    pops = {group: await client.pop(queue, group=group) for group in ("fast", "slow")}
    await client.complete(pops["fast"], group="fast")
    assert_full(await try_push(client, items_of(queue, [3])))
    await client.complete(pops["slow"], group="slow")
    await client.push(queue, [3])


async def test_concurrent_pushers_never_exceed_max_size(fresh_client: Client, queue: str) -> None:
    await fresh_client.configure(queue, {"maxSize": 50})
    answers = await asyncio.gather(
        *[
            try_push(
                fresh_client,
                [
                    {"queue": queue, "partition": f"p{number % 4}", "payload": [number, position]}
                    for position in range(3)
                ],
            )
            for number in range(40)
        ]
    )
    stored = [answer for answer in answers if answer.status == 201]
    for answer in answers:
        if answer.status != 201:
            assert_full(answer)
    # Sixteen requests of three fit; the seventeenth would take it to 51.
    assert len(stored) == 16
    assert len(await drain(fresh_client, queue)) == 48


async def test_a_full_queue_does_not_disturb_pushes_to_others(
    fresh_client: Client, queue: str
) -> None:
    other = unique("other")
    await fresh_client.configure(queue, {"maxSize": 1})
    await fresh_client.push(queue, ["full"])
    answers = await asyncio.gather(
        *[
            try_push(fresh_client, items_of(name, [number]))
            for number in range(40)
            for name in (queue, other)
        ]
    )
    for answer in answers[::2]:
        assert_full(answer)
    assert [answer.status for answer in answers[1::2]] == [201] * 40
    assert sorted(data(await drain(fresh_client, other))) == list(range(40))
    assert data(await drain(fresh_client, queue)) == ["full"]


async def test_max_size_0_is_unlimited(client: Client, queue: str) -> None:
    """The value that the official builders send when nothing was said."""
    body = await client.configure(queue, {"maxSize": 0})
    assert body["options"]["maxSize"] == 0
    await client.push(queue, list(range(10_500)))
    assert (await client.push(queue, ["more"]))[0]["status"] == "queued"


async def test_a_limit_that_is_lifted_counts_no_more(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 1})
    await client.push(queue, [1])
    assert_full(await try_push(client, items_of(queue, [2])))
    await client.configure(queue, {"maxSize": 0})
    await client.push(queue, [2])
    assert data(await drain(client, queue)) == [1, 2]


# ── dedupWindowSeconds ──────────────────────────────────────────────────────────────────────────


async def statuses(client: Client, queue: str, ids: list[str]) -> list[str]:
    results = await client.push(queue, list(ids), ids=ids)
    return [result["status"] for result in results]


async def test_an_unset_window_is_exact(client: Client, queue: str) -> None:
    await client.configure(queue, {"leaseTime": 30})
    assert await statuses(client, queue, ["a", "b"]) == ["queued", "queued"]
    assert await statuses(client, queue, ["b", "c", "a"]) == ["duplicate", "queued", "duplicate"]
    await drain(client, queue)
    assert await statuses(client, queue, ["a"]) == ["duplicate"]


@pytest.mark.parametrize("seconds", [0, -5])
async def test_window_0_finds_only_repeats_within_one_request(
    client: Client, queue: str, seconds: int
) -> None:
    body = await client.configure(queue, {"dedupWindowSeconds": seconds})
    assert body["options"]["dedupWindowSeconds"] == 0
    assert await statuses(client, queue, ["a", "a"]) == ["queued", "duplicate"]
    assert await statuses(client, queue, ["a"]) == ["queued"]
    assert [message["transactionId"] for message in await drain(client, queue)] == ["a", "a"]


async def test_an_id_is_free_again_after_the_window(client: Client, queue: str) -> None:
    """Although the first message is still stored and unread."""
    await client.configure(queue, {"dedupWindowSeconds": 1})
    first = await client.push(queue, [1], ids=["a"])
    again = await client.push(queue, [2], ids=["a"])
    assert again[0]["status"] == "duplicate"
    assert again[0]["message_id"] == first[0]["message_id"]
    await asyncio.sleep(1.3)
    later = await client.push(queue, [3], ids=["a"])
    assert later[0]["status"] == "queued"
    assert later[0]["message_id"] != first[0]["message_id"]
    # From here the window counts anew.
    last = await client.push(queue, [4], ids=["a"])
    assert last[0]["status"] == "duplicate"
    assert last[0]["message_id"] == later[0]["message_id"]
    assert data(await drain(client, queue)) == [1, 3]


# ── deliveryLimit ───────────────────────────────────────────────────────────────────────────────


async def claimed(client: Client, queue: str, **parameters: Any) -> list[dict[str, Any]]:
    """The next claim, held for one second and never acknowledged."""
    return (await client.pop(queue, wait_ms=10_000, leaseSeconds=1, **parameters)).messages


async def test_a_message_that_is_never_acknowledged_is_buried(client: Client, queue: str) -> None:
    await client.configure(queue, {"deliveryLimit": 2})
    await client.push(queue, [{"poison": True}, 2, 3], ids=["poison", "b", "c"])
    for attempt in (1, 2):
        messages = await claimed(client, queue, batch=1)
        assert [message["transactionId"] for message in messages] == ["poison"]
        assert messages[0]["deliveryAttempt"] == attempt
    assert await dead_letters(client, queue) == []
    rest = await client.pop(queue, wait_ms=10_000)
    assert rest.data == [2, 3]
    (entry,) = await dead_letters(client, queue)
    assert entry["transactionId"] == "poison"
    assert entry["data"] == {"poison": True}
    assert entry["queue"] == queue
    assert entry["errorMessage"]
    await client.complete(rest)
    assert (await client.pop(queue)).status == 204


async def test_the_limit_belongs_to_the_group(client: Client, queue: str) -> None:
    await client.configure(queue, {"deliveryLimit": 1})
    await client.push(queue, ["poison"])
    assert data(await claimed(client, queue, group="g")) == ["poison"]

    async def buried() -> list[dict[str, Any]]:
        assert (await client.pop(queue, group="g")).status == 204
        return await dead_letters(client, queue)

    (entry,) = await eventually(buried)
    assert entry["consumerGroup"] == "g"
    assert (await client.pop(queue, group="other")).data == ["poison"]


async def test_who_acknowledges_in_time_meets_no_limit(client: Client, queue: str) -> None:
    await client.configure(queue, {"deliveryLimit": 1})
    for number in range(3):
        await client.push(queue, [number])
        pop = await client.pop(queue)
        assert pop.data == [number]
        await client.complete(pop)
    assert await dead_letters(client, queue) == []


async def test_without_a_limit_it_comes_for_ever(client: Client, queue: str) -> None:
    await client.configure(queue, {"leaseTime": 30, "retryLimit": 0})
    await client.push(queue, ["poison"])
    for attempt in range(1, 6):
        messages = await claimed(client, queue)
        assert data(messages) == ["poison"]
        assert messages[0]["deliveryAttempt"] == attempt
    assert await dead_letters(client, queue) == []


# ── echo and validation ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("priority", [0, 7, -3])
async def test_messages_carry_the_priority_of_their_queue(
    client: Client, queue: str, priority: int
) -> None:
    await client.configure(queue, {"priority": priority})
    await client.push(queue, [1, 2])
    assert [message["priority"] for message in (await client.pop(queue)).messages] == [priority] * 2


async def test_options_of_our_own_are_echoed(client: Client, queue: str) -> None:
    options = (await client.configure(queue, {}))["options"]
    assert options["retryBackoff"] is False
    assert options["deliveryLimit"] == 0
    set_ = (await client.configure(queue, {"retryBackoff": True, "deliveryLimit": 4}))["options"]
    assert set_["retryBackoff"] is True
    assert set_["deliveryLimit"] == 4
    kept = (await client.configure(queue, {"priority": 1}))["options"]
    assert (kept["retryBackoff"], kept["deliveryLimit"]) == (True, 4)
    reset = (await client.configure(queue, {"retryBackoff": None, "deliveryLimit": None}))[
        "options"
    ]
    assert (reset["retryBackoff"], reset["deliveryLimit"]) == (False, 0)
    await client.configure(queue, {"retryBackoff": True, "deliveryLimit": 4})
    replaced = (await client.configure(queue, {"priority": 1}, mode="replace"))["options"]
    assert (replaced["retryBackoff"], replaced["deliveryLimit"]) == (False, 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retryBackoff", 1),
        ("retryBackoff", "true"),
        ("retryBackoff", 2.0),
        ("deliveryLimit", "3"),
        ("deliveryLimit", True),
        ("deliveryLimit", 1.5),
        ("deliveryLimit", -1),
        ("deliveryLimit", 2**31),
    ],
)
async def test_a_wrong_value_is_refused_and_changes_nothing(
    client: Client, queue: str, option: str, value: Any
) -> None:
    await client.configure(queue, {"retryBackoff": True, "deliveryLimit": 4})
    answer = await client.post(
        "/api/v1/configure", {"queue": queue, "options": {"priority": 9, option: value}}
    )
    assert answer.status == 400, answer
    assert option in answer.error
    options = (await client.configure(queue, {}))["options"]
    assert options["retryBackoff"] is True
    assert options["deliveryLimit"] == 4
    assert options["priority"] == 0
