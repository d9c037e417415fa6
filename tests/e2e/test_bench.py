"""The benchmark's own promises: it moves messages, shows its table, and notices what goes wrong.

The commands run as a user runs them, with a fiftieth of the messages, and every scenario at its
small size. The checker is fed with the faults that a correct server never shows it, and the open
loop with a broker that stalls.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from bench.check import Checker, Delivery, Shares, judge, runs_of
from bench.driver import Lot, Subscription
from bench.load import Board, Gate
from bench.loads import pacing
from bench.outcome import Outcome
from bench.report import quantiles
from bench.scenarios import Run, Scenario, Target
from bench.scenarios.table import SCENARIOS
from bench.wire import IdMint, push_items
from tests.cluster_process import ROOT, ClusterProcess

MESSAGES = 20_000
SIZE = ["--messages", str(MESSAGES), "--batch", "1000"]


def command(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            # Wide enough that no cell is cut.
            env=os.environ | {"COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        said = (exc.stdout or b"").decode(errors="replace")[-3000:]
        raise AssertionError(f"not done after {timeout} s; it said:\n{said}") from exc


def assert_moved_all(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"messages\W+{MESSAGES:,}\W", done.stdout), done.stdout
    assert re.search(r"msg/s\W+[0-9]", done.stdout), done.stdout


@pytest.mark.parametrize("extra", [[], ["--auto-ack"], ["--group", "bench", "--processes", "2"]])
@pytest.mark.parametrize("mode", ["partition", "queue"])
def test_producer_then_consumer_move_every_message(
    server: ClusterProcess, queue: str, mode: str, extra: list[str]
) -> None:
    where = ["--url", server.url, "--queue", queue, *SIZE]
    assert_moved_all(command("bench/producer.py", *where))
    done = command("bench/consumer.py", *where, "--mode", mode, *extra)
    assert_moved_all(done)
    for phase in ("wait", "lease", "query", "decode", "decrypt", "send"):
        assert re.search(rf"│ {phase} +│ +[0-9]", done.stdout), done.stdout
    assert f"{MESSAGES:,} messages seen: 0 lost, 0 duplicates, 0 out of order" in done.stdout


def test_the_commands_are_modules_too(server: ClusterProcess, queue: str) -> None:
    where = ["--url", server.url, "--queue", queue, *SIZE]
    pushed = command("-m", "bench.producer", *where, "--encode", "live", "--processes", "2")
    assert_moved_all(pushed)
    assert_moved_all(command("-m", "bench.consumer", *where))


def test_the_consumer_fails_when_messages_do_not_come(server: ClusterProcess, queue: str) -> None:
    where = ["--url", server.url, "--queue", queue, "--partitions", "1", "--batch", "10"]
    assert command("bench/producer.py", *where, "--messages", "98").returncode == 0
    # It is told to expect two more, which to it are lost.
    done = command("bench/consumer.py", *where, "--messages", "100", "--idle-limit", "1")
    assert done.returncode == 1, done.stdout
    assert "98 messages seen: 2 lost, 0 duplicates" in done.stdout
    assert "lost: id 98 in partition '0'\nlost: id 99 in partition '0'" in done.stdout


@pytest.mark.parametrize("mode", ["partition", "queue"])
def test_consumers_that_share_a_queue_miss_nothing_together(
    server: ClusterProcess, queue: str, mode: str
) -> None:
    where = ["--url", server.url, "--queue", queue, *SIZE]
    assert_moved_all(command("bench/producer.py", *where))
    sharing = [
        subprocess.Popen(
            [sys.executable, "bench/consumer.py", *where, "--mode", mode, "--batch", "10"],
            cwd=ROOT, env=os.environ | {"COLUMNS": "160"}, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    outputs = [consumer.communicate(timeout=60)[0] for consumer in sharing]
    assert [consumer.returncode for consumer in sharing] == [0, 0, 0], "\n".join(outputs)
    seen = [re.search(r"([\d,]+) messages seen: 0 lost, 0 duplicates", text) for text in outputs]
    assert sum(int(found[1].replace(",", "")) for found in seen if found) == MESSAGES
    # To a consumer that is told to be alone, what the others received is lost.
    alone = command("bench/consumer.py", *where, "--alone", "--idle-limit", "1")
    assert alone.returncode == 1, alone.stdout
    assert f"0 messages seen: {MESSAGES:,} lost" in alone.stdout


def test_the_producer_fails_without_a_server() -> None:
    # Nobody listens on port 1.
    done = command("bench/producer.py", "--url", "http://127.0.0.1:1", "--messages", "10")
    assert done.returncode == 1
    assert "FAILED" in done.stdout


# -- the scenarios --


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all scenarios at their small size, without plots."""
    folder = tmp_path_factory.mktemp("results")
    done = command(
        "-m", "bench", "--size", "small", "--runs", "1", "--no-plots", "--results", str(folder),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.alone
@pytest.mark.databases("embedded", reason="the benchmark starts servers of its own")
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_scenario_moves_and_checks_its_messages(small: Path, name: str) -> None:
    (written,) = small.glob(f"*-{name}.json")
    result = msgspec.json.decode(written.read_bytes())
    assert result["scenario"] == name
    (run,) = result["runs"]
    assert run["checks"], "a scenario that checks nothing measures nothing"
    assert all(check["ok"] for check in run["checks"]), run["checks"]
    for work in run["works"].values():
        assert work["messages"] > 0
        assert work["core_seconds_per_million"]["load_generator"] > 0
        assert work["worker_peak_bytes"] > 0
    # Every target names a figure that is measured.
    for target in SCENARIOS[name].targets:
        assert target.figure in result["median"], target
    assert written.with_suffix(".md").read_text("utf-8").startswith("# ")


@pytest.mark.alone
@pytest.mark.databases("embedded", reason="the benchmark starts servers of its own")
def test_a_result_can_be_drawn(small: Path) -> None:
    (written,) = small.glob("*-root-cause.json")
    done = command("-m", "bench.plots", str(written))
    assert done.returncode == 0, done.stderr
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_missed_target_is_told_from_a_met_one() -> None:
    targets = (Target("rate", at_least=100), Target("cost", at_most=2), Target("absent", at_most=1))
    scenario = Scenario(0, "none", "none", lambda _: Run(), {}, targets)
    runs = [Run(figures={"rate": rate, "cost": 3.0}) for rate in (90.0, 110.0, 5000.0)]
    judged = Outcome(scenario, "full", {}, runs).targets
    assert [(one.target.figure, one.value, one.met) for one in judged] == [
        ("rate", 110.0, True),
        ("cost", 3.0, False),
    ]
    # At the small size nothing is judged.
    assert Outcome(scenario, "small", {}, runs).targets == []


# -- the open loop --


class OpenGate(Gate):
    """A gate for a load that runs alone, in this process."""

    def __init__(self) -> None:
        pass

    def pass_together(self) -> None:
        pass


class StallingBroker:
    """A broker in memory, which takes its time for the first push."""

    name = "stalling"

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.pushed: list[bytes] = []

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        return msgspec.json.encode([queue, lots])

    async def producer(self) -> "StallingBroker":
        return self

    async def consumer(self, wanted: Subscription) -> "StallingBroker":
        raise NotImplementedError

    async def pop(self) -> None:
        raise NotImplementedError

    async def acknowledge(self, popped: object) -> None:
        raise NotImplementedError

    async def push(self, body: bytes, message_count: int) -> None:
        if not self.pushed:
            await asyncio.sleep(self.stall_s)
        self.pushed.append(body)

    def close(self) -> None:
        pass


@pytest.mark.alone
async def test_a_stall_counts_for_every_message_it_delayed() -> None:
    # 100 messages a second for half a second, and a broker that stands still for 300 ms of it.
    broker = StallingBroker(0.3)
    load = pacing(broker, "q", {"0": range(1000)}, rate=100, seconds=0.5)
    share = await load(0, Board(1), OpenGate())
    assert share.pushed == {"0": range(50)}
    assert [msgspec.json.decode(body)[1][0][1] for body in broker.pushed] == [
        [id_] for id_ in range(50)
    ]
    from_intended, from_sent = share.latencies_ms["push"], share.latencies_ms["push, once sent"]
    # The 29 that were due meanwhile waited too, each for what was left of the stall.
    assert sum(ms > 5 for ms in from_intended) >= 29
    assert from_intended[0] >= 300
    assert from_intended[15] >= 145
    assert from_sent[15] < 100, "it was answered at once when it was sent at last"


# -- the checker --

SHARES = Shares(message_count=40, partition_count=2)  # "0" has 0 to 19, "1" has 20 to 39


def judged(*deliveries: tuple[str, list[int]], handover: bool = True) -> tuple[Checker, list[str]]:
    checker = Checker(SHARES.lanes, handover)
    for consumer, (partition, ids) in enumerate(deliveries):
        checker.add(partition, runs_of(ids), consumer)
    return checker, checker.finish().complaints


def test_all_is_well_when_each_message_comes_once_in_order() -> None:
    checker, complaints = judged(
        ("1", [*range(20, 25)]), ("0", [*range(20)]), ("1", [*range(25, 40)])
    )
    verdict = checker.finish()
    assert (verdict.ok, verdict.seen_count, complaints) == (True, 40, [])


def test_a_lost_message_is_named() -> None:
    ids = [id_ for id_ in range(20) if id_ != 7]
    checker, complaints = judged(("0", ids), ("1", [*range(20, 40)]))
    verdict = checker.finish()
    assert (verdict.ok, verdict.lost_count, verdict.disorder_count) == (False, 1, 0)
    assert complaints == ["lost: id 7 in partition '0'"]


def test_messages_lost_at_the_end_are_named_and_counted() -> None:
    checker, complaints = judged(("0", [*range(20)]), ("1", [*range(20, 30)]))
    assert checker.finish().lost_count == 10
    assert complaints == [f"lost: id {id_} in partition '1'" for id_ in range(30, 35)]


def test_a_duplicate_is_named() -> None:
    checker, complaints = judged(
        ("0", [*range(10)]), ("0", [9, *range(10, 20)]), ("1", [*range(20, 40)])
    )
    verdict = checker.finish()
    assert (verdict.ok, verdict.duplicate_count, verdict.lost_count) == (False, 1, 0)
    assert complaints == ["duplicate: id 9 in partition '0'"]


def test_a_message_that_comes_late_is_named() -> None:
    ids = [0, 1, 3, 2, *range(4, 20)]
    checker, complaints = judged(("0", ids), ("1", [*range(20, 40)]))
    verdict = checker.finish()
    assert (verdict.ok, verdict.disorder_count) == (False, 1)
    assert (verdict.lost_count, verdict.duplicate_count) == (0, 0)
    assert complaints == ["out of order, after 3: id 2 in partition '0'"]


def test_a_batch_that_overtakes_another_is_out_of_order() -> None:
    deliveries = [("0", [*range(10, 20)]), ("0", [*range(10)]), ("1", [*range(20, 40)])]
    checker, _ = judged(*deliveries)
    assert checker.finish().disorder_count == 10
    # Committed on delivery, two consumers of a partition may be answered in either order.
    checker, _ = judged(*deliveries, handover=False)
    assert checker.finish().ok


def test_without_handover_each_consumer_still_has_its_order() -> None:
    checker = Checker(SHARES.lanes, handover=False)
    checker.add("0", [(10, 20)], consumer=1)
    checker.add("0", [(0, 10)], consumer=1)
    checker.add("1", [(20, 40)], consumer=2)
    assert checker.finish().disorder_count > 0


def test_a_message_of_another_partition_is_named() -> None:
    _, complaints = judged(("0", [*range(20)]), ("1", [5, *range(20, 40)]))
    assert complaints == ["message of another partition: id 5 in partition '1'"]
    checker, complaints = judged(("0", [*range(20)]), ("2", [*range(20, 40)]))
    assert complaints[0] == "unexpected partition: id 20 in partition '2'"
    assert checker.finish().foreign_count == 20


def test_deliveries_are_judged_in_the_order_they_arrived() -> None:
    checker = Checker(SHARES.lanes)
    checker.add_all(
        [
            Delivery(300, 0, "0", [(10, 20)]),
            Delivery(100, 1, "0", [(0, 10)]),
            Delivery(200, 0, "1", [(20, 40)]),
        ]
    )
    assert checker.finish().ok


def test_every_group_is_to_see_every_message() -> None:
    everything = [("0", (0, 20)), ("1", (20, 40))]
    deliveries = [
        Delivery(at, 0, partition, [run], group)
        for group in ("a", "b")
        for at, (partition, run) in enumerate(everything)
    ]
    verdict = judge(SHARES.lanes, deliveries, ["a", "b"])
    assert (verdict.ok, verdict.seen_count) == (True, 80)
    verdict = judge(SHARES.lanes, deliveries[:-1], ["a", "b"])
    assert (verdict.ok, verdict.lost_count) == (False, 20)


def test_runs_show_every_break() -> None:
    assert runs_of([]) == []
    assert runs_of([4, 5, 6]) == [(4, 7)]
    assert runs_of([4, 5, 5, 6, 9, 8]) == [(4, 6), (5, 7), (9, 10), (8, 9)]


def test_shares_cover_all_messages() -> None:
    shares = Shares(message_count=23, partition_count=10)
    ids = [id_ for partition in range(10) for id_ in shares.ids(partition)]
    assert ids == list(range(23))


# -- what else the numbers rest on --


def test_minted_ids_are_uuid7_and_rise() -> None:
    mint = IdMint()
    ids = [*mint.mint(9000), *mint.mint(1)]
    assert ids == sorted(set(ids))
    pattern = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(pattern.fullmatch(id_) for id_ in ids)


def test_payloads_have_the_size_that_was_asked_for() -> None:
    items = msgspec.json.decode(f"[{push_items('q', 'p', range(3), ['a', 'b', 'c'], 256)}]")
    assert [len(msgspec.json.encode(item["payload"])) for item in items] == [256, 256, 256]
    assert [item["payload"]["id"] for item in items] == [0, 1, 2]
    assert len({item["payload"]["fill"] for item in items}) == 3


def test_quantiles_use_the_nearest_rank() -> None:
    assert quantiles([]) == {"p50": 0.0, "p95": 0.0, "p99": 0.0, "p99.9": 0.0, "max": 0.0}
    hundred = [float(value) for value in range(1, 101)]
    assert quantiles(hundred) == {
        "p50": 50.0,
        "p95": 95.0,
        "p99": 99.0,
        "p99.9": 100.0,
        "max": 100.0,
    }
