"""The work that goes on while faults strike: producers and consumers as an application has them.

Every request has a deadline. What happened to one without an answer is unknown: a push and a
transaction are sent again with the same ids, an acknowledgement a few times, a pop is given up.
All random choices come from one seed; what the server and the network make of them does not.

    work    all groups with all they can do: nacks, partial acks, leases held too long, transactions
    out     what the transactions push
    park    seldom pushed to, so that pops wait
    moved   a group that is moved about by seeks
    brief   messages that retention takes after two seconds
"""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.client import Answer, Client, unique, uuid7
from tests.fault.history import (
    QUEUE_MODE,
    Ack,
    AckItem,
    AckResult,
    DeadLetters,
    Extend,
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
    Seek,
    Stored,
    Transaction,
)

DEADLINE = 5.0  # seconds for a request, on top of what it waits
LEASE_S = 2
RETENTION_S = 2
PARTITIONS = 6
WAIT_MS = 1000
PARK_WAIT_MS = 4000
# Longer than a lease whose holder has gone.
QUIET = LEASE_S + 1.5  # seconds

Wire = dict[str, Any]  # a message as it came


class Load:
    """Producers and consumers on queues of their own, until they are told to stop."""

    def __init__(self, url: Callable[[], str], recorder: Recorder, seed: int) -> None:
        self.recorder = recorder
        self.url = url
        self._seed = seed
        self._clients: list[Client] = []
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
        self.queues = [
            Queue(self.work, groups=["one", "two", QUEUE_MODE]),
            Queue(self.out, groups=["sink"]),
            Queue(self.park, groups=["sitters"]),
            Queue(self.moved, sought=["mover"]),
            Queue(self.brief, retention_s=RETENTION_S),
        ]
        recorder.add(Plan(seed, self.queues))

    # -- life --

    async def configure(self) -> None:
        async with Client(self.url()) as client:
            for queue in self.queues:
                options: dict[str, Any] = {"retryLimit": 1, "leaseTime": LEASE_S}
                if queue.retention_s:
                    options |= {"retentionEnabled": True, "retentionSeconds": RETENTION_S}
                await client.configure(queue.name, options)

    def start(self) -> None:
        self.recorder.mark("load_begin")
        for number in range(6):
            self._add_producer(self.work, f"producer-{number}", 0.04, 0.06)
        self._add_producer(self.park, "visitor", 0.5, 6.0)
        self._add_producer(self.moved, "mover-feeder", 0.1, 0.2)
        self._add_producer(self.brief, "brief-feeder", 0.1, 0.2)
        for group in ("one", "two", QUEUE_MODE):
            for _ in range(2):
                self._add_consumer(self.work, group, transactions=group == "one", tricks=True)
        self._add_consumer(self.out, "sink")
        for _ in range(2):
            self._add_consumer(self.park, "sitters", wait_ms=PARK_WAIT_MS)
        self._add_consumer(self.moved, "mover")
        self._add_consumer(self.brief, "passer-by")
        actor = self._actor("seeker")
        self._producers.append(asyncio.create_task(self._seek(actor)))

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
        for client in self._clients:
            await client.close()

    def _actor(self, name: str) -> Actor:
        actor = Actor(name, self, random.Random(f"{self._seed}-{name}-{len(self._clients)}"))
        self._clients += actor.clients
        return actor

    def _add_producer(self, queue: str, name: str, pause_min: float, pause_max: float) -> None:
        actor = self._actor(name)
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
        actor = self._actor(f"{group}-{len(self._consumers)}")
        task = self._consume(actor, queue, group, wait_ms, transactions, tricks)
        self._consumers.append(asyncio.create_task(task))

    # -- producers --

    async def _produce(self, actor: Actor, queue: str, pause_min: float, pause_max: float) -> None:
        number = 0
        due = time.monotonic()
        while self._producing:
            items = []
            for _ in range(actor.chance.choice((1, 1, 1, 3, 20)) if queue == self.work else 1):
                partition = f"p{actor.chance.randrange(PARTITIONS)}"
                if queue in (self.park, self.moved, self.brief):
                    partition = "p0"
                # Time-ordered ids mostly, as clients mint them; others are indexed apart.
                text = f"{actor.name}-{number}"
                id_ = uuid7() if actor.chance.random() < 0.8 else text
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
            if trick < 0.05:
                await self._nack(actor, pop, messages, "failed")
            elif trick < 0.08:
                await self._nack(actor, pop, messages, "retry")
            elif trick < 0.11:
                await actor.extend(pop.lease_id, LEASE_S)
                await actor.ack(pop, messages)
            elif trick < 0.13:
                # Too late, unless it can still be in time: the checker knows.
                await asyncio.sleep(LEASE_S + actor.chance.uniform(-0.2, 0.7))
                await actor.ack(pop, messages)
            elif trick < 0.16:
                for message in messages[:5]:
                    await actor.ack(pop, [message])
                await actor.ack(pop, messages[5:])
            elif trick < 0.24 and transactions:
                await self._transact(actor, pop, messages)
            else:
                await actor.ack(pop, messages)

    async def _nack(self, actor: Actor, pop: Pop, messages: list[Wire], status: str) -> None:
        """Complete what comes before one message of the first partition, and nack that one."""
        own = [m for m in messages if m["partition"] == messages[0]["partition"]]
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
        log += [_message(message) for message in pop.messages]
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


def _message(wire: Wire) -> Message:
    return Message(
        wire["partition"], wire["offset"], wire["transactionId"], wire["id"], wire["data"]
    )


class Actor:
    """One producer or consumer: its connections, its random choices, its lines in the history."""

    def __init__(self, name: str, load: Load, chance: random.Random) -> None:
        self.name = name
        self.chance = chance
        self._load = load
        self._add = load.recorder.add
        # Kept connections stay with one worker; fresh ones reach all.
        self.clients = [Client(load.url()), Client(load.url(), fresh=True)]

    async def push(self, items: list[Item]) -> None:
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
            if asked.outcome == "answered":
                push.results = [
                    Stored(entry["status"], entry["offset"], entry["message_id"])
                    for entry in asked.json
                ]
                assert {result.status for result in push.results} <= {"queued", "duplicate"}, asked
            self._add(push)
            if asked.outcome == "answered":
                return
            await self._pause()

    async def pop(self, queue: str, group: str, wait_ms: int) -> tuple[Pop, list[Wire]]:
        target = (
            f"/api/v1/pop/queue/{quote(queue)}?batch=40&partitions=2&wait=true"
            f"&timeout={wait_ms}&leaseSeconds={LEASE_S}"
        )
        if group != QUEUE_MODE:
            target += f"&consumerGroup={group}"
        asked = await self._ask("GET", target, None, wait_ms / 1000)
        pop = Pop(queue=queue, group=group, wait_ms=wait_ms, lease_s=LEASE_S, **asked.times)
        messages: list[Wire] = []
        if asked.outcome == "answered" and asked.status == 200:
            messages = asked.json["messages"]
            pop.lease_id = asked.json["leaseId"]
            pop.messages = [_message(message) for message in messages]
        self._add(pop)
        return pop, messages

    async def ack(self, pop: Pop, messages: list[Wire], last: str = "completed") -> None:
        """Complete *messages*, but for the last one, which gets the status *last*."""
        if not messages:
            return
        statuses = ["completed"] * (len(messages) - 1) + [last]
        entries = [
            {"transactionId": m["transactionId"], "partitionId": m["partitionId"],
             "leaseId": pop.lease_id, "status": status, "error": f"nacked by {self.name}"}
            for m, status in zip(messages, statuses, strict=True)
        ]  # fmt: skip
        items = [
            AckItem(m["partition"], m["offset"], m["transactionId"], status)
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
                    AckResult(
                        result["success"],
                        result.get("error") or "",
                        bool(result.get("dlq")),
                        bool(result.get("noop")),
                    )
                    for result in asked.json
                ]
            self._add(ack)
            if asked.outcome != "unknown":
                return
            await self._pause()

    async def transact(self, key: str, pop: Pop, messages: list[Wire], items: list[Item]) -> None:
        group = {} if pop.group == QUEUE_MODE else {"consumerGroup": pop.group}
        operations: list[dict[str, Any]] = [
            {"type": "ack", "transactionId": m["transactionId"], "partitionId": m["partitionId"],
             "leaseId": pop.lease_id, "status": "completed", **group}
            for m in messages
        ]  # fmt: skip
        pushed = [
            {"queue": i.queue, "partition": i.partition, "transactionId": i.id, "payload": i.data}
            for i in items
        ]
        operations.append({"type": "push", "items": pushed})
        acks = [AckItem(m["partition"], m["offset"], m["transactionId"], "completed")
                for m in messages]  # fmt: skip
        body = {"operations": operations, "requiredLeases": [pop.lease_id]}
        for _ in range(8):
            asked = await self._ask("POST", "/api/v1/transaction", body)
            transaction = Transaction(
                key=key, queue=pop.queue, group=pop.group, lease_id=pop.lease_id, acks=acks,
                items=items, **asked.times,
            )  # fmt: skip
            if asked.outcome == "answered" and not asked.json["success"]:
                transaction.outcome = "refused"
                transaction.reason = asked.json["reason"]
                transaction.error = asked.json["error"]
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
            extend.renewed = asked.json["renewed"]
        self._add(extend)

    async def seek(self, queue: str, group: str, where: dict[str, Any]) -> None:
        path = f"/api/v1/consumer-groups/{group}/queues/{quote(queue)}/seek"
        asked = await self._ask("POST", path, where, accept=(404,))
        self._add(Seek(queue=queue, group=group, **asked.times))

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.02, 0.2))

    async def _ask(
        self, method: str, target: str, body: Any, wait: float = 0.0, accept: tuple[int, ...] = ()
    ) -> Asked:
        client = self.clients[self.chance.random() < 0.3]
        begin, wall = time.monotonic(), time.time()
        answer: Answer | None = None
        error = ""
        timeout = DEADLINE + wait
        try:
            call: Awaitable[Answer] = (
                client.send(method, target, timeout=timeout)
                if body is None
                else client.post(target, body, timeout=timeout)
            )
            answer = await call
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            error = f"{type(exc).__name__} {exc}"
        end = time.monotonic()
        status = answer.status if answer else 0
        outcome: Outcome = "unknown" if answer is None or status >= 500 else "answered"
        if answer and outcome == "unknown":
            error = answer.raw[:200].decode(errors="replace")
        # The requests are right; only too many of them can be refused.
        assert status < 400 or status >= 500 or status in (429, *accept), answer
        if 400 <= status < 500:
            outcome = "refused"
        times = {
            "client": self.name, "begin": begin, "end": end, "wall": wall,
            "outcome": outcome, "status": status, "error": error,
        }  # fmt: skip
        return Asked(answer, outcome, status, times)


class Asked:
    """A request's answer, and what the history holds of every request."""

    def __init__(
        self, answer: Answer | None, outcome: Outcome, status: int, times: dict[str, Any]
    ) -> None:
        self.outcome = outcome
        self.status = status
        self.times = times
        self._answer = answer

    @property
    def json(self) -> Any:
        assert self._answer is not None
        return self._answer.json
