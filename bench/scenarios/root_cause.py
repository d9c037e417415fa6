"""The scenario of the original root-cause analysis: a million messages, ten consumers, two modes.

There, consumers that popped the queue without naming partitions took turns behind partition locks:
2.2 k msg/s instead of 161 k. So the number that matters most is the ratio of the two modes, taken
within one run; the order of the modes alternates from run to run, so that whatever drifts (caches,
the size of the log, neighbours on the machine) does not favour one of them.

Every run pushes to a queue of its own, before each mode. Sizes are those of the analysis. A warm-up
of a tenth goes first, through both modes, and is thrown away: it is there for the database's files
and caches, for the server's imports and for the processor's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench import consumer, producer, report
from bench.check import Shares
from bench.consumer import PopOptions, PopResult
from bench.producer import PushOptions, PushResult
from bench.report import Check, ScenarioReport, Table
from bench.scenarios import Context

_PARTITIONS = 10
_CONSUMERS = 10  # one for each partition
_CONNECTIONS = 4  # pushes in flight: enough to keep two workers busy, with one waiting at each
_BATCH = 10_000
_WARM_UP_PART = 10

# A smaller run is over before the server is warm, so targets are for this size and above.
_TARGET_SIZE = 1_000_000
# On two cores that server, database and load generator share.
_PUSH_TARGET = 300_000  # msg/s
_PARTITION_TARGET = 300_000  # msg/s, every message acknowledged
_RATIO_TARGET = 0.9  # queue mode over partition mode


@dataclass(frozen=True)
class _Pass:
    """A push, and its consumption in one mode."""

    push: PushResult
    pop: PopResult


_Run = dict[str, _Pass]  # by mode


def run(context: Context) -> ScenarioReport:
    batch = max(1, min(_BATCH, context.message_count // (_PARTITIONS * _PARTITIONS)))
    warm_up = max(_PARTITIONS, context.message_count // _WARM_UP_PART)
    for mode in consumer.MODES:
        _pass(context, f"warm-up.{mode}", mode, warm_up, batch)
    runs = [_run(context, number, batch) for number in range(context.run_count)]
    return ScenarioReport(
        scenario="root-cause",
        settings={
            "messages": context.message_count,
            "partitions": _PARTITIONS,
            "messages a request": batch,
            "pushes in flight": _CONNECTIONS,
            "consumers": _CONSUMERS,
            "runs": context.run_count,
            "warm-up": f"{warm_up} messages through each mode, not counted",
            "request bodies": "encoded before the clock starts",
        },
        tables=[
            _runs_table(runs),
            _cost_table(runs),
            _evenness_table(runs),
            _latency_table(runs),
            _phases_table(runs),
        ],
        checks=_checks(runs) + (_targets(runs) if context.message_count >= _TARGET_SIZE else []),
        data=_data(runs),
    )


def _run(context: Context, number: int, batch: int) -> _Run:
    modes = consumer.MODES if number % 2 == 0 else consumer.MODES[::-1]
    return {
        mode: _pass(context, f"run-{number + 1}.{mode}", mode, context.message_count, batch)
        for mode in modes
    }


def _pass(context: Context, name: str, mode: str, message_count: int, batch: int) -> _Pass:
    queue = f"{producer.DEFAULT_QUEUE}.{name}"
    shares = Shares(message_count, _PARTITIONS)
    context.console.print(f"{name}: {message_count:,} messages", highlight=False)
    push = producer.run(
        PushOptions(context.url, queue, shares, batch, _CONNECTIONS),
        context.console,
        context.meter,
    )
    pop = consumer.run(
        PopOptions(context.url, queue, shares, batch, mode, _CONSUMERS),
        context.console,
        context.meter,
    )
    return _Pass(push, pop)


# -- the numbers --


def _ratio(run: _Run) -> float:
    return run["queue"].pop.rate / run["partition"].pop.rate


def _pushes(runs: list[_Run]) -> list[PushResult]:
    return [run[mode].push for run in runs for mode in run]


def _pops(runs: list[_Run], mode: str) -> list[PopResult]:
    return [run[mode].pop for run in runs]


def _runs_table(runs: list[_Run]) -> Table:
    table = Table(
        "msg/s",
        ["run", "push (before each mode)", "partition mode", "queue mode", "queue/partition"],
    )
    for number, run in enumerate(runs, 1):
        pushes = " / ".join(f"{run[mode].push.rate:,.0f}" for mode in consumer.MODES)
        table.rows.append(
            [str(number), pushes, *(f"{run[mode].pop.rate:,.0f}" for mode in consumer.MODES),
             f"{_ratio(run):.2f}"]
        )  # fmt: skip
    table.rows.append(
        ["median", f"{median(p.rate for p in _pushes(runs)):,.0f}",
         *(f"{median(p.rate for p in _pops(runs, mode)):,.0f}" for mode in consumer.MODES),
         f"{median(map(_ratio, runs)):.2f}"]
    )  # fmt: skip
    return table


def _cost_table(runs: list[_Run]) -> Table:
    table = Table(
        "core-seconds per million messages, medians",
        ["work", "workers", "PostgreSQL", "server in all", "load generator"],
    )
    for name, results in _work(runs).items():
        table.rows.append([name, *(f"{middle:.2f}" for middle in _costs(results).values())])
    return table


def _costs(results: Sequence[PushResult | PopResult]) -> dict[str, float]:
    """Median core-seconds per million messages, in the order of the table's columns."""

    def middle(cost: Callable[[PushResult | PopResult], float]) -> float:
        return median(report.per_million(cost(r), r.message_count) for r in results)

    return {
        "workers": middle(lambda r: r.server.python if r.server else 0.0),
        "postgres": middle(lambda r: r.server.postgres if r.server else 0.0),
        "server": middle(lambda r: r.server.server if r.server else 0.0),
        "load_generator": middle(lambda r: r.load_core_seconds),
    }


def _evenness_table(runs: list[_Run]) -> Table:
    """What makes runs differ: how connections fell to workers, and who else used the cores."""
    table = Table(
        "run by run: the busiest worker's part of the workers' time; cores taken by others",
        ["work", "busiest worker", "others"],
    )
    for name, results in _work(runs).items():
        shares, others = [], []
        for result in results:
            if result.server is not None:
                shares.append(f"{result.server.busiest_worker_share():.0%}")
                foreign = result.server.machine - result.server.server - result.load_core_seconds
                others.append(f"{max(0.0, foreign) / result.seconds:.1f}")
        table.rows.append([name, " ".join(shares), " ".join(others)])
    return table


def _work(runs: list[_Run]) -> dict[str, Sequence[PushResult | PopResult]]:
    return {"push": _pushes(runs)} | {f"{mode} mode": _pops(runs, mode) for mode in consumer.MODES}


def _latency_table(runs: list[_Run]) -> Table:
    table = Table("latency in ms over all runs", report.LATENCY_COLUMNS)
    table.rows.append(report.latency_row("push", [ms for p in _pushes(runs) for ms in p.push_ms]))
    for mode in consumer.MODES:
        shares = [share for pop in _pops(runs, mode) for share in pop.consumers]
        pop_ms = [ms for share in shares for ms in share.pop_ms]
        ack_ms = [ms for share in shares for ms in share.ack_ms]
        table.rows.append(report.latency_row(f"pop, {mode} mode", pop_ms))
        table.rows.append(report.latency_row(f"ack, {mode} mode", ack_ms))
    return table


def _phases_table(runs: list[_Run]) -> Table:
    table = Table(
        "the server's pop phases, ms a pop (median of the runs)", ["mode", *consumer.PHASES]
    )
    for mode in consumer.MODES:
        pops = _pops(runs, mode)
        table.rows.append(
            [mode]
            + [
                f"{median(p.phases_ms[phase] / max(p.pop_count, 1) for p in pops):.2f}"
                for phase in consumer.PHASES
            ]
        )
    return table


def _data(runs: list[_Run]) -> dict[str, Any]:
    return {
        "median": {
            "push_messages_per_second": round(median(p.rate for p in _pushes(runs))),
            **{
                f"{mode}_mode_messages_per_second": round(median(p.rate for p in _pops(runs, mode)))
                for mode in consumer.MODES
            },
            "queue_to_partition_ratio": round(median(map(_ratio, runs)), 3),
            "core_seconds_per_million": {
                name: {who: round(cost, 3) for who, cost in _costs(results).items()}
                for name, results in _work(runs).items()
            },
        },
        "runs": [
            {
                mode: {"push": producer.data(one.push), "pop": consumer.data(one.pop)}
                for mode, one in run.items()
            }
            for run in runs
        ],
    }


def _checks(runs: list[_Run]) -> list[Check]:
    verdicts = [
        (number, mode, run[mode].pop.verdict) for number, run in enumerate(runs, 1) for mode in run
    ]
    return [
        Check(
            f"run {number}, {mode} mode, each message once and in order",
            verdict.ok,
            "; ".join(consumer.verdict_lines(verdict)),
        )
        for number, mode, verdict in verdicts
    ]


def _targets(runs: list[_Run]) -> list[Check]:
    push = median(p.rate for p in _pushes(runs))
    partition = median(p.rate for p in _pops(runs, "partition"))
    ratio = median(map(_ratio, runs))
    return [
        Check(
            f"push at least {_PUSH_TARGET:,} msg/s",
            push >= _PUSH_TARGET,
            f"{push:,.0f}",
            is_target=True,
        ),
        Check(
            f"partition mode with acks at least {_PARTITION_TARGET:,} msg/s",
            partition >= _PARTITION_TARGET,
            f"{partition:,.0f}",
            is_target=True,
        ),
        Check(
            f"queue mode at least {_RATIO_TARGET:.0%} of partition mode",
            ratio >= _RATIO_TARGET,
            f"{ratio:.0%}",
            is_target=True,
        ),
    ]
