"""Where a consumer group starts to read.

Source: wire-api 2.5.
"""

from __future__ import annotations

import datetime

import msgspec

from queue_server.domain.errors import BadParameter
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup


class Start(msgspec.Struct, frozen=True):
    """Mode `all`, `new` or `timestamp`; `at` is the time for the last, else None."""

    mode: str
    at: datetime.datetime | None = None


ALL = Start("all")
NEW = Start("new")


_MODES = ("all", "from_beginning", "new", "new-only")


def start_of(
    group: ConsumerGroup, mode: str | None, start_from: str | None, default_mode: str
) -> Start:
    """Where a group that is not registered yet starts, from what its pop says.

    Errors: `BadParameter`, also where it would not count: a group that starts somewhere else than
    its consumer meant reads everything, or misses it, and it is too late when that is noticed.
    """
    if mode and mode.lower() not in _MODES:
        raise BadParameter("subscriptionMode", mode, f"one of {', '.join(_MODES)}")
    start = ALL
    if start_from and start_from.lower() not in ("now", "all"):
        moment = parse_time(start_from)
        if moment is None:
            raise BadParameter("subscriptionFrom", start_from, f"now, all or {TIME_FORM}")
        start = Start("timestamp", moment)
    elif (start_from or mode or default_mode).lower() in ("now", "new", "new-only"):
        start = NEW
    return ALL if group == QUEUE_MODE else start


TIME_FORM = "an ISO 8601 time such as 2026-06-30T12:00:00Z"


def parse_time(text: str) -> datetime.datetime | None:
    """An ISO 8601 time, UTC unless it says otherwise; None when it is not one.

    RFC 3339 lets its letters be lower-case, too.

    Times of the years 1 and 9999 are none: what is added to a time, or a move to another zone, must
    not lead out of what can be represented.
    """
    text = text.strip().upper()
    try:
        # A `+` that was not percent-encoded arrives as a space.
        moment = datetime.datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            return None
    if not datetime.MINYEAR < moment.year < datetime.MAXYEAR:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment
