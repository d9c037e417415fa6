"""The command line, run as a process against a server with two workers.

Each command: what it does, what --json writes, how it ends when it cannot. Exit codes are those of
docs/command-line.md.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, eventually, unique
from tests.cluster_process import ROOT, ClusterProcess
from tests.databases import DatabaseKind, SharedPostgres
from tests.e2e.test_tls import identity
from tests.server_directory import server_directory

OK, FAILED, USAGE, UNREACHABLE, FORBIDDEN, NOT_FOUND = range(6)

TIMEOUT = 60.0  # seconds; for a machine with other things to do


class Run:
    """A command that has ended."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()
        assert "Traceback" not in self.err, self.err
        assert "\x1b" not in self.out + self.err, "colours without a terminal"

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.code == OK, self.err
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The objects of JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error that --json wrote, which is the last line of stderr."""
        found = json.loads(self.err.splitlines()[-1])
        assert set(found) == {"error", "fix", "exit", "status", "code", "requestId"}
        assert found["exit"] == self.code
        assert isinstance(found, dict)
        return found


def run(
    *args: str,
    url: str = "",
    stdin: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Run:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("QUEUE_SERVER_")}
    clean |= {"COLUMNS": "100", "QUEUE_SERVER_URL": url} if url else {"COLUMNS": "100"}
    return Run(
        subprocess.run(
            [sys.executable, "-m", "queue_server", *args],
            cwd=ROOT,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            env=clean | dict(env or {}),
            capture_output=True,
            check=False,
            timeout=timeout,
        )
    )


class Cli:
    """The command line for one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *args: str, **more: Any) -> Run:
        return run(*args, url=self.url, **more)


@pytest.fixture
def cli(server: ClusterProcess) -> Cli:
    return Cli(server.url)


# -- push, pop, ack --


def test_payloads_are_pushed_popped_and_acknowledged(cli: Cli, queue: str) -> None:
    pushed = cli("push", queue, '{"n": 1.10}', "null", '"text"', "--json").json
    assert pushed["messages"] == 3
    assert set(pushed) == {"queue", "messages", "duplicates", "requests", "idPrefix"}
    popped = cli("pop", queue, "--batch", "10", "--json")
    assert [line["data"] for line in popped.lines] == [{"n": 1.10}, None, "text"]
    assert '{"n":1.10}' in popped.out, "a number keeps its digits"
    acked = cli("ack", "--json", stdin=popped.out)
    assert acked.code == OK
    assert [line["success"] for line in acked.lines] == [True] * 3
    assert cli("queues", "show", queue, "--json").json["totals"]["completed"] == 3
    nothing = cli("pop", queue)
    assert (nothing.code, nothing.out) == (OK, "")


def test_what_is_popped_without_json_says_how_to_acknowledge_it(cli: Cli, queue: str) -> None:
    assert cli("push", queue, "--text", "hello world", "--partition", "p1").out == (
        f"1 stored in {queue}\n"
    )
    popped = cli("pop", queue, "--group", "readers")
    assert '"hello world"' in popped.out
    assert "p1@0" in popped.out
    hint = popped.err.split("queue-server ack ")[1].split()
    assert cli("ack", *hint).out == "1 acknowledged as completed\n"
    again = cli("ack", *hint[:2], "--transaction-id", "nobody", "--json")
    assert again.code == FAILED
    assert "unresolvable" in again.lines[0]["error"]
    assert "1 of 1" in again.error["error"]


def test_a_producers_text_is_no_command(cli: Cli, queue: str) -> None:
    evil = "--help $(touch /tmp/x); 'y'"
    line = json.dumps({"payload": 1, "transactionId": evil})
    assert cli("push", queue, "--items", stdin=line).code == OK
    popped = cli("pop", queue, "--group", "a b")
    hint = shlex.split(popped.err.split("queue-server ack ")[1])
    assert f"--transaction-id={evil}" in hint
    assert cli("ack", *hint).out == "1 acknowledged as completed\n"


def test_a_name_that_leads_to_another_path_is_not_asked_for(cli: Cli, queue: str) -> None:
    cli("push", queue, "1", "--partition", "..")
    assert cli("pop", queue, "--group", "readers").code == OK
    seek = cli("groups", "seek", "readers", queue, "--partition", "..", "--to-end", "--yes")
    assert seek.code == USAGE
    assert "'..' cannot be part of an address" in seek.err


def test_a_failed_message_comes_again(cli: Cli, queue: str) -> None:
    cli("push", queue, "1")
    popped = cli("pop", queue, "--json").out
    nacked = cli("ack", "--status", "failed", "--error", "no stock", stdin=popped)
    assert nacked.out == "1 acknowledged as failed\n"
    assert cli("pop", queue, "--json").lines[0]["deliveryAttempt"] == 2
    assert cli("ack", "--status", "done", stdin=popped).code == USAGE
    assert cli("ack").code == USAGE
    assert cli("ack", stdin="no json").code == USAGE


def test_a_file_is_pushed_in_batches(cli: Cli, queue: str, tmp_path: Path) -> None:
    file = tmp_path / "orders.jsonl"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(25)) + "\n")
    pushed = cli("push", queue, "--file", str(file), "--batch", "10", "--json").json
    assert (pushed["messages"], pushed["requests"]) == (25, 3)
    popped = cli("pop", queue, "--batch", "100", "--ack", "--json").lines
    assert [line["data"]["n"] for line in popped] == list(range(25))
    from_stdin = cli("push", queue, stdin=file.read_text())
    assert from_stdin.out == f"25 stored in {queue}\n"


def test_a_push_that_broke_off_goes_on_without_storing_twice(
    cli: Cli, queue: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.jsonl"
    lines = [str(n) for n in range(30)]
    lines[24] = "no json"
    file.write_text("\n".join(lines))
    broken = cli("push", queue, "--file", str(file), "--batch", "10")
    assert broken.code == USAGE
    assert "line 25" in broken.err
    assert "stored before that: 20 messages, up to line 20" in broken.err
    again = re.search(r"repeat the command with (--id-prefix \S+ --from-line (\d+))", broken.err)
    assert again
    assert again[2] == "21"
    lines[24] = "24"
    file.write_text("\n".join(lines))
    rest = cli("push", queue, "--file", str(file), *again[1].split(), "--json").json
    assert (rest["messages"], rest["duplicates"]) == (10, 0)
    # Also who goes on too early stores nothing twice.
    prefix = again[1].split()[1]
    whole = cli("push", queue, "--file", str(file), "--id-prefix", prefix, "--json").json
    assert (whole["messages"], whole["duplicates"]) == (0, 30)
    popped = cli("pop", queue, "--batch", "100", "--ack", "--json").lines
    assert [line["data"] for line in popped] == list(range(30))


def test_what_pop_writes_can_be_pushed_elsewhere(cli: Cli, queue: str) -> None:
    cli("push", queue, '{"a": 1}', "--partition", "p7")
    popped = cli("pop", queue, "--json", "--ack").out
    assert cli("push", queue + "-copy", "--items", stdin=popped).code == OK
    copied = cli("pop", queue + "-copy", "--json").lines[0]
    assert (copied["data"], copied["partition"]) == ({"a": 1}, "p7")
    assert copied["transactionId"] == json.loads(popped)["transactionId"]
    refused = cli("push", queue, "--items", stdin='{"partition": "p"}')
    assert refused.code == USAGE
    assert "neither" in refused.err


def test_a_push_that_cannot_be_read_stores_nothing(cli: Cli, queue: str, tmp_path: Path) -> None:
    for args, stdin in (
        ([queue, "hello"], b""),
        ([queue], b"\xff\n"),
        ([queue, "--text"], b"\xff\n"),
        ([queue, "1", "--file", "x"], b""),
        ([queue, "--file", str(tmp_path / "absent")], b""),
        ([], b""),
        ([queue, "1", "--batch", "0"], b""),
    ):
        done = cli("push", *args, stdin=stdin)
        assert (done.code, done.out) == (USAGE, ""), done.err
    assert cli("queues", "show", queue).code == NOT_FOUND


def test_a_pop_waits(cli: Cli, queue: str) -> None:
    cli("queues", "create", queue)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "queue_server", "pop", queue, "--wait", "30", "--json"],
        cwd=ROOT, env=os.environ | {"QUEUE_SERVER_URL": cli.url}, stdout=subprocess.PIPE,
    )  # fmt: skip
    cli("push", queue, '"late"')
    out, _ = waiting.communicate(timeout=TIMEOUT)
    assert json.loads(out)["data"] == "late"


# -- tail --


def test_tail_shows_and_consumes_nothing(cli: Cli, queue: str) -> None:
    cli("push", queue, *(str(n) for n in range(5)))
    assert [line["data"] for line in cli("tail", queue, "--no-follow", "--json").lines] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert [m["data"] for m in cli("tail", queue, "-n", "2", "--no-follow", "--json").lines] == [
        3, 4,
    ]  # fmt: skip
    assert "Default@4" in cli("tail", queue, "--no-follow").out
    assert len(cli("pop", queue, "--batch", "10", "--json").lines) == 5


def test_tail_follows_both_old_and_new_partitions(cli: Cli, queue: str) -> None:
    cli("push", queue, "0", "1")
    with subprocess.Popen(
        [sys.executable, "-m", "queue_server", "tail", queue, "--json", "-n", "1", "-i", "0.1"],
        cwd=ROOT, env=os.environ | {"QUEUE_SERVER_URL": cli.url}, stdout=subprocess.PIPE,
        # A shell that started the tests in its background lets them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as tailing:  # fmt: skip
        assert tailing.stdout
        seen = [json.loads(tailing.stdout.readline())["data"]]
        cli("push", queue, "2", "3")
        cli("push", queue, "4", "--partition", "other")
        seen += [json.loads(tailing.stdout.readline())["data"] for _ in range(3)]
        tailing.send_signal(signal.SIGINT)
        try:
            assert tailing.wait(TIMEOUT) == 130
        finally:
            tailing.kill()
    assert seen == [1, 2, 3, 4]


def test_tail_with_a_group_consumes(cli: Cli, queue: str) -> None:
    cli("push", queue, "1", "2")
    tailed = cli("tail", queue, "--group", "audit", "--no-follow", "--json").lines
    assert [line["data"] for line in tailed] == [1, 2]
    assert cli("pop", queue, "--group", "audit").out == ""
    assert len(cli("pop", queue, "--batch", "5", "--json").lines) == 2


# -- queues --


def test_queues_are_made_shown_listed_and_deleted(cli: Cli, queue: str) -> None:
    made = cli("queues", "create", queue, "--set", "leaseTime=7", "--set", "retryBackoff=true",
               "--namespace", "billing", "--json").json  # fmt: skip
    assert made["created"] is True
    assert (made["options"]["leaseTime"], made["options"]["retryBackoff"]) == (7, True)
    changed = cli("queues", "create", queue, "--set", "leaseTime=null")
    assert changed.out.startswith(f"changed {queue}\n  leaseTime = ")
    cli("push", queue, "1", "2", "--partition", "p1")
    shown = cli("queues", "show", queue)
    assert re.search(r"^p1 +2 +0 +0 +2 +0 *$", shown.out, re.MULTILINE), shown.out
    assert re.search(r"^retryBackoff +true *$", shown.out, re.MULTILINE), shown.out
    listed = cli("queues", "ls", "--search", queue.upper(), "--json").json["queues"]
    assert [(one["name"], one["namespace"], one["messages"]["total"]) for one in listed] == [
        (queue, "billing", 2)
    ]
    assert re.search(rf"^{queue} +2 .* 0 +0 +2 +\d+ *$", cli("queues", "ls").out, re.MULTILINE)
    refused = cli("queues", "delete", queue)
    assert refused.code == FAILED
    assert "2 messages (2 of them pending)" in refused.err
    assert "--yes" in refused.err
    deleted = cli("queues", "delete", queue, "--yes", "--json").json
    assert deleted == {"queue": queue, "deleted": True, "messages": 2}
    assert cli("queues", "delete", queue, "--yes").code == NOT_FOUND
    assert cli("queues", "show", queue, "--json").error["status"] == 404


def test_a_queue_shows_what_is_set_and_off_for_what_is_not(cli: Cli, queue: str) -> None:
    cli("queues", "create", queue, "--set", "leaseTime=7", "--set", "retryBackoff=true")

    def options() -> dict[str, str]:
        table = cli("queues", "show", queue).out.split("option ")[1]
        return {
            name: text.strip() for name, _, text in (x.partition(" ") for x in table.split("\n"))
        }

    before = options()
    # The protocol echoes 3600 and 1000 for the first two, which enforce nothing.
    for name, text in {
        "ttl": "not set", "retryDelay": "not set", "dedupWindowSeconds": "not set",
        "leaseTime": "7 s", "retryBackoff": "true", "deadLetterQueue": "off", "maxSize": "off",
        "retentionSeconds": "off", "deliveryLimit": "off", "retryLimit": "3", "priority": "0",
    }.items():  # fmt: skip
        assert before[name] == text, (name, before)
    changes = ("ttl=60", "retryDelay=0", "maxSize=12000", "dedupWindowSeconds=0")
    cli("queues", "create", queue, *(word for one in changes for word in ("--set", one)))
    after = options()
    assert (after["ttl"], after["retryDelay"]) == ("60 s", "0 ms")
    assert (after["maxSize"], after["dedupWindowSeconds"]) == ("12000 messages", "0 s")


async def test_queues_are_listed_with_rates_and_age_the_deepest_first(cli: Cli, queue: str) -> None:
    names = [f"{queue}-{letter}" for letter in "abc"]
    for name, depth in zip(names, (1, 5, 2), strict=True):
        cli("push", name, *map(str, range(depth)))
    cli("pop", names[1], "--ack")

    async def are_rated() -> Any:
        found = await asyncio.to_thread(
            lambda: cli("queues", "ls", "--search", queue, "--json").json["queues"]
        )
        return found if all(one["oldestUnreadAt"] for one in found) else None

    found = await eventually(are_rated, deadline=30)
    assert [(one["name"], one["depth"]) for one in found] == [
        (names[1], 4), (names[2], 2), (names[0], 1),
    ]  # fmt: skip
    assert all(one["pushedPerSecond"] >= 0 and one["ackedPerSecond"] >= 0 for one in found)
    text = cli("queues", "ls", "--search", queue, "--limit", "2").out
    assert re.search(rf"\n{names[1]} +4 +\d+ (s|min)\b.*\n{names[2]} +2 +\d+ (s|min)", text), text
    assert names[0] not in text


def test_options_that_do_not_exist_are_refused(cli: Cli, queue: str) -> None:
    for text in ("leasetime=7", "leaseTime", "leaseTime=x", "retryBackoff=1", "leaseTime=1.5"):
        done = cli("queues", "create", queue, "--set", text)
        assert done.code == USAGE, text
    assert cli("queues", "create", queue, "--set", "leaseTime=-1").code == FAILED
    assert cli("queues", "show", queue).code == NOT_FOUND


# -- status and top --


async def test_status_agrees_with_a_known_workload(cli: Cli, queue: str) -> None:
    before = cli("status", "--json").json
    cli("push", queue, *(str(n) for n in range(20)), "--id-prefix", queue)
    cli("push", queue, *(str(n) for n in range(5)), "--id-prefix", queue)
    async with Client(cli.url, fresh=True) as client:  # both workers count
        for _ in range(4):
            await client.complete(await client.pop(queue, batch=3))
        await client.pop(queue, batch=2)

    async def is_told() -> Any:
        # On a machine that is busy the figures may be some seconds old.
        found = await asyncio.to_thread(lambda: cli("status", "--json").json)
        completed = found["messages"]["completed"] - before["messages"]["completed"]
        return found if completed >= 12 else None

    after = await eventually(is_told, deadline=30)
    counted = {
        name: after["counters"][name] - before["counters"][name] for name in before["counters"]
    }
    assert counted["messagesPushed"] == 20
    assert counted["messagesDuplicate"] == 5
    assert counted["messagesPopped"] == 14
    assert counted["messagesAcked"] == 12
    assert counted["pushRequests"] == 2
    assert counted["popRequests"] == 5
    assert counted["ackRequests"] == 4
    assert after["queues"] == before["queues"] + 1
    stored = {
        name: after["messages"][name] - before["messages"][name] for name in before["messages"]
    }
    assert (stored["stored"], stored["completed"], stored["deadLetter"]) == (20, 12, 0)
    # Leases of other tests may end meanwhile, and their messages are pending again.
    assert stored["pending"] + stored["processing"] == 8
    (ours,) = cli("queues", "ls", "--search", queue, "--json").json["queues"]
    assert ours["depth"] == 8
    assert (ours["messages"]["pending"], ours["messages"]["processing"]) == (6, 2)
    assert after["leases"] >= 1
    assert (after["status"], after["workers"], after["url"]) == ("healthy", 2, cli.url)
    assert after["servers"] == 1
    text = cli("status").out
    assert "healthy" in text
    assert "1 server on its database, 2 workers" in text


async def test_status_is_that_of_all_servers_on_the_database(conninfo: str, queue: str) -> None:
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "STATS_INTERVAL_MS": "200"}
    with ClusterProcess(env=env) as one, ClusterProcess(env=env) as two:
        one.wait_ready()
        async with Client(two.wait_ready()) as there:
            await there.push(queue, list(range(7)))
            popped = await there.pop(queue, batch=2)
            await there.ack_batch([(message, "failed") for message in popped.messages])

            async def is_booked() -> Any:
                found = await asyncio.to_thread(lambda: run("status", "--json", url=one.url).json)
                return found if found["lastHour"]["messagesFailed"] else None

            found = await eventually(is_booked, deadline=30)
        assert (found["servers"], found["workers"]) == (2, 4)
        assert found["lastHour"] == {
            "messagesPushed": 7, "messagesPopped": 2, "messagesAcked": 0, "messagesFailed": 2,
            "messagesDeadLettered": 0,
        }  # fmt: skip
        assert found["counters"]["messagesPushed"] == 0, "of the one that is asked"
        assert two.stop() == 0
        # It ended in good order, so it is not counted any longer.
        assert run("status", "--json", url=one.url).json["servers"] == 1
        assert one.stop() == 0


# -- on a terminal --


def on_terminal(
    *args: str,
    url: str,
    keys: bytes = b"",
    after: bytes = b"",
    env: Mapping[str, str] | None = None,
    columns: int = 100,
) -> tuple[int, str]:
    """How a command ends on a terminal of so many columns, and what is there then.

    *keys* are pressed when *after* has been shown.
    """
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    # Processes that a test runner starts are told a width by its readline.
    given = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    clean = {k: v for k, v in os.environ.items() if k not in given}
    process = subprocess.Popen(
        [sys.executable, "-m", "queue_server", *args],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal,
        env=clean | {"QUEUE_SERVER_URL": url, "TERM": "xterm-256color"} | dict(env or {}),
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    pressed = not keys
    deadline = time.monotonic() + TIMEOUT
    try:
        with contextlib.suppress(OSError):  # the other side is closed
            while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                chunk = os.read(master, 65536)
                if not chunk:
                    break
                seen += chunk
                if not pressed and after in seen:
                    os.write(master, keys)
                    pressed = True
        assert time.monotonic() < deadline, f"{args} does not end: {seen.decode()[-3000:]}"
        return process.wait(TIMEOUT), seen.decode()
    finally:
        process.kill()
        os.close(master)


def test_a_question_is_answered_on_a_terminal(cli: Cli, queue: str) -> None:
    cli("push", queue, "1")
    delete = ["queues", "delete", queue]
    code, seen = on_terminal(*delete, url=cli.url, keys=b"\n", after=b"[y/N]")
    assert code == FAILED
    assert "1 message (1 of them pending) and 0 dead letters" in seen
    assert "not done" in seen
    code, seen = on_terminal(*delete, url=cli.url, keys=b"y\n", after=b"[y/N]")
    assert code == OK
    assert cli("queues", "show", queue).code == NOT_FOUND


def test_colours_are_for_terminals_that_want_them(cli: Cli) -> None:
    assert "\x1b[" in on_terminal("status", url=cli.url)[1]
    assert "\x1b[3" not in on_terminal("status", url=cli.url, env={"NO_COLOR": "1"})[1]


async def test_top_repaints_a_terminal_until_q(cli: Cli, queue: str) -> None:
    # More queues than it has lines for, with names that are longer than a line.
    async with Client(cli.url) as client:
        await client.push_items(
            [{"queue": f"{queue}-{number}-{'long' * 30}", "payload": 1} for number in range(40)]
        )
    code, seen = on_terminal("top", "-i", "0.5", url=cli.url, keys=b"q", after=b"q leaves")
    assert code == OK
    assert "a second" in seen
    assert "dead letters" in seen
    narrow = on_terminal("top", "-i", "0.5", url=cli.url, keys=b"q", after=b"q leaves", columns=80)[
        1
    ]
    # Each repaint has its own: which further columns there is room for depends on the figures.
    heads = {line for line in lines_of(narrow) if line.startswith("queue ")}
    assert heads
    for head in heads:
        assert re.search(r"^queue +depth +oldest +pushed/s +acked/s\b", head), head
    assert max(map(len, lines_of(narrow))) <= 80
    assert any(re.match("now +depth +lag +dead letters", line) for line in lines_of(narrow))


def lines_of(seen: str) -> list[str]:
    """What a terminal shows, without colours."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).split("\r\n")]


async def test_names_are_whole_in_80_columns(cli: Cli, queue: str) -> None:
    queue = f"{queue}.billing.invoices.reminders"
    partition = "customer/4711/of/the/northern/region"
    cli("push", queue, "1", "2", "3", "--partition", partition)
    cli("pop", queue, "--group", "accounting.nightly-export", "--ack")
    cli("pop", queue, "--group", "mailer")
    for args, whole, dropped in (
        (["queues", "ls", "--search", queue], queue, "partitions"),
        (["queues", "show", queue], partition, "dead letters"),
        (["groups", "ls", "--queue", queue], f"{queue}  accounting.nightly-export", "starts at"),
        (["groups", "lag", "mailer", "--queue", queue], f"{queue}  {partition}  mailer", "lag"),
    ):
        code, seen = on_terminal(*args, url=cli.url, columns=80)
        assert code == OK
        assert any(line.startswith(whole) for line in lines_of(seen)), seen
        assert re.search(rf"no room for .*{dropped}.*: widen the terminal", seen), seen
        heads = [line for line in lines_of(seen) if re.match("queue|partition", line)]
        assert dropped not in heads[0]
        wide = on_terminal(*args, url=cli.url, columns=300)[1]
        assert "no room" not in wide
        assert dropped in wide
    # Figures are not left out: the table is put on its side.
    status = on_terminal("status", url=cli.url, columns=40)[1]
    assert re.search(r"^dead letters +[\d,]+$", "\n".join(lines_of(status)), re.MULTILINE), status
    assert re.search(
        r"^nacks +[\d,]+ +[\d,]+$|^nacks +[\d,]+$", "\n".join(lines_of(status)), re.MULTILINE
    ), status


# -- errors --


def test_a_server_that_is_not_there(queue: str) -> None:
    for args in (["status"], ["pop", queue], ["push", queue, "1"], ["queues", "ls"]):
        done = run(*args, "--json", url="http://127.0.0.1:1")
        assert done.code == UNREACHABLE
        assert "nobody listens there" in done.error["error"]
        assert done.error["fix"]
        assert r"\n" not in done.error["error"]
    several = run("push", queue, "1", url="http://127.0.0.1:1").err.splitlines()
    assert several[1:] == [
        "  stored before that: 0 messages; not known to be stored: from message 1",
        "  fix: start the server (queue-server serve), or give its address as --url",
        several[3],
    ]
    assert several[3].startswith("  fix: to go on, without storing anything twice, repeat")
    told = run("status", "--url", "http://127.0.0.1:1")
    assert told.err.startswith("error: cannot reach http://127.0.0.1:1")
    assert "\n  fix: start the server" in told.err
    for url in ("ftp://x", "http://", "http://a:b@c", "http://x:99999"):
        assert run("status", "--url", url).code == USAGE


def test_a_refusal_names_the_request(cli: Cli) -> None:
    refused = cli("push", "q" * 500, "1", "--json")
    assert refused.code == FAILED
    assert refused.error["status"] == 413
    assert re.fullmatch("[0-9a-f]{16}", refused.error["requestId"])
    assert "request id: " in cli("push", "q" * 500, "1").err


def test_a_certificate_has_to_be_trusted(data_dir: Path, tmp_path: Path) -> None:
    cert, key = identity("127.0.0.1").write(tmp_path, "own")
    env = {"TLS_CERT": cert, "TLS_KEY": key}
    with ClusterProcess(env=env, data_dir=data_dir) as cluster:
        url = cluster.wait_ready()
        untrusted = run("status", "--json", url=url)
        assert untrusted.code == UNREACHABLE
        assert "certificate is not trusted" in untrusted.error["error"]
        assert "SSL_CERT_FILE" in untrusted.error["fix"]
        assert run("status", "--json", url=url, env={"SSL_CERT_FILE": cert}).json["workers"] == 2
        plain = run("status", "--json", url=url.replace("https", "http"))
        assert (plain.code, plain.error["exit"]) == (UNREACHABLE, UNREACHABLE)
        assert cluster.stop() == 0


def test_names_are_carried_as_they_are(cli: Cli) -> None:
    name = unique("ä/ö ?#%&+\x1b[31m")
    assert cli("push", name, "1").code == OK
    assert cli("pop", name, "--json").lines[0]["queue"] == name
    assert "\\x1b[31m" in cli("queues", "show", name).out
    assert cli("queues", "delete", name, "--yes").code == OK


def test_top_writes_a_line_for_each_look(cli: Cli, queue: str) -> None:
    # Others use the server too, and it shows the queues with the most to read.
    messages = "".join(f"{number}\n" for number in range(20_000))
    cli("push", queue, stdin=messages)
    looks = cli("top", "--json", "--count", "2", "--interval", "0.5").lines
    for look in looks:
        assert set(look["rates"]) == {"push", "pop", "ack", "failed", "requests"}
    assert set(looks[0]) == set(cli("status", "--json").json) | {"topQueues"}
    ours = [one for one in looks[1]["topQueues"] if one["name"] == queue]
    assert [(one["depth"], one["stored"]) for one in ours] == [(20_000, 20_000)]
    assert cli("top").code == USAGE, "no terminal"


# -- groups --


def test_a_pop_that_makes_a_group_says_so_and_how_to_delete_it(cli: Cli, queue: str) -> None:
    cli("push", queue, "1", "2")
    for group, name in (("a b", "a b"), ("", "__QUEUE_MODE__")):
        first = cli("pop", queue, *(["--group", group] if group else []))
        assert f"group '{name}' is new on queue '{queue}'" in first.err
        line = first.err.split("queue-server groups delete ")[1].splitlines()
        again = cli("pop", queue, *(["--group", group] if group else []))
        assert "is new" not in again.err
        listed = cli("groups", "ls", "--queue", queue).out
        assert re.search(rf"{name} .* never acknowledged", listed), listed
        assert cli("groups", "delete", *shlex.split(line[0]), "--yes").code == OK
    assert cli("groups", "ls", "--queue", queue, "--json").json["groups"] == []


def test_groups_are_listed_and_moved(cli: Cli, queue: str) -> None:
    cli("push", queue, *(str(n) for n in range(6)))
    cli("pop", queue, "--group", "g1", "--batch", "4", "--ack")
    listed = cli("groups", "ls", "--queue", queue, "--json").json["groups"]
    assert [(one["name"], one["totalLag"], one["members"]) for one in listed] == [("g1", 2, 1)]
    assert re.search(rf"^{queue} +g1 +2 ", cli("groups", "ls").out, re.MULTILINE)
    lagging = cli("groups", "lag", "g1", "--queue", queue, "--json").json["lagging"]
    assert [(one["partition_name"], one["offset_lag"]) for one in lagging] == [("Default", 2)]
    assert cli("groups", "lag", "g1", "--queue", queue, "--min-seconds", "9999").out == ""

    asked = cli("groups", "seek", "g1", queue, "--to-end")
    assert asked.code == FAILED
    assert "it is 2 messages behind now; 2 messages skipped, 0 messages read again" in asked.err
    assert "--yes" in asked.err
    back = cli("groups", "seek", "g1", queue, "--to-beginning", "--yes", "--json").json
    assert back == {
        "group": "g1", "queue": queue, "partition": None, "to": "beginning", "partitions": 1,
        "lagBefore": 2, "lagAfter": 6, "skipped": 0, "readAgain": 4,
    }  # fmt: skip
    assert cli("pop", queue, "--group", "g1", "--json", "--ack").lines[0]["data"] == 0
    forth = cli("groups", "seek", "g1", queue, "--to-end", "-p", "Default", "-y", "--json").json
    assert (forth["lagBefore"], forth["lagAfter"]) == (5, 0)
    to_time = cli(
        "groups", "seek", "g1", queue, "--to", "2020-02-03T10:00:00+01:00", "-y", "--json"
    )
    assert (to_time.json["to"], to_time.json["lagAfter"]) == ("2020-02-03T09:00:00.000000Z", 6)


def test_lag_of_a_group_is_told_however_many_places_are_worse(cli: Cli, queue: str) -> None:
    crowd, late = f"{queue}-crowd", f"{queue}-late"
    lines = "".join(f'{{"partition":"p{n}","payload":{n}}}\n' for n in range(1100))
    assert cli("push", crowd, "--items", stdin=lines).code == OK
    cli("pop", crowd, "--group", f"{queue}-slow", "--batch", "1", "--ack")
    cli("push", queue, "1", "2")
    cli("pop", queue, "--group", late, "--batch", "1", "--ack")
    everybody = cli("groups", "lag", "--json")
    assert len(everybody.json["lagging"]) == 1000
    assert "only the worst 1,000 places are shown" in everybody.err
    for args in ([late], ["--queue", queue], [late, "--queue", queue]):
        found = cli("groups", "lag", *args, "--json")
        assert [(one["consumer_group"], one["offset_lag"]) for one in found.json["lagging"]] == [
            (late, 1)
        ]
        assert found.err == ""
    # Others look at the worst places of this server, too.
    assert cli("queues", "delete", crowd, "--yes").code == OK


def test_a_seek_that_makes_no_sense_is_refused(cli: Cli, queue: str) -> None:
    cli("push", queue, "1")
    for args, code in (
        ([], USAGE),
        (["--to-end", "--to-beginning"], USAGE),
        (["--to", "yesterday"], USAGE),
        (["--to-end", "--partition", "absent"], NOT_FOUND),
    ):
        assert cli("groups", "seek", "g", queue, *args, "--yes").code == code, args
    assert cli("groups", "seek", "g", queue + "-absent", "--to-end", "--yes").code == NOT_FOUND


def test_a_group_is_deleted(cli: Cli, queue: str) -> None:
    cli("push", queue, "1", "2")
    group = unique("doomed")
    cli("pop", queue, "--group", group, "--ack")
    asked = cli("groups", "delete", group)
    assert asked.code == FAILED
    assert "its places in 1 partition, 1 message not acknowledged" in asked.err
    deleted = cli("groups", "delete", group, "--queue", queue, "--yes", "--json").json
    assert deleted == {"group": group, "queue": queue, "deletedPartitions": 1}
    assert cli("groups", "delete", group, "--yes", "--json").error["exit"] == NOT_FOUND


# -- dead letters --


def test_dead_letters_are_listed_shown_moved_and_removed(cli: Cli, queue: str) -> None:
    cli("push", queue, *(f'{{"n": {n}}}' for n in range(3)), "--id-prefix", "x")
    popped = cli("pop", queue, "--batch", "3", "--json").out
    cli("ack", "--status", "dlq", "--error", "tax service down", stdin=popped)
    listed = cli("dlq", "ls", queue, "--json").json
    assert listed["total"] == 3
    assert {one["errorMessage"] for one in listed["deadLetters"]} == {"tax service down"}
    assert cli("dlq", "ls", queue).out.count("tax service down") == 3
    assert cli("dlq", "ls", queue, "--error", "nothing", "--json").json["total"] == 0
    for reason, total in (("tax", 0), ("", 0), ("tax service down", 3)):
        assert cli("dlq", "ls", queue, "--reason", reason, "--json").json["total"] == total
    for command in ("redrive", "purge"):
        asked = cli("dlq", command, queue, "--reason", "tax", "--yes", "--json").json
        assert asked["moved" if command == "redrive" else "deleted"] == 0
    first = next(one for one in listed["deadLetters"] if one["data"] == {"n": 0})
    assert cli("dlq", "show", queue, first["id"], "--json").json["data"] == {"n": 0}
    assert '\n{\n  "n": 0\n}\n' in cli("dlq", "show", queue, first["id"]).out
    for absent in ("absent", str(uuid.uuid4())):
        assert cli("dlq", "show", queue, absent).code == NOT_FOUND
    assert cli("dlq", "show", unique("other"), first["id"]).code == NOT_FOUND

    asked = cli("dlq", "redrive", queue, "--error", "tax")
    assert asked.code == FAILED
    assert "3 of 3 dead letters" in asked.err
    one = cli("dlq", "redrive", queue, "--id", first["id"], "--yes", "--json").json
    assert one == {"queue": queue, "moved": 1, "duplicates": 0, "remaining": 0}
    some = cli("dlq", "redrive", queue, "--limit", "1", "--yes", "--json").json
    assert (some["moved"], some["remaining"]) == (1, 1)
    assert len(cli("pop", queue, "--batch", "9", "--json", "--ack").lines) == 2
    assert cli("dlq", "purge", queue).code == FAILED
    assert cli("dlq", "purge", queue, "--to", "soon", "--yes").code == FAILED
    assert cli("dlq", "purge", queue, "--yes", "--json").json == {
        "queue": queue, "deleted": 1, "remaining": 0,
    }  # fmt: skip
    assert cli("dlq", "ls", queue).out == ""


def test_many_dead_letters_are_moved_and_removed_in_steps(cli: Cli, queue: str) -> None:
    count = 1700  # a step of 500, one of 1000, and a rest
    cli("push", queue, stdin="".join(f"{number}\n" for number in range(count)))
    for part in ("1000", "700"):
        popped = cli("pop", queue, "--batch", part, "--json").out
        assert cli("ack", "--status", "dlq", "--error", "down", stdin=popped).code == OK
    code, seen = on_terminal("dlq", "redrive", queue, "--limit", "1600", "--yes", url=cli.url)
    assert code == OK
    assert "0 of 1,600" in seen
    assert "1,600 moved; 100 remain" in seen
    code, seen = on_terminal("dlq", "purge", queue, "--yes", url=cli.url)
    assert code == OK
    assert "0 of 100" in seen
    assert "100 removed" in seen
    assert len(cli("pop", queue, "--batch", str(count), "--json").lines) == 1600


# -- the database --


def test_migrate_says_whether_the_schema_is_current(cli: Cli, server: ClusterProcess) -> None:
    checked = cli("migrate", "--check", *server.data_args, "--json").json
    assert set(checked) == {"current", "migrations", "functions", "problem", "version"}
    assert (checked["current"], checked["migrations"]) == (True, [])
    assert cli("migrate", "--plan", *server.data_args).out.startswith("the schema is that of")
    assert cli("migrate").code == USAGE
    assert cli("migrate", "--check", "--data-dir", "/nowhere").code == UNREACHABLE
    bad = cli("migrate", "--check", "--database-url", "postgresql://x:secret@h:0/d", "--json")
    assert bad.code == USAGE
    assert "secret" not in bad.err


@pytest.fixture
def empty_database(postgres: SharedPostgres) -> Iterator[str]:
    """A given database in which no server has been."""
    with postgres.database() as name:
        yield name


def test_migrate_shows_what_an_empty_database_lacks(
    cli: Cli, postgres: SharedPostgres, empty_database: str
) -> None:
    conninfo = postgres.conninfo(empty_database)
    for _ in range(2):  # looking changed nothing
        planned = cli("migrate", "--plan", "--database-url", conninfo)
        assert planned.code == OK
        assert re.match(r"apply migrations/0001_pre_initial\.sql +\(only adds\)\n", planned.out)
        assert "apply functions/pop.sql" in planned.out
    checked = cli("migrate", "--check", "--database-url", conninfo, "--json")
    assert checked.code == FAILED
    assert json.loads(checked.out)["current"] is False


def test_doctor_finds_nothing_wrong_with_this_server(cli: Cli, server: ClusterProcess) -> None:
    env = {"NUM_WORKERS": "2"}
    checked = cli("doctor", *server.data_args, "--json", env=env).json
    assert checked["ok"] is True
    checks = {one["check"]: one for one in checked["checks"]}
    assert set(checks["server"]) == {"check", "status", "found", "fix"}
    assert set(checks) >= {
        "server", "version of the server", "database", "schema", "fsync", "synchronous_commit",
        "full_page_writes", "wal_level", "max_connections", "timeouts", "autovacuum",
        "prepared transactions", "oldest transaction", "oldest xmin", "transaction ids",
        "shared_buffers", "max_wal_size", "clocks", "time zone", "encoding", "extensions", "disk",
        "open files", "SO_REUSEPORT",
    }  # fmt: skip
    assert all(one["fix"] for one in checked["checks"] if one["status"] != "ok")
    text = cli("doctor", *server.data_args, env=env).out
    assert "ok    fsync: on" in text


def test_doctor_asks_the_server_where_its_database_is(
    cli: Cli, database_kind: DatabaseKind, tmp_path: Path
) -> None:
    def checks(env: dict[str, str]) -> dict[str, Any]:
        done = cli("doctor", "--json", env={"DATA_DIR": str(tmp_path)} | env)
        assert done.code == OK, done.out
        return {one["check"]: one for one in done.json["checks"]}

    found = checks({"NUM_WORKERS": "50"})
    if database_kind == "embedded":
        assert found["database"]["status"] == "ok"
        assert "2 workers need 16" in found["max_connections"]["found"]
    else:
        assert found["database"]["status"] == "warn"
        assert "not checked: it was given to the server" in found["database"]["found"]
        assert "--database-url" in found["database"]["fix"]
    assert found["workers"]["found"].startswith("50 " if database_kind != "embedded" else "2 ")


def test_doctor_says_what_to_do_about_what_is_wrong(
    cli: Cli, postgres: SharedPostgres, empty_database: str, database_kind: DatabaseKind
) -> None:
    postgres.execute("ALTER DATABASE {} SET synchronous_commit = off", empty_database)
    conninfo = postgres.conninfo(empty_database)
    env = {"DB_POOL_SIZE": "5000", "NUM_WORKERS": "2"}
    done = cli(
        "doctor", "--database-url", conninfo, "--url", "http://127.0.0.1:1", "--json", env=env
    )
    assert done.code == FAILED
    checks = {one["check"]: one for one in json.loads(done.out)["checks"]}
    failed = {"server", "max_connections"}
    if database_kind == "pgbouncer":  # else the server sets it on for itself
        failed.add("synchronous_commit")
    for check in failed:
        assert checks[check]["status"] == "fail", checks[check]
        assert checks[check]["fix"]
    assert checks["schema"]["status"] == "warn"
    assert checks["schema"]["found"].startswith("not that of version ")
    absent = cli("doctor", "--data-dir", "/nowhere")
    assert absent.code == FAILED
    assert "fail  database: no server of yours runs in DATA_DIR /nowhere" in absent.out


@pytest.mark.databases("pgbouncer", reason="only a pooler drops what the server sets")
def test_doctor_knows_which_timeouts_hold_behind_a_pooler(
    cli: Cli, postgres: SharedPostgres, empty_database: str
) -> None:
    def timeouts() -> dict[str, str]:
        checked = cli("doctor", "--database-url", postgres.conninfo(empty_database), "--json")
        return next(one for one in json.loads(checked.out)["checks"] if one["check"] == "timeouts")

    # Settings hold from the next backend on; none has been in this database yet.
    postgres.execute("ALTER ROLE postgres IN DATABASE {} SET lock_timeout = 0", empty_database)
    assert timeouts()["status"] == "warn"
    assert "lock_timeout 0" in timeouts()["found"]
    assert "statement_timeout 30s" in timeouts()["found"]


def test_doctor_knows_which_presets_the_server_overrides(
    cli: Cli, postgres: SharedPostgres, empty_database: str, database_kind: DatabaseKind
) -> None:
    preset = "default_transaction_isolation = 'serializable'"
    postgres.execute(f"ALTER DATABASE {{}} SET {preset}", empty_database)
    done = cli("doctor", "--database-url", postgres.conninfo(empty_database), "--json")
    checks = {one["check"]: one for one in json.loads(done.out)["checks"]}
    check = checks["session settings"]
    assert "default_transaction_isolation = serializable" in check["found"]
    # A pooler drops what the server sets itself.
    assert check["status"] == ("fail" if database_kind == "pgbouncer" else "ok")


def test_bench_counts_what_it_did(cli: Cli) -> None:
    done = cli("bench", "-n", "300", "-c", "2", "--batch", "50", "--json").json
    for phase in ("push", "consume"):
        assert set(done[phase]) == {"messages", "requests", "seconds", "perSecond", "requestMs"}
        assert set(done[phase]["requestMs"]) == {"p50", "p95", "p99"}
        assert done[phase]["messages"] == 300
    assert done["push"]["requests"] == 6
    assert cli("queues", "show", done["queue"]).code == NOT_FOUND
    assert "pop and ack" in cli("bench", "-n", "10").out


# -- who may --


@pytest.fixture(scope="module")
def guarded() -> Iterator[ClusterProcess]:
    """A server that asks for API keys."""
    with (
        server_directory() as directory,
        ClusterProcess(env={"API_KEYS_ENABLED": "true"}, data_dir=directory) as cluster,
    ):
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


def test_keys_open_what_they_are_for(guarded: ClusterProcess, tmp_path: Path) -> None:
    cli = Cli(guarded.url)
    where = guarded.data_args
    assert cli("status", "--json").error["status"] == 401
    assert cli("status").code == FORBIDDEN
    made = cli("keys", "create", "writer", "--role", "write-only", *where, "--json").json
    assert set(made) == {"key", "id", "name", "role", "queues", "createdAt", "expiresAt"}
    file = tmp_path / "key"
    file.write_text(made["key"] + "\n")
    file.chmod(0o600)
    with_file = ["--token-file", str(file)]
    # A new key is noticed within seconds.
    deadline = time.monotonic() + 10
    while cli("push", "q", "1", *with_file).code == FORBIDDEN:
        assert time.monotonic() < deadline
    assert cli("push", "q", "1", env={"QUEUE_SERVER_TOKEN": made["key"]}).code == OK
    assert cli("push", "q", "1", "--token", made["key"]).code == OK
    refused = cli("queues", "ls", *with_file, "--json")
    assert (refused.code, refused.error["status"]) == (FORBIDDEN, 403)
    listed = cli("keys", "list", *where, "--json")
    assert [(one["id"], one["queues"]) for one in listed.json["keys"]] == [(made["id"], None)]
    assert made["key"] not in listed.out + refused.err
    file.chmod(0o644)
    assert "can be read by others" in cli("push", "q", "1", *with_file).err
    # The option before the command is understood as well.
    revoked = cli("keys", *where, "revoke", made["id"], "--json").json
    assert revoked == {"id": made["id"], "name": "writer", "revoked": True}
    assert cli("keys", "revoke", made["id"], *where).code == NOT_FOUND
    assert cli("status", "--token-file", str(tmp_path / "absent")).code == USAGE


def test_help_never_shows_the_token(cli: Cli) -> None:
    helped = cli("status", "--help", env={"QUEUE_SERVER_TOKEN": "qk_secret"})
    assert "QUEUE_SERVER_TOKEN" in helped.out
    assert "qk_secret" not in helped.out
    bad = cli("status", "--token", "qk_ä", "--json")
    assert bad.code == USAGE
    assert "qk_" not in bad.err


# -- the command line itself --


def test_help_teaches_by_examples() -> None:
    helped = run("queues", "ls", "--help")
    assert helped.code == OK
    assert "queue-server queues ls --search order" in helped.out


def test_the_server_is_started_without_the_rest_of_the_command_line() -> None:
    code = (
        "import sys\n"
        "from queue_server.__main__ import cluster, main\n"
        "import queue_server.cluster.supervisor\n"
        "for start in (lambda: cluster(['--help']), lambda: main(['serve', '--version'])):\n"
        "    try:\n"
        "        start()\n"
        "    except SystemExit as exc:\n"
        "        assert exc.code == 0\n"
        "print()\n"
        "print([m for m in ('typer', 'rich', 'queue_server.cli') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: cluster.py" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_serve_is_the_server(data_dir: Path) -> None:
    command = (sys.executable, "-m", "queue_server", "serve")
    with ClusterProcess(data_dir=data_dir, command=command) as cluster:
        url = cluster.wait_ready()
        assert run("status", "--json", url=url).json["workers"] == 2
        assert cluster.stop() == 0
    assert run("serve", "--port", "x").code == USAGE
    assert "usage: queue-server serve" in run("serve", "--help").out


def test_the_installed_script_is_this_command_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"queue-server": "queue_server.__main__:main"}
    assert run("--version").out == f"queue-server {project['version']}\n"
    assert run().code == USAGE
    assert run("nonsense").code == USAGE


def test_shells_complete_commands_and_options() -> None:
    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return run(env=words | {"_QUEUE_SERVER_COMPLETE": "complete_bash"}).out.split()

    assert complete("queue-server queues ") == ["ls", "show", "create", "delete"]
    assert "--group" in complete("queue-server pop --")
    assert "--workers" in complete("queue-server serve --")


def test_shells_complete_names_of_queues(cli: Cli, queue: str) -> None:
    cli("push", queue, "1")
    env = {"_QUEUE_SERVER_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    line = f"queue-server pop {queue[:-3]}"
    assert cli(env=env | {"COMP_WORDS": line}).out.split() == [queue]
    without = run(env=env | {"COMP_WORDS": line, "QUEUE_SERVER_URL": "http://127.0.0.1:1"})
    assert (without.out.strip(), without.err) == ("", "")
