"""A clock for open loops: tells when requests are due, to some ten microseconds.

uvloop's own timers go by whole milliseconds, which is what a push takes. A timer of the kernel
(timerfd_create(2)) is exact, and counts the ticks that nobody had time for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_HEAD_START_NS = 5_000_000  # until the first tick: time to get ready
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """struct itimerspec: interval and first value, each in seconds and nanoseconds."""

    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    ]


class Ticks:
    """*rate* ticks a second on the monotonic clock, from now on."""

    def __init__(self, rate: float) -> None:
        self._interval_ns = max(1, round(1e9 / rate))
        self.first_ns = time.monotonic_ns() + _HEAD_START_NS
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        spec = _Spec(
            *divmod(self._interval_ns, 1_000_000_000), *divmod(self.first_ns, 1_000_000_000)
        )
        if self._fd < 0 or _libc.timerfd_settime(
            self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None
        ):
            raise OSError(ctypes.get_errno(), "no timer of the kernel")
        self._ticked = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._ticked.set)

    def at_ns(self, number: int) -> int:
        """When tick *number* is due, counted from 0."""
        return self.first_ns + number * self._interval_ns

    async def wait(self) -> int:
        """Wait for ticks; how many there were since the last time."""
        await self._ticked.wait()
        self._ticked.clear()
        try:
            return int.from_bytes(os.read(self._fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
