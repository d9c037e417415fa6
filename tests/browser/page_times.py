"""How long pages take with 500 queues and 100,000 partitions: python -m tests.browser.page_times

From the address to the last figure, in a browser that was just opened; the slowest answer beside
it. A table in Markdown, for docs/dashboard.md.
"""

import asyncio
import time

from playwright.async_api import Response

from tests.browser.browser import open_page, showing_errors
from tests.client import Client
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

QUEUES = 500
PARTITIONS = 100_000
BATCH = 2_000
# Partitions that the group of the wide queue has read to their end.
READ = 20_000

PAGES = {
    "Overview": "#/",
    "Queues": "#/queues",
    "A queue's partitions, by depth": "#/queues/wide",
    "A queue's partitions, searched": "#/queues/wide?search=customer-4711",
    "A queue's groups": "#/queues/wide?tab=groups",
    "Live tail": "#/queues/wide?tab=tail",
    "Groups": "#/groups",
    "A group's places": "#/groups/ledger/wide",
    "Messages": "#/messages",
    "Dead letters": "#/dead-letters",
    "System": "#/system",
}


async def fill(
    client: Client, *, queues: int = QUEUES, partitions: int = PARTITIONS, read_to: int = READ
) -> None:
    await asyncio.gather(
        *(client.push(f"queue-{number:03}", [number] * 3) for number in range(queues))
    )
    for start in range(0, partitions, BATCH):
        await client.push_items(
            [
                {"queue": "wide", "partition": f"customer-{number}", "payload": number}
                for number in range(start, min(start + BATCH, partitions))
            ]
        )
    read = 0
    while read < read_to:
        popped = await client.pop("wide", group="ledger", batch=BATCH, partitions=BATCH)
        await client.complete(popped, group="ledger")
        read += len(popped.messages)


async def measure(url: str, address: str) -> tuple[float, str, float]:
    """Seconds to the last figure; the slowest answer, and its seconds."""
    slowest = ("", 0.0)

    def note(response: Response) -> None:
        nonlocal slowest
        took = response.request.timing["responseStart"] / 1000
        if "/api/" in response.url and took > slowest[1]:
            slowest = (response.url.split("?")[0].removeprefix(url), took)

    async with open_page(url) as (page, _):
        page.on("response", note)
        began = time.monotonic()
        await page.goto(f"/{address}")
        await page.locator("h1").wait_for()
        await page.wait_for_function(
            "() => !document.querySelector('.skeleton, .verdict.wait')", polling=20
        )
        took = time.monotonic() - began
    return took, *slowest


async def main() -> None:
    with server_directory() as directory, ClusterProcess(data_dir=directory) as cluster:
        url = cluster.wait_ready()
        with showing_errors(cluster):
            await measure_all(url)


async def measure_all(url: str) -> None:
    async with Client(url, fresh=True) as client:
        await fill(client)
        print("| Page | Complete after | Slowest answer | |\n|---|---|---|---|")
        for name, address in PAGES.items():
            took, route, answer = await measure(url, address)
            print(f"| {name} | {took:.1f} s | {answer:.2f} s | `{route}` |")
        base = "/api/v1/dashboard/queues/wide/groups/ledger/seek-preview"
        for where, query in (
            ("end", "toEnd=true"),
            ("beginning", "timestamp=1970-01-01T00:00:00Z"),
        ):
            began = time.monotonic()
            await client.get(f"{base}?{query}")
            print(f"| What a seek to the {where} would do | | {time.monotonic() - began:.2f} s | |")


if __name__ == "__main__":
    asyncio.run(main())
