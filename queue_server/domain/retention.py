"""Which of a queue's options make messages go, and when.

Two services apply them, because they answer to different options:
- *retention* keeps a log short. It needs `retentionEnabled`: `retentionSeconds` drops messages
  whatever their state, `completedRetentionSeconds` those that every group has committed.
- *eviction* drops what is no longer worth delivering, whether or not retention is enabled:
  `maxWaitTimeSeconds`, and `ttl` when somebody set it.

Of several ages the lowest is what counts; it alone is applied, and the history names it.

Source: wire-api 2.11 and 5.11.
"""

from __future__ import annotations

import enum

import msgspec

from queue_server.domain.options import QueueOptions


class RetentionType(enum.Enum):
    """Why messages went; the words of `queen.retention_history`."""

    RETENTION = "retention"
    COMPLETED = "completed_retention"
    MAX_WAIT_TIME = "max_wait_time"
    TTL = "ttl"
    CLEAR = "clear"  # by hand


class Rule(msgspec.Struct, frozen=True):
    """Messages older than `age_s` go; those older than `completed_age_s` when all have read them.

    Shape: None = no such rule, but never both. `type` is why the first kind goes.
    Units: seconds since the message was stored, by the database's clock.
    """

    type: RetentionType
    age_s: int | None
    completed_age_s: int | None = None


def retention_rule(options: QueueOptions) -> Rule | None:
    """What retention does to a queue; None = nothing."""
    if not options.retention_enabled:
        return None
    age_s = options.retention_seconds or None
    completed_age_s = options.completed_retention_seconds or None
    if age_s is not None and completed_age_s is not None and completed_age_s >= age_s:
        completed_age_s = None  # whatever it could drop is gone before
    if age_s is None and completed_age_s is None:
        return None
    return Rule(RetentionType.RETENTION, age_s, completed_age_s)


def eviction_rule(options: QueueOptions) -> Rule | None:
    """What eviction does to a queue; None = nothing."""
    ages = [
        (age_s, type_)
        for age_s, type_ in (
            (options.max_wait_time_seconds, RetentionType.MAX_WAIT_TIME),
            (options.ttl, RetentionType.TTL),
        )
        if age_s
    ]
    if not ages:
        return None
    age_s, type_ = min(ages, key=lambda age: age[0])
    return Rule(type_, age_s)
