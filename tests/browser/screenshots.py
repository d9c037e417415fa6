"""Pictures of every page for the documentation: `make screenshots`.

A server of its own with believable data, a while of load, then each page in light and dark, two of
them on a phone. PNGs of few colours, each below 200 KB.
"""

import asyncio
import io

from PIL import Image
from playwright.async_api import Page

from tests.browser import demo
from tests.browser.browser import open_page, showing_errors
from tests.client import Client
from tests.cluster_process import ROOT, ClusterProcess
from tests.server_directory import server_directory

FOLDER = ROOT / "docs" / "images"
BYTES_MAX = 200_000
# Long enough for a history by the minute.
LOAD_S = 150
PHONE = {"width": 390, "height": 844}

PAGES = {
    "queues": "#/queues",
    "queue": "#/queues/orders",
    "queue-tail": "#/queues/orders?tab=tail",
    "queue-history": "#/queues/orders?tab=history",
    "groups": "#/groups",
    "group": "#/groups/billing/orders",
    "messages": "#/messages?queue=payments",
    "dead-letters": "#/dead-letters",
    "system": "#/system",
    # Last: by now its chart has a line.
    "overview": "#/",
}
ON_A_PHONE = ("overview", "queues")


async def take(page: Page, name: str) -> None:
    whole = Image.open(io.BytesIO(await page.screenshot()))
    # 256 colours are enough for text and lines, and a third of the bytes.
    picture = whole.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path = FOLDER / f"dashboard-{name}.png"
    picture.save(path, optimize=True)
    assert path.stat().st_size < BYTES_MAX, f"{path.name} has {path.stat().st_size} bytes"


async def show(page: Page, address: str, seconds: float = 2.5) -> None:
    await page.goto(f"/{address}")
    await page.locator("h1").wait_for()
    await page.wait_for_function("() => !document.querySelector('.skeleton')")
    # For rates there have to be two answers.
    await asyncio.sleep(seconds)


async def take_all(url: str, client: Client, theme: str) -> None:
    async with open_page(url, color_scheme=theme) as (page, _):
        for name, address in PAGES.items():
            await show(page, address, 4 if name.startswith("queue") else 2)
            await take(page, f"{name}-{theme}")
        found = (await client.get("/api/v1/traces/by-name/nightly")).json["traces"][0]
        await show(page, f"#/messages/{found['partition_id']}/{found['transaction_id']}")
        await take(page, f"message-{theme}")
        await show(page, "#/queues")
        await page.get_by_role("button", name="Create queue").click()
        await take(page, f"create-{theme}")
        await page.keyboard.press("Escape")
        await show(page, "#/groups/analytics/orders")
        await page.get_by_role("button", name="Move…", exact=True).first.click()
        await page.get_by_label("To the beginning").check()
        await asyncio.sleep(1)
        await take(page, f"seek-{theme}")


async def take_phone(url: str) -> None:
    async with open_page(url, viewport=PHONE, device_scale_factor=2, color_scheme="light") as (
        page,
        _,
    ):
        for name in ON_A_PHONE:
            await show(page, PAGES[name], 8)
            await take(page, f"{name}-phone")


async def main() -> None:
    FOLDER.mkdir(exist_ok=True, parents=True)
    with server_directory() as directory, ClusterProcess(data_dir=directory) as cluster:
        url = cluster.wait_ready()
        with showing_errors(cluster):
            async with Client(url, fresh=True) as client:
                await demo.fill(client)
                async with demo.load(client):
                    await asyncio.sleep(LOAD_S)
                    for theme in ("light", "dark"):
                        await take_all(url, client, theme)
                    await take_phone(url)


if __name__ == "__main__":
    asyncio.run(main())
