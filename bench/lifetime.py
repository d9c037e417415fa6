"""Nothing that a benchmark starts outlives it, even when it is killed."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded here: between fork and exec nothing should be


def end_with_parent() -> None:
    """Have the kernel end this process, asking politely, when the one that forked it has ended."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
