"""How much memory a server's workers take, from /proc.

The peak of a worker is the kernel's own count of its resident pages (VmHWM), set back before each
measurement. It includes pages shared with the supervisor it was forked from, so it is an upper
bound. The sum over all workers counts shared pages once (PSS) and is sampled once a second.
"""

from __future__ import annotations

import time
from pathlib import Path

_PROC = Path("/proc")
_SAMPLE_S = 1.0  # a sample walks the page tables, about a millisecond a worker


class MemoryMeter:
    """Watches the processes *pids*."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._sampled_at = 0.0
        self.pss_peak_bytes = 0  # of all workers together
        for pid in pids:
            # 5: set the peak back to what is resident now (proc(5), clear_refs).
            (_PROC / str(pid) / "clear_refs").write_text("5", "ascii")

    def sample(self) -> None:
        """Look, unless somebody just did."""
        if time.monotonic() - self._sampled_at >= _SAMPLE_S:
            self.pss_peak_bytes = max(self.pss_peak_bytes, self.pss_bytes())
            self._sampled_at = time.monotonic()

    def pss_bytes(self) -> int:
        return sum(_field(pid, "smaps_rollup", "Pss:") for pid in self._pids)

    def largest_worker_bytes(self) -> int:
        """The highest peak of any one worker since the start."""
        return max((_field(pid, "status", "VmHWM:") for pid in self._pids), default=0)


def _field(pid: int, file: str, name: str) -> int:
    for line in (_PROC / str(pid) / file).read_text("ascii", "replace").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
