"""Every page with many queues and partitions: a short form of page_times.py.

What a page shows and asks for is bounded, however much there is; how long it takes is bounded
generously, for machines with other things to do.
"""

from pathlib import Path

from playwright.async_api import Response, expect

from tests.browser.browser import needs_chromium, open_page
from tests.browser.page_times import PAGES, fill
from tests.client import Client
from tests.cluster_process import ClusterProcess

pytestmark = needs_chromium

QUEUES = 50
PARTITIONS = 5_000
READ = 1_000

COMPLETE_MAX_S = 15.0
ANSWER_MAX_BYTES = 200_000
# A page of a list is 50 rows; there are a few shorter lists beside it.
ROWS_MAX = 120


async def test_every_page_completes_with_many_queues_and_partitions(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        url = cluster.wait_ready()
        async with Client(url, fresh=True) as client:
            await fill(client, queues=QUEUES, partitions=PARTITIONS, read_to=READ)
        answers: list[Response] = []

        def note(answer: Response) -> None:
            if "/api/" in answer.url:
                answers.append(answer)

        # At its end no request has left the host, and nothing was told to the console.
        async with open_page(url) as (page, _):
            page.on("response", note)
            for number, (name, address) in enumerate(PAGES.items()):
                answers.clear()
                # Another query, so that all of it is loaded anew.
                await page.goto(f"/?{number}{address}")
                await expect(page.get_by_role("heading", level=1)).to_be_visible()
                # What is still to come, where the page is told when it fails.
                await expect(page.locator(".skeleton, .verdict.wait"), name).to_have_count(
                    0, timeout=COMPLETE_MAX_S * 1000
                )
                await expect(page.locator(".notice.bad")).to_have_count(0)
                rows = await page.locator("tbody tr").count()
                assert rows <= ROWS_MAX, name
                assert answers, name
                for answer in list(answers):
                    assert answer.ok, answer.url
                    assert int(answer.headers["content-length"]) <= ANSWER_MAX_BYTES, answer.url
            await page.goto("/#/queues/wide")
            await expect(page.get_by_role("tabpanel").locator("tbody tr")).to_have_count(50)
            await expect(
                page.get_by_text(f"1\N{EN DASH}50 of {PARTITIONS:,} partitions")
            ).to_be_visible()
            await page.goto("/#/groups/ledger/wide")
            await expect(page.locator("tbody tr")).to_have_count(50)
        assert cluster.stop() == 0
