"""The parts that loads are put together from; each makes a `Work` for a process of its own.

Closed loop (`producing`, `consuming`, `cycling`): whoever has an answer sends the next request, so
the server sets the pace and capacity is measured. Open loop (`pacing`): requests have their times
beforehand, and a latency counts from the time a request was to be sent, also when its connection
was still busy; else a stall would delay the very requests that should have shown it (coordinated
omission).

None knows a protocol: they drive whatever `driver.py` describes. Within a partition ids are pushed
one request after the other, so that the order of what is delivered can be judged.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.check import Delivery, Lanes, runs_of
from bench.client import RequestFailed
from bench.driver import Consumer, Driver, Popped, Producer, Subscription
from bench.load import Board, ConsumerShare, Gate, Share, Work
from bench.ticks import Ticks

SEED_PARTITIONS = 1000  # a request
_WATCH_S = 0.02  # how soon a process notices that all is done; no part of the measured time
_ASK_S = 1.0  # between questions to the broker while nothing comes
_PARKED_PER_SECOND = 250  # by each process: a fleet does not connect within a millisecond
_ENDLESS = 10**9  # ids that a partition has in a load that ends by time


def endless_lanes(partition_count: int) -> Lanes:
    """Lanes for a load that ends by time, after whatever it has pushed by then."""
    return {
        str(number): range(number * _ENDLESS, (number + 1) * _ENDLESS)
        for number in range(partition_count)
    }


def lane_of(id_: int) -> str:
    """The one of `endless_lanes` that an id is of."""
    return str(id_ // _ENDLESS)


def part_of(lanes: Lanes, part: int, part_count: int) -> Lanes:
    """Every n-th lane: what one of several processes pushes."""
    return {name: lanes[name] for name in list(lanes)[part::part_count]}


@dataclass(frozen=True)
class Pushes:
    """What to push. *seconds*: for so long, None: all of the lanes."""

    queue: str
    lanes: Lanes
    batch: int
    connections: int
    payload_bytes: int = 0
    seconds: float | None = None
    # Before the clock starts: what a producer spends on its own messages is not the server's
    # speed. A load that ends by time cannot know how many it needs.
    encode_ahead: bool = True


def producing(driver: Driver, pushes: Pushes) -> Work:
    """Push in a closed loop, lane after lane in turn."""

    async def work(process: int, board: Board, gate: Gate) -> Share:
        return await _Producers(driver, pushes, process, board).run(gate)

    return work


@dataclass
class _Lane:
    partition: str
    ids: range
    at: int = 0  # how many of them are pushed
    bodies: deque[bytes] = field(default_factory=deque)  # encoded ahead


class _Producers:
    def __init__(self, driver: Driver, pushes: Pushes, process: int, board: Board) -> None:
        self._driver = driver
        self._pushes = pushes
        self._process = process
        self._board = board
        self._push_ms: list[float] = []
        self._bytes_sent = 0
        self._deadline_ns = 0

    async def run(self, gate: Gate) -> Share:
        pushes = self._pushes
        lanes = [_Lane(name, ids) for name, ids in pushes.lanes.items()]
        if pushes.encode_ahead and pushes.seconds is None:
            for lane in lanes:
                for start in range(0, len(lane.ids), pushes.batch):
                    numbers = lane.ids[start : start + pushes.batch]
                    lane.bodies.append(self._encode(lane.partition, numbers))
        self._lanes = deque(lanes)
        count = max(1, min(pushes.connections, len(lanes)))
        producers = [await self._driver.producer() for _ in range(count)]
        self._board.set_pushing(self._process, True)
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        self._deadline_ns = begin_ns + int((pushes.seconds or 1e9) * 1e9)
        try:
            await asyncio.gather(*map(self._push_all, producers))
            end_ns = time.monotonic_ns()
        finally:
            for producer in producers:
                producer.close()
        self._board.set_pushing(self._process, False)
        return Share(
            begin_ns,
            end_ns,
            pushed={lane.partition: lane.ids[: lane.at] for lane in lanes},
            bytes_sent=self._bytes_sent,
            latencies_ms={"push": self._push_ms},
        )

    def _encode(self, partition: str, numbers: Sequence[int]) -> bytes:
        pushes = self._pushes
        return self._driver.encode(pushes.queue, [(partition, numbers)], pushes.payload_bytes)

    async def _push_all(self, producer: Producer) -> None:
        # A lane is out of the round while a push of it is under way: that keeps its order. There
        # are no more connections than lanes, so each finds one until all is pushed.
        while self._lanes and time.monotonic_ns() < self._deadline_ns:
            lane = self._lanes.popleft()
            numbers = lane.ids[lane.at : lane.at + self._pushes.batch]
            body = lane.bodies.popleft() if lane.bodies else self._encode(lane.partition, numbers)
            begin_ns = time.monotonic_ns()
            await producer.push(body, len(numbers))
            self._push_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
            self._bytes_sent += len(body)
            self._board.add_pushed(self._process, len(numbers))
            lane.at += len(numbers)
            if lane.at < len(lane.ids):
                self._lanes.append(lane)


def consuming(
    driver: Driver,
    subscriptions: Sequence[Subscription],
    *,
    first_number: int = 0,
    idle_limit_s: float = 30.0,
    parked: Callable[[], Awaitable[None]] | None = None,
    is_read: Callable[[], Awaitable[bool]] | None = None,
) -> Work:
    """Pop and acknowledge in a closed loop, one consumer for each subscription.

    Ends when all is consumed, by whichever process, or when nothing came for *idle_limit_s*.
    *is_read* asks the broker whether everything was acknowledged, also by consumers of other
    commands; it is called while nothing comes, and ends the load. With *parked*, they send their
    first pops before the clock starts, and *parked* is waited for.
    """

    async def work(process: int, board: Board, gate: Gate) -> Share:
        shares = [new_share(first_number + number) for number, _ in enumerate(subscriptions)]
        consumers = [await driver.consumer(wanted) for wanted in subscriptions]
        end_ns = [0]

        async def consume(share: ConsumerShare, wanted: Subscription, consumer: Consumer) -> None:
            while True:
                popped = await pop_once(share, wanted, consumer)
                if popped is not None:
                    end_ns[0] = time.monotonic_ns()
                    board.add_consumed(process, popped.message_count)

        each = zip(shares, subscriptions, consumers, strict=True)
        tasks: list[asyncio.Task[None]] = []
        if parked is not None:
            for one in each:
                tasks.append(asyncio.create_task(consume(*one)))
                await asyncio.sleep(1 / _PARKED_PER_SECOND)
            await parked()
        gate.pass_together()
        begin_ns = end_ns[0] = time.monotonic_ns()
        # Whoever is parked was taken from `each` already; else all begin now.
        tasks += [asyncio.create_task(consume(*one)) for one in each]
        watch = asyncio.create_task(_watch(board, idle_limit_s, is_read))
        try:
            # Consumers never end by themselves: the first task to end is the watch or a failure.
            done, _ = await asyncio.wait([watch, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for consumer in consumers:
                consumer.close()  # the server takes back what a parked pop may be given
            for task in (watch, *tasks):
                task.cancel()
            await asyncio.gather(watch, *tasks, return_exceptions=True)
        return Share(begin_ns, end_ns[0], consumers=shares)

    return work


async def _watch(
    board: Board, idle_limit_s: float, is_read: Callable[[], Awaitable[bool]] | None
) -> None:
    """Wait until all messages are consumed, by whichever process, or nothing more comes."""
    seen, seen_at = 0, time.monotonic()
    ask_at = seen_at + _ASK_S
    while not board.is_drained():
        moved = board.moved()
        if moved != seen or board.is_pushing():
            seen, seen_at = moved, time.monotonic()
            ask_at = seen_at + _ASK_S
        elif time.monotonic() - seen_at > idle_limit_s:
            return
        elif is_read is not None and time.monotonic() > ask_at:
            if await is_read():
                return
            ask_at = time.monotonic() + _ASK_S
        await asyncio.sleep(_WATCH_S)


def new_share(number: int) -> ConsumerShare:
    return ConsumerShare(number, pop_ms=[], ack_ms=[], deliveries=[])


async def pop_once(share: ConsumerShare, wanted: Subscription, consumer: Consumer) -> Popped | None:
    """Pop once, note what came, and acknowledge it."""
    begin_ns = time.monotonic_ns()
    popped = await consumer.pop()
    received_ns = time.monotonic_ns()
    if popped is None:
        share.empty_count += 1
        return None
    share.pop_ms.append((received_ns - begin_ns) / 1e6)
    share.bytes_received += popped.byte_count
    share.message_count += popped.message_count
    share.deliveries += [
        Delivery(received_ns, share.number, partition, runs_of(ids), wanted.group or "")
        for partition, ids in popped.lots
    ]
    if not wanted.auto_ack:
        begin_ns = time.monotonic_ns()
        await consumer.acknowledge(popped)
        share.ack_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
    share.acknowledged_count += popped.message_count
    return popped


def cycling(driver: Driver, pushes: Pushes, seconds: float) -> Work:
    """Push one, pop it, acknowledge it, again and again: a loop for each lane of *pushes*."""

    async def work(process: int, board: Board, gate: Gate) -> Share:
        lanes = [_Lane(name, ids) for name, ids in pushes.lanes.items()]
        shares = [new_share(number) for number, _ in enumerate(lanes)]
        producers = [await driver.producer() for _ in lanes]
        wanted = [Subscription(pushes.queue, 1, lane.partition) for lane in lanes]
        consumers = [await driver.consumer(one) for one in wanted]
        latencies: dict[str, list[float]] = {"push": [], "cycle": []}
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        deadline_ns = begin_ns + int(seconds * 1e9)

        async def cycle(number: int) -> None:
            lane, share, consumer = lanes[number], shares[number], consumers[number]
            while time.monotonic_ns() < deadline_ns:
                numbers = lane.ids[lane.at : lane.at + 1]
                body = driver.encode(
                    pushes.queue, [(lane.partition, numbers)], pushes.payload_bytes
                )
                cycle_ns = time.monotonic_ns()
                await producers[number].push(body, 1)
                latencies["push"].append((time.monotonic_ns() - cycle_ns) / 1e6)
                lane.at += 1
                board.add_pushed(process, 1)
                if await pop_once(share, wanted[number], consumer) is None:
                    raise RequestFailed(f"a pop of partition {lane.partition} missed its message")
                latencies["cycle"].append((time.monotonic_ns() - cycle_ns) / 1e6)
                board.add_consumed(process, 1)

        try:
            await asyncio.gather(*map(cycle, range(len(lanes))))
        finally:
            for producer in producers:
                producer.close()
            for consumer in consumers:
                consumer.close()
        return Share(
            begin_ns,
            time.monotonic_ns(),
            pushed={lane.partition: lane.ids[: lane.at] for lane in lanes},
            consumers=shares,
            latencies_ms=latencies,
        )

    return work


def pacing(
    driver: Driver,
    queue: str,
    lanes: Lanes,
    rate: float,
    seconds: float,
) -> Work:
    """Push *rate* messages a second in an open loop, one a request, to the lanes in turn.

    Each lane has a connection, where a message that is due waits while the one before is under
    way.
    """
    count = max(1, int(rate * seconds))

    async def work(process: int, board: Board, gate: Gate) -> Share:
        names = list(lanes)
        producers = [await driver.producer() for _ in names]
        due = [0] * len(names)
        woken = [asyncio.Event() for _ in names]
        intended_ns: dict[int, int] = {}
        latencies: dict[str, list[float]] = {"push": [], "push, once sent": []}
        board.set_pushing(process, True)
        gate.pass_together()
        ticks = Ticks(rate)
        begin_ns = ticks.first_ns
        pushed = [len(range(number, count, len(names))) for number, _ in enumerate(names)]

        async def push_lane(number: int) -> None:
            name = names[number]
            for turn in range(pushed[number]):
                id_ = lanes[name][turn]
                at_ns = ticks.at_ns(turn * len(names) + number)
                body = driver.encode(queue, [(name, [id_])])
                while not due[number]:
                    woken[number].clear()
                    await woken[number].wait()
                due[number] -= 1
                intended_ns[id_] = at_ns
                sent_ns = time.monotonic_ns()
                await producers[number].push(body, 1)
                answered_ns = time.monotonic_ns()
                latencies["push"].append((answered_ns - at_ns) / 1e6)
                latencies["push, once sent"].append((answered_ns - sent_ns) / 1e6)
                board.add_pushed(process, 1)

        async def count_ticks() -> None:
            turn = 0
            while turn < count:
                for _ in range(await ticks.wait()):
                    due[turn % len(names)] += 1
                    woken[turn % len(names)].set()
                    turn += 1

        try:
            await asyncio.gather(count_ticks(), *map(push_lane, range(len(names))))
        finally:
            ticks.close()
            for producer in producers:
                producer.close()
        board.set_pushing(process, False)
        return Share(
            begin_ns,
            time.monotonic_ns(),
            pushed={name: lanes[name][:n] for name, n in zip(names, pushed, strict=True)},
            latencies_ms=latencies,
            begun_ns=intended_ns,
        )

    return work


def seeding(driver: Driver, queue: str, lanes: Lanes) -> Work:
    """Push all of *lanes* on one connection, many partitions a request: what makes partitions."""

    async def work(process: int, board: Board, gate: Gate) -> Share:
        producer = await driver.producer()
        lots = list(lanes.items())
        push_ms = []
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        for start in range(0, len(lots), SEED_PARTITIONS):
            some = lots[start : start + SEED_PARTITIONS]
            body, count = driver.encode(queue, some), sum(len(ids) for _, ids in some)
            sent_ns = time.monotonic_ns()
            await producer.push(body, count)
            push_ms.append((time.monotonic_ns() - sent_ns) / 1e6)
            board.add_pushed(process, count)
        end_ns = time.monotonic_ns()
        producer.close()
        return Share(begin_ns, end_ns, pushed=dict(lanes), latencies_ms={"push": push_ms})

    return work


def resting(seconds: float) -> Work:
    """Do nothing for a while, and keep the consumers of the same load waiting."""

    async def work(process: int, board: Board, gate: Gate) -> Share:
        board.set_pushing(process, True)
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        await asyncio.sleep(seconds)
        board.set_pushing(process, False)
        return Share(begin_ns, time.monotonic_ns())

    return work
