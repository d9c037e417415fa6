"""What removes messages beside everything else: two queues of the load, and who works on them.

`cut` loses messages one by one and all at once, its dead letters, a group, and itself, while others
push, pop, acknowledge, hold leases too long and give them up; `aged` loses them by their age. Ids
are used again all the time, so that an id whose message is gone is pushed again soon. Leases are
long: one that outlived its messages would keep what comes after them waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.client import uuid7
from tests.fault.history import Item, Removal

if TYPE_CHECKING:
    from tests.fault.load import Actor, Load, Wire

KEPT = "keep"  # the group that is never deleted
DROPPED = "drop"
TTL_S = 1.0
LEASE_S = 6
WAIT_MS = 1000
PARTITIONS = 4
CONSUMERS = 3  # of each group
IDS = 40
# Longer than a lease whose holder has gone.
QUIET = LEASE_S + 1.5  # seconds

Work = Coroutine[Any, Any, None]


class _Seen:
    """The messages that were pushed or handed out last: partition id, partition, transaction id."""

    def __init__(self) -> None:
        self.places: deque[tuple[str, str, str]] = deque(maxlen=60)


def actors(load: Load) -> tuple[Sequence[Work], Sequence[Work]]:
    """Those that end when nothing more is pushed, and those that read to the end."""
    seen = _Seen()
    producers = [_produce(load.actor(f"cutter-{n}"), load, seen) for n in range(2)]
    producers.append(_produce_aged(load.actor("ager"), load))
    producers.append(_remove(load.actor("remover"), load, seen))
    producers.append(_watch(load.actor("watcher"), load))
    consumers = [
        _consume(load.actor(f"{group}-{n}"), load, group, seen)
        for group in (KEPT, DROPPED)
        for n in range(CONSUMERS)
    ]
    return producers, consumers


async def _produce(actor: Actor, load: Load, seen: _Seen) -> None:
    number = 0
    while load.is_producing:
        id_ = f"r-{actor.chance.randrange(IDS)}" if actor.chance.random() < 0.8 else uuid7()
        item = Item(load.cut, f"p{actor.chance.randrange(PARTITIONS)}", id_, [actor.name, number])
        number += 1
        [result] = await actor.push([item])
        seen.places.append((result.partition_id, item.partition, item.id))
        await asyncio.sleep(actor.chance.uniform(0.06, 0.12))


async def _produce_aged(actor: Actor, load: Load) -> None:
    number = 0
    while load.is_producing:
        await actor.push([Item(load.aged, "p0", f"a-{number % 4}", [actor.name, number])])
        number += 1
        await asyncio.sleep(actor.chance.uniform(0.15, 0.45))


async def _consume(actor: Actor, load: Load, group: str, seen: _Seen) -> None:
    loop = asyncio.get_running_loop()
    heard_at = loop.time()
    while not load.draining or loop.time() - heard_at < QUIET:
        pop, messages = await actor.pop(load.cut, group, WAIT_MS, batch=6, lease_s=LEASE_S)
        if pop.outcome != "answered":
            heard_at = loop.time()
            await asyncio.sleep(actor.chance.uniform(0.02, 0.2))
            continue
        if not messages:
            continue
        heard_at = loop.time()
        seen.places += [(m.partition_id, m.partition, m.transaction_id) for m in messages]
        trick = actor.chance.random() if load.is_producing else 1.0
        if trick < 0.08:
            own = [m for m in messages if m.partition == messages[0].partition]
            await actor.ack(pop, own[:1], "failed")
        elif trick < 0.16:
            await asyncio.sleep(actor.chance.uniform(0.2, 1.0))
            await actor.ack(pop, messages)
        elif trick < 0.20:
            continue  # and never acknowledge
        elif trick < 0.30:
            for message in messages:
                await _delete(actor, load, message)
        elif trick < 0.36:
            await _delete(actor, load, messages[-1])
            await actor.ack(pop, messages)
        elif trick < 0.42:
            await actor.extend(pop.lease_id, LEASE_S)
            await actor.ack(pop, messages)
        elif trick < 0.5:
            key = uuid7()
            items = [Item(load.out, "p0", f"{key}-0", {"transaction": key})]
            await actor.transact(key, pop, messages, items)
        else:
            await actor.ack(pop, messages)


async def _delete(actor: Actor, load: Load, message: Wire) -> None:
    path = f"/api/v1/messages/{message.partition_id}/{quote(message.transaction_id, safe='')}"
    await actor.remove("DELETE", path, _removal(
        load, "delete", message.partition, message.transaction_id
    ))  # fmt: skip


def _removal(load: Load, what: str, partition: str = "", id_: str = "") -> Removal:
    return Removal(begin=0, end=0, queue=load.cut, what=what, partition=partition, id=id_)


async def _remove(actor: Actor, load: Load, seen: _Seen) -> None:
    queue = quote(load.cut)
    while load.is_producing:
        await asyncio.sleep(actor.chance.uniform(0.1, 0.4))
        choice = actor.chance.random()
        if choice < 0.65:
            if not seen.places:
                continue
            partition_id, partition, id_ = actor.chance.choice(seen.places)
            path = f"/api/v1/messages/{partition_id}/{quote(id_, safe='')}"
            if choice < 0.45:
                await actor.remove("DELETE", path, _removal(load, "delete", partition, id_))
            else:
                await actor.remove("POST", f"{path}/dlq", _removal(load, "bury", partition, id_))
        elif choice < 0.75:
            partition = f"p{actor.chance.randrange(PARTITIONS)}"
            target = f"/api/v1/queues/{queue}/clear?partition={partition}"
            await actor.remove("DELETE", target, _removal(load, "clear", partition))
        elif choice < 0.79:
            await actor.remove("DELETE", f"/api/v1/queues/{queue}/clear", _removal(load, "clear"))
        elif choice < 0.86:
            await actor.remove("DELETE", f"/api/v1/dlq?queue={queue}", _removal(load, "purge"))
        elif choice < 0.90:
            await actor.remove(
                "POST", "/api/v1/dlq/redrive", _removal(load, "redrive"), {"queue": load.cut}
            )
        elif choice < 0.97:
            target = f"/api/v1/consumer-groups/{DROPPED}/queues/{queue}"
            await actor.remove("DELETE", target, _removal(load, "group"))
        else:
            target = f"/api/v1/resources/queues/{queue}"
            await actor.remove("DELETE", target, _removal(load, "queue"))


async def _watch(actor: Actor, load: Load) -> None:
    while load.is_producing:
        for queue in (load.cut, load.aged, load.brief):
            await actor.read_depth(queue)
            await actor.read_depth(queue, KEPT)
            await actor.read_totals(queue)
        await asyncio.sleep(actor.chance.uniform(0.3, 0.6))
