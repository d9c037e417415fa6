"""A shop's queues: enough of everything that each page of the dashboard has something to show."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.client import Client, Message

# Without a group: queue mode.
GROUPS: dict[str, list[str | None]] = {
    "orders": ["billing", "shipping", "analytics"],
    "payments": ["ledger"],
    "emails": [None],
}
ERRORS = {
    "payments": ["card declined by the bank", "tax service answered 503"],
    "emails": ["mailbox of the recipient is full", "address has no MX record"],
}
QUIET = [
    "invoices", "refunds", "shipments", "returns", "stock-levels", "price-changes", "thumbnails",
    "search-index", "audit-log", "exports", "imports", "sms", "push-notifications", "reports",
    "sessions", "feature-flags", "geo-lookups", "fraud-checks", "loyalty-points",
]  # fmt: skip
CUSTOMERS = 40


def order(number: int, customer: int) -> dict[str, object]:
    return {
        "order": f"A-{10_000 + number}",
        "customer": {"id": customer, "country": random.choice(["DE", "FR", "NL", "PL", "SE"])},
        "items": [
            {"sku": f"SKU-{random.randrange(900)}", "quantity": random.randrange(1, 4)}
            for _ in range(random.randrange(1, 4))
        ],
        "total": round(random.uniform(5, 400), 2),
    }


def items(queue: str, start: int, count: int) -> list[dict[str, object]]:
    return [
        {
            "queue": queue,
            "partition": f"customer-{number % CUSTOMERS}",
            "transactionId": f"{queue}-{number}",
            "payload": order(number, number % CUSTOMERS),
        }
        for number in range(start, start + count)
    ]


async def configure(client: Client) -> None:
    await client.configure(
        "orders", {"leaseTime": 60, "retryLimit": 5, "retryDelay": 2000}, namespace="shop"
    )
    await client.configure("payments", {"retryLimit": 0, "maxSize": 100_000}, namespace="shop")
    await client.configure(
        "emails",
        {"retryLimit": 0, "priority": 5, "retentionEnabled": True, "completedRetentionSeconds": 20},
        namespace="notifications",
    )
    await client.configure("webhooks", {"maxSize": 500}, namespace="notifications")
    for queue in QUIET:
        await client.configure(queue, namespace="shop")
    await client.configure("sessions", {"retentionEnabled": True, "retentionSeconds": 60})


async def fill(client: Client, *, orders: int = 2000) -> None:
    """All that lies still: queues, backlogs, dead letters, traces."""
    await configure(client)
    for queue, count in [("orders", orders), ("payments", 400), ("emails", 300), ("webhooks", 430)]:
        for start in range(0, count, 500):
            await client.push_items(items(queue, start, min(500, count - start)))
    for queue in QUIET:
        await client.push_items(items(queue, 0, random.randrange(1, 40)))
        await client.pop(queue, partitions=CUSTOMERS, autoAck="true")
    for queue, errors in ERRORS.items():
        await fail(client, queue, errors, 24)
    for group in GROUPS["orders"]:
        await consume(client, "orders", group, 200)
    await trace(client)


async def fail(client: Client, queue: str, errors: list[str], count: int) -> None:
    """Give *count* messages up; the first reason is the frequent one."""
    group = GROUPS[queue][0]
    for number in range(count):
        popped = await client.pop(queue, batch=1, group=group)
        error = errors[0] if number % 4 else errors[1]
        await client.ack(popped.messages[0], "failed", group=group, error=error)


async def consume(client: Client, queue: str, group: str | None, batch: int) -> None:
    popped = await client.pop(queue, batch=batch, partitions=20, group=group)
    if popped.messages:
        await client.complete(popped, group=group)


async def trace(client: Client) -> None:
    popped = await client.pop("orders", batch=1, group="billing")
    message: Message = popped.messages[0]
    for kind, text in [
        ("info", "invoice INV-2291 made"),
        ("info", "tax computed in 12 ms"),
        ("error", "the printer is out of paper"),
        ("info", "sent as PDF instead"),
    ]:
        answer = await client.post(
            "/api/v1/traces",
            {
                "transactionId": message["transactionId"],
                "partitionId": message["partitionId"],
                "consumerGroup": "billing",
                "traceNames": ["nightly", "invoices"],
                "eventType": kind,
                "data": {"text": text},
            },
        )
        assert answer.status == 201, answer


@asynccontextmanager
async def load(client: Client, batch: int = 40) -> AsyncIterator[None]:
    """Producers and consumers at work, a hundred messages a second or some more."""

    async def produce() -> None:
        number = 100_000
        while True:
            for queue in ("orders", "payments", "emails"):
                count = random.randrange(batch // 2, batch)
                await client.push_items(items(queue, number, count))
                number += count
            await asyncio.sleep(0.25)

    async def work(queue: str, group: str | None) -> None:
        while True:
            await consume(client, queue, group, 2 * batch)
            await asyncio.sleep(random.uniform(0.1, 0.4))

    tasks = [asyncio.create_task(produce())]
    for queue, groups in GROUPS.items():
        tasks += [asyncio.create_task(work(queue, group)) for group in groups]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                raise result
