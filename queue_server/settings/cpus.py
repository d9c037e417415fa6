"""The number of CPUs this process may keep busy, the default number of workers."""

import math
import os
from pathlib import Path


def usable_cpu_count(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may keep busy: its affinity, capped by its cgroup's quota.

    Source: the kernel's cgroup-v2.rst, "cpu.max", and sched-bwc.rst for version 1. A quota of two
    and a half CPUs counts as three: the workers also wait for the database. *root* is for tests.
    """
    count = len(os.sched_getaffinity(0))
    return max(1, min([count, *(math.ceil(quota) for quota in _cgroup_cpu_quotas(root))]))


def _cgroup_cpu_quotas(root: Path) -> list[float]:
    """Return the CPU quotas of this process: its own cgroup's and those of the groups above."""
    quotas = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for group in [Path(path), *Path(path).parents]:
            below_mount = str(group).lstrip("/")
            if not controllers:  # version 2 has one hierarchy and names no controller
                limit = _read_text(root / "sys/fs/cgroup" / below_mount / "cpu.max").split()
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers / below_mount
                limit = [
                    _read_text(folder / "cpu.cfs_quota_us").strip(),
                    _read_text(folder / "cpu.cfs_period_us").strip(),
                ]
            else:
                break
            # "max" in version 2, -1 in version 1 and an absent file all mean no limit.
            if len(limit) == 2 and limit[0].isdecimal() and limit[1].isdecimal():
                quotas.append(int(limit[0]) / max(1, int(limit[1])))
    return quotas


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
