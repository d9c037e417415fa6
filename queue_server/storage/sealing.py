"""What the database keeps of messages outside of their segments: sealed where it has to be.

Dead letters and traces of an encrypted queue, and those of messages that were stored encrypted, are
sealed for the row that holds them. Such a row says so itself, so it is read whatever its queue's
option is by then.
"""

from __future__ import annotations

import uuid
from typing import Any

from queue_server.domain.encryption import (
    EncryptedDataDamaged,
    Keyring,
    dead_letter_place,
    is_sealed,
    reason_place,
    trace_place,
)


def must_seal(
    keyring: Keyring, queue: str, *, is_encrypted: bool, opened_with: bytes | None = None
) -> bool:
    """Whether what is stored beside a message has to be sealed.

    *is_encrypted*: its queue is; *opened_with*: the key that the message itself was sealed with.
    Errors: `EncryptionKeyMissing` when it has to be and cannot be.
    """
    if opened_with is not None:
        return True
    if is_encrypted:
        keyring.require_key(queue)
    return is_encrypted and keyring.can_seal


def seal_letter(
    keyring: Keyring,
    queue: str,
    partition_id: int,
    payload: bytes,
    reason: str,
    *,
    is_encrypted: bool,
    opened_with: bytes | None,
) -> dict[str, Any]:
    """The id of a new dead letter, and its payload and reason as they are stored.

    Shape: parameters of `insert_dead_letter`. Errors: as `must_seal`.
    """
    id_ = uuid.uuid4()
    # PostgreSQL's text cannot hold a NUL; the error text is for people.
    reason = reason.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if not must_seal(keyring, queue, is_encrypted=is_encrypted, opened_with=opened_with):
        return {
            "id": id_,
            "payload": payload,
            "error_message": reason,
            "sealed_error": None,
            "error_key": None,
        }
    return {
        "id": id_,
        "payload": keyring.seal(payload, dead_letter_place(queue, partition_id, id_), opened_with),
        "error_message": "",
        "sealed_error": keyring.seal(
            reason.encode("utf-8", "surrogatepass"),
            reason_place(queue, partition_id, id_),
            opened_with,
        ),
        "error_key": keyring.reason_key(reason, opened_with),
    }


def open_payload(
    keyring: Keyring, queue: str, partition_id: int, id_: uuid.UUID, stored: bytes
) -> bytes:
    """The payload of a dead letter. Errors: those of `Keyring.open`."""
    return keyring.open_payload(stored, dead_letter_place(queue, partition_id, id_))


def open_reason(
    keyring: Keyring,
    queue: str,
    partition_id: int,
    id_: uuid.UUID,
    error_message: str,
    sealed_error: bytes | None,
) -> str:
    """The reason of a dead letter. Errors: those of `Keyring.open`."""
    if sealed_error is None:
        return error_message
    return keyring.open(sealed_error, reason_place(queue, partition_id, id_)).decode(
        "utf-8", "surrogatepass"
    )


def seal_trace(
    keyring: Keyring, queue: str, partition_id: int, id_: uuid.UUID, event: str, data: bytes
) -> tuple[str, bytes]:
    """The event type and the data of a trace as they are stored when they are sealed."""
    plain = b"%b\0%b" % (event.encode("utf-8", "surrogatepass"), data)
    return "", keyring.seal(plain, trace_place(queue, partition_id, id_))


def open_trace(
    keyring: Keyring, queue: str, partition_id: int, id_: uuid.UUID, event: str, data: bytes
) -> tuple[str, bytes]:
    """The event type and the data of a trace. Errors: those of `Keyring.open`."""
    if not is_sealed(data):
        return event, data
    plain = keyring.open(data, trace_place(queue, partition_id, id_))
    sealed_event, separator, sealed_data = plain.partition(b"\0")
    if not separator:
        raise EncryptedDataDamaged
    return sealed_event.decode("utf-8", "surrogatepass"), sealed_data
