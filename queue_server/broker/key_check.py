"""Finds out whether a server has the encryption keys that its data needs, before a client does."""

from __future__ import annotations

import asyncio
import logging

from queue_server.domain.encryption import EncryptionState, Keyring
from queue_server.domain.errors import QueueServerError
from queue_server.observability.counters import Life, Row
from queue_server.storage import encryption
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0


class KeyCheck:
    """What a worker knows of missing keys. One worker of a server logs it (*is_logging*)."""

    def __init__(
        self, transactions: Transactions, keyring: Keyring, row: Row, *, is_logging: bool
    ) -> None:
        self._transactions = transactions
        self._keyring = keyring
        self._row = row
        self._is_logging = is_logging
        self.state = EncryptionState.of(keyring, 0, [], [])

    async def run_once(self) -> None:
        """Check it now. Errors: `Unavailable`."""
        self.state = await encryption.read_state(self._transactions, self._keyring)
        self._row.words[Life.QUEUES_WITHOUT_KEY] = self.state.keyless_count
        self._row.words[Life.KEYS_MISSING] = len(self.state.unknown_keys)
        if self._is_logging:
            for problem in self.state.problems():
                logger.error(problem, extra={"event": "encryption_key_missing"})

    async def watch(self) -> None:
        """Check it once a minute. Runs until cancelled."""
        while True:
            try:
                await self.run_once()
            except QueueServerError as exc:
                logger.warning("the encryption keys are not checked: %s", exc.message)
            except Exception:
                logger.exception("the encryption keys are not checked")
            await asyncio.sleep(_INTERVAL_S)
