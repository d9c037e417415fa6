"""The short form of the fault tests: a few seconds of the most telling faults.

The long form, with all faults, is `make fault`. The throughput afterwards is judged mildly here:
the tests share their machine with others.
"""

from pathlib import Path

import pytest

from tests.databases import DatabaseKind
from tests.fault.faults import FAULTS
from tests.fault.run import Phases, run

pytestmark = pytest.mark.alone

SEED = 1
PHASES = Phases(before=2.0, during=2.5, after=3.0)
RECOVERY_SHARE = 0.4


@pytest.mark.parametrize("name", ["kill-workers", "stop-worker", "postgres-kill", "network-commit"])
async def test_every_promise_is_kept(
    name: str, tmp_path: Path, database_kind: DatabaseKind
) -> None:
    done = await run(FAULTS[name], SEED, PHASES, tmp_path, database_kind, RECOVERY_SHARE)
    assert done.report.violations == [], (
        f"history {done.history}; python -m tests.fault --faults {name} --seed {SEED}"
    )
    assert done.report.answered_pushes > 100
