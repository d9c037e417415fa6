"""The terminal that the server was started on, and whether a SIGHUP is about its end.

SIGHUP means two things: an operator asks for new workers, or the terminal has gone away. Nothing in
the signal tells them apart. A closed window makes the kernel signal the foreground, and the shell
its other jobs with an ordinary kill; each may come shortly before or after this process loses its
terminal. So a SIGHUP belongs to the terminal when both happen within `_TOGETHER_S`.

    started by                          SIGHUP from the closed terminal
    a shell, in fore- or background     the server drains and stops
    nohup                               ignored, as nohup promises
    setsid, systemd, a container        comes to nobody: there is no terminal to lose
    a shell, then `disown` or `exit`    comes to nobody: the server goes on without a terminal

Any other SIGHUP, also to a server that lost its terminal long ago, asks for new workers.
"""

import os
import signal
import time

_TOGETHER_S = 2.0
# Two system calls; the supervisor's loop turns up to twenty times a second.
_CHECK_INTERVAL_S = 0.2


class ControllingTerminal:
    """The controlling terminal of this process, if it has one.

    To be made before the handler of SIGHUP is set, which would hide what nohup set.
    """

    def __init__(self) -> None:
        self.is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._is_there = _has_terminal()
        self._checked_at = time.monotonic()
        self._lost_at = float("-inf")
        self._hung_up_at = float("-inf")

    def note_hangup(self) -> bool:
        """Take note of a SIGHUP; True when the terminal has just gone."""
        self._hung_up_at = time.monotonic()
        self._check()
        return self._went_away()

    def watch(self) -> bool:
        """Whether a SIGHUP that was taken for a request turns out to be the terminal's end."""
        is_due = time.monotonic() - self._checked_at >= _CHECK_INTERVAL_S
        return is_due and self._check() and self._went_away()

    def _check(self) -> bool:
        """Whether the terminal has gone since the last check."""
        self._checked_at = time.monotonic()
        if not self._is_there or _has_terminal():
            return False
        self._is_there = False
        self._lost_at = self._checked_at
        return True

    def _went_away(self) -> bool:
        return abs(self._hung_up_at - self._lost_at) <= _TOGETHER_S


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
