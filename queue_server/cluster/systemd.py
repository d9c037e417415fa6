"""Tell systemd how the service is doing, when it asked to be told (`Type=notify`).

Source: sd_notify(3). A datagram to the socket named in NOTIFY_SOCKET; outside of systemd nothing
happens.
"""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send *state*, such as "READY=1"; a lost message must not harm the service."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]  # the abstract namespace
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        channel.setblocking(False)
        channel.sendto(state.encode(), path)


def watchdog_interval() -> float | None:
    """How often to send "WATCHDOG=1", in seconds; None when systemd does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or meant_for != str(os.getpid()):
        return None
    # Twice within the allowed silence, as sd_watchdog_enabled(3) recommends.
    return int(microseconds) / 1e6 / 2
