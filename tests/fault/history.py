"""The history of a run: every request with its answer and times, one JSON object a line.

A request that got no answer, or a 5xx, is `unknown`: it may have been carried out, may be carried
out later, or never. A `refused` one changed nothing. Times are of one monotonic clock; `wall` lets
a person put a line beside a log.

The checker reads nothing but these records, so a history from a file is judged as one from memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

Outcome = Literal["answered", "refused", "unknown"]

QUEUE_MODE = "__QUEUE_MODE__"


class Queue(msgspec.Struct, frozen=True):
    """What the checker has to know of a queue.

    `groups` read all of it. Those in `sought` are moved about, so nothing is promised of the order
    between their deliveries. With `retention_s` messages go by themselves when they are older. In
    one that is `emptied` messages are removed by requests, and by `ttl_s`; ids are used again, so a
    message is known by its message id alone. The groups in `kept` are never deleted.
    """

    name: str
    groups: list[str] = []
    sought: list[str] = []
    retention_s: float = 0.0
    emptied: bool = False
    ttl_s: float = 0.0
    kept: list[str] = []


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A message that is pushed."""

    queue: str
    partition: str
    id: str
    data: Any


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What a push was told of one item: status `queued` or `duplicate`."""

    status: str
    offset: int
    message_id: str


class Message(msgspec.Struct, frozen=True, array_like=True):
    """A message that was handed out."""

    partition: str
    offset: int
    id: str
    message_id: str
    data: Any


class AckItem(msgspec.Struct, frozen=True, array_like=True):
    partition: str
    offset: int
    id: str
    status: str


class AckResult(msgspec.Struct, frozen=True, array_like=True):
    success: bool
    error: str = ""
    dlq: bool = False
    noop: bool = False


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """A dead letter as the server lists it; `data` None when it has no payload."""

    group: str
    partition: str
    id: str
    data: Any


class Request(msgspec.Struct, kw_only=True):
    """What all requests have. `begin` and `end` are seconds of the monotonic clock."""

    client: str = ""
    begin: float
    end: float
    wall: float = 0.0
    outcome: Outcome = "answered"
    status: int = 0
    error: str = ""


class Push(Request, kw_only=True, tag="push"):
    items: list[Item]
    results: list[Stored] = []  # aligned with `items` when answered


class Pop(Request, kw_only=True, tag="pop"):
    queue: str
    group: str
    partition: str = ""  # "" = any
    wait_ms: int = 0  # 0 = it did not wait
    lease_s: float
    lease_id: str = ""
    messages: list[Message] = []


class Ack(Request, kw_only=True, tag="ack"):
    queue: str
    group: str
    lease_id: str
    items: list[AckItem]
    results: list[AckResult] = []  # aligned with `items` when answered


class Transaction(Request, kw_only=True, tag="transaction"):
    """Acks and pushes that happen together. Attempts of one transaction share `key`.

    `reason` tells why it was refused.
    """

    key: str
    queue: str
    group: str
    lease_id: str
    acks: list[AckItem]
    items: list[Item]
    reason: str = ""


class Extend(Request, kw_only=True, tag="extend"):
    lease_id: str
    seconds: float
    renewed: int = 0


class Seek(Request, kw_only=True, tag="seek"):
    queue: str
    group: str


class Removal(Request, kw_only=True, tag="removal"):
    """Something is removed: `what` is delete, bury, clear, purge, redrive, queue or group.

    `partition` "" = all. `status` 404: there was no such thing (any more).
    """

    queue: str
    what: str
    partition: str = ""
    id: str = ""


class Figures(Request, kw_only=True, tag="figures"):
    """What the server said that a queue holds, `about` it as a whole or for a group."""

    queue: str
    about: str
    pending: int = 0
    processing: int = 0
    ready: int = 0


class Plan(msgspec.Struct, tag="plan"):
    """The first record."""

    seed: int
    queues: list[Queue]


class Mark(msgspec.Struct, tag="mark"):
    """A moment: load_begin, load_end, and fault_begin and fault_end of each fault between them."""

    name: str
    time: float
    note: str = ""


class Log(msgspec.Struct, tag="log"):
    """What a partition held at the end, read by a group that had never read before."""

    queue: str
    partition: str
    messages: list[Message]


class DeadLetters(msgspec.Struct, tag="dead_letters"):
    """A queue's dead letters at the end."""

    queue: str
    letters: list[Letter]


Record = (
    Plan
    | Mark
    | Push
    | Pop
    | Ack
    | Transaction
    | Extend
    | Seek
    | Removal
    | Figures
    | Log
    | DeadLetters
)  # told apart by their tags

BUFFER_BYTES = 1 << 18


class Recorder:
    """Appends the records to a file, and keeps of them what the run itself wants to know.

    They are written in pieces, and at each mark, so that a run that hangs leaves its history.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.operations = 0
        self.push_ends: list[float] = []  # of the answered pushes, in order
        self._encode = msgspec.json.Encoder().encode
        self._file = path.open("wb", buffering=BUFFER_BYTES)

    def add(self, record: Record) -> None:
        if isinstance(record, Request):
            self.operations += 1
            if isinstance(record, Push) and record.outcome == "answered":
                self.push_ends.append(record.end)
        self._file.write(self._encode(record) + b"\n")

    def mark(self, name: str, note: str = "") -> float:
        now = time.monotonic()
        self.add(Mark(name, now, note))
        self._file.flush()
        return now

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    decode: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        for line in file:
            yield decode.decode(line)
