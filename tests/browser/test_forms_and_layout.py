"""Forms whose errors are seen, and pages that can be read from 360 to 1,000 pixels of width."""

import re

import pytest
from playwright.async_api import Page, expect

from tests.browser.browser import needs_chromium, open_page
from tests.browser.test_dashboard import PAGES, button
from tests.client import Client, unique
from tests.cluster_process import ClusterProcess

pytestmark = needs_chromium

TOUCH_PX = 44
# The background below an element, as it is seen: transparent ones let the next through.
CONTRAST = """
(element) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = rgb(colour).map((one) => {
      const share = one / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let below = element.parentElement;
  while (rgb(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
  const [light, dark] = [
    luminance(getComputedStyle(element).borderTopColor),
    luminance(getComputedStyle(below).backgroundColor),
  ].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}
"""


async def open_create(page: Page) -> None:
    await page.goto("/#/queues")
    await button(page, "Create queue").click()


async def test_create_refuses_a_name_that_exists_and_shows_it(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("exists")
    await client.configure(queue, {"leaseTime": 300}, namespace="shop", task="billing")
    async with open_page(server.url, viewport={"width": 1280, "height": 700}) as (page, watch):
        watch.refused_ok = True
        await open_create(page)
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Name", exact=False).first.fill(queue)
        await dialog.get_by_label("Lease time (s)").fill("7")
        await dialog.get_by_role("button", name="Create queue").click()
        alert = dialog.get_by_role("alert")
        await expect(alert).to_contain_text(f"Queue '{queue}' exists already")
        await expect(alert).to_be_in_viewport(ratio=1)
        await expect(dialog.locator(".failure")).to_be_focused()
        await dialog.get_by_role("link", name=f"Open {queue}").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(queue)
    kept = await client.configure(queue)
    assert (kept["namespace"], kept["task"]) == ("shop", "billing")
    assert kept["options"]["leaseTime"] == 300


async def test_an_error_of_a_long_form_is_in_view(server: ClusterProcess) -> None:
    async with open_page(server.url, viewport={"width": 390, "height": 700}) as (page, watch):
        watch.unreachable_ok = True
        await page.route("**/api/v1/configure", lambda route: route.abort("connectionrefused"))
        await open_create(page)
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Name", exact=False).first.fill(unique("dead"))
        await dialog.get_by_role("button", name="Create queue").click()
        await expect(dialog.get_by_role("alert")).to_be_in_viewport(ratio=1)
        await expect(dialog.get_by_role("alert")).to_contain_text("does not answer")


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_fields_and_badges_stand_out_from_what_is_below_them(
    server: ClusterProcess, client: Client, theme: str
) -> None:
    queue = unique("contrast")
    await client.push(queue, [1])
    async with open_page(server.url, color_scheme=theme) as (page, _):
        await page.goto(f"/#/queues/{queue}?tab=options")
        await button(page, "Configure").first.click()
        dialog = page.get_by_role("dialog")
        name, namespace = (dialog.get_by_role("textbox").nth(at) for at in (0, 1))
        assert await namespace.evaluate(CONTRAST) >= 3
        await expect(name).to_be_disabled()
        styles = [
            await field.evaluate("(field) => getComputedStyle(field).backgroundColor")
            for field in (name, namespace)
        ]
        assert styles[0] != styles[1]
        await page.keyboard.press("Escape")
        await page.goto(f"/#/queues?search={queue}")
        badge = page.locator("td .badge").first
        shadow = await badge.evaluate("(badge) => getComputedStyle(badge).boxShadow")
        assert re.search(r"inset", shadow), shadow


async def test_pages_can_be_read_and_touched_at_any_width(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("webhooks.outgoing")
    await client.configure(queue, {"retryLimit": 0}, namespace="notifications")
    await client.push(queue, [1, 2], partition="customer-1")
    for error in ("mailbox of the recipient is full", "address has no MX record"):
        popped = await client.pop(queue, batch=1, group="billing")
        await client.ack(popped.messages[0], "failed", group="billing", error=error)
    async with open_page(server.url) as (page, _):
        for width in (360, 390, 721, 820, 1000):
            await page.set_viewport_size({"width": width, "height": 800})
            await check_pages(page, width)


async def check_pages(page: Page, width: int) -> None:
    for address in PAGES:
        await page.goto(f"/{address}")
        await page.locator("h1").wait_for()
        await expect(page.locator(".skeleton")).to_have_count(0)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, address
        await expect(page.locator(".nav [aria-current]")).to_be_in_viewport(ratio=1)
        small = await page.evaluate(
            """(least) => [...document.querySelectorAll(
                   "main button:not(.link), .side button, .nav a, main select, main .hit")]
                 .filter((one) => one.checkVisibility() && !one.closest("thead"))
                 .filter((one) => Math.min(one.offsetHeight, one.offsetWidth) < least)
                 .map((one) => one.outerHTML.slice(0, 80))""",
            TOUCH_PX,
        )
        assert small == [], address
        # A name is as high as its lines: one that is broken letter by letter has many.
        broken = await page.evaluate(
            """() => [...document.querySelectorAll("td a, td:first-child .cell, td.wide .cell")]
                 .filter((one) => one.textContent.length < 30 && one.offsetHeight > 48)
                 .map((one) => one.textContent)"""
        )
        assert broken == [], address
