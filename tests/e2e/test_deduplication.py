"""A transaction id is stored once per partition, for as long as its message is kept (2.4).

Time-ordered ids (UUIDv7) and all others may well be found by different means inside a server, so
the same promises are asked of both, alone and mixed.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable

import pytest

from tests.client import Client, drain, segment, unique, uuid7

MINTERS: dict[str, Callable[[], str]] = {
    "uuid7": uuid7,
    "uuid7 in upper case": lambda: uuid7().upper(),
    "uuid4": lambda: str(uuid.uuid4()),
    "uuid1": lambda: str(uuid.uuid1()),
    "uuid8": lambda: str(uuid.UUID(int=uuid.uuid4().int & ~(0xF << 76) | 0x8 << 76)),
    "uuid without dashes": lambda: uuid7().replace("-", ""),
    "text": lambda: unique("order"),
    "unicode text": lambda: unique("Bestellung №☃🐘"),
    "long text": lambda: unique("x" * 3000),
    "short text": lambda: uuid.uuid4().hex[:9],
}


@pytest.fixture(params=MINTERS.values(), ids=list(MINTERS))
def mint(request: pytest.FixtureRequest) -> Callable[[], str]:
    minter: Callable[[], str] = request.param
    return minter


def summary(results: list[dict]) -> list[tuple]:
    return [(result["status"], result["message_id"], result["offset"]) for result in results]


async def test_a_repeated_id_within_one_request_is_a_duplicate_of_the_first(
    client: Client, queue: str, mint: Callable[[], str]
) -> None:
    a, b = mint(), mint()
    results = await client.push(queue, [1, 2, 3, 4, 5], ids=[a, b, a, a, b])
    assert [result["status"] for result in results] == ["queued"] * 2 + ["duplicate"] * 3
    assert [result["offset"] for result in results] == [0, 1, 0, 0, 1]
    messages = [result["message_id"] for result in results]
    assert messages == [messages[0], messages[1], messages[0], messages[0], messages[1]]
    assert messages[0] != messages[1]
    pop = await client.pop(queue)
    assert (pop.data, pop.ids, pop.offsets) == ([1, 2], [a, b], [0, 1])


async def test_a_repeated_id_across_requests_is_a_duplicate_whatever_its_payload(
    fresh_client: Client, queue: str, mint: Callable[[], str]
) -> None:
    ids = [mint() for _ in range(4)]
    first = await fresh_client.push(queue, [1, 2, 3], ids=ids[:3])
    for _ in range(3):
        again = await fresh_client.push(queue, ["other"] * 4, ids=[ids[2], ids[0], ids[3], ids[1]])
        ids[3] = mint()
        assert [result["status"] for result in again] == [
            "duplicate",
            "duplicate",
            "queued",
            "duplicate",
        ]
        stored = [first[2], first[0], first[1]]
        assert summary([again[0], again[1], again[3]]) == [
            ("duplicate", result["message_id"], result["offset"]) for result in stored
        ]
    assert (await fresh_client.pop(queue)).data == [1, 2, 3, "other", "other", "other"]


async def test_a_request_sent_twice_stores_its_messages_once(
    fresh_client: Client, queue: str, mint: Callable[[], str]
) -> None:
    """What a client does when an answer was lost: the same body again, over several partitions."""
    items = [
        {
            "queue": queue,
            "partition": f"p{number % 3}",
            "payload": number,
            "transactionId": mint(),
        }
        for number in range(30)
    ]
    first = await fresh_client.push_items(items)
    again = await fresh_client.push_items(items)
    assert summary(again) == [
        ("duplicate", result["message_id"], result["offset"]) for result in first
    ]
    assert len(await drain(fresh_client, queue)) == 30


async def test_another_partition_and_another_queue_are_other_scopes(
    client: Client, queue: str, mint: Callable[[], str]
) -> None:
    one = mint()
    other = unique("other")
    results = await client.push_items(
        [
            {"queue": queue, "payload": 1, "transactionId": one},
            {"queue": queue, "partition": "a", "payload": 2, "transactionId": one},
            {"queue": queue, "partition": "b", "payload": 3, "transactionId": one},
            {"queue": other, "payload": 4, "transactionId": one},
        ]
    )
    assert [result["status"] for result in results] == ["queued"] * 4
    assert len({result["message_id"] for result in results}) == 4
    assert (await client.push(queue, [5], partition="b", ids=[one]))[0]["status"] == "duplicate"
    assert (await client.push(queue, [6], partition="c", ids=[one]))[0]["status"] == "queued"


async def test_concurrent_pushes_of_one_id_have_one_winner(
    fresh_client: Client, queue: str, mint: Callable[[], str]
) -> None:
    for round_number in range(4):
        one = mint()
        results = await asyncio.gather(
            *[fresh_client.push(queue, [[round_number, number]], ids=[one]) for number in range(24)]
        )
        entries = [entry for result in results for entry in result]
        assert sorted(entry["status"] for entry in entries) == ["duplicate"] * 23 + ["queued"]
        assert {entry["offset"] for entry in entries} == {round_number}
        assert len({entry["message_id"] for entry in entries}) == 1
        again = await asyncio.gather(
            *[fresh_client.push(queue, ["again"], ids=[one]) for _ in range(12)]
        )
        assert {entry["status"] for result in again for entry in result} == {"duplicate"}
        assert {entry["offset"] for result in again for entry in result} == {round_number}
    pop = await fresh_client.pop(queue)
    assert pop.offsets == [0, 1, 2, 3]


async def test_concurrent_batches_that_overlap_store_each_id_once(
    fresh_client: Client, queue: str, mint: Callable[[], str]
) -> None:
    """Windows of one list of ids, each in another order, so that locks could meet crosswise."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ids = [mint() for _ in range(120)]

    async def push(start: int) -> list[tuple[str, dict]]:
        window = [ids[(start + step) % len(ids)] for step in range(40)]
        chance.shuffle(window)
        return list(
            zip(
                window,
                await fresh_client.push(queue, list(window), ids=window),
                strict=True,
            )
        )

    answers = await asyncio.gather(*[push(start) for start in range(0, 120, 8)])
    entries: dict[str, list[dict]] = {}
    for answer in answers:
        for one, entry in answer:
            entries.setdefault(one, []).append(entry)
    assert len(entries) == 120
    for found in entries.values():
        assert [entry["status"] for entry in found].count("queued") == 1
        assert len({(entry["message_id"], entry["offset"]) for entry in found}) == 1
    messages = await drain(fresh_client, queue)
    assert sorted(message["transactionId"] for message in messages) == sorted(ids)
    assert [message["offset"] for message in messages] == list(range(120))


async def test_an_id_stays_taken_after_its_message_was_consumed(
    client: Client, queue: str, mint: Callable[[], str]
) -> None:
    one = mint()
    first = await client.push(queue, [1], ids=[one])
    assert len(await drain(client, queue)) == 1
    again = await client.push(queue, [2], ids=[one])
    assert summary(again) == [("duplicate", first[0]["message_id"], 0)]
    assert (await client.pop(queue)).status == 204


async def test_the_id_of_a_deleted_message_is_new_again(
    client: Client, queue: str, mint: Callable[[], str]
) -> None:
    ids = [mint() for _ in range(3)]
    first = await client.push(queue, [0, 1, 2], ids=ids)
    path = f"/api/v1/messages/{first[1]['partition_id']}/{segment(ids[1])}"
    assert (await client.send("DELETE", path)).status == 200
    again = await client.push(queue, ["again"] * 3, ids=ids)
    assert [result["status"] for result in again] == ["duplicate", "queued", "duplicate"]
    assert (await client.get(path)).json["data"] == "again"
    assert (await client.send("DELETE", path)).status == 200
    operations = [{"type": "push", "items": [{"queue": queue, "payload": 3, "transactionId": i}]}
                  for i in (ids[1], mint())]  # fmt: skip
    answer = await client.post("/api/v1/transaction", {"operations": operations})
    assert answer.json["success"] is True, answer
    assert (await client.pop(queue)).data == [0, 2, 3, 3]


async def test_the_id_of_a_message_given_up_is_taken_while_its_dead_letter_is_kept(
    client: Client, queue: str
) -> None:
    (result,) = await client.push(queue, [1], ids=["one"])
    path = f"/api/v1/messages/{result['partition_id']}/one"
    assert (await client.send("POST", f"{path}/dlq")).status == 200
    (again,) = await client.push(queue, [2], ids=["one"])
    assert (again["status"], again["message_id"]) == ("duplicate", result["message_id"])
    purged = await client.send("DELETE", f"/api/v1/dlq?queue={segment(queue)}")
    assert purged.json["deleted"] == 1
    (again,) = await client.push(queue, [3], ids=["one"])
    assert again["status"] == "queued"
    assert (await client.pop(queue)).data == [3]


async def test_spellings_of_one_uuid_are_different_ids(client: Client, queue: str) -> None:
    """An id is text. A server that stores it as a uuid must not fold what it was given."""
    one = uuid7()
    spellings = [
        one,
        one.upper(),
        one.replace("-", ""),
        f"{{{one}}}",
        f"urn:uuid:{one}",
        f" {one}",
        f"{one} ",
        one[:-1],
        one.replace("-", "_"),
    ]
    results = await client.push(queue, spellings, ids=spellings)
    assert [result["status"] for result in results] == ["queued"] * len(spellings)
    assert (await client.pop(queue)).ids == spellings
    again = await client.push(queue, spellings, ids=spellings)
    assert [result["status"] for result in again] == ["duplicate"] * len(spellings)
    assert [result["offset"] for result in again] == list(range(len(spellings)))


async def test_unicode_ids_are_compared_as_written(client: Client, queue: str) -> None:
    """No normalisation, no case folding, no trimming, whatever the database's collation says."""
    ids = [
        "é",
        "e\u0301",
        "É",
        "ß",
        "ss",
        "\u0131",
        "i",
        "I",
        "a",
        "a\u200b",
        "a ",
        "ﬁ",
        "fi",
        "\t",
    ]
    results = await client.push(queue, ids, ids=ids)
    assert [result["status"] for result in results] == ["queued"] * len(ids)
    again = await client.push(queue, ids, ids=ids)
    assert [result["status"] for result in again] == ["duplicate"] * len(ids)


async def test_ids_that_contain_control_and_quote_characters_are_found_again(
    client: Client, queue: str
) -> None:
    ids = ["\x01", "\x01\x02", '"', '\\"', "\\", "a\nb", "\x7f", "null", "0", "'", "{}", ","]
    first = await client.push(queue, ids, ids=ids)
    assert [result["status"] for result in first] == ["queued"] * len(ids)
    again = await client.push(queue, ids, ids=ids)
    assert [result["status"] for result in again] == ["duplicate"] * len(ids)
    assert [result["offset"] for result in again] == list(range(len(ids)))
    pop = await client.pop(queue)
    assert pop.ids == ids
    await client.complete(pop)


async def test_a_minted_id_can_be_pushed_again_as_a_duplicate(client: Client, queue: str) -> None:
    minted = await client.push(queue, [1, 2, 3])
    ids = [result["transaction_id"] for result in minted]
    assert len(set(ids)) == 3
    again = await client.push(queue, [4, 5, 6], ids=ids)
    assert summary(again) == [
        ("duplicate", result["message_id"], result["offset"]) for result in minted
    ]


async def test_duplicates_beside_new_messages_leave_no_gap_in_the_offsets(
    client: Client, queue: str
) -> None:
    ids = [uuid7() for _ in range(10)]
    await client.push(queue, list(range(0, 10, 2)), ids=ids[0::2])
    results = await client.push(queue, list(range(10)), ids=ids)
    assert [result["status"] for result in results] == ["duplicate", "queued"] * 5
    assert [result["offset"] for result in results] == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    pop = await client.pop(queue)
    assert pop.offsets == list(range(10))
    assert pop.ids == ids[0::2] + ids[1::2]


@pytest.mark.parametrize("kind", ["uuid7", "uuid4", "text", "mixed"])
async def test_ids_are_found_again_after_thousands_of_segments(
    fresh_client: Client, client: Client, queue: str, kind: str
) -> None:
    """3000 small pushes from many connections, then a sample from all over is pushed again."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    kinds = ["uuid7", "uuid4", "text"] if kind == "mixed" else [kind]
    ids = [MINTERS[kinds[number % len(kinds)]]() for number in range(3000)]
    stored: dict[str, tuple] = {}
    numbers = iter(range(3000))

    async def produce(pusher: Client) -> None:
        for number in numbers:
            one = ids[number]
            entry = (await pusher.push(queue, [number], ids=[one]))[0]
            assert entry["status"] == "queued"
            stored[one] = ("duplicate", entry["message_id"], entry["offset"])

    # A few on fresh connections for both workers; the rest kept open, for speed.
    await asyncio.gather(*[produce(fresh_client if n % 4 == 0 else client) for n in range(48)])
    assert sorted(entry[2] for entry in stored.values()) == list(range(3000))

    sample = [*ids[:20], *ids[-20:], *chance.sample(ids, 200)]
    again = await client.push(queue, list(sample), ids=sample)
    assert summary(again) == [stored[one] for one in sample]
    singly = chance.sample(ids, 40)
    for one in singly:
        assert summary(await fresh_client.push(queue, [0], ids=[one])) == [stored[one]]
    fresh = await client.push(queue, [0], ids=[MINTERS[kinds[0]]()])
    assert (fresh[0]["status"], fresh[0]["offset"]) == ("queued", 3000)


async def test_producers_with_skewed_clocks_are_deduplicated_all_the_same(
    fresh_client: Client, queue: str
) -> None:
    """UUIDv7 ids an hour and a day ahead and behind, in requests of their own and mixed in one."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    skews = [0.0, 3600.0, -3600.0, 86_400.0, -86_400.0, -1_600_000_000.0, 4e9]
    ids = [uuid7(time.time() + chance.choice(skews)) for _ in range(600)]
    ids += ["00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff"]
    chance.shuffle(ids)
    batches = [ids[start : start + 7] for start in range(0, len(ids), 7)]
    answers = await asyncio.gather(
        *[fresh_client.push(queue, list(batch), ids=batch) for batch in batches]
    )
    stored = {
        one: ("duplicate", entry["message_id"], entry["offset"])
        for batch, answer in zip(batches, answers, strict=True)
        for one, entry in zip(batch, answer, strict=True)
    }
    assert all(entry["status"] == "queued" for answer in answers for entry in answer)
    sample = chance.sample(ids, len(ids))
    again = await fresh_client.push(queue, list(sample), ids=sample)
    assert summary(again) == [stored[one] for one in sample]
    assert len(await drain(fresh_client, queue)) == len(ids)


async def test_a_buffered_producer_with_old_ids_meets_a_live_one_without_loss(
    fresh_client: Client, queue: str
) -> None:
    """Ids minted earlier than others that are stored already: new all the same, and found again."""
    old = [uuid7(time.time() - 30 + number / 100) for number in range(50)]
    live = [uuid7() for _ in range(50)]
    await fresh_client.push(queue, live, ids=live)
    first = await fresh_client.push(queue, old, ids=old)
    assert [entry["status"] for entry in first] == ["queued"] * 50
    mixed = [*live[:25], *old[:25], uuid7()]
    again = await fresh_client.push(queue, mixed, ids=mixed)
    assert [entry["status"] for entry in again] == ["duplicate"] * 50 + ["queued"]
