"""What looks cost with a million dead letters: python -m tests.browser.dead_letter_times

The time of an answer, the median of some, beside that of the first one. A table in Markdown, for
docs/dashboard.md.
"""

import asyncio
import statistics
import time
from pathlib import Path

import psycopg

from queue_server.cluster.database import conninfo_of_running
from tests.client import Client
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

LETTERS = 1_000_000
PARTITIONS = 1_000
TIMES = 7

LOOKS = {
    "Queues and overview": "/api/v1/dashboard/queues",
    "Prometheus": "/metrics/prometheus",
    "Dead letters, by reason": "/api/v1/dashboard/dead-letter-errors",
    "Dead letters, the newest": "/api/v1/dlq?limit=50",
    "Dead letters, of a queue": "/api/v1/dlq?queue=wide&limit=50",
    "Dead letters, of half of them": "/api/v1/dlq?queue=wide&errorContains=timeout&limit=50",
    "Dead letters, of a thousandth": "/api/v1/dlq?queue=wide&errorContains=card%20void&limit=50",
    "Messages that are dead letters": "/api/v1/messages?status=dead_letter&limit=50",
    "Status of the command line": "/api/v1/status",
}

FILL = """
INSERT INTO queen.dead_letters (
    shard, id, partition_id, queue_id, consumer_group, message_offset, message_id, transaction_id,
    payload, error_message, retry_count, created_at, failed_at
)
SELECT
    1, gen_random_uuid(), p.id, p.queue_id, 'ledger', n, gen_random_uuid(), 'order-' || n,
    convert_to(to_json(repeat('x', 400))::text, 'UTF8'),
    CASE
        WHEN n %% 1000 = 0 THEN 'card void'
        WHEN n %% 2 = 0 THEN 'timeout of the bank'
        ELSE 'bank ' || n %% 20 || ' is closed'
    END,
    3, now() - make_interval(secs => (%(letters)s - n) * 0.003),
    now() - make_interval(secs => (%(letters)s - n) * 0.003)
FROM generate_series(1, %(letters)s) n
JOIN (
    SELECT i.*, row_number() OVER (ORDER BY i.id) AS number
    FROM queen.partitions i JOIN queen.queues q ON q.id = i.queue_id
    WHERE q.name = 'wide'
) p ON p.number = n %% %(partitions)s + 1
ORDER BY n
"""


async def fill(client: Client, conninfo: str) -> None:
    """A dead letter every 3 ms of the last 50 minutes."""
    await client.push_items(
        [
            {"queue": "wide", "partition": f"customer-{number}", "payload": number}
            for number in range(PARTITIONS)
        ]
    )
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(FILL, {"letters": LETTERS, "partitions": PARTITIONS})
        await connection.execute("VACUUM (ANALYZE) queen.dead_letters")


async def measure(client: Client, path: str) -> tuple[float, float]:
    """Seconds that the first answer took, and the median of the others."""
    took = []
    for _ in range(TIMES):
        began = time.monotonic()
        answer = await client.get(path)
        took.append(time.monotonic() - began)
        assert answer.status == 200, answer
    return took[0], statistics.median(took[1:])


async def measure_steps(client: Client, verb: str) -> float:
    """Seconds for 20 steps of 5,000 letters."""
    began = time.monotonic()
    for _ in range(20):
        if verb == "redrive":
            answer = await client.post("/api/v1/dlq/redrive", {"queue": "wide", "limit": 5000})
        else:
            answer = await client.send("DELETE", "/api/v1/dlq?queue=wide&limit=5000")
        assert answer.status == 200, answer
    return time.monotonic() - began


async def main() -> None:
    with server_directory() as directory, ClusterProcess(data_dir=directory) as cluster:
        url = cluster.wait_ready()
        async with Client(url) as client:
            await fill(client, conninfo_of_running(Path(directory)))
            print("| Look | First answer | Median | |\n|---|---|---|---|")
            for name, path in LOOKS.items():
                first, median = await measure(client, path)
                print(f"| {name} | {first * 1000:.0f} ms | {median * 1000:.0f} ms | `{path}` |")
            for verb in ("redrive", "purge"):
                print(f"| {verb} of 100,000 | {await measure_steps(client, verb):.1f} s | | |")


if __name__ == "__main__":
    asyncio.run(main())
