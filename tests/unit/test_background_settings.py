"""Services are made with the settings that are theirs."""

from typing import Any
from unittest.mock import Mock

import pytest

from queue_server.domain.retention import eviction_rule, retention_rule
from queue_server.services import background
from queue_server.settings import load_settings


def test_the_services_of_retention_have_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    intervals: dict[str, float] = {}

    def retention(name: str, _transactions: Any, _rooms: Any, rule: Any, batch_size: int) -> Any:
        made[name] = (rule, batch_size)
        return named(name)

    def cleanup(*_: Any, **given: Any) -> Any:
        made["cleanup"] = given
        return named("cleanup")

    def periodic(service: Any, interval_s: float, _leads: Any) -> Any:
        intervals[service.name] = interval_s
        return Mock()

    monkeypatch.setattr(background, "MessageRetention", retention)
    monkeypatch.setattr(background, "Cleanup", cleanup)
    monkeypatch.setattr(background, "Periodic", periodic)
    settings = load_settings(
        [],
        {
            "RETENTION_INTERVAL": "2000",
            "RETENTION_BATCH_SIZE": "7",
            "EVICTION_INTERVAL": "3000",
            "EVICTION_BATCH_SIZE": "8",
            "PARTITION_CLEANUP_DAYS": "9",
            "GROUP_EXPIRE_SECONDS": "300",
            "TRACE_RETENTION": "10",
            "METRICS_RETENTION_DAYS": "2",
        },
    )
    background.Background(Mock(), settings, Mock(), Mock(), Mock())
    assert made == {
        "retention": (retention_rule, 7),
        "eviction": (eviction_rule, 8),
        "cleanup": {
            "idle_days": 9,
            "group_expire_s": 300,
            "trace_age_s": 10,
            "series_age_s": 2 * 24 * 3600,
            "batch_size": 7,
        },
    }
    assert (intervals["retention"], intervals["eviction"]) == (2.0, 3.0)


def named(name: str) -> Mock:
    service = Mock()
    service.name = name  # an argument of this name is the mock's own
    return service
