"""Messages that are stored but not handed out yet, or no longer (wire-api 2.9, queue-options.md).

Time is the subject here, so tests do sleep, but no longer than the delay they look at.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from queen import Queen

from tests.client import Client, Pop
from tests.cluster_process import ClusterProcess

# Seconds after the end of a delay until a waiting pop has the message. Woken by its timer it is
# punctual, which a machine with much to do is not.
PUNCTUAL = 0.7
LATENESS_MAX = 4.0
EARLY_MAX = 0.05  # clocks: a delay counts from the storing, the test from the answer to the push


async def popped_at(client: Client, queue: str, **parameters: Any) -> tuple[Pop, float]:
    """What a waiting pop brings, and when."""
    pop = await client.pop(queue, wait_ms=15_000, **parameters)
    return pop, time.monotonic()


def assert_on_time(
    seconds: float, start: float, end: float, *, slack: float = 0.0, lateness: float = LATENESS_MAX
) -> None:
    """*seconds* after *start*; the delay itself began up to *slack* seconds earlier."""
    took = end - start
    assert seconds - slack - EARLY_MAX <= took < seconds + lateness, took


async def stay_empty(client: Client, queue: str, until: float, **parameters: Any) -> None:
    while time.monotonic() < until:
        assert (await client.pop(queue, **parameters)).status == 204
        await asyncio.sleep(0.1)


# ── delayedProcessing ───────────────────────────────────────────────────────────────────────────


async def test_a_delayed_message_comes_when_it_is_old_enough(client: Client, queue: str) -> None:
    await client.configure(queue, {"delayedProcessing": 3})
    before = time.monotonic()
    await client.push(queue, [1])
    stored = time.monotonic()
    await stay_empty(client, queue, before + 0.8)
    assert (await client.pop(queue, partition="Default")).status == 204
    assert (await client.pop(queue, group="g")).status == 204
    await asyncio.sleep(stored + 3.1 - time.monotonic())
    assert (await client.pop(queue)).data == [1]
    assert (await client.pop(queue, group="g")).data == [1]


@pytest.mark.alone
@pytest.mark.parametrize("partition", [None, "Default"])
async def test_a_waiting_pop_wakes_when_the_delay_is_over(
    fresh_client: Client, queue: str, partition: str | None
) -> None:
    await fresh_client.configure(queue, {"delayedProcessing": 2})
    before = time.monotonic()
    await fresh_client.push(queue, [1])
    pushed = time.monotonic()
    pop, at = await popped_at(fresh_client, queue, partition=partition)
    assert pop.data == [1]
    assert_on_time(2, pushed, at, slack=pushed - before, lateness=PUNCTUAL)


@pytest.mark.alone
async def test_a_pop_that_waited_before_the_push_wakes_after_the_delay(
    fresh_client: Client, queue: str
) -> None:
    await fresh_client.configure(queue, {"delayedProcessing": 1})
    waiting = asyncio.create_task(popped_at(fresh_client, queue))
    await asyncio.sleep(0.3)
    before = time.monotonic()
    await fresh_client.push(queue, [1])
    pushed = time.monotonic()
    pop, at = await waiting
    assert pop.data == [1]
    assert_on_time(1, pushed, at, slack=pushed - before, lateness=PUNCTUAL)


async def test_each_message_has_its_own_age(client: Client, queue: str) -> None:
    await client.configure(queue, {"delayedProcessing": 1})
    await client.push(queue, ["old"])
    await asyncio.sleep(0.7)
    await client.push(queue, ["young"])
    pop = await client.pop(queue, wait_ms=10_000)
    assert pop.data == ["old"]
    await client.complete(pop)
    assert (await client.pop(queue)).status == 204
    assert (await client.pop(queue, wait_ms=10_000)).data == ["young"]


async def test_raising_the_delay_hides_stored_messages_again(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    first = await client.pop(queue, batch=1)
    assert first.data == [1]
    await client.complete(first)
    await client.configure(queue, {"delayedProcessing": 60})
    assert (await client.pop(queue)).status == 204
    await client.configure(queue, {"delayedProcessing": 0})
    assert (await client.pop(queue)).data == [2]


async def test_lowering_the_delay_wakes_a_waiting_pop(fresh_client: Client, queue: str) -> None:
    await fresh_client.configure(queue, {"delayedProcessing": 60})
    await fresh_client.push(queue, [1])
    waiting = asyncio.create_task(popped_at(fresh_client, queue))
    await asyncio.sleep(0.5)
    await fresh_client.configure(queue, {"delayedProcessing": 0})
    pop, _ = await waiting
    assert pop.data == [1]


async def test_delayed_partitions_do_not_use_up_the_cap(client: Client, queue: str) -> None:
    for name in "ab":
        await client.push(queue, [name], partition=name)
    await asyncio.sleep(2.1)
    await client.configure(queue, {"delayedProcessing": 2})
    for number in range(20):
        await client.push(queue, ["young"], partition=f"young{number}")
    pop = await client.pop(queue, partitions=2)
    assert sorted(pop.data) == ["a", "b"]
    assert pop.body["partitionsClaimed"] == 2


# ── windowBuffer ────────────────────────────────────────────────────────────────────────────────


async def test_a_window_delivers_together(client: Client, queue: str) -> None:
    await client.configure(queue, {"windowBuffer": 1})
    for number in range(3):
        await client.push(queue, [number])
        pushed = time.monotonic()
        # Each push starts the window anew.
        await stay_empty(client, queue, pushed + 0.7)
    pop, at = await popped_at(client, queue)
    assert pop.data == [0, 1, 2]
    assert at - pushed >= 1 - 2 * EARLY_MAX


@pytest.mark.alone
async def test_a_waiting_pop_wakes_when_the_window_is_over(
    fresh_client: Client, queue: str
) -> None:
    await fresh_client.configure(queue, {"windowBuffer": 1})
    waiting = asyncio.create_task(popped_at(fresh_client, queue))
    await asyncio.sleep(0.2)
    await fresh_client.push(queue, [1])
    await asyncio.sleep(0.6)
    before = time.monotonic()
    await fresh_client.push(queue, [2])
    pushed = time.monotonic()
    pop, at = await waiting
    assert pop.data == [1, 2]
    assert_on_time(1, pushed, at, slack=pushed - before, lateness=PUNCTUAL)


async def test_each_partition_has_its_own_window_for_every_group(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"windowBuffer": 1})
    await client.push(queue, ["quiet"], partition="quiet")
    await asyncio.sleep(1.2)
    await client.push(queue, ["busy"], partition="busy")
    for group in (None, "g"):
        pop = await client.pop(queue, group=group, partitions=5)
        assert pop.data == ["quiet"]


# ── maxWaitTimeSeconds and ttl ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["maxWaitTimeSeconds", "ttl"])
async def test_stale_messages_are_passed_over(client: Client, queue: str, option: str) -> None:
    await client.configure(queue, {option: 1})
    await client.push(queue, ["stale", "stale"])
    await asyncio.sleep(1.3)
    assert (await client.pop(queue)).status == 204
    await client.push(queue, ["fresh"])
    for group in (None, "g"):
        pop = await client.pop(queue, group=group)
        assert pop.data == ["fresh"]
        await client.complete(pop, group=group)


@pytest.mark.parametrize("option", ["maxWaitTimeSeconds", "ttl"])
async def test_a_message_in_time_is_handed_out(client: Client, queue: str, option: str) -> None:
    await client.configure(queue, {option: 30})
    await client.push(queue, [1])
    await asyncio.sleep(1.2)
    assert (await client.pop(queue)).data == [1]


async def test_defaults_make_nothing_stale(client: Client, queue: str) -> None:
    options = (await client.configure(queue, {}))["options"]
    assert options["ttl"] == 3600
    assert options["maxWaitTimeSeconds"] == 0
    await client.configure(queue, {"ttl": 1})
    await client.push(queue, [1])
    # Back to the default; the message was never out of date by it.
    assert (await client.configure(queue, {"ttl": None}))["options"]["ttl"] == 3600
    await asyncio.sleep(1.2)
    assert (await client.pop(queue)).data == [1]


# ── retryDelay, retryBackoff, retryAfterMillis ──────────────────────────────────────────────────


@pytest.mark.alone
@pytest.mark.parametrize("status", ["failed", "retry"])
async def test_a_nacked_message_stays_away_for_the_delay(
    fresh_client: Client, queue: str, status: str
) -> None:
    await fresh_client.configure(queue, {"retryDelay": 1000})
    await fresh_client.push(queue, [1, 2])
    pop = await fresh_client.pop(queue)
    assert pop.data == [1, 2]  # a first delivery is not delayed
    before = time.monotonic()
    result = await fresh_client.ack(pop.messages[0], status)
    acked = time.monotonic()
    assert result["success"] is True
    assert (await fresh_client.pop(queue)).status == 204
    again, at = await popped_at(fresh_client, queue)
    assert again.data == [1, 2]
    assert_on_time(1, acked, at, slack=acked - before, lateness=PUNCTUAL)


@pytest.mark.parametrize("status", ["failed", "retry"])
async def test_the_delay_that_is_only_echoed_enforces_nothing(
    client: Client, queue: str, status: str
) -> None:
    assert (await client.configure(queue, {}))["options"]["retryDelay"] == 1000
    await client.push(queue, [1])
    pop = await client.pop(queue)
    await client.ack(pop.messages[0], status)
    assert (await client.pop(queue)).data == [1]


async def test_a_delay_holds_back_only_its_own_group_and_partition(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"retryDelay": 60_000})
    for name in "ab":
        await client.push(queue, [name], partition=name)
    pop = await client.pop(queue, partition="a")
    await client.ack(pop.messages[0], "failed")
    pop = await client.pop(queue, partitions=1)
    assert pop.data == ["b"]
    assert (await client.pop(queue, partition="a", group="g")).data == ["a"]
    assert (await client.pop(queue, partition="a")).status == 204


async def test_backoff_doubles_with_each_charged_retry(fresh_client: Client, queue: str) -> None:
    await fresh_client.configure(queue, {"retryDelay": 500, "retryBackoff": True, "retryLimit": 5})
    await fresh_client.push(queue, [1])
    pop = await fresh_client.pop(queue)
    for status, seconds in [("failed", 0.5), ("failed", 1.0), ("retry", 1.0), ("failed", 2.0)]:
        before = time.monotonic()
        await fresh_client.ack(pop.messages[0], status)
        acked = time.monotonic()
        pop, at = await popped_at(fresh_client, queue)
        assert pop.data == [1]
        assert_on_time(seconds, acked, at, slack=acked - before)


async def test_without_backoff_the_delay_stays_the_same(fresh_client: Client, queue: str) -> None:
    await fresh_client.configure(queue, {"retryDelay": 400})
    await fresh_client.push(queue, [1])
    pop = await fresh_client.pop(queue)
    for _ in range(3):
        before = time.monotonic()
        await fresh_client.ack(pop.messages[0], "failed")
        acked = time.monotonic()
        pop, at = await popped_at(fresh_client, queue)
        assert_on_time(0.4, acked, at, slack=acked - before)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("retry_delay", [None, 60_000])
@pytest.mark.parametrize("status", ["failed", "retry"])
async def test_an_ack_says_when_to_come_back(
    fresh_client: Client, queue: str, status: str, retry_delay: int | None, batch: bool
) -> None:
    """Whatever the queue says."""
    await fresh_client.configure(queue, {"retryDelay": retry_delay})
    await fresh_client.push(queue, [1, 2])
    message = (await fresh_client.pop(queue)).messages[0]
    before = time.monotonic()
    if batch:
        (result,) = await fresh_client.ack_batch([(message, status)], retryAfterMillis=800)
    else:
        result = await fresh_client.ack(message, status, retryAfterMillis=800)
    acked = time.monotonic()
    assert result["success"] is True
    assert (await fresh_client.pop(queue)).status == 204
    pop, at = await popped_at(fresh_client, queue)
    assert pop.data == [1, 2]
    assert_on_time(0.8, acked, at, slack=acked - before)


async def test_come_back_at_once_beats_the_delay_of_the_queue(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryDelay": 60_000})
    await client.push(queue, [1])
    pop = await client.pop(queue)
    await client.ack(pop.messages[0], "failed", retryAfterMillis=0)
    assert (await client.pop(queue)).data == [1]


async def test_a_completed_message_delays_nothing(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryDelay": 60_000})
    await client.push(queue, [1, 2])
    pop = await client.pop(queue, batch=1)
    await client.ack(pop.messages[0], retryAfterMillis=60_000)
    assert (await client.pop(queue)).data == [2]


# ── the official client's own tests ─────────────────────────────────────────────────────────────


@pytest.fixture
async def queen(server: ClusterProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("QUEEN_SDK_POP_AUTOPILOT", "off")
    # The client takes over SIGINT and SIGTERM of its process; pytest wants its own back.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    client = Queen(server.url)
    yield client
    await client.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def test_push_delayed_message(queen: Any, queue: str) -> None:
    await queen.queue(queue).config({"delayedProcessing": 2}).create()
    await queen.queue(queue).push([{"data": {"n": 1}}])
    assert await queen.queue(queue).batch(1).wait(False).pop() == []
    await asyncio.sleep(2.5)
    messages = await queen.queue(queue).batch(1).wait(False).pop()
    assert [message["data"] for message in messages] == [{"n": 1}]


async def test_push_window_buffer(queen: Any, queue: str) -> None:
    await queen.queue(queue).config({"windowBuffer": 2}).create()
    await queen.queue(queue).push([{"data": {"n": number}} for number in range(3)])
    assert await queen.queue(queue).batch(1).wait(False).pop() == []
    await asyncio.sleep(2.5)
    messages = await queen.queue(queue).batch(4).wait(False).pop()
    assert [message["data"]["n"] for message in messages] == [0, 1, 2]
