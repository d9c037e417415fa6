"""The dashboard and the alerts under deploy/ fit what the server tells, and say what to do."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.client import Client, eventually, unique

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
SCRAPE = ROOT / "deploy/prometheus/prometheus.yml"
DASHBOARD = ROOT / "deploy/grafana/queue-server.json"
PAGE = ROOT / "docs/monitoring.md"
RUNBOOK = ROOT / "docs/alerts.md"

# What is only reported with TLS (tests/e2e/test_tls.py), or with the embedded PostgreSQL.
CONDITIONAL = {
    "queue_server_certificate_end_time_seconds",
    "queue_server_data_disk_size_bytes",
    "queue_server_data_disk_free_bytes",
}

NAME = re.compile(r"\bqueue_server_\w+")


async def told_names(client: Client) -> set[str]:
    """The names of all series of a scrape, and of its families."""
    # Something of everything: a queue with a message in it, and a group.
    queue = unique("monitoring")
    await client.push(queue, [1])
    await client.pop(queue, group="readers")

    async def told() -> set[str] | None:
        answer = await client.get("/metrics/prometheus")
        assert answer.status == 200
        families = list(text_string_to_metric_families(answer.raw.decode()))
        names = {sample.name for family in families for sample in family.samples}
        # Figures of the database are some seconds old.
        if "queue_server_group_lag_seconds" not in names:
            return None
        return (
            CONDITIONAL | names | {family.name for family in families if family.type == "histogram"}
        )

    return await eventually(told, deadline=30)


def expressions(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        yield from (target["expr"] for target in panel.get("targets", ()))


def alert_names() -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", ALERTS.read_text(), re.MULTILINE)


async def test_what_dashboard_and_alerts_name_is_told(client: Client) -> None:
    told = await told_names(client)
    dashboard = json.loads(DASHBOARD.read_text())
    named = {name for text in expressions(dashboard["panels"]) for name in NAME.findall(text)}
    assert len(named) > 40
    assert named <= told
    named = set(NAME.findall(ALERTS.read_text()))
    assert len(named) > 10
    assert named <= told


# The same on every server of one database: a sum over servers would count it several times.
SHARED = re.compile(
    r"queue_server_(?:queues\b|queue_\w+|group_\w+|leases\b|held_messages|table_\w+|maintenance\b"
    r"|database_(?!up|restarts)\w+)"
)
ONCE = re.compile(r"(?:max|min)(?: by \((?!instance)[a-z, ]+\))? ?\((?:delta\(|deriv\()?$")


def test_what_all_servers_report_alike_is_taken_once() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    rules = re.findall(
        r"^ +expr: (?:>-\n)?((?:.+\n)+?)(?= +(?:for|labels):)", ALERTS.read_text(), re.M
    )
    texts = [*expressions(dashboard["panels"]), *(" ".join(rule.split()) for rule in rules)]
    assert len(rules) == len(alert_names())
    found = 0
    for text in texts:
        if "absent_over_time" in text:
            text = text.partition("absent_over_time")[0]
        for metric in SHARED.finditer(text):
            found += 1
            assert ONCE.search(text[: metric.start()]), text
    assert found > 40


def test_panels_say_what_they_show_and_can_be_narrowed() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert {"instance", "queue", "group"} <= variables
    silent = [
        p["title"] for p in dashboard["panels"] if p["type"] != "row" and not p.get("description")
    ]
    assert silent == []


async def test_the_page_names_what_is_told_and_nothing_else(client: Client) -> None:
    told = {re.sub(r"_(bucket|count|sum)$", "", name) for name in await told_names(client)}
    page = PAGE.read_text()
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(page)}
    assert named == {name for name in told if name.startswith("queue_server_")}


def test_each_alert_says_what_to_do_and_has_a_section_of_its_own() -> None:
    names = alert_names()
    assert len(names) > 10
    text = ALERTS.read_text()
    assert text.count("summary:") == text.count("description:") == len(names)
    assert re.findall(r"^## (QueueServer\w+)$", RUNBOOK.read_text(), re.MULTILINE) == names
    anchors = re.findall(r'runbook_url: "\S+/alerts\.html#(\w+)"', text)
    assert anchors == [name.lower() for name in names]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in (panel["gridPos"],)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian's package prometheus)"
)


@promtool
def test_prometheus_takes_the_rules() -> None:
    # The configuration names the rules' file, which is checked with it.
    done = subprocess.run(
        ["promtool", "check", "config", SCRAPE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alert_names())} rules found" in done.stdout


@promtool
def test_prometheus_takes_the_dashboard_s_expressions(tmp_path: Path) -> None:
    texts = expressions(json.loads(DASHBOARD.read_text())["panels"])
    rules = {
        "groups": [
            {
                "name": "dashboard",
                "rules": [
                    {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
                    for number, text in enumerate(texts)
                ],
            }
        ]
    }
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps(rules))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
async def test_prometheus_takes_the_exposition(client: Client) -> None:
    answer = await client.get("/metrics/prometheus")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.raw, capture_output=True, check=False
    )
    # It also judges names; those of the first broker are what they are.
    ours = [line for line in done.stderr.decode().splitlines() if line.startswith("queue_server_")]
    assert ours == [], done.stderr.decode()
    assert done.returncode in (0, 3), done.stderr.decode()


@promtool
def test_what_is_not_due_yet_alarms_nobody(tmp_path: Path) -> None:
    """Two queues that nobody reads: messages of one are scheduled, those of the other due."""
    rising, none = "20000+100x120", "0x120"
    figures = {
        "depth_messages": (rising, rising),
        "scheduled_messages": (rising, none),
        "oldest_message_age_seconds": (none, "1000+60x120"),
        "recently_acked_messages": (none, none),
    }
    series = [
        {"series": f'queue_server_queue_{name}{{instance="a", queue="{queue}"}}', "values": values}
        for name, both in figures.items()
        for queue, values in zip(("scheduled", "stuck"), both, strict=True)
    ]
    alerts = ("QueueServerBacklogGrows", "QueueServerBacklogOld", "QueueServerNoReader")
    expected = [
        {
            "labels": f'ALERTS{{alertname="{name}", alertstate="firing", queue="stuck",'
            ' severity="warning"}',
            "value": 1,
        }
        for name in alerts
    ]
    tested = {
        "rule_files": [str(ALERTS)],
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": f'ALERTS{{alertname=~"{"|".join(alerts)}"}}',
                        "eval_time": "110m",
                        "exp_samples": expected,
                    }
                ],
            }
        ],
    }
    file = tmp_path / "scheduled.yml"
    file.write_text(json.dumps(tested))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
