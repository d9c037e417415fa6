"""Messages on their way into the log, and the ids the server mints for them."""

from __future__ import annotations

import os
import sys
import time
import uuid
from array import array

import msgspec

# The last group of a UUID has 48 bits. A run starts in the lower half, so that no run of messages
# carries into the group before it.
_RUN_START_MAX = 1 << 47


class NewMessage(msgspec.Struct, gc=False, rename="camel"):
    """A message that a producer pushed, decoded straight from the request.

    `payload` is JSON text as it came, already validated. A message without a `transaction_id` gets
    its message id for one. Who produced it comes to the broker from the credential: a `producerSub`
    in a body does not count.
    """

    queue: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    partition: str | None = None
    transaction_id: str | None = None
    trace_id: uuid.UUID | None = None


class MessageIdRun:
    """Message ids for the messages of one segment: a UUIDv7 and those that follow it.

    The first is stored with the segment, so the others need not be.
    """

    __slots__ = ("_prefix", "_start", "first")

    def __init__(self) -> None:
        millis = time.time_ns() // 1_000_000
        random = int.from_bytes(os.urandom(10))
        value = (millis & (1 << 48) - 1) << 80
        value |= 0x7 << 76 | (random >> 64 & 0xFFF) << 64  # version, rand_a
        value |= 0b10 << 62 | (random >> 48 & 0x3FFF) << 48 | random % _RUN_START_MAX
        self.first = uuid.UUID(int=value)
        text = str(self.first)
        self._prefix = text[:24]
        self._start = value & (1 << 48) - 1

    def texts(self, count: int) -> list[str]:
        """The first *count* ids of the run as canonical text."""
        # All numbers as hexadecimal text at once: 16 digits each, of which the last 12 count.
        numbers = array("Q", range(self._start, self._start + count))
        if sys.byteorder == "little":
            numbers.byteswap()
        digits = numbers.tobytes().hex()
        prefix = self._prefix
        return [prefix + digits[i : i + 12] for i in range(4, 16 * count, 16)]


def message_id(first: uuid.UUID, index: int) -> str:
    """The id of the message at *index* of a segment whose first message has the id *first*."""
    return str(uuid.UUID(int=first.int + index))
