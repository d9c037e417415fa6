"""The state of a stored message, as operators see it.

A message has no state of its own: it follows from where the groups stand in its partition. With
consumers in queue mode their place decides; without, a message is completed when every named group
has passed it. A dead letter of any group is one for good.

Source: wire-api 5.4.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Sequence

import msgspec

from queue_server.domain.names import QUEUE_MODE


class MessageStatus(enum.Enum):
    """The words of the protocol."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    DEAD_LETTER = "dead_letter"


class GroupPlace(msgspec.Struct, frozen=True, gc=False):
    """Where a group stands in a partition; the lease fields are None without a live lease."""

    group: str
    committed_offset: int
    lease_end: int | None
    lease_expires_at: datetime.datetime | None


class Consumption(msgspec.Struct, frozen=True):
    """The groups that have a place in a partition."""

    places: Sequence[GroupPlace]

    @property
    def queue_mode(self) -> GroupPlace | None:
        return next((place for place in self.places if place.group == QUEUE_MODE), None)

    @property
    def named(self) -> list[GroupPlace]:
        return [place for place in self.places if place.group != QUEUE_MODE]

    def consumed_by(self, offset: int) -> int:
        """How many named groups have passed the message."""
        return sum(place.committed_offset > offset for place in self.named)

    def status(self, offset: int, *, is_dead: bool) -> MessageStatus:
        """The state of a message; *is_dead*: some group gave it up."""
        if is_dead:
            return MessageStatus.DEAD_LETTER
        place = self.queue_mode
        if place is not None:
            if offset < place.committed_offset:
                return MessageStatus.COMPLETED
            if place.lease_end is not None and offset < place.lease_end:
                return MessageStatus.PROCESSING
            return MessageStatus.PENDING
        named = self.named
        if named and self.consumed_by(offset) == len(named):
            return MessageStatus.COMPLETED
        return MessageStatus.PENDING

    def lease_expires_at(self, offset: int) -> datetime.datetime | None:
        """When the queue-mode lease on the message ends, if it has one."""
        place = self.queue_mode
        if place is None or place.lease_end is None:
            return None
        if place.committed_offset <= offset < place.lease_end:
            return place.lease_expires_at
        return None


def mode_type(has_queue_mode: bool, named_count: int) -> str:
    """How a queue is consumed, in one word."""
    if has_queue_mode:
        return "hybrid" if named_count else "queue"
    return "bus" if named_count else "none"
