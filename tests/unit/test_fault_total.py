"""The long form of the fault tests passes only when nothing was broken and enough was tried."""

from pathlib import Path

from tests.fault.__main__ import is_good, total
from tests.fault.checker import Report, Violation
from tests.fault.run import Phases, Run


def run_of(operations: int, *violations: str) -> Run:
    report = Report(operations, operations // 2, 1.5, [Violation(rule, "") for rule in violations])
    return Run("none", 1, report, Path("history"), 60.0)


def test_all_is_well() -> None:
    runs = [run_of(600_000), run_of(500_000)]
    assert is_good(runs, 1_000_000)
    assert total(runs, 1_000_000).startswith("1,100,000 operations in all")
    assert "\nok" in total(runs, 1_000_000)


def test_too_few_operations_fail() -> None:
    assert not is_good([run_of(999_999)], 1_000_000)
    assert "FAILED: 1,000,000 operations were asked for" in total([run_of(999_999)], 1_000_000)
    assert not is_good([], 1)


def test_any_violation_fails() -> None:
    for rule in ("lost", "throughput", "stuck", "drain"):
        assert not is_good([run_of(2_000_000, rule)], 1_000_000)
        assert "FAILED: promises were broken" in total([run_of(2_000_000, rule)], 1_000_000)


def test_a_longer_run_strikes_several_times_and_takes_as_long_as_it_is_told() -> None:
    assert [Phases.of(seconds).strikes for seconds in (8, 30, 60, 120)] == [1, 1, 2, 4]
    for seconds in (20.0, 30.0, 60.0, 120.0):
        phases = Phases.of(seconds)
        assert abs(phases.seconds - seconds) < 0.1
        assert abs(phases.for_one_strike().seconds - seconds) < 0.1
