"""Everything for operators in one place; the handlers of http/administration.py call it."""

from __future__ import annotations

from queue_server.broker.dead_letters import DeadLetters
from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.push import Pusher
from queue_server.broker.stored_messages import StoredMessages
from queue_server.broker.traces import Traces
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.storage.transactions import Transactions


class Administration:
    """What an operator can look at and change; *reads* is what listings and searches run on."""

    def __init__(
        self,
        transactions: Transactions,
        reads: Transactions,
        directory: Directory,
        rooms: Rooms,
        pusher: Pusher,
        keyring: Keyring,
    ) -> None:
        self.groups = Groups(transactions, directory, rooms)
        self.dead_letters = DeadLetters(transactions, reads, pusher, keyring)
        self.stored_messages = StoredMessages(transactions, reads, keyring, rooms)
        self.traces = Traces(transactions, reads, self.stored_messages, keyring)
