"""The few requests of a benchmark, as bytes, and the little that is read from their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from random import Random
from urllib.parse import quote, urlencode

import msgspec

# The 12-bit counter with the version before it; and 2 bits of variant, "10", before 2 random ones.
_COUNTERS = [f"7{counter:03x}" for counter in range(1 << 12)]
_VARIANTS = str.maketrans("0123456789abcdef", "89ab" * 4)


class IdMint:
    """Mints UUIDv7 texts that rise, also within a millisecond (RFC 9562, 6.2, method 1).

    Shape: 48 bits of time, a 12-bit counter that starts again each millisecond, 62 random bits.
    The random bits matter: ids with fewer of them would compress better than a real client's.
    """

    def __init__(self) -> None:
        self._now_ms = 0
        self._used = 0  # counters of this millisecond

    def mint(self, count: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < count:
            now_ms = time.time_ns() // 1_000_000
            if now_ms > self._now_ms:
                self._now_ms, self._used = now_ms, 0
            elif self._used == len(_COUNTERS):
                self._now_ms, self._used = self._now_ms + 1, 0
            counters = _COUNTERS[self._used : self._used + count - len(ids)]
            self._used += len(counters)
            noise = os.urandom(8 * len(counters)).hex()
            head = f"{self._now_ms:012x}"
            head = f"{head[:8]}-{head[8:]}"
            ids += [
                f"{head}-{counter}-{variant}{noise[at : at + 3]}-{noise[at + 3 : at + 15]}"
                for at, counter, variant in zip(
                    range(1, len(noise), 16),
                    counters,
                    noise[::16].translate(_VARIANTS),
                    strict=True,
                )
            ]
        return ids


class _Payload(msgspec.Struct, gc=False):
    id: int


class _Popped(msgspec.Struct, gc=False):
    """A message as popped; what is not needed to check and acknowledge it is skipped.

    A transaction id stays the bytes it came as: it goes into the acknowledgement unchanged.
    """

    data: _Payload
    transactionId: msgspec.Raw  # noqa: N815


class _PoppedAnywhere(_Popped, gc=False):
    """A message of a pop that may claim several partitions: it says itself which it is of."""

    partition: str
    partitionId: str  # noqa: N815


class PopAnswer(msgspec.Struct, gc=False):
    """A delivery of one partition; the top level tells which."""

    partition: str
    partitionId: str  # noqa: N815
    leaseId: str  # noqa: N815
    partitionsClaimed: int  # noqa: N815
    messages: list[_Popped]


class PopAnswerOfSeveral(msgspec.Struct, gc=False):
    """A delivery of several partitions, one after the other."""

    leaseId: str  # noqa: N815
    partitionsClaimed: int  # noqa: N815
    messages: list[_PoppedAnywhere]

    def parts(self) -> list[PopAnswer]:
        """The same as a delivery for each partition, in the order they came."""
        return [
            PopAnswer(name, id_, self.leaseId, 1, list(messages))
            for (name, id_), messages in groupby(
                self.messages, key=lambda message: (message.partition, message.partitionId)
            )
        ]


encoder = msgspec.json.Encoder()
payload_decoder = msgspec.json.Decoder(_Payload)
pop_decoder = msgspec.json.Decoder(PopAnswer)
pop_several_decoder = msgspec.json.Decoder(PopAnswerOfSeveral)

# Filler for payloads of a given size. Hexadecimal digits of noise, cut at another place for each
# message: zstd gets them to a little over half, as it does with much JSON. A constant filler would
# vanish on the way to the disk, and its bytes would cost the server nothing.
_FILLER = Random(1).randbytes(1 << 19).hex()


def push_items(
    queue: str, partition: str, numbers: Iterable[int], ids: Sequence[str], payload_bytes: int = 0
) -> str:
    """The items of a push, without the brackets around them.

    Shape: payloads are `{"id": n}`; with *payload_bytes* they are filled up to that size.
    """
    head = f'{{"queue":{_text(queue)},"partition":{_text(partition)},"payload":'
    return ",".join(
        [
            f'{head}{payload},"transactionId":"{id_}"}}'
            for payload, id_ in zip(payloads(numbers, payload_bytes), ids, strict=True)
        ]
    )


def payloads(numbers: Iterable[int], payload_bytes: int = 0) -> list[str]:
    """The payloads alone, in the shape that `push_items` gives them."""
    if not payload_bytes:
        return [f'{{"id":{number}}}' for number in numbers]
    room = payload_bytes - len('{"id":,"fill":""}')
    starts = len(_FILLER) - payload_bytes
    return [
        f'{{"id":{number},"fill":"{_FILLER[start : start + room - len(str(number))]}"}}'
        for number in numbers
        for start in (number * payload_bytes % starts,)
    ]


def push_body(items: Iterable[str]) -> bytes:
    return f'{{"items":[{",".join(items)}]}}'.encode()


def _text(value: str) -> str:
    return encoder.encode(value).decode()


def pop_path(
    queue: str,
    partition: str | None,
    *,
    batch: int,
    group: str | None,
    wait_ms: int,
    auto_ack: bool,
    partitions: int = 1,
) -> str:
    """The path of a pop; without *partition* any partition of the queue will do."""
    query: dict[str, str | int] = {"batch": batch, "wait": "true", "timeout": wait_ms}
    if partitions != 1:
        query["partitions"] = partitions
    if group is not None:
        query["consumerGroup"] = group
    if auto_ack:
        query["autoAck"] = "true"
    path = f"/api/v1/pop/queue/{quote(queue, safe='')}"
    if partition is not None:
        path += f"/partition/{quote(partition, safe='')}"
    return f"{path}?{urlencode(query)}"


def ack_body(parts: Sequence[PopAnswer], group: str | None) -> bytes:
    """Every message completed by its id, under the lease; made by a join for each partition."""
    encode = encoder.encode
    entries = []
    for part in parts:
        rest = b',"partitionId":%b,"status":"completed","leaseId":%b}' % (
            encode(part.partitionId),
            encode(part.leaseId),
        )
        ids = (rest + b',{"transactionId":').join([m.transactionId for m in part.messages])
        entries.append(b'{"transactionId":%b%b' % (ids, rest))
    return b'{"consumerGroup":%b,"acknowledgments":[%b]}' % (encode(group), b",".join(entries))


def succeeded_count(body: bytes) -> int:
    """How many entries of an acknowledgement's answer say that they succeeded."""
    return body.count(b'"success":true')


def queued_count(body: bytes) -> int:
    """How many entries of a push's answer say that they were stored."""
    return body.count(b'"status":"queued"')
