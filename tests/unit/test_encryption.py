"""Seals open with their key, at their place, and with no other, whole or not at all."""

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.encryption import (
    EncryptedDataDamaged,
    EncryptionKeyMissing,
    Keyring,
    dead_letter_place,
    held_push_place,
    reason_place,
    segment_place,
    trace_place,
    with_version,
)
from queue_server.domain.segment import CODEC_ENCRYPTED, decrypt, pack, sealed_by
from queue_server.storage.sealing import open_payload, open_reason, seal_letter

OLD, NEW = os.urandom(32), os.urandom(32)
ID = uuid.UUID(int=7)
PLACE = segment_place("q", 1, ID, 3)


@given(st.binary())
def test_what_is_sealed_opens_and_does_not_show(plain: bytes) -> None:
    keyring = Keyring(NEW)
    sealed = keyring.seal(plain, PLACE)
    assert keyring.open(sealed, PLACE) == plain
    assert len(plain) < 4 or plain not in sealed
    assert keyring.seal(plain, PLACE) != sealed


def test_a_rotated_key_still_reads_and_the_new_one_writes() -> None:
    before = Keyring(OLD).seal(b"before", PLACE)
    rotated = Keyring(NEW, (OLD,))
    assert rotated.open(before, PLACE) == b"before"
    assert Keyring(NEW).open(rotated.seal(b"after", PLACE), PLACE) == b"after"


def test_a_missing_key_is_named_and_not_shown() -> None:
    sealed = Keyring(OLD).seal(b"text", PLACE)
    with pytest.raises(EncryptionKeyMissing) as caught:
        Keyring(NEW).open(sealed, PLACE)
    assert caught.value.key_id == sealed[1:9]
    assert sealed[1:9].hex() in caught.value.message
    assert OLD.hex() not in caught.value.message


@pytest.mark.parametrize("position", [0, 9, 21, -1])
def test_a_changed_byte_is_noticed(position: int) -> None:
    sealed = bytearray(Keyring(NEW).seal(b"a longer text", PLACE))
    sealed[position] ^= 1
    with pytest.raises(EncryptedDataDamaged):
        Keyring(NEW).open(bytes(sealed), PLACE)


@pytest.mark.parametrize("length", [0, 1, 9, 20, 21, 30])
def test_a_stump_is_noticed(length: int) -> None:
    sealed = Keyring(NEW).seal(b"a longer text", PLACE)
    with pytest.raises((EncryptedDataDamaged, EncryptionKeyMissing)):
        Keyring(NEW).open(sealed[:length], PLACE)


def test_it_opens_at_its_place_alone() -> None:
    places = [
        PLACE,
        segment_place("r", 1, ID, 3),
        segment_place("q", 2, ID, 3),
        segment_place("q", 1, uuid.UUID(int=8), 3),
        segment_place("q", 1, ID, 4),
        dead_letter_place("q", 1, ID),
        reason_place("q", 1, ID),
        trace_place("q", 1, ID),
        dead_letter_place("q", 1, uuid.UUID(int=8)),
        held_push_place(1, "q", None),
        held_push_place(2, "q", None),
        held_push_place(1, None, None),
        held_push_place(1, "q", []),
    ]
    assert len(set(places)) == len(places)
    keyring = Keyring(NEW)
    for place in places:
        sealed = keyring.seal(b"text", place)
        for other in places:
            if other == place:
                assert keyring.open(sealed, other) == b"text"
            else:
                with pytest.raises(EncryptedDataDamaged):
                    keyring.open(sealed, other)


def test_what_was_sealed_without_a_place_is_read() -> None:
    """Version 2; without its version byte in a segment."""
    nonce = os.urandom(12)
    keyring = Keyring(NEW)
    key_id = keyring.key_ids[0]
    body = key_id + nonce + keyring._ciphers[key_id].encrypt(nonce, b"text", None)
    assert keyring.open_payload(with_version(body), PLACE) == b"text"
    assert decrypt(CODEC_ENCRYPTED, body, keyring, PLACE) == (0, b"text")
    assert sealed_by(CODEC_ENCRYPTED, body) == key_id
    # What is bound does not open as if it were not.
    codec, bound = pack(b"text", keyring, PLACE)
    assert sealed_by(codec, bound) == key_id
    with pytest.raises(EncryptedDataDamaged):
        decrypt(CODEC_ENCRYPTED, bound[1:], keyring, PLACE)


def test_a_letter_is_sealed_with_the_key_that_opened_its_message() -> None:
    """Without a key for writing: nothing of it is ever stored as it is."""
    keyring = Keyring(None, (OLD,))
    fields = seal_letter(
        keyring, "q", 1, b"{}", "why", is_encrypted=False, opened_with=keyring.key_ids[0]
    )
    assert fields["payload"] != b"{}"
    assert fields["error_message"] == ""
    id_ = fields["id"]
    assert open_payload(keyring, "q", 1, id_, fields["payload"]) == b"{}"
    assert open_reason(keyring, "q", 1, id_, "", fields["sealed_error"]) == "why"
    assert fields["error_key"] in Keyring(NEW, (OLD,)).reason_keys("why")
    with pytest.raises(EncryptionKeyMissing):
        seal_letter(keyring, "q", 1, b"{}", "why", is_encrypted=True, opened_with=None)
    plain = Keyring(fallback_plaintext=True)
    fields = seal_letter(plain, "q", 1, b"{}", "why", is_encrypted=True, opened_with=None)
    assert (fields["payload"], fields["error_message"]) == (b"{}", "why")


def test_reasons_are_grouped_by_their_first_characters() -> None:
    keyring = Keyring(NEW)
    assert keyring.reason_key("a" * 500 + "b") == keyring.reason_key("a" * 501)
    assert keyring.reason_key("a" * 500) != keyring.reason_key("a" * 499)
    assert keyring.reason_key("a") != Keyring(OLD).reason_key("a")
