"""The vocabulary of the queue as types, and what a name may be.

Queue, partition and group names are arbitrary text; only three things are refused: text that the
database or the wire cannot carry (NUL, lone surrogates) and names that are too long together.
"""

from __future__ import annotations

from typing import NewType

import msgspec

from queue_server.domain.errors import BadRequest, NameTooLong

QueueName = NewType("QueueName", str)
PartitionName = NewType("PartitionName", str)
ConsumerGroup = NewType("ConsumerGroup", str)
PartitionId = NewType("PartitionId", int)  # carries its shard; below 2^53
SubscriptionId = NewType("SubscriptionId", int)

DEFAULT_PARTITION = PartitionName("Default")
# The group of a pop that names none: its consumers compete for messages.
QUEUE_MODE = ConsumerGroup("__QUEUE_MODE__")

# An id like any other, and never given to a partition: they are below 2^53.
NO_PARTITION_ID = "9999999999999999"

# Queue name and the longer of partition and group name, together (wire-api 2.2).
NAME_BYTES_MAX = 411
TRANSACTION_ID_BYTES_MAX = 65_535


class PartitionKey(msgspec.Struct, frozen=True, gc=False):
    """A partition by name."""

    queue: QueueName
    partition: PartitionName


class PartitionRef(msgspec.Struct, frozen=True, gc=False):
    """A partition that exists: its names and its id."""

    queue: QueueName
    partition: PartitionName
    queue_id: str
    id: PartitionId


def check_text(text: str, what: str) -> str:
    """Return *text* when the database can carry it.

    Errors: `BadRequest` that names *what* when it holds a NUL or a lone surrogate.
    """
    if "\x00" in text:
        raise BadRequest(f"{what} must not contain a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{what} must be valid Unicode text") from None
    return text


def check_label(text: str, what: str) -> str:
    """Return *text*, a namespace, a task or the like, when it may be stored.

    Errors: `BadRequest` for text that cannot be stored, `NameTooLong` over NAME_BYTES_MAX.
    """
    size_bytes = len(check_text(text, what).encode())
    if size_bytes > NAME_BYTES_MAX:
        raise NameTooLong(f"{what} has {size_bytes} bytes, at most {NAME_BYTES_MAX}")
    return text


def check_names(queue: str, other: str, what: str) -> None:
    """Check a queue name together with a partition or group name (*what* says which).

    Errors: `BadRequest` for text that cannot be stored, `NameTooLong` over NAME_BYTES_MAX.
    """
    check_text(queue, "queue")
    check_text(other, what)
    size_bytes = len(queue.encode()) + len(other.encode())
    if size_bytes > NAME_BYTES_MAX:
        raise NameTooLong(
            f"queue and {what} name are {size_bytes} bytes together, at most {NAME_BYTES_MAX}"
        )


def parse_partition_id(text: str) -> PartitionId | None:
    """The id in its only spelling; anything else names no partition."""
    if text.isascii() and text.isdigit() and len(text) <= 16 and text[0] != "0":
        return PartitionId(int(text))
    return None


def implicit_labels(queue: str) -> tuple[str, str]:
    """Namespace and task of a queue that nobody configured: the first two parts of its name."""
    namespace, _, rest = queue.partition(".")
    return namespace, rest.partition(".")[0]
