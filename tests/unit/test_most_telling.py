"""Of thousands of queues the dashboard gets those that there may be something to say of."""

import datetime

from queue_server.http.handlers.dashboard import most_telling
from queue_server.storage.statistics import NOTHING, QueueStatistics

LONG_AGO = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def queue(name: str, depth: int, oldest_s: float = 0, max_size: int = 0) -> QueueStatistics:
    return QueueStatistics(
        id=name,
        name=name,
        namespace="",
        task="",
        priority=0,
        created_at=LONG_AGO,
        max_size=max_size,
        group_count=0,
        partition_count=1,
        counts=NOTHING,
        depth=depth,
        scheduled=0,
        pushed=depth,
        consumed=0,
        pushed_at=None,
        consumed_at=None,
        oldest_at=None,
        due_at=None,
        oldest_s=oldest_s,
        limited=depth,
    )


def test_a_queue_that_is_not_well_is_among_them_however_deep_others_are() -> None:
    many = [queue(f"q{number}", 1000 + number, oldest_s=number % 60) for number in range(5000)]
    stuck, full = queue("stuck", 1, oldest_s=7200), queue("full", 5, max_size=5)
    shown = most_telling([stuck, *many, full])
    assert len(shown) <= 2000
    assert [one.name for one in shown[:1000]] == [f"q{4999 - number}" for number in range(1000)]
    assert shown[-2:] == [full, stuck]


def test_of_few_queues_none_is_left_out() -> None:
    shown = most_telling([queue(f"q{number:04}", 0) for number in range(2000)])
    assert [one.name for one in shown] == [f"q{number:04}" for number in range(2000)]
