"""What the database needs encryption keys for."""

from __future__ import annotations

import psycopg

from queue_server.domain.encryption import EncryptionState, Keyring
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

# How many queues are named.
_NAMES_MAX = 5


async def read_state(transactions: Transactions, keyring: Keyring) -> EncryptionState:
    """What is encrypted, and whether *keyring* has the keys to it.

    Cost: a row for each queue and each key, whatever is stored.
    """
    ((count, names),) = await transactions.call(
        STATEMENTS["encrypted_queues"], {"limit": _NAMES_MAX}
    )
    keys = await transactions.call(STATEMENTS["keys_in_use"], {"shard": SHARD})
    return EncryptionState.of(keyring, count, names, [(row[0], row[1]) for row in keys])


def diagnose(connection: psycopg.Connection, keyring: Keyring) -> EncryptionState:
    """`read_state` for a command."""
    queues = connection.execute(STATEMENTS["encrypted_queues"], {"limit": _NAMES_MAX}).fetchone()
    assert queues is not None
    count, names = queues
    keys = connection.execute(STATEMENTS["keys_in_use"], {"shard": SHARD}).fetchall()
    return EncryptionState.of(keyring, count, names, [(row[0], bytes(row[1])) for row in keys])
