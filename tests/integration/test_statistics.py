"""What PostgreSQL tells of itself, and what of it is told on."""

import psycopg

from queue_server.storage import statistics
from queue_server.storage.transactions import Transactions


async def test_what_other_programs_ask_is_not_told(
    transactions: Transactions, direct_conninfo: str
) -> None:
    with (
        psycopg.connect(direct_conninfo, application_name="payroll") as other,
        psycopg.connect(direct_conninfo, application_name="queue-server") as own,
    ):
        other.execute("SELECT 'a salary'")
        own.execute("SELECT 'a queue'")
        # Both transactions are open.
        found = [one.query for one in (await statistics.postgres(transactions)).active]
    assert "SELECT 'a queue'" in found
    assert "SELECT 'a salary'" not in found
