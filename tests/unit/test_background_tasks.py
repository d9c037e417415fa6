"""No exception ends a loop in the background in silence."""

import ast
import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

import queue_server
from queue_server.broker.coalescer import Coalescer
from queue_server.http.app import HttpServer
from queue_server.observability.tasks import keep_running
from queue_server.settings import Settings

# Tasks that end by themselves, and who deals with their failure.
ENDING = {
    "live-socket": "the request that waits for it",
    "push-flush": "the requests that wait for its answers",
    "give-back": "itself: it logs that a lease is left to expire",
    "snapshot": "who waits for it, and a log line",
    "write-probe": "the request that waits for it",
    "_beat": "the supervisor, which replaces a worker that gives no sign of life",
    "_serve": "the acceptor, when it has begun",
    "start": "the boot",
    "wait": "the boot",
    "_keep_running": "itself",
}


def test_every_task_is_kept_running_or_has_somebody_to_fail_to() -> None:
    """A new one has to be begun with `keep_running`, or gets a line above."""
    root = Path(queue_server.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("create_task", "ensure_future"):
                continue
            names = [one.value for one in node.keywords if one.arg == "name"]
            work = node.args[0]
            if names and isinstance(names[0], ast.Constant):
                found.add(str(names[0].value))
            elif names and isinstance(names[0], ast.JoinedStr):
                found.add("push-flush")
            else:
                assert isinstance(work, ast.Call), path
                assert isinstance(work.func, ast.Attribute | ast.Name), path
                found.add(work.func.attr if isinstance(work.func, ast.Attribute) else work.func.id)
    found.discard("_keep_running")
    assert found | {"_keep_running"} == set(ENDING)


async def test_a_loop_that_fails_is_logged_and_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = 0
    goes_on = asyncio.Event()

    async def loop() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            if rounds in (2, 3):
                raise RecursionError("too deep")
            if rounds > 3:
                goes_on.set()
            await asyncio.sleep(0)

    task = keep_running(loop, "figures", pause_s=0.001)
    async with asyncio.timeout(5):
        await goes_on.wait()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.args for record in errors] == [("figures",)] * 2
    assert all(record.exc_info for record in errors)


async def test_a_loop_that_ends_by_itself_is_over() -> None:
    async def loop() -> None:
        return

    await asyncio.wait_for(keep_running(loop, "reconnect"), 5)


async def test_requests_do_not_wait_for_an_answer_that_a_slip_lost() -> None:
    """Behind the flush: a count that fails, answers of another number."""

    async def flush(requests: object) -> list[str]:
        return []

    coalescer: Coalescer[int, str] = Coalescer(
        "push", flush, flush_weight_max=10, waiting_weight_max=10
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="zip"):
            await asyncio.wait_for(coalescer.submit(1), 5)


class Handler:
    """A connection whose first request is not complete."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.is_closed = False

    def has_sent_a_request(self) -> bool:
        return False

    def force_close(self) -> None:
        if self.fails:
            raise RuntimeError("it cannot be closed")
        self.is_closed = True


async def test_the_time_for_headers_goes_on_when_one_connection_cannot_be_closed() -> None:
    server: Any = HttpServer.__new__(HttpServer)
    server._settings = Settings(header_timeout_ms=1)
    bad, good = Handler(fails=True), Handler(fails=False)
    server._young = {bad: float("-inf"), good: float("-inf")}
    with pytest.raises(RuntimeError):
        server._look_at_young()
    server._looking.cancel()
    server._look_at_young()
    assert good.is_closed
    assert server._looking is None
