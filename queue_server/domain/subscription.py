"""Where a consumer group starts to read.

Source: wire-api 2.5.
"""

from __future__ import annotations

import datetime

import msgspec

from queue_server.domain.names import QUEUE_MODE, ConsumerGroup


class Start(msgspec.Struct, frozen=True):
    """Mode `all`, `new` or `timestamp`; `at` is the time for the last, else None."""

    mode: str
    at: datetime.datetime | None = None


ALL = Start("all")
NEW = Start("new")


def start_of(
    group: ConsumerGroup, mode: str | None, start_from: str | None, default_mode: str
) -> Start:
    """Where a group that is not registered yet starts, from what its pop says."""
    if group == QUEUE_MODE:
        return ALL
    if start_from:
        moment = parse_time(start_from)
        if moment is not None:
            return Start("timestamp", moment)
        if start_from == "now":
            return NEW
        if start_from == "all":
            return ALL
    if (mode or default_mode) in {"new", "new-only"}:
        return NEW
    return ALL


def parse_time(text: str) -> datetime.datetime | None:
    """An ISO 8601 time, UTC unless it says otherwise; None when it is not one.

    Times of the years 1 and 9999 are none: what is added to a time, or a move to another zone, must
    not lead out of what can be represented.
    """
    try:
        # A `+` that was not percent-encoded arrives as a space.
        moment = datetime.datetime.fromisoformat(text.strip().replace(" ", "+"))
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(text.strip())
        except ValueError:
            return None
    if not datetime.MINYEAR < moment.year < datetime.MAXYEAR:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment
