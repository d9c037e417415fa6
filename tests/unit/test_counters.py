"""Counters shared by the processes of one server."""

import os
import signal

import pytest

from queue_server.observability.counters import (
    BATCH_MESSAGES,
    FLUSH_DURATION,
    FLUSH_REQUESTS,
    LOOP_LAG,
    REQUEST_DURATION,
    REQUEST_STATUS,
    Counter,
    Counters,
    Life,
    Operation,
    RouteGroup,
)


def in_child(work: object) -> int:
    """Run *work* in a forked process; its exit code, or minus the signal that killed it."""
    assert callable(work)
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_children_count_their_parent_reads() -> None:
    counters = Counters(2)
    for slot in (0, 1):
        in_child(lambda slot=slot: counters.worker(slot).add(Counter.REQUESTS, slot + 1))
    assert counters.total(Counter.REQUESTS) == 3
    assert counters.totals()["requests"] == 3
    assert counters.worker(1).get(Counter.REQUESTS) == 2


def test_counts_survive_the_process_that_made_them() -> None:
    counters = Counters(1)
    row = counters.worker(0)

    def count_and_die() -> None:
        row.begin(os.getpid())
        row.set_ready()
        row.words[Counter.MESSAGES_PUSHED] += 10_000
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(count_and_die) == -signal.SIGKILL
    assert counters.workers_ready() == 1
    row.end()
    row.begin()
    assert not row.is_ready()
    row.add(Counter.MESSAGES_PUSHED)
    assert counters.total(Counter.MESSAGES_PUSHED) == 10_001


def test_every_name_has_a_place_of_its_own() -> None:
    names = [*Counter, *Life]
    assert sorted(names) == list(range(len(names)))
    counters = Counters(2)
    for number, counter in enumerate(Counter):
        counters.worker(0).add(counter, number)
        counters.worker(1).add(counter, 1000)
    assert list(counters.totals().values()) == [n + 1000 for n in range(len(Counter))]
    assert counters.worker(0).get(Life.PID) == 0


@pytest.mark.parametrize("reason", ["40001", "40P01", "55P03", "25P02", "connection_lost"])
def test_retries_are_counted_by_reason(reason: str) -> None:
    counters = Counters(1)
    counters.worker(0).add_retry(reason)
    assert counters.retries() == {r: int(r == reason) for r in counters.retries()}


def test_an_unforeseen_reason_is_counted_as_other() -> None:
    counters = Counters(1)
    counters.worker(0).add_retry("57014")
    assert counters.retries()["other"] == 1


def test_heartbeat() -> None:
    row = Counters(1).worker(0)
    row.begin()
    assert 0 <= row.silent_seconds() < 10
    row.words[Life.HEARTBEAT_NS] -= 30_000_000_000
    assert row.silent_seconds() >= 30
    row.beat()
    assert row.silent_seconds() < 10


def test_the_supervisor_has_a_row_of_its_own() -> None:
    counters = Counters(1)
    counters.supervisor.add(Counter.WORKER_RESTARTS)
    assert counters.total(Counter.WORKER_RESTARTS) == 1
    assert counters.worker(0).get(Counter.WORKER_RESTARTS) == 0
    assert 0 <= counters.uptime_seconds() < 60


def test_a_histogram_s_buckets_add_up_over_processes() -> None:
    counters = Counters(2)
    histogram = BATCH_MESSAGES[Operation.PUSH]
    for slot in (0, 1):
        for value in (1, 2, 3, 10_001):
            in_child(lambda slot=slot, value=value: counters.worker(slot).observe(histogram, value))
    counts, total = counters.buckets(histogram)
    # The bound belongs to its bucket: 1, 2, 3 to 5, ..., more than 10,000.
    assert counts == [2, 2, 2, *[0] * 10, 2]
    assert total == 2 * 10_007
    assert counters.buckets(histogram, 1) == ([1, 1, 1, *[0] * 10, 1], 10_007)


def test_a_request_is_counted_in_its_class_and_its_bucket() -> None:
    counters = Counters(1)
    row = counters.worker(0)
    for status in (200, 299, 304, 400, 498, 499, 500, 503):
        row.observe_request(RouteGroup.ACK, status, 700)
    assert counters.buckets(REQUEST_STATUS[RouteGroup.ACK])[0] == [2, 1, 2, 1, 2]
    counts, total_us = counters.buckets(REQUEST_DURATION[RouteGroup.ACK])
    assert (counts[:3], total_us) == ([0, 8, 0], 8 * 700)
    assert sum(counters.buckets(REQUEST_DURATION[RouteGroup.PUSH])[0]) == 0


def test_no_two_histograms_share_a_word() -> None:
    counters = Counters(1)
    row = counters.worker(0)
    histograms = [
        *REQUEST_DURATION, *REQUEST_STATUS, *BATCH_MESSAGES, *FLUSH_REQUESTS, *FLUSH_DURATION,
        LOOP_LAG,
    ]  # fmt: skip
    places = [p for h in histograms for p in range(h.start, h.sum_place + 1)]
    assert len(set(places)) == len(places)
    assert min(places) == len(Counter) + len(Life)
    assert max(places) < len(row.words)
    # And the next row is another one.
    row.words[len(row.words) - 1] = 7
    assert counters.supervisor.words[0] == 0


def test_a_new_life_says_nothing_of_the_last_one() -> None:
    counters = Counters(1)
    row = counters.worker(0)
    row.words[Life.RESIDENT_BYTES] = row.words[Life.CPU_SYSTEM_US] = 5
    row.words[Counter.CPU_SYSTEM_US] = 5
    row.observe(LOOP_LAG, 3)
    row.begin(17)
    assert row.get(Life.RESIDENT_BYTES) == row.get(Life.CPU_SYSTEM_US) == 0
    assert sum(counters.buckets(LOOP_LAG)[0]) == 1
    assert row.get(Counter.CPU_SYSTEM_US) == 5
