"""What the harness does for other brokers, apart from the brokers themselves.

None of them is needed here: their protocols are read from bytes, and verdict and table are given
made-up measurements.
"""

import asyncio
import signal
import struct
import sys
from pathlib import Path

import msgspec
import pytest

from bench.check import Delivery
from bench.client import RequestFailed
from bench.core_seconds import CoreSeconds
from bench.load import ConsumerShare, Share
from bench.measure import Measured
from bench.peers import Peer, messages, nats
from bench.peers.amqp import AmqpConnection, Delivered
from bench.peers.inbox import Inbox
from bench.peers.process import free_port, started, takes_connections
from bench.peers.table import PEERS
from bench.scenarios import Run, peers
from bench.server import ServerFailed

LANE = range(3_000_000_000, 3_000_000_100)  # lane 3 of a load that ends by time


# -- messages --


def test_a_push_holds_its_lane_and_payloads_of_the_canonical_size() -> None:
    lane, payloads = messages.split(messages.encode([("3", LANE)], 256))
    assert lane == 3
    assert [len(payload) for payload in payloads] == [256] * 100
    assert [msgspec.json.decode(payload)["id"] for payload in payloads] == list(LANE)
    popped = messages.popped(payloads, "token")
    assert popped.lots == [("3", list(LANE))]
    assert (popped.message_count, popped.byte_count, popped.token) == (100, 25_600, "token")


def test_what_comes_of_several_lanes_keeps_the_order_of_each() -> None:
    popped = messages.popped_ids([2_000_000_001, 5, 2_000_000_000, 6], 0, None)
    assert popped.lots == [("2", [2_000_000_001, 2_000_000_000]), ("0", [5, 6])]


async def test_an_inbox_gives_what_is_there_and_tells_a_failure() -> None:
    inbox: Inbox[int] = Inbox()
    waiting = asyncio.create_task(inbox.take(2))
    await asyncio.sleep(0)
    for number in (1, 2, 3):
        inbox.add(number)
    assert await waiting == [1, 2]
    assert await inbox.take(2) == [3]
    waiting = asyncio.create_task(inbox.take(2))
    await asyncio.sleep(0)
    inbox.fail(RequestFailed("the broker is gone"))
    with pytest.raises(RequestFailed, match="the broker is gone"):
        await waiting


# -- protocols: bytes may come in pieces of any size --


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def amqp_delivery(tag: int, payload: bytes) -> bytes:
    deliver = struct.pack(">HH", 60, 60) + b"\x05bench" + struct.pack(">QB", tag, 0) + b"\0\1q"
    header = struct.pack(">HHQHB", 60, 0, len(payload), 1 << 12, 2)
    return frame(1, deliver) + frame(2, header) + frame(3, payload)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
async def test_amqp_deliveries_are_read(piece: int) -> None:
    connection = AmqpConnection()
    stream = amqp_delivery(1, b"one") + amqp_delivery(2, b"\xce two \xce")
    for at in range(0, len(stream), piece):
        connection.data_received(stream[at : at + piece])
    assert await connection.inbox.take(10) == [Delivered(1, b"one"), Delivered(2, b"\xce two \xce")]


async def test_amqp_says_why_a_channel_was_closed() -> None:
    connection = AmqpConnection()
    text = b"NOT_FOUND - no queue"
    arguments = struct.pack(">HHHB", 20, 40, 404, len(text)) + text + b"\0\0\0\0"
    connection.data_received(frame(1, arguments))
    with pytest.raises(RequestFailed, match="404 NOT_FOUND"):
        await connection.inbox.take(1)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_nats_messages_are_read(piece: int) -> None:
    found: list[nats.Message] = []
    connection = nats.Connection()
    connection.on_message = found.append
    stream = (
        b'INFO {"version":"2.12.0"}\r\n'
        b"MSG bench.1.3 2 $JS.ACK.a 5\r\nab\r\nc\r\n"
        b"HMSG bench.1.3 2 $JS.ACK.b 16 18\r\nNATS/1.0\r\nA:\r\n\r\nhi\r\n"
        b"HMSG _INBOX.x.m 2 26 26\r\nNATS/1.0 408 Timed Out\r\n\r\n\r\n\r\n"
    )
    for at in range(0, len(stream), piece):
        connection.data_received(stream[at : at + piece])
    assert [(one.reply, one.payload) for one in found] == [
        (b"$JS.ACK.a", b"ab\r\nc"),
        (b"$JS.ACK.b", b"hi"),
        (b"", b""),
    ]


def test_nats_refusals_are_failures() -> None:
    refusal = b'{"error":{"code":400,"description":"no such stream"}}'
    with pytest.raises(RequestFailed, match="no such stream"):
        nats.check(nats.Message(b"", b"", refusal))
    with pytest.raises(RequestFailed, match="nobody is there"):
        nats.check(nats.Message(b"", b"NATS/1.0 503\r\n\r\n", b""))
    assert nats.check(nats.Message(b"", b"", b'{"seq":1}')) == {"seq": 1}


# -- processes --

_LISTENER = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"


def test_a_process_is_waited_for_and_ended_by_its_own_id(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", f"{_LISTENER}; time.sleep(60)", str(port)]
    with started(command, tmp_path, takes_connections(port)) as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGTERM
    assert not takes_connections(port)()


def test_a_process_that_ends_too_soon_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no disk'); raise SystemExit(3)"]
    with (
        pytest.raises(ServerFailed, match=r"ended with code 3:\nno disk"),
        started(command, tmp_path, lambda: False),
    ):
        pass


# -- verdict and table --


def work(name: str, deliveries: list[list[int]], acknowledged: int = 100) -> Measured:
    consumer = ConsumerShare(0, message_count=sum(map(len, deliveries)))
    consumer.acknowledged_count = acknowledged
    consumer.deliveries = [
        Delivery(at, 0, "3", [(ids[0], ids[-1] + 1)]) for at, ids in enumerate(deliveries)
    ]
    pushing = Share(0, 10**9, pushed={"3": LANE})
    consuming = Share(0, 2 * 10**9, consumers=[consumer])
    cores = CoreSeconds(python=0.001, postgres=0.002, machine=0.01)
    return Measured(name, [pushing, consuming], 0.004, cores, {}, {})


IN_ORDER = [list(LANE[:50]), list(LANE[50:])]


@pytest.mark.parametrize(
    ("deliveries", "is_ordered", "acknowledged", "unfinished", "ok"),
    [
        (IN_ORDER, True, 100, 0, True),
        (IN_ORDER[::-1], False, 100, 0, True),  # nobody promised an order
        (IN_ORDER[::-1], True, 100, 0, False),
        (IN_ORDER[:1], False, 50, 0, False),  # lost
        ([*IN_ORDER, list(LANE[:1])], False, 101, 0, False),  # twice
        (IN_ORDER, True, 99, 0, False),
        (IN_ORDER, True, 100, 1, False),  # the peer holds one that is not acknowledged
    ],
)
def test_a_peer_is_judged(
    deliveries: list[list[int]], is_ordered: bool, acknowledged: int, unfinished: int, ok: bool
) -> None:
    found = Run()
    peers.verify(found, "peer", is_ordered, work("peer 1", deliveries, acknowledged), unfinished)
    (check,) = found.checks
    assert check.ok is ok, check.line


def test_the_table_compares_and_says_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(_: Path) -> None:
        raise AssertionError("it is not installed")

    absent = Peer("Absent", "none", True, lambda: "install it", never)  # type: ignore[arg-type]
    present = Peer("Present", "none", True, lambda: None, never)  # type: ignore[arg-type]
    monkeypatch.setattr(peers, "PEERS", (present, absent))
    run = Run()
    run.add(work("queue-server", IN_ORDER), work("Present 1.2", IN_ORDER))
    run.figures = {"queue-server: push msg/s": 100.0, "Present 1.2: push msg/s": 100.0}
    table = peers.table([run])
    assert [row[0] for row in table.rows] == [
        "queue-server",
        "Present 1.2",
        "Absent (not installed: install it)",
    ]
    # 100 messages: 10 core-seconds a million of the broker, 20 of its database, 40 of the client.
    assert table.rows[1] == [
        "Present 1.2", "100", "50", "100", "10.00", "20.00", "30.00", "40.00", "30.00", "1.00",
        "1.00",
    ]  # fmt: skip
    assert set(table.rows[2][1:]) == {"-"}


def test_every_peer_states_what_makes_it_durable() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert any(word in peer.settings for word in ("fsync", "sync")), peer.settings
