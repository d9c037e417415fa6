"""The few requests of a benchmark, as bytes, and the little that is read from their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from urllib.parse import quote, urlencode

import msgspec

_SEQUENCE_MAX = 0xFFF
_VARIANTS = "89ab"


class IdMint:
    """Mints UUIDv7 texts that rise, also within a millisecond (RFC 9562, 6.2, method 1).

    Shape: 48 bits of time, a 12-bit counter that starts again each millisecond, 62 random bits.
    The random bits matter: ids with fewer of them would compress better than a real client's.
    """

    def __init__(self) -> None:
        self._now_ms = 0
        self._sequence = 0

    def mint(self, count: int) -> list[str]:
        noise = os.urandom(8 * count).hex()
        ids = []
        for start in range(0, 16 * count, 16):
            now_ms = time.time_ns() // 1_000_000
            if now_ms > self._now_ms:
                self._now_ms, self._sequence = now_ms, 0
            elif self._sequence == _SEQUENCE_MAX:
                self._now_ms, self._sequence = self._now_ms + 1, 0
            else:
                self._sequence += 1
            head = f"{self._now_ms:012x}"
            variant = _VARIANTS[int(noise[start], 16) & 3]
            ids.append(
                f"{head[:8]}-{head[8:]}-7{self._sequence:03x}-{variant}"
                f"{noise[start + 1 : start + 4]}-{noise[start + 4 : start + 16]}"
            )
        return ids


class _PushItem(msgspec.Struct, gc=False):
    queue: str
    partition: str
    payload: dict[str, int]
    transactionId: str  # noqa: N815


class _Payload(msgspec.Struct, gc=False):
    id: int


class _Popped(msgspec.Struct, gc=False):
    """A message as popped; what is not needed to check and acknowledge it is skipped.

    A transaction id stays the bytes it came as: it goes into the acknowledgement unchanged.
    """

    data: _Payload
    transactionId: msgspec.Raw  # noqa: N815


class PopAnswer(msgspec.Struct, gc=False):
    """A delivery; the pops of a benchmark claim one partition, so the top level tells which."""

    partition: str
    partitionId: str  # noqa: N815
    leaseId: str  # noqa: N815
    partitionsClaimed: int  # noqa: N815
    messages: list[_Popped]


encoder = msgspec.json.Encoder()
pop_decoder = msgspec.json.Decoder(PopAnswer)


def push_body(queue: str, partition: str, numbers: Iterable[int], ids: Sequence[str]) -> bytes:
    items = [
        _PushItem(queue, partition, {"id": number}, id_)
        for number, id_ in zip(numbers, ids, strict=True)
    ]
    return encoder.encode({"items": items})


def pop_path(
    queue: str,
    partition: str | None,
    *,
    batch: int,
    group: str | None,
    wait_ms: int,
    auto_ack: bool,
) -> str:
    """The path of a pop; without *partition* any partition of the queue will do."""
    query: dict[str, str | int] = {"batch": batch, "wait": "true", "timeout": wait_ms}
    if group is not None:
        query["consumerGroup"] = group
    if auto_ack:
        query["autoAck"] = "true"
    path = f"/api/v1/pop/queue/{quote(queue, safe='')}"
    if partition is not None:
        path += f"/partition/{quote(partition, safe='')}"
    return f"{path}?{urlencode(query)}"


def ack_body(delivery: PopAnswer, group: str | None) -> bytes:
    """Every message completed by its id, under the lease; made by a single join."""
    encode = encoder.encode
    rest = b',"partitionId":%b,"status":"completed","leaseId":%b}' % (
        encode(delivery.partitionId),
        encode(delivery.leaseId),
    )
    entries = (rest + b',{"transactionId":').join([m.transactionId for m in delivery.messages])
    return b'{"consumerGroup":%b,"acknowledgments":[{"transactionId":%b%b]}' % (
        encode(group),
        entries,
        rest,
    )


def succeeded_count(body: bytes) -> int:
    """How many entries of an acknowledgement's answer say that they succeeded."""
    return body.count(b'"success":true')


def queued_count(body: bytes) -> int:
    """How many entries of a push's answer say that they were stored."""
    return body.count(b'"status":"queued"')
