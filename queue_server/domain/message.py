"""Messages on their way into the log, and the ids the server mints for them."""

from __future__ import annotations

import os
import time
import uuid

import msgspec

RUN_LENGTH_MAX = 4096
_ENDINGS = [b"%03x" % number for number in range(RUN_LENGTH_MAX)]


class NewMessage(msgspec.Struct, gc=False, rename="camel"):
    """A message that a producer pushed, decoded straight from the request.

    `payload` is JSON text as it came, already validated. A message without a `transaction_id` gets
    its message id for one. Who produced it comes to the broker from the credential: a `producerSub`
    in a body does not count.
    """

    queue: str
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    partition: str | None = None
    transaction_id: str | None = None
    trace_id: uuid.UUID | None = None


class MessageIdRun:
    """Message ids for the messages of one segment: a UUIDv7 and those that follow it.

    The first is stored with the segment, so the others need not be. It ends in three zero digits:
    then the ids of a run differ in these alone. 62 random bits and the time remain.
    """

    __slots__ = ("_prefix", "first")

    def __init__(self) -> None:
        millis = time.time_ns() // 1_000_000
        value = (millis & (1 << 48) - 1) << 80
        value |= 0x7 << 76 | 0b10 << 62  # version, variant
        random = int.from_bytes(os.urandom(8))
        value |= (random >> 52) << 64 | (random & (1 << 50) - 1) << 12
        self.first = uuid.UUID(int=value)
        self._prefix = str(self.first)[:-3].encode()

    def texts(self, count: int) -> list[bytes]:
        """The first *count* ids of the run as canonical text. At most `RUN_LENGTH_MAX`."""
        prefix = self._prefix
        assert count <= RUN_LENGTH_MAX
        return [prefix + ending for ending in _ENDINGS[:count]]


def message_id(first: uuid.UUID, index: int) -> str:
    """The id of the message at *index* of a segment whose first message has the id *first*."""
    return str(uuid.UUID(int=first.int + index))
