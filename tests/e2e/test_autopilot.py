"""Pops that the server sizes: what was left out is its choice, what was said is kept (7.1)."""

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.client import Client, Pop, as_pop, segment, unique


async def sized(client: Client, queue: str, *, path: str = "", **parameters: Any) -> Pop:
    """A pop with the flag that says only what *parameters* say."""
    query = urlencode({"autopilot": "true", **parameters})
    return as_pop(await client.get(f"/api/v1/pop/queue/{segment(queue)}{path}?{query}"))


async def fill(client: Client, queue: str, partitions: int, each: int) -> None:
    await client.push_items(
        [
            {"queue": queue, "partition": f"p{number}", "payload": position}
            for number in range(partitions)
            for position in range(each)
        ]
    )


async def test_the_answer_tells_what_was_used(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await sized(client, queue)
    used = pop.body["autopilot"]
    assert 1 <= used["partitions"] <= 64
    assert 100 <= used["batch"] <= 1000
    assert {name: type(used[name]) for name in ("partitions", "batch")} == {
        "partitions": int,
        "batch": int,
    }


@pytest.mark.parametrize("flag", ["true", "1"])
async def test_the_flag_has_two_spellings(client: Client, queue: str, flag: str) -> None:
    await client.push(queue, [1])
    assert "autopilot" in (await sized(client, queue, autopilot=flag)).body


@pytest.mark.parametrize("flag", ["false", "0", ""])
async def test_without_the_flag_there_is_no_echo_and_one_partition(
    client: Client, queue: str, flag: str
) -> None:
    await fill(client, queue, 3, 2)
    pop = await sized(client, queue, autopilot=flag)
    assert "autopilot" not in pop.body
    assert pop.body["partitionsClaimed"] == 1
    assert pop.data == [0, 1]


async def test_without_the_flag_an_absent_batch_is_200(client: Client, queue: str) -> None:
    await client.push(queue, list(range(250)))
    pop = await sized(client, queue, autopilot="false")
    assert pop.data == list(range(200))


async def test_one_consumer_takes_all_four_ready_partitions(client: Client, queue: str) -> None:
    await fill(client, queue, 4, 3)
    pop = await sized(client, queue)
    assert pop.body["partitionsClaimed"] == 4
    assert pop.body["autopilot"]["partitions"] >= 4
    assert sorted(message["partition"] for message in pop.messages) == sorted(
        f"p{number}" for number in range(4) for _ in range(3)
    )
    assert {message["leaseId"] for message in pop.messages} == {pop.lease_id}
    await client.complete(pop)
    assert (await sized(client, queue)).status == 204


async def test_a_group_takes_all_four_as_well(client: Client, queue: str) -> None:
    await fill(client, queue, 4, 1)
    pop = await sized(client, queue, consumerGroup="g", subscriptionMode="all")
    assert pop.body["partitionsClaimed"] == 4


async def test_the_batch_is_respected_when_the_width_is_left_out(
    client: Client, queue: str
) -> None:
    await fill(client, queue, 4, 10)
    pop = await sized(client, queue, batch=7)
    assert len(pop.messages) == 7
    assert pop.body["autopilot"]["batch"] == 7


@pytest.mark.parametrize("width", [1, 2, 3])
async def test_the_width_is_respected_when_the_batch_is_left_out(
    client: Client, queue: str, width: int
) -> None:
    await fill(client, queue, 4, 2)
    pop = await sized(client, queue, partitions=width)
    assert pop.body["autopilot"]["partitions"] == width
    assert pop.body["autopilot"]["batch"] >= 100
    assert pop.body["partitionsClaimed"] == width
    assert len(pop.messages) == 2 * width


async def test_both_are_respected(client: Client, queue: str) -> None:
    await fill(client, queue, 4, 10)
    pop = await sized(client, queue, batch=13, partitions=2)
    assert pop.body["autopilot"]["batch"] == 13
    assert pop.body["autopilot"]["partitions"] == 2
    assert len(pop.messages) == 13
    assert len({message["partition"] for message in pop.messages}) == 2


async def test_a_batch_beyond_the_servers_own_range_is_respected(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(1500)))
    pop = await sized(client, queue, batch=1200)
    assert pop.body["autopilot"]["batch"] == 1200
    assert pop.data == list(range(1200))


async def test_the_partition_route_ignores_the_flag(client: Client, queue: str) -> None:
    await fill(client, queue, 2, 2)
    pop = await sized(client, queue, path="/partition/p1")
    assert "autopilot" not in pop.body
    assert pop.data == [0, 1]
    assert {message["partition"] for message in pop.messages} == {"p1"}


async def test_the_label_route_ignores_the_flag(client: Client, queue: str) -> None:
    namespace = unique("labels")
    await client.configure(queue, namespace=namespace)
    await fill(client, queue, 4, 2)
    query = urlencode({"namespace": namespace, "autopilot": "true"})
    pop = as_pop(await client.get(f"/api/v1/pop?{query}"))
    assert "autopilot" not in pop.body
    assert pop.body["partitionsClaimed"] == 1
    assert pop.data == [0, 1]


async def test_an_empty_answer_is_still_empty(client: Client, queue: str) -> None:
    answer = await client.get(f"/api/v1/pop/queue/{segment(queue)}?autopilot=true")
    assert answer.status in (200, 204)
    assert answer.status == 204 or answer.json.get("messages", []) == []
