"""Connections that the supervisor passes on."""

import socket
from collections.abc import Iterator

import pytest

from queue_server.cluster.sockets import SlotSockets, open_listeners, open_slot_sockets
from queue_server.cluster.stand_in import Absent, StandIn
from queue_server.observability.counters import Counters


@pytest.fixture
def handovers() -> Iterator[SlotSockets]:
    sockets = open_slot_sockets(3)
    yield sockets
    sockets.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    with listener:
        yield listener


def connect(listener: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def handed(receiver: socket.socket) -> list[socket.socket]:
    """The connections that a slot has been handed."""
    found: list[socket.socket] = []
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(receiver, 1, 1)
        except BlockingIOError:
            return found
        found += [socket.socket(fileno=descriptor) for descriptor in descriptors]


def close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def test_they_go_to_ready_workers_evenly(handovers: SlotSockets, listener: socket.socket) -> None:
    counters = Counters(3)
    stand_in = StandIn(handovers.senders, counters)
    absent = [Absent(listener, handovers.receivers[0], is_dead=True)]
    assert stand_in.sources(absent) == []  # nobody to give them to
    for slot in (1, 2):
        counters.worker(slot).set_ready()
    assert stand_in.sources(absent) == [listener, handovers.receivers[0]]
    clients = connect(listener, 6)
    stand_in.pass_on([listener])
    given = [handed(receiver) for receiver in handovers.receivers]
    assert [len(some) for some in given] == [0, 3, 3]
    # They are the clients' connections, not copies that somebody else reads too.
    clients[0].sendall(b"x")
    peers = {one.getpeername(): one for some in given for one in some}
    assert peers[clients[0].getsockname()].recv(1) == b"x"
    for some in (clients, *given):
        close(some)


def test_what_a_dead_worker_was_handed_goes_on(
    handovers: SlotSockets, listener: socket.socket
) -> None:
    counters = Counters(3)
    counters.worker(2).set_ready()
    stand_in = StandIn(handovers.senders, counters)
    clients = connect(listener, 1)
    connection, _ = listener.accept()
    socket.send_fds(handovers.senders[0], [b"c"], [connection.fileno()])
    connection.close()
    draining = Absent(listener, handovers.receivers[0], is_dead=False)
    assert stand_in.sources([draining]) == [listener]  # it reads what it was handed itself
    dead = Absent(listener, handovers.receivers[0], is_dead=True)
    stand_in.pass_on(stand_in.sources([dead]))
    given = handed(handovers.receivers[2])
    assert len(given) == 1
    close(clients + given)


def test_what_nobody_has_room_for_is_kept_and_no_more_is_accepted(
    handovers: SlotSockets, listener: socket.socket
) -> None:
    counters = Counters(3)
    counters.worker(1).set_ready()
    stand_in = StandIn(handovers.senders, counters)
    filler = 0
    with pytest.raises(BlockingIOError):
        while True:
            handovers.senders[1].send(b"c")
            filler += 1
    clients = connect(listener, 3)
    stand_in.pass_on([listener])
    assert stand_in.is_waiting
    assert stand_in.sources([Absent(listener, handovers.receivers[0], is_dead=True)]) == []
    for _ in range(filler):
        handovers.receivers[1].recv(1)
    stand_in.pass_on([])
    first = handed(handovers.receivers[1])
    assert len(first) == 1  # the one that was kept
    stand_in.pass_on([listener])
    rest = handed(handovers.receivers[1])
    assert len(rest) == 2
    close(clients + first + rest)
