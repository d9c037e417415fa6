"""The acknowledgement algorithm of wire-api 2.7 and the retry rules of 2.8, seen from outside.

Most tests lease a batch of five messages of one partition and then ask two things: which messages
does the next pop bring, and is the partition free. Messages are named by their number, 1 to 5; a
sixth is pushed at the end, so that "later messages" can be seen.
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.client import Client, Message, Pop, unique

Call = Sequence[tuple[int, str]]  # (message number, status) pairs of one request


@dataclass
class Batch:
    """Five messages of one queue, leased to one consumer of one group."""

    client: Client
    queue: str
    group: str | None
    pop: Pop
    results: list[dict[int, dict]] = field(default_factory=list)

    @property
    def messages(self) -> dict[int, Message]:
        return {message["data"]: message for message in self.pop.messages}

    async def call(self, *items: tuple[int, str]) -> dict[int, dict]:
        """One item goes to /ack, several to /ack/batch; results by message number."""
        pairs = [(self.messages[number], status) for number, status in items]
        if len(pairs) == 1:
            message, status = pairs[0]
            results = [await self.client.ack(message, status, group=self.group)]
        else:
            results = await self.client.ack_batch(pairs, group=self.group)
        by_number = {number: result for (number, _), result in zip(items, results, strict=True)}
        self.results.append(by_number)
        return by_number

    async def again(self, lease_seconds: int = 60) -> Pop:
        """The next pop of the same group; its messages become those that `call` names."""
        pop = await self.client.pop(self.queue, group=self.group, leaseSeconds=lease_seconds)
        if pop.messages:
            self.pop = pop
        return pop


async def leased_batch(
    client: Client,
    queue: str,
    *,
    count: int = 5,
    retry_limit: int = 3,
    group: str | None = None,
    lease_seconds: int = 60,
) -> Batch:
    await client.configure(queue, {"retryLimit": retry_limit})
    await client.push(queue, list(range(1, count + 1)))
    pop = await client.pop(queue, batch=count, group=group, leaseSeconds=lease_seconds)
    assert pop.data == list(range(1, count + 1))
    return Batch(client, queue, group, pop)


async def until_expired(batch: Batch) -> Pop:
    """Wait for the lease to run out: the pop that gets the messages next."""
    pop = await batch.client.pop(
        batch.queue, group=batch.group, wait_ms=5000, leaseSeconds=60, batch=10
    )
    assert pop.messages, "the lease should have expired"
    return pop


@pytest.fixture(params=[None, "workers"], ids=["queue mode", "group"])
def group(request: pytest.FixtureRequest) -> str | None:
    chosen: str | None = request.param
    return chosen


# ── the worked examples of 2.7 ──────────────────────────────────────────────────────────────────


@dataclass
class Example:
    calls: list[Call]
    released_by: int | None  # index of the call that releases the lease
    next_delivery: list[int]


EXAMPLES = {
    "ack 1 to 5 singly": Example(
        [[(number, "completed")] for number in range(1, 6)], released_by=4, next_delivery=[6]
    ),
    "ack 5 only": Example([[(5, "completed")]], released_by=0, next_delivery=[6]),
    "ack 3 only": Example([[(3, "completed")]], released_by=None, next_delivery=[]),
    "ack 3 and then 4 and 5": Example(
        [[(3, "completed")], [(4, "completed"), (5, "completed")]],
        released_by=1,
        next_delivery=[6],
    ),
    "batch of five failed": Example(
        [[(number, "failed") for number in range(1, 6)]],
        released_by=0,
        next_delivery=[1, 2, 3, 4, 5, 6],
    ),
    "batch with 2 failed": Example(
        [[(1, "completed"), (2, "failed"), (3, "completed"), (4, "completed"), (5, "completed")]],
        released_by=0,
        next_delivery=[2, 3, 4, 5, 6],
    ),
    "batch with 2 failed, in any request order": Example(
        [[(5, "completed"), (4, "completed"), (2, "failed"), (3, "completed"), (1, "completed")]],
        released_by=0,
        next_delivery=[2, 3, 4, 5, 6],
    ),
    "single nack of 3": Example([[(3, "failed")]], 0, [1, 2, 3, 4, 5, 6]),
    "single retry of 3": Example([[(3, "retry")]], 0, [1, 2, 3, 4, 5, 6]),
    "batch with 2 to retry": Example(
        [[(1, "completed"), (2, "retry"), (3, "completed")]],
        released_by=0,
        next_delivery=[2, 3, 4, 5, 6],
    ),
    "batch with 2 to the dlq": Example(
        [[(1, "completed"), (2, "dlq"), (3, "completed")]], released_by=0, next_delivery=[4, 5, 6]
    ),
    # Not in the table, but they follow from the algorithm.
    "batch of all five": Example(
        [[(number, "completed") for number in (3, 1, 5, 2, 4)]], released_by=0, next_delivery=[6]
    ),
    "a gap inside one call": Example(
        [[(1, "completed"), (4, "completed")]], released_by=None, next_delivery=[]
    ),
    "two nacks in one call, the first decides": Example(
        [[(4, "failed"), (2, "retry"), (1, "completed")]],
        released_by=0,
        next_delivery=[2, 3, 4, 5, 6],
    ),
    "dlq of 1 alone": Example([[(1, "dlq")]], released_by=0, next_delivery=[2, 3, 4, 5, 6]),
    "dlq of 5 after the rest": Example(
        [[(4, "completed")], [(5, "dlq")]], released_by=1, next_delivery=[6]
    ),
    "dlq of all five": Example(
        [[(number, "dlq") for number in range(1, 6)]], released_by=0, next_delivery=[6]
    ),
    "dlq before a nack": Example(
        [[(1, "dlq"), (2, "failed"), (3, "dlq")]], released_by=0, next_delivery=[2, 3, 4, 5, 6]
    ),
    "ack 2, then nack 4": Example(
        [[(2, "completed")], [(4, "failed")]], released_by=1, next_delivery=[3, 4, 5, 6]
    ),
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
async def test_worked_example(
    client: Client, queue: str, group: str | None, example: Example
) -> None:
    """Every item of these calls is in range: a success, and never a no-op."""
    batch = await leased_batch(client, queue, group=group)
    for index, call in enumerate(example.calls):
        results = await batch.call(*call)
        for (number, status), result in zip(call, results.values(), strict=True):
            assert result["success"] is True, (number, result)
            assert not result.get("noop"), (number, result)
            assert result["dlq"] is (status == "dlq") or _after_nack(call, number), (number, result)
            if index == example.released_by:
                assert result["leaseReleased"] is True, (number, result)
            else:
                assert result["leaseReleased"] is False, (number, result)
    await client.push(queue, [6])
    pop = await client.pop(queue, group=group)
    assert pop.data == example.next_delivery


def _after_nack(call: Call, number: int) -> bool:
    """Whether *number* stands behind a nack of its call, where nothing is carried out any more."""
    nacked = [other for other, status in call if status in ("failed", "retry")]
    return bool(nacked) and number > min(nacked)


async def test_a_partly_acked_batch_comes_back_from_the_cursor_when_the_lease_expires(
    client: Client, queue: str, group: str | None
) -> None:
    """The example "ack #3 only", second ending."""
    batch = await leased_batch(client, queue, group=group, lease_seconds=1)
    await batch.call((3, "completed"))
    assert (await client.pop(queue, group=group)).status == 204
    assert (await until_expired(batch)).data == [4, 5]


async def test_the_failure_after_the_last_retry_goes_to_the_dlq_and_frees_the_rest(
    client: Client, queue: str, group: str | None
) -> None:
    """#1 acked singly, then a single nack of #2 with the counter already at 3."""
    batch = await leased_batch(client, queue, group=group, retry_limit=3)
    await batch.call((1, "completed"))
    for _ in range(3):
        result = (await batch.call((2, "failed")))[2]
        assert (result["dlq"], result["leaseReleased"]) == (False, True)
        assert (await batch.again()).data == [2, 3, 4, 5]
    result = (await batch.call((2, "failed")))[2]
    assert (result["success"], result["dlq"], result["leaseReleased"]) == (True, True, True)
    assert (await batch.again()).data == [3, 4, 5]


async def test_the_counter_survives_a_partial_ack_before_the_nacked_message(
    client: Client, queue: str
) -> None:
    """The example with the ack of #1 in the last round only: it must not reset the counter."""
    batch = await leased_batch(client, queue, retry_limit=3)
    for _ in range(3):
        await batch.call((2, "failed"))
        assert (await batch.again()).data == [1, 2, 3, 4, 5]
    await batch.call((1, "completed"))
    assert (await batch.call((2, "failed")))[2]["dlq"] is True
    assert (await batch.again()).data == [3, 4, 5]


async def test_an_ack_under_an_expired_lease_is_refused(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group, lease_seconds=1)
    await asyncio.sleep(1.2)
    result = (await batch.call((1, "completed")))[1]
    assert result["success"] is False
    assert result["error"] == "Invalid or expired lease"
    assert (await batch.again()).data == [1, 2, 3, 4, 5]


async def test_an_ack_under_a_lease_that_somebody_took_over_is_refused(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group, lease_seconds=1)
    taken = await until_expired(batch)
    for status in ("completed", "failed", "retry", "dlq"):
        result = (await batch.call((1, status)))[1]
        assert result["success"] is False
        assert "lease" in result["error"]
    # The new holder is not disturbed.
    assert (await client.pop(queue, group=group)).status == 204
    await client.complete(taken, group=group)


async def test_an_ack_without_lease_id_is_applied_after_expiry(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group, lease_seconds=1)
    await asyncio.sleep(1.2)
    result = await client.ack(batch.messages[1], group=group, fenced=False)
    assert (result["success"], result["leaseReleased"]) == (True, False)
    assert not result.get("noop")
    assert (await batch.again()).data == [2, 3, 4, 5]


async def test_an_ack_without_lease_id_leaves_the_lease_of_another_holder_alone(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group, lease_seconds=1)
    taken = await until_expired(batch)
    result = await client.ack(batch.messages[1], group=group, fenced=False)
    assert (result["success"], result["leaseReleased"]) == (True, False)
    assert (await client.pop(queue, group=group)).status == 204
    results = await client.ack_batch(
        [(message, "completed") for message in taken.messages], group=group
    )
    assert [bool(result.get("noop")) for result in results] == [True, False, False, False, False]
    assert all(result["leaseReleased"] for result in results[1:])


async def test_an_empty_lease_id_is_no_fence(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    result = await client.ack(batch.messages[5], leaseId="")
    assert (result["success"], result["leaseReleased"]) == (True, True)


async def test_queue_mode_and_a_group_acknowledge_independently(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    other = await client.pop(queue, group="g", batch=5)
    assert other.data == [1, 2, 3, 4, 5]
    assert other.lease_id != batch.pop.lease_id
    await batch.call(*[(number, "completed") for number in range(1, 6)])
    assert (await client.pop(queue, group="g")).status == 204, "still leased by the group"
    await client.ack(other.messages[2], "failed", group="g")
    assert (await client.pop(queue, group="g")).data == [1, 2, 3, 4, 5]
    assert (await client.pop(queue)).status == 204, "committed in queue mode"


# ── unknown, fenced, below the cursor ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["completed", "failed", "retry", "dlq"])
async def test_an_unknown_message_is_refused_and_changes_nothing(
    client: Client, queue: str, status: str
) -> None:
    batch = await leased_batch(client, queue, retry_limit=0)
    for fenced in (True, False):
        ghost = batch.messages[1] | {"transactionId": "never-pushed"}
        result = await client.ack(ghost, status, fenced=fenced)
        assert result["success"] is False
        assert "unresolv" in result["error"]
        assert result["leaseReleased"] is False
    assert (await batch.again()).status == 204, "the live lease survives"
    await client.complete(batch.pop)


async def test_an_unknown_message_does_not_disturb_the_others_of_its_call(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    ghost = batch.messages[1] | {"transactionId": "never-pushed"}
    results = await client.ack_batch(
        [
            (ghost, "failed"),
            *[(batch.messages[number], "completed") for number in range(1, 6)],
            (ghost, "completed"),
        ]
    )
    assert [result["success"] for result in results] == [False, *[True] * 5, False]
    assert all("unresolv" in results[index]["error"] for index in (0, 6))
    assert results[5]["leaseReleased"] is True
    await client.push(queue, [6])
    assert (await batch.again()).data == [6]


NO_ID = str(uuid.UUID(int=7))


@pytest.mark.parametrize(
    "partition_id",
    ["", "0", "-1", "999999999999999", "9" * 40, "abc", "1; DROP", "☃", NO_ID, "1.0"],
)
async def test_a_partition_id_that_names_no_partition_is_refused(
    client: Client, queue: str, partition_id: str
) -> None:
    """It may be answered per item (2.x); an empty one may be called missing (400)."""
    batch = await leased_batch(client, queue)
    body = {"transactionId": batch.messages[1]["transactionId"], "partitionId": partition_id}
    answer = await client.post("/api/v1/ack", body)
    if partition_id == "" and answer.status == 400:
        assert "partitionId" in answer.error
    else:
        assert answer.status == 200, answer
        assert answer.json[0]["success"] is False
        assert answer.json[0]["error"]
    await client.complete(batch.pop)


async def test_the_same_id_in_another_partition_is_unknown_there(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1], partition="a", ids=["only-a"])
    await client.push(queue, [2], partition="b", ids=["only-b"])
    a = (await client.pop(queue, partition="a")).messages[0]
    b = (await client.pop(queue, partition="b")).messages[0]
    result = await client.ack(a | {"transactionId": "only-b"})
    assert "unresolv" in result["error"]
    assert (await client.ack(a))["success"] is True
    assert (await client.ack(b))["success"] is True


async def test_the_fence_is_judged_first(client: Client, queue: str) -> None:
    """Under a wrong lease id an item is refused for that, known or not, below the cursor or not."""
    batch = await leased_batch(client, queue)
    await batch.call((1, "completed"))
    wrong = {"leaseId": str(uuid.uuid4())}
    below, ahead = batch.messages[1] | wrong, batch.messages[2] | wrong
    ghost = ahead | {"transactionId": "never-pushed"}
    for message in (below, ahead, ghost):
        for status in ("completed", "failed", "retry", "dlq"):
            result = await client.ack(message, status)
            assert result["success"] is False
            assert result["error"] == "Invalid or expired lease"
    assert (await batch.again()).status == 204
    results = await client.ack_batch(
        [(ahead, "completed"), (batch.messages[3], "completed"), (below, "failed")]
    )
    assert [result["success"] for result in results] == [False, True, False]


@pytest.mark.parametrize("lease_id", ["no-uuid", "' OR 1=1 --", "x" * 5000, "0", "☃"])
async def test_a_lease_id_of_any_text_is_just_not_the_live_one(
    client: Client, queue: str, lease_id: str
) -> None:
    batch = await leased_batch(client, queue)
    result = await client.ack(batch.messages[1], leaseId=lease_id)
    assert result["success"] is False
    assert "lease" in result["error"]


async def test_the_lease_of_one_group_is_none_for_another(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue, group="one")
    await client.pop(queue, group="two")
    result = await client.ack(batch.messages[1], group="two")
    assert result["success"] is False
    assert "lease" in result["error"]
    assert (await batch.call((5, "completed")))[5]["leaseReleased"] is True


async def test_below_the_cursor_completed_is_a_noop_and_a_nack_is_refused(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group)
    first = (await batch.call((2, "completed")))[2]
    assert not first.get("noop")
    for number in (1, 2):
        for fenced in (True, False):
            message = batch.messages[number]
            result = await client.ack(message, group=group, fenced=fenced)
            assert (result["success"], result["noop"]) == (True, True)
            for status in ("failed", "retry", "dlq"):
                result = await client.ack(message, status, group=group, fenced=fenced)
                assert result["success"] is False
                assert "committed" in result["error"]
                assert result["leaseReleased"] is False
    assert (await batch.again()).status == 204, "the lease is untouched"
    result = (await batch.call((3, "completed")))[3]
    assert result["success"] is True
    assert not result.get("noop")


async def test_a_call_may_mix_items_below_and_ahead_of_the_cursor(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((2, "completed"))
    results = await batch.call((4, "completed"), (1, "completed"), (2, "failed"), (3, "completed"))
    assert [results[number]["success"] for number in (4, 1, 2, 3)] == [True, True, False, True]
    assert results[1]["noop"] is True
    assert "committed" in results[2]["error"]
    assert not results[4].get("noop")
    assert not results[3].get("noop")
    assert (await batch.call((5, "completed")))[5]["leaseReleased"] is True


async def test_acks_in_falling_order_in_separate_calls_never_move_the_cursor_back(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    for number in (4, 3, 2, 1):
        await batch.call((number, "completed"))
    await batch.call((5, "completed"))
    await client.push(queue, [6])
    assert (await batch.again()).data == [6]


async def test_a_message_beyond_the_leased_batch_is_unknown(client: Client, queue: str) -> None:
    """While a lease exists only its batch is in range, with or without its id."""
    await client.push(queue, [1, 2, 3, 4, 5])
    everything = (await client.pop(queue, group="peek")).messages
    pop = await client.pop(queue, batch=3)
    beyond = everything[3] | {"leaseId": pop.lease_id}
    for fenced in (True, False):
        for status in ("completed", "failed", "dlq"):
            result = await client.ack(beyond, status, fenced=fenced)
            assert result["success"] is False
            assert "unresolv" in result["error"]
    assert (await client.pop(queue)).status == 204
    await client.complete(pop)
    assert (await client.pop(queue)).data == [4, 5]


async def test_a_group_that_never_got_a_message_there_is_refused_every_item(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue, group="known")
    for status in ("completed", "failed", "retry", "dlq"):
        result = await client.ack(batch.messages[1], status, group="stranger", fenced=False)
        assert result["success"] is False, status
        assert result["error"]
    assert (await client.pop(queue, group="stranger")).data == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("registered", ["before the push", "after the push"])
async def test_a_group_is_refused_where_it_got_nothing_though_it_knows_the_queue(
    client: Client, queue: str, registered: str
) -> None:
    """A registered group has its place in every partition, which is not yet a delivery."""
    if registered == "before the push":
        await client.pop(queue, group="group")
    for partition in ("a", "b"):
        await client.push(queue, [1, 2], partition=partition)
    met = await client.pop(queue, group="group", batch=1)
    other = "b" if met.messages[0]["partition"] == "a" else "a"
    unmet = (await client.pop(queue, partition=other, group="peek")).messages[0]
    for status in ("completed", "failed", "retry", "dlq"):
        result = await client.ack(unmet, status, group="group", fenced=False)
        assert result["success"] is False, status
        assert "unresolv" in result["error"]
    assert (await client.pop(queue, partition=other, group="group")).data == [1, 2]


@pytest.mark.parametrize("status", ["failed", "retry", "dlq"])
@pytest.mark.parametrize("ended_by", ["expiry", "nack"])
async def test_a_nack_where_no_lease_exists_is_a_success_without_effect(
    client: Client, queue: str, status: str, ended_by: str
) -> None:
    """`retryLimit` 0 would dead-letter the first failure, if it counted."""
    batch = await leased_batch(client, queue, retry_limit=0, lease_seconds=1)
    await batch.call((1, "completed"))
    if ended_by == "nack":
        await batch.call((2, "retry"))
    else:
        await asyncio.sleep(1.2)
    result = await client.ack(batch.messages[2], status, fenced=False)
    assert (result["success"], result["dlq"], result["leaseReleased"]) == (True, False, False)
    assert (await batch.again()).data == [2, 3, 4, 5]


# ── the resend rule ─────────────────────────────────────────────────────────────────────────────


async def test_an_ack_sent_again_after_its_batch_was_settled_is_answered_as_the_first_time(
    client: Client, queue: str, group: str | None
) -> None:
    batch = await leased_batch(client, queue, group=group)
    call = [(number, "completed") for number in range(1, 6)]
    first = await batch.call(*call)
    again = await batch.call(*call)
    for results in (first, again):
        for result in results.values():
            assert (result["success"], result["leaseReleased"]) == (True, True)
            assert not result.get("noop")
    await client.push(queue, [6])
    assert (await batch.again()).data == [6], "the resend changed nothing"


async def test_a_resend_is_answered_even_when_the_next_batch_is_leased(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((5, "completed"))
    await client.push(queue, [6])
    following = await client.pop(queue)
    result = (await batch.call((5, "completed")))[5]
    assert (result["success"], result["leaseReleased"]) == (True, True)
    assert (await client.pop(queue)).status == 204, "the next batch stays leased"
    await client.complete(following)


async def test_a_resend_covers_what_the_last_ack_covered_and_no_more(
    client: Client, queue: str
) -> None:
    """Messages 1 and 2 were settled by an earlier ack: under the dead lease they are fenced."""
    batch = await leased_batch(client, queue)
    await batch.call((2, "completed"))
    await batch.call((5, "completed"))
    for number in (3, 4, 5):  # 3 and 4 were committed silently by the last ack
        result = (await batch.call((number, "completed")))[number]
        assert (result["success"], result["leaseReleased"]) == (True, True)
        assert not result.get("noop")
    for number in (1, 2):
        result = (await batch.call((number, "completed")))[number]
        assert result["success"] is False
        assert "lease" in result["error"]


async def test_a_resent_nack_is_refused(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((5, "completed"))
    for status in ("failed", "retry", "dlq"):
        result = (await batch.call((5, status)))[5]
        assert result["success"] is False
        assert "lease" in result["error"]


async def test_a_lease_given_back_by_a_nack_is_not_remembered(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    call = [(1, "completed"), (2, "failed"), (3, "completed")]
    await batch.call(*call)
    results = await batch.call(*call)
    assert all(result["success"] is False for result in results.values())
    assert all("lease" in result["error"] for result in results.values())
    assert (await batch.again()).data == [2, 3, 4, 5]


async def test_only_the_newest_settled_lease_is_remembered(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((5, "completed"))
    old = batch.messages[5]
    await client.push(queue, [6])
    await batch.again()
    await batch.call((6, "completed"))
    assert (await batch.call((6, "completed")))[6]["success"] is True
    result = await client.ack(old)
    assert result["success"] is False
    assert "lease" in result["error"]


async def test_a_resend_is_remembered_per_group(client: Client, queue: str) -> None:
    one = await leased_batch(client, queue, group="one")
    two = Batch(client, queue, "two", await client.pop(queue, group="two"))
    await one.call((5, "completed"))
    await two.call((5, "completed"))
    assert (await one.call((5, "completed")))[5]["success"] is True
    assert (await two.call((5, "completed")))[5]["success"] is True
    crossed = await client.ack(one.messages[5], group="two")
    assert crossed["success"] is False


# ── batches over several partitions ─────────────────────────────────────────────────────────────


async def test_one_call_may_concern_several_partitions_of_one_lease(
    client: Client, queue: str, group: str | None
) -> None:
    """A nack in one partition redelivers there and lets the others be committed."""
    for name in "abc":
        await client.push(queue, [f"{name}{number}" for number in (1, 2)], partition=name)
    pop = await client.pop(queue, partitions=3, group=group)
    by_data = {message["data"]: message for message in pop.messages}
    assert len(by_data) == 6
    statuses = {"a1": "completed", "a2": "completed", "b1": "completed", "b2": "failed"}
    statuses |= {"c1": "retry", "c2": "completed"}
    order = ["c2", "b1", "a2", "c1", "a1", "b2"]
    results = await client.ack_batch(
        [(by_data[name], statuses[name]) for name in order], group=group
    )
    assert all(result["success"] and result["leaseReleased"] for result in results)
    assert [result["partitionName"] for result in results] == [name[0] for name in order]
    again = await client.pop(queue, partitions=3, group=group)
    assert sorted(again.data) == ["b2", "c1", "c2"]


@pytest.mark.parametrize(
    ("status", "fields", "acked"),
    [
        ("completed", {}, 20),
        ("completed", {}, 12),  # the rest stays leased
        ("failed", {}, 20),
        ("retry", {}, 20),
        ("dlq", {}, 20),
        ("completed", {"leaseId": str(uuid.UUID(int=7))}, 20),
        ("completed", {"leaseId": ""}, 20),
        ("completed", {"partitionId": str(uuid.UUID(int=7))}, 20),
        ("completed", {"transactionId": str(uuid.UUID(int=7))}, 20),
    ],
)
async def test_a_call_in_runs_is_answered_like_the_same_one_mixed(
    client: Client, group: str | None, status: str, fields: dict[str, str], acked: int
) -> None:
    """Items that come partition by partition are read otherwise than items in turns.

    What is special is one of four partitions; the two queues have to end up alike.
    """
    found = []
    for mixed in (False, True):
        name = unique("runs")
        for partition in "abcd":
            data = [f"{partition}{number}" for number in range(20)]
            await client.push(name, data, partition=partition)
        pop = await client.pop(name, partitions=4, group=group)
        runs = {
            partition: [m for m in pop.messages if m["partition"] == partition]
            for partition in "abcd"
        }
        runs["c"] = [message | fields for message in runs["c"][:acked]]
        items = [message for run in runs.values() for message in run]
        if mixed:
            items.sort(key=lambda message: int(message["data"][1:]))
        results = await client.ack_batch(
            [(item, status if item["partition"] == "c" else "completed") for item in items],
            group=group,
        )
        outcomes = {
            item["data"]: {
                key: value
                for key, value in result.items()
                if key not in ("index", "transactionId", "queueName")
            }
            for item, result in zip(items, results, strict=True)
        }
        again = await client.pop(name, partitions=4, group=group)
        found.append((outcomes, again.data))
    assert found[0] == found[1]
    assert len(found[0][0]) == 60 + acked


async def test_one_call_may_concern_several_queues(client: Client) -> None:
    queues = [unique("several"), unique("several")]
    pops = []
    for name in queues:
        await client.push(name, [1])
        pops.append(await client.pop(name))
    results = await client.ack_batch([(pop.messages[0], "completed") for pop in pops])
    assert [result["queueName"] for result in results] == queues
    assert all(result["success"] and result["leaseReleased"] for result in results)


async def test_a_refused_entry_does_not_roll_back_the_others(client: Client, queue: str) -> None:
    for name in "ab":
        await client.push(queue, [name], partition=name)
    a = (await client.pop(queue, partition="a")).messages[0]
    b = (await client.pop(queue, partition="b")).messages[0]
    results = await client.ack_batch(
        [(a | {"leaseId": str(uuid.uuid4())}, "completed"), (b, "completed")]
    )
    assert [result["success"] for result in results] == [False, True]
    assert (await client.push(queue, ["b2"], partition="b"))[0]["status"] == "queued"
    assert (await client.pop(queue, partition="b")).data == ["b2"]
    assert (await client.ack(a))["success"] is True


async def test_a_message_named_twice_in_one_call_gets_the_stronger_status(
    client: Client, queue: str
) -> None:
    """At one position `dlq` beats `failed` beats `retry` beats `completed` (2.7)."""
    batch = await leased_batch(client, queue)
    one = batch.messages[1]
    results = await client.ack_batch([(one, "completed"), (one, "failed"), (one, "completed")])
    assert all(result["success"] for result in results)
    assert (await batch.again()).data == [1, 2, 3, 4, 5]
    one = batch.messages[1]
    results = await client.ack_batch([(one, "completed"), (one, "dlq")])
    assert any(result["dlq"] for result in results)
    assert (await batch.again()).data == [2, 3, 4, 5]


async def test_a_large_batch_is_acknowledged_whole_whatever_the_order(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(3000)))
    pop = await client.pop(queue, batch=3000)
    assert len(pop.messages) == 3000
    results = await client.ack_batch([(message, "completed") for message in reversed(pop.messages)])
    assert all(result["success"] and result["leaseReleased"] for result in results)
    assert (await client.pop(queue)).status == 204


async def test_a_batch_that_is_whole_but_for_one_message_is_judged_message_by_message(
    client: Client, queue: str
) -> None:
    """As many ids as the batch has, one of them another's: no shortcut may take it for whole."""
    batch = await leased_batch(client, queue)
    others = await client.push(queue, ["later"])
    stranger = batch.messages[5] | {"transactionId": others[0]["transaction_id"]}
    results = await client.ack_batch(
        [
            *[(batch.messages[number], "completed") for number in range(1, 5)],
            (stranger, "completed"),
        ]
    )
    assert [result["success"] for result in results] == [True, True, True, True, False]
    assert not any(result["leaseReleased"] for result in results)
    twice = [batch.messages[5]] * 5
    results = await client.ack_batch([(message, "completed") for message in twice])
    assert all(result["success"] for result in results)
    assert (await batch.again()).data == ["later"]


async def test_acks_that_arrive_at_once_on_many_connections_complete_the_batch(
    fresh_client: Client, queue: str
) -> None:
    """Each message singly, in any order, through both workers; some of them twice."""
    await fresh_client.push(queue, list(range(40)))
    pop = await fresh_client.pop(queue, batch=40)
    await fresh_client.push(queue, ["later"])
    results = await asyncio.gather(
        *[fresh_client.ack(message) for message in [*pop.messages, *pop.messages[::5]]]
    )
    # The last one ends the lease; what comes behind it is below the cursor, under a lease that
    # is no more, and not all of it covered by the resend rule.
    assert any(result["leaseReleased"] for result in results)
    refused = [result["error"] for result in results if not result["success"]]
    assert set(refused) <= {"Invalid or expired lease"}
    assert (await fresh_client.pop(queue)).data == ["later"]


async def test_a_nack_and_acks_at_once_lose_nothing(fresh_client: Client, queue: str) -> None:
    """Whoever comes first: what the nack found uncommitted is delivered again, in order."""
    for _ in range(6):
        await fresh_client.push(queue, list(range(6)))
        pop = await fresh_client.pop(queue, batch=6)
        nack, ack = await asyncio.gather(
            fresh_client.ack(pop.messages[3], "retry"), fresh_client.ack(pop.messages[4])
        )
        again = await fresh_client.pop(queue)
        if ack["success"]:  # it came first: 0 to 4 are committed
            assert nack["success"] is False
            assert "committed" in nack["error"]
            await fresh_client.ack(pop.messages[5])
            assert again.status == 204
        else:
            assert nack["success"] is True
            assert again.data == list(range(6))
            await fresh_client.complete(again)


async def test_one_ack_sent_many_times_at_once_commits_one_message(
    fresh_client: Client, client: Client
) -> None:
    """Gathered into one transaction, the second must not commit the message behind the first."""
    for _ in range(5):
        batch = await leased_batch(client, unique("same"))
        results = await asyncio.gather(
            *[sender.ack(batch.messages[1]) for sender in (fresh_client, client) for _ in range(8)]
        )
        assert all(result["success"] for result in results)
        assert [bool(result.get("noop")) for result in results].count(False) == 1
        await batch.call((5, "retry"))
        assert (await batch.again()).data == [2, 3, 4, 5]


async def test_nacks_that_arrive_at_once_are_calls_of_their_own(
    fresh_client: Client, queue: str
) -> None:
    """One of them releases the lease and is charged; the others come under a dead lease."""
    batch = await leased_batch(fresh_client, queue, count=10, retry_limit=1)
    results = await asyncio.gather(
        *[fresh_client.ack(message, "failed") for message in batch.pop.messages]
    )
    assert [result["success"] for result in results].count(True) == 1
    assert {result["error"] for result in results if not result["success"]} == {
        "Invalid or expired lease"
    }
    assert (await batch.again()).data == list(range(1, 11))
    nacked = next(number for number, r in enumerate(results, start=1) if r["success"])
    assert (await batch.call((nacked, "failed")))[nacked]["dlq"] is True, "charged exactly once"
    assert (await batch.again()).data == list(range(nacked + 1, 11)) or nacked == 10


# ── retries and the dead letter queue ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("retry_limit", [0, 1, 3])
async def test_retry_limit_n_means_n_redeliveries_after_the_first_failure(
    client: Client, queue: str, group: str | None, retry_limit: int
) -> None:
    batch = await leased_batch(client, queue, retry_limit=retry_limit, group=group, count=1)
    for attempt in range(1, retry_limit + 1):
        result = (await batch.call((1, "failed")))[1]
        assert (result["success"], result["dlq"], result["leaseReleased"]) == (True, False, True)
        pop = await batch.again()
        assert pop.data == [1]
        assert pop.attempts == {attempt + 1}
    result = (await batch.call((1, "failed")))[1]
    assert (result["success"], result["dlq"], result["leaseReleased"]) == (True, True, True)
    assert (await batch.again()).status == 204


async def test_a_dead_letter_is_committed_for_its_group_only(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue, group="one", retry_limit=0)
    dead = batch.messages[1]
    assert (await batch.call((1, "failed")))[1]["dlq"] is True
    assert (await batch.again()).data == [2, 3, 4, 5]
    assert (await client.pop(queue, group="two")).data == [1, 2, 3, 4, 5]
    assert (await client.ack(dead, group="one", fenced=False))["noop"] is True


async def test_retry_is_never_charged(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue, retry_limit=1)
    for _ in range(4):
        result = (await batch.call((1, "retry")))[1]
        assert (result["dlq"], result["leaseReleased"]) == (False, True)
        assert (await batch.again()).data == [1, 2, 3, 4, 5]
    assert (await batch.call((1, "failed")))[1]["dlq"] is False
    await batch.again()
    assert (await batch.call((1, "failed")))[1]["dlq"] is True


async def test_an_expiry_is_never_charged(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue, retry_limit=1, lease_seconds=1)
    pop = await client.pop(queue, wait_ms=5000, leaseSeconds=1)
    batch.pop = await client.pop(queue, wait_ms=5000, leaseSeconds=60)
    assert pop.data == batch.pop.data == [1, 2, 3, 4, 5]
    assert (await batch.call((1, "failed")))[1]["dlq"] is False
    await batch.again()
    assert (await batch.call((1, "failed")))[1]["dlq"] is True


async def test_a_batch_of_failures_is_charged_once(client: Client, queue: str) -> None:
    """100 messages fail as one batch: with `retryLimit` 2 they come back twice, then all die."""
    batch = await leased_batch(client, queue, count=100, retry_limit=2)
    everything = [(number, "failed") for number in range(1, 101)]
    for _ in range(2):
        results = await batch.call(*everything)
        assert not any(result["dlq"] for result in results.values())
        assert (await batch.again()).data == list(range(1, 101))
    results = await batch.call(*everything)
    assert all(result["dlq"] and result["leaseReleased"] for result in results.values())
    assert (await batch.again()).status == 204


async def test_with_the_budget_used_up_failed_items_die_and_completed_ones_are_committed(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue, retry_limit=0)
    statuses = ["completed", "failed", "completed", "failed", "completed"]
    results = await batch.call(*enumerate(statuses, start=1))
    assert [results[number]["dlq"] for number in range(1, 6)] == [
        status == "failed" for status in statuses
    ]
    assert all(result["success"] and result["leaseReleased"] for result in results.values())
    await client.push(queue, [6])
    assert (await batch.again()).data == [6]


async def test_after_a_dead_letter_the_call_stops_at_the_first_message_it_does_not_mention(
    client: Client, queue: str
) -> None:
    """2.x: a second dead letter beyond an unmentioned message would commit that one silently."""
    batch = await leased_batch(client, queue)
    results = await batch.call((1, "dlq"), (3, "dlq"))
    assert results[1]["dlq"] is True
    assert all(result["success"] and result["leaseReleased"] for result in results.values())
    assert (await batch.again()).data == [2, 3, 4, 5]


async def test_after_a_dead_letter_a_later_completed_item_still_commits_the_gap(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    results = await batch.call((1, "dlq"), (3, "completed"))
    assert results[1]["dlq"] is True
    assert (await batch.again()).data == [4, 5]


async def test_the_second_poison_message_of_a_batch_has_a_budget_of_its_own(
    client: Client, queue: str
) -> None:
    """The counter is tied to the position: it starts anew once the cursor passed the message."""
    batch = await leased_batch(client, queue, retry_limit=1)
    assert (await batch.call((1, "failed")))[1]["dlq"] is False
    await batch.again()
    assert (await batch.call((1, "failed")))[1]["dlq"] is True
    await batch.again()
    assert (await batch.call((2, "failed")))[2]["dlq"] is False, "after a dead letter"
    await batch.again()
    await batch.call((2, "completed"))
    assert (await batch.call((3, "failed")))[3]["dlq"] is False, "after a partial ack"
    await batch.again()
    assert (await batch.call((3, "failed")))[3]["dlq"] is True
    assert (await batch.again()).data == [4, 5]


async def test_a_completed_batch_resets_the_counter(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue, count=1, retry_limit=1)
    await batch.call((1, "failed"))
    await batch.again()
    await batch.call((1, "completed"))
    await client.push(queue, [2])
    await batch.again()
    assert (await batch.call((2, "failed")))[2]["dlq"] is False


async def test_groups_have_budgets_of_their_own(client: Client, queue: str) -> None:
    one = await leased_batch(client, queue, group="one", retry_limit=1)
    two = Batch(client, queue, "two", await client.pop(queue, group="two"))
    await one.call((1, "failed"))
    await one.again()
    assert (await two.call((1, "failed")))[1]["dlq"] is False
    await two.again()
    assert (await one.call((1, "failed")))[1]["dlq"] is True
    assert (await two.call((1, "failed")))[1]["dlq"] is True


async def test_the_error_text_of_a_nack_is_never_echoed_as_an_error(
    client: Client, queue: str
) -> None:
    """The Python client takes a result with a truthy `error` for a failure (2.7)."""
    batch = await leased_batch(client, queue, retry_limit=1)
    for status in ("failed", "retry", "failed", "dlq"):
        first = batch.messages[min(batch.messages)]
        result = await client.ack(first, status, error="tax service down")
        assert result["success"] is True, status
        assert result["error"] is None, status
        await batch.again()
    pairs = [(message, "failed") for message in batch.pop.messages]
    for result in await client.ack_batch(pairs, error="boom ☃" * 100):
        assert (result["success"], result["error"]) == (True, None)


async def test_a_nack_after_the_lease_was_released_by_a_nack_is_fenced(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue, retry_limit=0)
    await batch.call((2, "retry"))
    for status in ("failed", "completed", "dlq"):
        result = (await batch.call((3, status)))[3]
        assert "lease" in result["error"]
    assert (await batch.again()).data == [1, 2, 3, 4, 5]


# ── statuses ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["completed", "success", "acked", "ok"])
async def test_completed_has_aliases(client: Client, queue: str, status: str) -> None:
    batch = await leased_batch(client, queue)
    assert (await batch.call((3, status)))[3]["success"] is True
    assert (await batch.call((4, status), (5, status)))[5]["leaseReleased"] is True


async def test_completed_is_the_default_status(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    last = batch.messages[5]
    names = ("transactionId", "partitionId", "leaseId")
    answer = await client.post("/api/v1/ack", {name: last[name] for name in names})
    assert answer.status == 200
    assert answer.json[0]["success"] is True
    assert answer.json[0]["leaseReleased"] is True


@pytest.mark.parametrize("status", ["", "done", "COMPLETED", "failed ", "complete"])
async def test_an_unknown_status_is_refused_and_changes_nothing(
    client: Client, queue: str, status: str
) -> None:
    batch = await leased_batch(client, queue, retry_limit=0)
    item = {
        "transactionId": batch.messages[5]["transactionId"],
        "partitionId": batch.messages[5]["partitionId"],
        "leaseId": batch.pop.lease_id,
        "status": status,
    }
    for path, body in (
        ("/api/v1/ack", item),
        ("/api/v1/ack/batch", {"acknowledgments": [item]}),
    ):
        answer = await client.post(path, body)
        if answer.status == 400:
            assert answer.error
        else:
            assert answer.status == 200
            assert answer.json[0]["success"] is False
            assert answer.json[0]["error"]
    assert (await batch.again()).status == 204, "still leased"
    await client.complete(batch.pop)


# ── deliveryAttempt (2.8) ───────────────────────────────────────────────────────────────────────


async def test_the_delivery_attempt_grows_with_every_claim_from_the_same_position(
    client: Client, queue: str, group: str | None
) -> None:
    """Whatever ended the claim before: a nack, a retry or an expiry."""
    batch = await leased_batch(client, queue, group=group)
    assert batch.pop.attempts == {1}
    await batch.call((1, "failed"))
    assert (await batch.again()).attempts == {2}
    await batch.call((3, "retry"))
    assert (await batch.again(lease_seconds=1)).attempts == {3}
    assert (await until_expired(batch)).attempts == {4}


async def test_the_delivery_attempt_is_kept_for_the_first_message_left_over(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((1, "completed"))
    await batch.call((2, "failed"))
    pop = await batch.again()
    assert (pop.data, pop.attempts) == ([2, 3, 4, 5], {2})
    await batch.call((2, "completed"), (3, "failed"))
    pop = await batch.again()
    assert (pop.data, pop.attempts) == ([3, 4, 5], {3})


async def test_the_delivery_attempt_starts_again_at_one_after_progress(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue, retry_limit=1)
    await batch.call((1, "failed"))
    await batch.again()
    await batch.call((1, "failed"))  # to the dead letters
    pop = await batch.again()
    assert (pop.data, pop.attempts) == ([2, 3, 4, 5], {1})
    await batch.call((2, "retry"))
    assert (await batch.again()).attempts == {2}
    await client.complete(batch.pop)
    await client.push(queue, [6])
    pop = await batch.again()
    assert (pop.data, pop.attempts) == ([6], {1})


async def test_all_messages_of_a_claim_carry_the_same_attempt_even_new_ones(
    client: Client, queue: str
) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((1, "retry"))
    await client.push(queue, [6, 7])
    pop = await batch.again()
    assert (pop.data, pop.attempts) == ([1, 2, 3, 4, 5, 6, 7], {2})


async def test_attempts_are_counted_per_group(client: Client, queue: str) -> None:
    one = await leased_batch(client, queue, group="one")
    await one.call((1, "retry"))
    await one.again()
    assert one.pop.attempts == {2}
    assert (await client.pop(queue, group="two")).attempts == {1}


async def test_with_auto_ack_the_attempt_is_always_one(client: Client, queue: str) -> None:
    batch = await leased_batch(client, queue)
    await batch.call((1, "retry"))
    assert (await client.pop(queue, autoAck="true")).attempts == {1}
