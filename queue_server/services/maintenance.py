"""Pushes what maintenance held back, once it is over."""

from __future__ import annotations

from collections.abc import Mapping

from queue_server.broker.maintenance import Maintenance


class HeldPushes:
    """Interval: a second; then it costs two short queries when there is nothing."""

    name = "held-pushes"

    def __init__(self, maintenance: Maintenance) -> None:
        self._maintenance = maintenance

    async def run_once(self) -> Mapping[str, int]:
        """Push all that is held; how much that was."""
        return await self._maintenance.push_held()
