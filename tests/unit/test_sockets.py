"""Listeners and wake-up sockets of the worker slots."""

import contextlib
import socket
import threading

import pytest

from queue_server.cluster.sockets import (
    ListenError,
    open_listeners,
    open_slot_sockets,
    url_of,
)
from queue_server.cluster.supervisor import restart_delay


def test_all_slots_share_the_port_that_was_picked() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in open_listeners("127.0.0.1", 0, 3)]
        assert len({listener.getsockname() for listener in listeners}) == 1
        port = listeners[0].getsockname()[1]
        assert port
        assert url_of(listeners[0]) == f"http://127.0.0.1:{port}"


def test_a_port_that_another_server_would_share_is_taken() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in open_listeners("127.0.0.1", 0, 2)]
        port = listeners[0].getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: Address already in use"):
            open_listeners("127.0.0.1", port, 2)


def test_the_workers_of_a_killed_predecessor_get_a_moment() -> None:
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    port = listener.getsockname()[1]
    closing = threading.Timer(0.2, listener.close)
    closing.start()
    (successor,) = open_listeners("127.0.0.1", port, 1, predecessor_ended_badly=True)
    successor.close()
    closing.join()


def test_a_port_with_connections_of_a_former_server_can_be_used_again() -> None:
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    address = listener.getsockname()
    with listener, socket.create_connection(address):
        connection, _ = listener.accept()
        connection.close()  # who closes first keeps the port in TIME_WAIT
    (again,) = open_listeners(address[0], address[1], 1)
    again.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "a" * 300])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {host}:0: "):
        open_listeners(host, 0, 1)


def test_a_wakeup_reaches_its_slot_and_a_full_queue_does_not_block() -> None:
    sockets = open_slot_sockets(2)
    sockets.senders[1].send(b"wake up")
    assert sockets.receivers[1].recv(64) == b"wake up"
    with pytest.raises(BlockingIOError):
        sockets.receivers[0].recv(64)
    with pytest.raises(BlockingIOError):
        while True:
            sockets.senders[0].send(b"wake up")
    sockets.close()


def test_restarts_are_immediate_at_first_and_then_ever_rarer() -> None:
    assert restart_delay(1) == 0
    assert 0.3 < restart_delay(2) <= 0.5
    assert 0.7 < restart_delay(3) <= 1
    assert 3.5 < restart_delay(1000) <= 5
    # Unless nobody else serves meanwhile.
    assert restart_delay(1, alone=True) == 0
    assert 0.3 < restart_delay(1000, alone=True) <= 0.5
