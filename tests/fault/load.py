"""The work that goes on while faults strike: producers and consumers as an application has them.

Every request has a deadline. What happened to one without an answer is unknown: a push and a
transaction are sent again with the same ids, an acknowledgement a few times, a pop is given up.
All random choices come from one seed; what the server and the network make of them does not.

    work    all groups with all they can do: nacks, partial acks, leases held too long, transactions
    out     what the transactions push
    park    seldom pushed to, so that pops wait
    moved   a group that is moved about by seeks
    brief   messages that retention takes after two seconds
    cut     messages that requests remove, one by one or with their queue or group (removal.py)
    aged    messages that are too old after a second; both use their ids again

Load, server and database share their cores, so a request has to be cheap here: it is one message or
a few, on a connection that does nothing else (bench/client.py). Everybody is paced. What is asked
for is well below what two cores can do: the rate is the same each second, and comes back after a
fault when the server does.
"""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from bench.client import Answer, Connection, RequestFailed, head_of, parse_url
from bench.wire import IdMint
from tests.client import Client, unique, uuid7
from tests.fault import removal
from tests.fault.history import (
    QUEUE_MODE,
    Ack,
    AckItem,
    AckResult,
    DeadLetters,
    Extend,
    Figures,
    Item,
    Letter,
    Log,
    Message,
    Outcome,
    Plan,
    Pop,
    Push,
    Queue,
    Recorder,
    Removal,
    Seek,
    Stored,
    Transaction,
)

DEADLINE = 5.0  # seconds for a request, on top of what it waits
LEASE_S = 2
RETENTION_S = 2
PARTITIONS = 16
PRODUCERS = 20
PUSH_SIZES = (1,) * 12 + (3, 12)  # chosen from
# A push that takes less than the pause delays none of those behind it.
PRODUCER_PAUSE_S = (0.07, 0.09)
CONSUMERS = 4  # of each group
CONSUMER_PAUSE_S = (0.0, 0.03)
FRESH_SHARE = 0.1  # of the requests: those on connections of their own, which reach all workers
WAIT_MS = 1000
PARK_WAIT_MS = 4000
# Longer than a lease whose holder has gone.
QUIET = LEASE_S + 1.5  # seconds


class Wire(msgspec.Struct, rename="camel", gc=False):
    """A message as it came."""

    partition: str
    partition_id: str
    offset: int
    transaction_id: str
    id: str
    data: Any


class PopAnswer(msgspec.Struct, rename="camel", gc=False):
    lease_id: str
    messages: list[Wire]


class PushResult(msgspec.Struct, gc=False):
    status: str
    offset: int
    message_id: str
    partition_id: str


class AckAnswer(msgspec.Struct, gc=False):
    success: bool
    error: str | None = None
    dlq: bool = False
    noop: bool = False


_decode_pop = msgspec.json.Decoder(PopAnswer).decode
_decode_push = msgspec.json.Decoder(list[PushResult]).decode
_decode_acks = msgspec.json.Decoder(list[AckAnswer]).decode
_encode = msgspec.json.Encoder().encode


class Load:
    """Producers and consumers on queues of their own, until they are told to stop."""

    def __init__(self, url: Callable[[], str], recorder: Recorder, seed: int) -> None:
        self.recorder = recorder
        self.url = url
        self._seed = seed
        self._actors: list[Actor] = []
        self._producers: list[asyncio.Task[None]] = []
        self._consumers: list[asyncio.Task[None]] = []
        self._producing = True
        self.draining = False
        self._begun_at = datetime.datetime.now(datetime.UTC)
        mark = unique("fault")
        self.work = f"{mark}-work"
        self.out = f"{mark}-out"
        self.park = f"{mark}-park"
        self.moved = f"{mark}-moved"
        self.brief = f"{mark}-brief"
        self.cut = f"{mark}-cut"
        self.aged = f"{mark}-aged"
        self.queues = [
            Queue(self.work, groups=["one", "two", QUEUE_MODE]),
            Queue(self.out, groups=["sink"]),
            Queue(self.park, groups=["sitters"]),
            Queue(self.moved, sought=["mover"]),
            Queue(self.brief, retention_s=RETENTION_S),
            Queue(self.cut, emptied=True, kept=[removal.KEPT]),
            Queue(self.aged, emptied=True, ttl_s=removal.TTL_S),
        ]
        recorder.add(Plan(seed, self.queues))

    # -- life --

    async def configure(self) -> None:
        async with Client(self.url()) as client:
            for queue in self.queues:
                options: dict[str, Any] = {"retryLimit": 1, "leaseTime": LEASE_S}
                if queue.retention_s:
                    options |= {"retentionEnabled": True, "retentionSeconds": RETENTION_S}
                if queue.ttl_s:
                    options["ttl"] = int(queue.ttl_s)
                await client.configure(queue.name, options)

    def start(self) -> float:
        """When it began, by the monotonic clock."""
        began_at = self.recorder.mark("load_begin")
        for number in range(PRODUCERS):
            self._add_producer(self.work, f"producer-{number}", *PRODUCER_PAUSE_S)
        self._add_producer(self.park, "visitor", 0.5, 6.0)
        self._add_producer(self.moved, "mover-feeder", 0.1, 0.2)
        self._add_producer(self.brief, "brief-feeder", 0.1, 0.2)
        for group in ("one", "two", QUEUE_MODE):
            for _ in range(CONSUMERS):
                self._add_consumer(self.work, group, transactions=group == "one", tricks=True)
        self._add_consumer(self.out, "sink")
        for _ in range(2):
            self._add_consumer(self.park, "sitters", wait_ms=PARK_WAIT_MS)
        self._add_consumer(self.moved, "mover")
        self._add_consumer(self.brief, "passer-by")
        actor = self.actor("seeker")
        self._producers.append(asyncio.create_task(self._seek(actor)))
        producers, consumers = removal.actors(self)
        self._producers += [asyncio.create_task(work) for work in producers]
        self._consumers += [asyncio.create_task(work) for work in consumers]
        return began_at

    @property
    def is_producing(self) -> bool:
        return self._producing

    async def stop_producing(self) -> None:
        """The last pushes are repeated until they are answered."""
        self._producing = False
        await asyncio.gather(*self._producers)

    async def drain(self) -> None:
        """Consumers read to the end."""
        self.draining = True
        await asyncio.gather(*self._consumers)

    def check(self) -> None:
        """Raise what a producer or a consumer stumbled over: an answer that cannot be."""
        for task in (*self._producers, *self._consumers):
            if task.done():
                task.result()

    async def close(self) -> None:
        tasks = (*self._producers, *self._consumers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for actor in self._actors:
            actor.close()

    def actor(self, name: str) -> Actor:
        actor = Actor(name, self, random.Random(f"{self._seed}-{name}-{len(self._actors)}"))
        self._actors.append(actor)
        return actor

    def _add_producer(self, queue: str, name: str, pause_min: float, pause_max: float) -> None:
        actor = self.actor(name)
        self._producers.append(
            asyncio.create_task(self._produce(actor, queue, pause_min, pause_max))
        )

    def _add_consumer(
        self,
        queue: str,
        group: str,
        *,
        wait_ms: int = WAIT_MS,
        transactions: bool = False,
        tricks: bool = False,
    ) -> None:
        actor = self.actor(f"{group}-{len(self._consumers)}")
        task = self._consume(actor, queue, group, wait_ms, transactions, tricks)
        self._consumers.append(asyncio.create_task(task))

    # -- producers --

    async def _produce(self, actor: Actor, queue: str, pause_min: float, pause_max: float) -> None:
        number = 0
        ids = IdMint()
        # They do not begin all at once.
        due = time.monotonic() + actor.chance.uniform(0, pause_max)
        await asyncio.sleep(due - time.monotonic())
        while self._producing:
            items = []
            for _ in range(actor.chance.choice(PUSH_SIZES) if queue == self.work else 1):
                partition = f"p{actor.chance.randrange(PARTITIONS)}"
                if queue in (self.park, self.moved, self.brief):
                    partition = "p0"
                # Time-ordered ids mostly, as clients mint them; others are indexed apart.
                text = f"{actor.name}-{number}"
                id_ = ids.mint(1)[0] if actor.chance.random() < 0.8 else text
                items.append(Item(queue, partition, id_, [actor.name, number, "x" * 40]))
                number += 1
            await actor.push(items)
            # Paced: what the server can do at most changes with the machine, this does not.
            due = max(time.monotonic(), due + actor.chance.uniform(pause_min, pause_max))
            await asyncio.sleep(due - time.monotonic())

    async def _seek(self, actor: Actor) -> None:
        while self._producing:
            if actor.chance.random() < 0.5:
                await actor.seek(self.moved, "mover", {"toEnd": True})
            else:
                when = self._begun_at + datetime.timedelta(seconds=actor.chance.uniform(0, 5))
                await actor.seek(self.moved, "mover", {"timestamp": when.isoformat()})
            await asyncio.sleep(actor.chance.uniform(0.5, 2.0))

    # -- consumers --

    async def _consume(
        self,
        actor: Actor,
        queue: str,
        group: str,
        wait_ms: int,
        transactions: bool,
        tricks: bool,
    ) -> None:
        heard_at = time.monotonic()
        while not self.draining or time.monotonic() - heard_at < QUIET:
            pop, messages = await actor.pop(queue, group, wait_ms)
            if pop.outcome != "answered":
                heard_at = time.monotonic()
                await asyncio.sleep(actor.chance.uniform(0.02, 0.2))
                continue
            if not messages:
                continue
            heard_at = time.monotonic()
            trick = actor.chance.random() if tricks and not self.draining else 1.0
            # What keeps a partition waiting for the end of its lease has to be rare, or little else
            # happens.
            if trick < 0.02:
                await self._nack(actor, pop, messages, "failed")
            elif trick < 0.03:
                await self._nack(actor, pop, messages, "retry")
            elif trick < 0.06:
                await actor.extend(pop.lease_id, LEASE_S)
                await actor.ack(pop, messages)
            elif trick < 0.065:
                # Too late, unless it can still be in time: the checker knows.
                await asyncio.sleep(LEASE_S + actor.chance.uniform(-0.2, 0.7))
                await actor.ack(pop, messages)
            elif trick < 0.1:
                for message in messages[:5]:
                    await actor.ack(pop, [message])
                await actor.ack(pop, messages[5:])
            elif trick < 0.22 and transactions:
                await self._transact(actor, pop, messages)
            else:
                await actor.ack(pop, messages)
            if not self.draining:
                await asyncio.sleep(actor.chance.uniform(*CONSUMER_PAUSE_S))

    async def _nack(self, actor: Actor, pop: Pop, messages: list[Wire], status: str) -> None:
        """Complete what comes before one message of the first partition, and nack that one."""
        own = [m for m in messages if m.partition == messages[0].partition]
        place = actor.chance.randrange(len(own))
        await actor.ack(pop, own[: place + 1], status)

    async def _transact(self, actor: Actor, pop: Pop, messages: list[Wire]) -> None:
        key = uuid7()
        items = [
            Item(self.out, f"p{actor.chance.randrange(3)}", f"{key}-{n}", {"transaction": key})
            for n in range(actor.chance.randint(1, 3))
        ]
        await actor.transact(key, pop, messages, items)

    # -- the end --

    async def read_out(self) -> None:
        """Record what the server holds when all is over."""
        async with Client(self.url(), fresh=True) as client:
            for queue in self.queues:
                if queue.emptied:
                    continue
                partitions = ["p0"] if queue.name in (self.park, self.moved, self.brief) else [
                    f"p{number}" for number in range(PARTITIONS)
                ]  # fmt: skip
                for partition in partitions:
                    log = await _read_partition(client, queue.name, partition)
                    self.recorder.add(Log(queue.name, partition, log))
                letters = await _read_letters(client, queue.name)
                self.recorder.add(DeadLetters(queue.name, letters))


async def _read_partition(client: Client, queue: str, partition: str) -> list[Message]:
    group = unique("audit")
    log: list[Message] = []
    while True:
        pop = await client.pop(queue, partition=partition, group=group, batch=2000, leaseSeconds=60)
        if pop.status == 204:
            return log
        log += [
            Message(m["partition"], m["offset"], m["transactionId"], m["id"], m["data"])
            for m in pop.messages
        ]
        # One ack for the batch: that of its last message commits all before it.
        await client.ack(pop.messages[-1], group=group)


async def _read_letters(client: Client, queue: str) -> list[Letter]:
    letters: list[Letter] = []
    while True:
        answer = await client.get(
            f"/api/v1/dlq?queue={quote(queue)}&limit=500&offset={len(letters)}"
        )
        assert answer.status == 200, answer
        page = answer.json["messages"]
        letters += [
            Letter(m["consumerGroup"], m["partition"], m["transactionId"], m["data"]) for m in page
        ]
        if not page:
            assert len(letters) == answer.json["total"], answer
            return letters


class Actor:
    """One producer or consumer: its connections, its random choices, its lines in the history."""

    def __init__(self, name: str, load: Load, chance: random.Random) -> None:
        self.name = name
        self.chance = chance
        self._url = parse_url(load.url())
        self._add = load.recorder.add
        self._kept: Connection | None = None

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    async def push(self, items: list[Item]) -> list[PushResult]:
        """Push until it is answered."""
        body = {
            "items": [
                {
                    "queue": i.queue,
                    "partition": i.partition,
                    "transactionId": i.id,
                    "payload": i.data,
                }
                for i in items
            ]
        }
        while True:
            asked = await self._ask("POST", "/api/v1/push", body)
            push = Push(items=items, **asked.times)
            entries: list[PushResult] = []
            if asked.outcome == "answered":
                entries = _decode_push(asked.body)
                push.results = [
                    Stored(entry.status, entry.offset, entry.message_id) for entry in entries
                ]
                assert {result.status for result in push.results} <= {"queued", "duplicate"}, asked
            self._add(push)
            if asked.outcome == "answered":
                return entries
            await self._pause()

    async def pop(
        self, queue: str, group: str, wait_ms: int, *, batch: int = 40, lease_s: int = LEASE_S
    ) -> tuple[Pop, list[Wire]]:
        target = (
            f"/api/v1/pop/queue/{quote(queue)}?batch={batch}&partitions=2&wait=true"
            f"&timeout={wait_ms}&leaseSeconds={lease_s}"
        )
        if group != QUEUE_MODE:
            target += f"&consumerGroup={group}"
        asked = await self._ask("GET", target, None, wait_ms / 1000)
        pop = Pop(queue=queue, group=group, wait_ms=wait_ms, lease_s=lease_s, **asked.times)
        messages: list[Wire] = []
        if asked.outcome == "answered" and asked.status == 200:
            answer = _decode_pop(asked.body)
            messages = answer.messages
            pop.lease_id = answer.lease_id
            pop.messages = [
                Message(m.partition, m.offset, m.transaction_id, m.id, m.data) for m in messages
            ]
        self._add(pop)
        return pop, messages

    async def ack(self, pop: Pop, messages: list[Wire], last: str = "completed") -> None:
        """Complete *messages*, but for the last one, which gets the status *last*."""
        if not messages:
            return
        statuses = ["completed"] * (len(messages) - 1) + [last]
        entries = [
            {"transactionId": m.transaction_id, "partitionId": m.partition_id,
             "leaseId": pop.lease_id, "status": status, "error": f"nacked by {self.name}"}
            for m, status in zip(messages, statuses, strict=True)
        ]  # fmt: skip
        items = [
            AckItem(m.partition, m.offset, m.transaction_id, status)
            for m, status in zip(messages, statuses, strict=True)
        ]
        body: dict[str, Any] = {"acknowledgments": entries}
        if pop.group != QUEUE_MODE:
            body["consumerGroup"] = pop.group
        for _ in range(5):
            asked = await self._ask("POST", "/api/v1/ack/batch", body)
            ack = Ack(
                queue=pop.queue, group=pop.group, lease_id=pop.lease_id, items=items, **asked.times
            )
            if asked.outcome == "answered":
                ack.results = [
                    AckResult(result.success, result.error or "", result.dlq, result.noop)
                    for result in _decode_acks(asked.body)
                ]
            self._add(ack)
            if asked.outcome != "unknown":
                return
            await self._pause()

    async def transact(self, key: str, pop: Pop, messages: list[Wire], items: list[Item]) -> None:
        group = {} if pop.group == QUEUE_MODE else {"consumerGroup": pop.group}
        operations: list[dict[str, Any]] = [
            {"type": "ack", "transactionId": m.transaction_id, "partitionId": m.partition_id,
             "leaseId": pop.lease_id, "status": "completed", **group}
            for m in messages
        ]  # fmt: skip
        pushed = [
            {"queue": i.queue, "partition": i.partition, "transactionId": i.id, "payload": i.data}
            for i in items
        ]
        operations.append({"type": "push", "items": pushed})
        acks = [AckItem(m.partition, m.offset, m.transaction_id, "completed") for m in messages]
        body = {"operations": operations, "requiredLeases": [pop.lease_id]}
        for _ in range(8):
            asked = await self._ask("POST", "/api/v1/transaction", body)
            transaction = Transaction(
                key=key, queue=pop.queue, group=pop.group, lease_id=pop.lease_id, acks=acks,
                items=items, **asked.times,
            )  # fmt: skip
            answer = msgspec.json.decode(asked.body) if asked.outcome == "answered" else {}
            if answer and not answer["success"]:
                transaction.outcome = "refused"
                transaction.reason = answer["reason"]
                transaction.error = answer["error"]
                if transaction.reason in ("internal", "unavailable"):
                    transaction.outcome = "unknown"
            self._add(transaction)
            if transaction.outcome != "unknown":
                return
            await self._pause()

    async def extend(self, lease_id: str, seconds: int) -> None:
        asked = await self._ask("POST", f"/api/v1/lease/{lease_id}/extend", {"seconds": seconds})
        extend = Extend(lease_id=lease_id, seconds=seconds, **asked.times)
        if asked.outcome == "answered":
            extend.renewed = msgspec.json.decode(asked.body)["renewed"]
        self._add(extend)

    async def seek(self, queue: str, group: str, where: dict[str, Any]) -> None:
        path = f"/api/v1/consumer-groups/{group}/queues/{quote(queue)}/seek"
        asked = await self._ask("POST", path, where, accept=(404,))
        self._add(Seek(queue=queue, group=group, **asked.times))

    async def remove(self, method: str, target: str, removal_: Removal, body: Any = None) -> None:
        """Send what removes something; that it is gone already is no failure."""
        asked = await self._ask(method, target, body, accept=(400, 404))
        self._add(msgspec.structs.replace(removal_, **asked.times))

    async def read_depth(self, queue: str, group: str = "") -> None:
        """Record what the server says that a queue holds."""
        target = f"/api/v1/resources/queues/{quote(queue)}/depth"
        target += f"?group={quote(group)}" if group else ""
        asked = await self._ask("GET", target, None, accept=(404,))
        figures = Figures(queue=queue, about=group or "its slowest group", **asked.times)
        if asked.outcome == "answered":
            body = msgspec.json.decode(asked.body)
            figures.pending, figures.processing = body["pending"], body["processing"]
            figures.ready = body["ready"]
        self._add(figures)

    async def read_totals(self, queue: str) -> None:
        """The same by another route, which has `pending` for what is ready."""
        asked = await self._ask(
            "GET", f"/api/v1/resources/queues/{quote(queue)}", None, accept=(404,)
        )
        figures = Figures(queue=queue, about="its totals", **asked.times)
        if asked.outcome == "answered":
            totals = msgspec.json.decode(asked.body)["totals"]
            figures.ready, figures.processing = totals["pending"], totals["processing"]
            figures.pending = figures.ready + figures.processing
        self._add(figures)

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.02, 0.2))

    async def _ask(
        self, method: str, target: str, body: Any, wait: float = 0.0, accept: tuple[int, ...] = ()
    ) -> Asked:
        content = b"" if body is None else _encode(body)
        head = head_of(self._url, method, target, len(content))
        begin, wall = time.monotonic(), time.time()
        answer: Answer | None = None
        error = ""
        try:
            async with asyncio.timeout(DEADLINE + wait):
                answer = await self._exchange(head, content)
        except (RequestFailed, OSError, TimeoutError) as exc:
            error = f"{type(exc).__name__} {exc}"
        end = time.monotonic()
        status = answer.status if answer else 0
        outcome: Outcome = "unknown" if answer is None or status >= 500 else "answered"
        if answer and outcome == "unknown":
            error = answer.body[:200].decode(errors="replace")
        # The requests are right; only too many of them can be refused.
        assert status < 400 or status >= 500 or status in (429, *accept), answer
        if 400 <= status < 500:
            outcome = "refused"
        times = {
            "client": self.name, "begin": begin, "end": end, "wall": wall,
            "outcome": outcome, "status": status, "error": error,
        }  # fmt: skip
        return Asked(outcome, status, answer.body if answer else b"", times)

    async def _exchange(self, head: bytes, body: bytes) -> Answer:
        """Send a request on the kept connection, which stays with one worker, or on a fresh one."""
        is_fresh = self.chance.random() < FRESH_SHARE
        connection = self._kept
        if is_fresh or connection is None or not connection.is_open:
            connection = await Connection.open(self._url)
            if not is_fresh:
                self._kept = connection
        answer: Answer | None = None
        try:
            answer = await connection.request(head, body)
            return answer
        finally:
            # On one that was left in the middle of an answer nothing can be asked any more.
            if is_fresh or answer is None:
                connection.close()


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A request's answer, and what the history holds of every request."""

    outcome: Outcome
    status: int
    body: bytes
    times: dict[str, Any]
