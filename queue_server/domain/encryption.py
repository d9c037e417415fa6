"""Encryption at rest: AES-256-GCM, one key for writing, any number for reading.

What is sealed carries the id of its key (the first eight bytes of the key's SHA-256), so keys can
be rotated: the new one writes, the old ones stay for reading until what they sealed is gone.

    version (1 byte) | key id (8 bytes) | nonce (12 bytes) | cipher text | tag (16 bytes)

Version 3 binds the cipher text to its *place*, as associated data: what it is for, the queue, and
the row that holds it. A body that was moved to another queue, partition or table, or swapped with
another one, does not open there: the reader of one queue cannot be made to decrypt another. Version
2 has no place. It is read for as long as there is some, and can be moved until its key is gone
(docs/security.md). Segments of version 2 have no version byte; their codec tells them apart.

A nonce is random. At 2^32 seals under one key the chance of a repeated one is about 2^-33, which
is NIST's bound for random nonces (SP 800-38D, 8.3); a seal is a whole segment.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import uuid
from collections.abc import Sequence
from typing import Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from queue_server.domain.errors import QueueServerError

KEY_BYTES = 32
_ID_BYTES = 8
_NONCE_BYTES = 12
# The first byte of what is sealed; JSON text begins with neither.
_BOUND = b"\x03"
_UNBOUND = b"\x02"

# Error texts are grouped by their first characters (wire-api 5.5).
REASON_CHARS = 500
_REASON_KEY_BYTES = 16
_REASON_KEY_PURPOSE = b"queue-server: reasons of dead letters"


class Unreadable(QueueServerError):
    """The data is encrypted and cannot be opened."""

    def __init__(self, message: str | None = None, key_id: bytes | None = None) -> None:
        super().__init__(message)
        self.key_id = key_id


class EncryptionKeyMissing(Unreadable):
    """The server has no key for the encryption that is asked for."""

    code = "encryption_key_missing"
    # An operator has to give it the key, and restart it.
    retry_after_s = 60


class EncryptedDataDamaged(Unreadable):
    """The encrypted data was changed, moved from its place, or is not what its key id says."""

    code = "encrypted_data_damaged"


def segment_place(
    queue: str, partition_id: int, first_message_id: uuid.UUID, message_count: int
) -> bytes:
    """Where a segment belongs."""
    return _place(
        b"segment",
        queue,
        struct.pack(">q16sI", partition_id, first_message_id.bytes, message_count),
    )


def dead_letter_place(queue: str, partition_id: int, id_: uuid.UUID) -> bytes:
    """Where the payload of a dead letter belongs."""
    return _place(b"dead letter", queue, struct.pack(">q16s", partition_id, id_.bytes))


def reason_place(queue: str, partition_id: int, id_: uuid.UUID) -> bytes:
    """Where the reason of a dead letter belongs."""
    return _place(b"reason", queue, struct.pack(">q16s", partition_id, id_.bytes))


def trace_place(queue: str, partition_id: int, id_: uuid.UUID) -> bytes:
    """Where what a trace says belongs."""
    return _place(b"trace", queue, struct.pack(">q16s", partition_id, id_.bytes))


def held_push_place(
    message_count: int, producer_sub: str | None, push_patterns: Sequence[str] | None
) -> bytes:
    """Where a push that is held belongs; it names its queues inside."""
    sender = msgspec.json.encode((producer_sub, push_patterns)).decode()
    return _place(b"held push", sender, struct.pack(">q", message_count))


def _place(purpose: bytes, name: str, rest: bytes) -> bytes:
    # Names hold no NUL and the rest has a fixed length, so no two places are the same bytes.
    return b"%b\0%b\0%b" % (purpose, name.encode("utf-8", "surrogatepass"), rest)


class Keyring:
    """The keys of a server. Without a key for writing only what has one already can be sealed.

    *fallback_plaintext*: what is to be encrypted may be stored as plain text when there is no key.
    """

    def __init__(
        self,
        writing: bytes | None = None,
        reading: tuple[bytes, ...] = (),
        *,
        fallback_plaintext: bool = False,
    ) -> None:
        keys = reading if writing is None else (writing, *reading)
        assert all(len(key) == KEY_BYTES for key in keys), "a key has 32 bytes"
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._reason_keys = {
            _key_id(key): hmac.digest(key, _REASON_KEY_PURPOSE, "sha256") for key in keys
        }
        self._writing_id = None if writing is None else _key_id(writing)
        self.key_ids = list(self._ciphers)
        self.may_store_plain = fallback_plaintext and writing is None

    @classmethod
    def of_texts(cls, writing: str, reading: str, *, fallback_plaintext: bool) -> Self:
        """The keys as settings write them: hexadecimal digits, those for reading with commas."""
        old = [key.strip() for key in reading.split(",") if key.strip()]
        return cls(
            bytes.fromhex(writing) if writing else None,
            tuple(bytes.fromhex(key) for key in old),
            fallback_plaintext=fallback_plaintext,
        )

    @property
    def can_seal(self) -> bool:
        return self._writing_id is not None

    def require_key(self, queue: str) -> None:
        """Refuse what would be stored of an encrypted queue as plain text.

        Errors: `EncryptionKeyMissing`.
        """
        if not self.can_seal and not self.may_store_plain:
            raise EncryptionKeyMissing(
                f"Queue '{queue}' is encrypted, and this server has no key to encrypt with: set"
                " QUEEN_ENCRYPTION_KEY, or ENCRYPTION_FALLBACK_PLAINTEXT=true to store its messages"
                " as plain text. Nothing was stored"
            )

    def seal(self, plain: bytes, place: bytes, opened_with: bytes | None = None) -> bytes:
        """Encrypt for *place*, with the key for writing.

        *opened_with*: a copy of what this key opened is sealed with it when there is none for
        writing; one of the two there must be.
        """
        key_id = self._sealing_id(opened_with)
        nonce = os.urandom(_NONCE_BYTES)
        return _BOUND + key_id + nonce + self._ciphers[key_id].encrypt(nonce, plain, _BOUND + place)

    def _sealing_id(self, opened_with: bytes | None) -> bytes:
        key_id = self._writing_id or opened_with
        assert key_id is not None, "there is no key to encrypt with"
        return key_id

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Decrypt what `seal` made for this place.

        Errors: `EncryptionKeyMissing`, `EncryptedDataDamaged`.
        """
        version, key_id = sealed[:1], sealing_key(sealed)
        if version not in (_BOUND, _UNBOUND) or len(sealed) <= _ID_BYTES + _NONCE_BYTES:
            raise EncryptedDataDamaged
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise EncryptionKeyMissing(missing_key_text(key_id), key_id)
        nonce_end = 1 + _ID_BYTES + _NONCE_BYTES
        nonce = sealed[1 + _ID_BYTES : nonce_end]
        associated = version + place if version == _BOUND else None
        try:
            return cipher.decrypt(nonce, sealed[nonce_end:], associated)
        except (InvalidTag, ValueError):  # too short even for a tag
            raise EncryptedDataDamaged(key_id=key_id) from None

    def open_payload(self, stored: bytes, place: bytes) -> bytes:
        """JSON text that is kept outside of a segment, sealed or as it is. Errors: as `open`."""
        return self.open(stored, place) if is_sealed(stored) else stored

    def reason_key(self, reason: str, opened_with: bytes | None = None) -> bytes:
        """The mark by which sealed reasons that begin alike are grouped; made as `seal` would."""
        return self._reason_key(self._sealing_id(opened_with), reason)

    def reason_keys(self, reason: str) -> list[bytes]:
        """The marks that a reason has, with whichever key it was sealed."""
        return [self._reason_key(key_id, reason) for key_id in self.key_ids]

    def _reason_key(self, key_id: bytes, reason: str) -> bytes:
        text = reason[:REASON_CHARS].encode("utf-8", "surrogatepass")
        return hmac.digest(self._reason_keys[key_id], text, "sha256")[:_REASON_KEY_BYTES]


def is_sealed(stored: bytes) -> bool:
    """Whether what is kept outside of a segment is sealed."""
    return stored[:1] in (_BOUND, _UNBOUND)


def with_version(sealed: bytes) -> bytes:
    """What a segment without a place holds, in the form that `Keyring.open` reads."""
    return _UNBOUND + sealed


def sealing_key(sealed: bytes) -> bytes:
    """The id of the key that something was sealed with."""
    return sealed[1 : 1 + _ID_BYTES]


def missing_key_text(key_id: bytes) -> str:
    return (
        f"the data is encrypted with the key {key_id.hex()}, which this server does not have: add"
        " it to QUEEN_ENCRYPTION_OLD_KEYS"
    )


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_ID_BYTES]


class EncryptionState(msgspec.Struct, frozen=True):
    """What a server's data is encrypted with, held against the keys that it has.

    *unknown_keys* are ids of keys that are missing, with the kinds of data they are needed for.
    """

    can_seal: bool
    may_store_plain: bool
    queue_count: int  # encrypted ones
    queue_names: list[str]  # some of them
    unknown_keys: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        keyring: Keyring,
        queue_count: int,
        queue_names: list[str],
        in_use: Sequence[tuple[str, bytes]],
    ) -> Self:
        unknown: dict[str, list[str]] = {}
        for place, key_id in in_use:
            if key_id not in keyring.key_ids:
                unknown.setdefault(key_id.hex(), []).append(place)
        return cls(keyring.can_seal, keyring.may_store_plain, queue_count, queue_names, unknown)

    @property
    def keyless_count(self) -> int:
        """How many encrypted queues there are for which there is no key."""
        return 0 if self.can_seal else self.queue_count

    def problems(self) -> list[str]:
        """What an operator has to see to, a sentence each."""
        found = []
        if self.keyless_count:
            names = ", ".join(map(repr, self.queue_names))
            if self.queue_count > len(self.queue_names):
                names += ", ..."
            what = (
                "their messages are stored as plain text (ENCRYPTION_FALLBACK_PLAINTEXT)"
                if self.may_store_plain
                else "pushes to them are refused"
            )
            found.append(
                f"{self.queue_count} queues are encrypted ({names}), but there is no"
                f" QUEEN_ENCRYPTION_KEY: {what}"
            )
        found += [
            f"{' and '.join(places)} are encrypted with the key {key_id}, which is not given: they"
            " cannot be read; add it to QUEEN_ENCRYPTION_OLD_KEYS"
            for key_id, places in self.unknown_keys.items()
        ]
        return found
