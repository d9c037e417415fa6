"""The canonical messages, in the form that the peers' drivers share.

A push body is the lane's name and the payloads, a line each: the payloads are JSON without line
breaks, and a driver splits them again for a small part of what sending them costs. Consumers tell a
message's lane by its id, so that nothing has to travel beside the payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import wire
from bench.driver import Lot, Popped
from bench.loads import lane_of

_END = b"\n"


def encode(lots: Sequence[Lot], payload_bytes: int) -> bytes:
    ((lane, numbers),) = lots  # a push goes to one lane
    return _END.join(
        [lane.encode(), *(text.encode() for text in wire.payloads(numbers, payload_bytes))]
    )


def split(body: bytes) -> tuple[int, list[bytes]]:
    """The lane of a push, and its payloads."""
    lane, *payloads = body.split(_END)
    return int(lane), payloads


def popped(payloads: Sequence[bytes], token: object) -> Popped:
    decode = wire.payload_decoder.decode
    ids = [decode(payload).id for payload in payloads]
    return popped_ids(ids, sum(map(len, payloads)), token)


def popped_ids(ids: Iterable[int], byte_count: int, token: object) -> Popped:
    """What a pop brought, by lane, in the order it came."""
    lots: dict[str, list[int]] = {}
    for id_ in ids:
        lots.setdefault(lane_of(id_), []).append(id_)
    return Popped(list(lots.items()), sum(map(len, lots.values())), byte_count, token)
