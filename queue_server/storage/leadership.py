"""The database leases that elect one worker of the whole cluster for each service.

A lease counts by the database's clock. Its holder renews it well before it ends; when the holder
stops it gives it up, and when it dies the lease ends by itself and whoever asks next has it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions


async def campaign(
    transactions: Transactions,
    services: Sequence[str],
    holder: str,
    lease_s: int,
    *,
    now: datetime.datetime | None = None,
) -> set[str]:
    """Ask for *services*, or renew them; those that *holder* has now.

    Units: the leases end *lease_s* seconds after the database received this, at the latest.
    *now* is for tests: the database's clock decides.
    """
    rows = await transactions.call(
        STATEMENTS["campaign"],
        {"services": list(services), "holder": holder, "seconds": lease_s, "now": now},
    )
    return {row[0] for row in rows}


async def resign(transactions: Transactions, holder: str) -> int:
    """Give up every service that *holder* has; how many that were."""
    rows = await transactions.call(STATEMENTS["resign"], {"holder": holder})
    count: int = rows[0][0]
    return count
