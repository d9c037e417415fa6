"""Encryption at rest: AES-256-GCM, one key for writing, any number for reading.

What is sealed carries the id of its key (the first eight bytes of the key's SHA-256), so keys can
be rotated: the new one writes, the old ones stay for reading until what they sealed is gone.

    key id (8 bytes) | nonce (12 bytes) | cipher text | tag (16 bytes)

A nonce is random. At 2^32 seals under one key the chance of a repeated one is about 2^-33, which
is NIST's bound for random nonces (SP 800-38D, 8.3); a seal is a whole segment.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from queue_server.domain.errors import QueueServerError

KEY_BYTES = 32
_ID_BYTES = 8
_NONCE_BYTES = 12
# Marks a sealed payload; JSON text does not begin with it.
_SEALED = b"\x02"


class EncryptionKeyMissing(QueueServerError):
    """The data is encrypted with a key that this server does not have."""

    code = "encryption_key_missing"


class EncryptedDataDamaged(QueueServerError):
    """The encrypted data was changed, or is not what its key id says."""

    code = "encrypted_data_damaged"


class Keyring:
    """The keys of a server. Without a key for writing nothing can be sealed."""

    def __init__(self, writing: bytes | None = None, reading: tuple[bytes, ...] = ()) -> None:
        keys = reading if writing is None else (writing, *reading)
        assert all(len(key) == KEY_BYTES for key in keys), "a key has 32 bytes"
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._writing_id = None if writing is None else _key_id(writing)

    @property
    def can_seal(self) -> bool:
        return self._writing_id is not None

    def seal(self, plain: bytes) -> bytes:
        """Encrypt with the key for writing, which there must be."""
        assert self._writing_id is not None, "there is no key to encrypt with"
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._writing_id]
        return self._writing_id + nonce + cipher.encrypt(nonce, plain, None)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt what `seal` made.

        Errors: `EncryptionKeyMissing`, `EncryptedDataDamaged`.
        """
        key_id = sealed[:_ID_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise EncryptionKeyMissing(
                f"the data is encrypted with the key {key_id.hex()}, which this server does not "
                "have: add it to QUEEN_ENCRYPTION_OLD_KEYS"
            )
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[_ID_BYTES + _NONCE_BYTES :], None)
        except InvalidTag:
            raise EncryptedDataDamaged from None

    def seal_payload(self, payload: bytes, *, encrypt: bool) -> bytes:
        """JSON text as it is kept outside of a segment: sealed, when it came from a sealed one."""
        return _SEALED + self.seal(payload) if encrypt and self.can_seal else payload

    def open_payload(self, stored: bytes) -> bytes:
        """What `seal_payload` was given. Errors: as `open`."""
        return self.open(stored[1:]) if stored.startswith(_SEALED) else stored


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_ID_BYTES]
