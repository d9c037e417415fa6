"""Seals open with their key and with no other, whole or not at all."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.encryption import EncryptedDataDamaged, EncryptionKeyMissing, Keyring

OLD, NEW = os.urandom(32), os.urandom(32)


@given(st.binary())
def test_what_is_sealed_opens_and_does_not_show(plain: bytes) -> None:
    keyring = Keyring(NEW)
    sealed = keyring.seal(plain)
    assert keyring.open(sealed) == plain
    assert len(plain) < 4 or plain not in sealed
    assert keyring.seal(plain) != sealed


def test_a_rotated_key_still_reads_and_the_new_one_writes() -> None:
    before = Keyring(OLD).seal(b"before")
    rotated = Keyring(NEW, (OLD,))
    assert rotated.open(before) == b"before"
    assert Keyring(NEW).open(rotated.seal(b"after")) == b"after"


def test_a_missing_key_is_named_and_not_shown() -> None:
    sealed = Keyring(OLD).seal(b"text")
    with pytest.raises(EncryptionKeyMissing) as caught:
        Keyring(NEW).open(sealed)
    assert sealed[:8].hex() in caught.value.message
    assert OLD.hex() not in caught.value.message


@pytest.mark.parametrize("place", [8, 20, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    sealed = bytearray(Keyring(NEW).seal(b"a longer text"))
    sealed[place] ^= 1
    with pytest.raises(EncryptedDataDamaged):
        Keyring(NEW).open(bytes(sealed))


def test_payloads_are_sealed_only_where_they_were() -> None:
    keyring = Keyring(NEW)
    assert keyring.seal_payload(b"{}", encrypt=False) == b"{}"
    sealed = keyring.seal_payload(b'{"secret":1}', encrypt=True)
    assert b"secret" not in sealed
    assert keyring.open_payload(sealed) == b'{"secret":1}'
    assert keyring.open_payload(b"{}") == b"{}"
