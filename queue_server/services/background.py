"""All services of a worker, and the election that says which of them it runs.

To add one: a class with `name` and `run_once()`, and a line in `Background`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from queue_server.broker.groups import Groups
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.wakeup import Rooms
from queue_server.domain.retention import eviction_rule, retention_rule
from queue_server.services.election import Election
from queue_server.services.maintenance import HeldPushes
from queue_server.services.periodic import Periodic, Service
from queue_server.services.retention import DAY_S, Cleanup, MessageRetention
from queue_server.services.series import DEPTH_INTERVALS, Depths
from queue_server.settings import Settings
from queue_server.storage.transactions import Transactions

# What it removes has been of no use for days.
_CLEANUP_INTERVAL_S = 60.0
_HELD_INTERVAL_S = 1.0


class Background:
    """Starts and stops the services; each runs in one worker of the cluster."""

    def __init__(
        self,
        transactions: Transactions,
        settings: Settings,
        groups: Groups,
        maintenance: Maintenance,
        rooms: Rooms,
    ) -> None:
        services: Sequence[tuple[Service, float]] = [
            (
                MessageRetention(
                    "retention", transactions, rooms, retention_rule, settings.retention_batch_size
                ),
                settings.retention_interval_ms / 1000,
            ),
            (
                MessageRetention(
                    "eviction", transactions, rooms, eviction_rule, settings.eviction_batch_size
                ),
                settings.eviction_interval_ms / 1000,
            ),
            (
                Cleanup(
                    transactions,
                    groups,
                    idle_days=settings.partition_cleanup_days,
                    group_expire_s=settings.group_expire_s,
                    trace_age_s=settings.trace_retention_s,
                    series_age_s=settings.metrics_retention_days * DAY_S,
                    batch_size=settings.retention_batch_size,
                ),
                _CLEANUP_INTERVAL_S,
            ),
            (HeldPushes(maintenance), _HELD_INTERVAL_S),
            (Depths(transactions), settings.stats_interval_ms / 1000 * DEPTH_INTERVALS),
        ]
        self._election = Election(transactions, [service.name for service, _ in services])
        self._loops = [
            Periodic(service, interval_s, partial(self._election.leads, service.name))
            for service, interval_s in services
        ]

    def start(self) -> None:
        self._election.start()
        for loop in self._loops:
            loop.start()

    async def stop(self) -> None:
        """Stop the passes first, then let another worker have them."""
        await asyncio.gather(*(loop.stop() for loop in self._loops))
        await self._election.stop()
