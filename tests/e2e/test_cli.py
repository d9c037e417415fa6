"""The command line, run as a process against a server with two workers.

Each command: what it does, what --json writes, how it ends when it cannot. Exit codes are those of
docs/command-line.md.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, unique
from tests.cluster_process import ROOT, ClusterProcess

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
    ) as tailing:  # fmt: skip
        assert tailing.stdout
        seen = [json.loads(tailing.stdout.readline())["data"]]
        cli("push", queue, "2", "3")
        cli("push", queue, "4", "--partition", "other")
        seen += [json.loads(tailing.stdout.readline())["data"] for _ in range(3)]
        tailing.send_signal(2)
        assert tailing.wait(TIMEOUT) == 130
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
    assert re.search(rf"^{queue} +\d+ +2 +0 +2 +0 ", cli("queues", "ls").out, re.MULTILINE)
    refused = cli("queues", "delete", queue)
    assert refused.code == FAILED
    assert "2 messages (2 of them pending)" in refused.err
    assert "--yes" in refused.err
    deleted = cli("queues", "delete", queue, "--yes", "--json").json
    assert deleted == {"queue": queue, "deleted": True, "messages": 2}
    assert cli("queues", "delete", queue, "--yes").code == NOT_FOUND
    assert cli("queues", "show", queue, "--json").error["status"] == 404


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
    after = cli("status", "--json").json
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
    assert stored == {
        "stored": 20, "pending": 6, "processing": 2, "completed": 12, "deadLetter": 0,
    }  # fmt: skip
    assert after["leases"] == before["leases"] + 1
    assert (after["status"], after["workers"], after["url"]) == ("healthy", 2, cli.url)
    text = cli("status").out
    assert "healthy" in text
    assert "2 workers" in text


# -- errors --


def test_a_server_that_is_not_there(queue: str) -> None:
    for args in (["status"], ["pop", queue], ["push", queue, "1"], ["queues", "ls"]):
        done = run(*args, "--json", url="http://127.0.0.1:1")
        assert done.code == UNREACHABLE
        assert "nobody listens there" in done.error["error"]
        assert done.error["fix"]
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


def test_names_are_carried_as_they_are(cli: Cli) -> None:
    name = unique("ä/ö ?#%&+\x1b[31m")
    assert cli("push", name, "1").code == OK
    assert cli("pop", name, "--json").lines[0]["queue"] == name
    assert "\\x1b[31m" in cli("queues", "show", name).out
    assert cli("queues", "delete", name, "--yes").code == OK
