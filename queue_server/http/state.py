"""What the handlers find in the application."""

from __future__ import annotations

from aiohttp import web

from queue_server.broker.ack import Acker
from queue_server.broker.administration import Administration
from queue_server.broker.directory import Directory
from queue_server.broker.key_check import KeyCheck
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pop import Popper
from queue_server.broker.push import Pusher
from queue_server.broker.snapshot import Looks
from queue_server.broker.throughput import Throughput
from queue_server.broker.transaction import Transactor
from queue_server.broker.wakeup import Rooms
from queue_server.http.limits import ParkedPops
from queue_server.http.live import Live
from queue_server.http.whole_answer import Heads
from queue_server.observability.counters import Counters, Row
from queue_server.observability.sampling import Sampler
from queue_server.observability.tracing import Tracing
from queue_server.settings import Settings
from queue_server.storage.readiness import Readiness
from queue_server.storage.reads import ReadTransactions
from queue_server.storage.series import Address
from queue_server.storage.transactions import Transactions


class State:
    """The parts of a worker that serve requests."""

    def __init__(
        self,
        *,
        settings: Settings,
        transactions: Transactions,
        reads: ReadTransactions,
        directory: Directory,
        pusher: Pusher,
        popper: Popper,
        acker: Acker,
        transactor: Transactor,
        counters: Counters,
        row: Row,
        administration: Administration,
        readiness: Readiness,
        parked_pops: ParkedPops,
        sampler: Sampler,
        tracing: Tracing | None,
        throughput: Throughput,
        address: Address,
        looks: Looks,
        live: Live,
        maintenance: Maintenance,
        rooms: Rooms,
        key_check: KeyCheck,
    ) -> None:
        self.settings = settings
        self.transactions = transactions
        self.reads = reads  # for routes that only read, of operators and dashboards
        self.directory = directory
        self.pusher = pusher
        self.popper = popper
        self.acker = acker
        self.transactor = transactor
        self.counters = counters
        self.row = row
        self.administration = administration
        self.readiness = readiness
        self.sampler = sampler
        self.tracing = tracing
        self.throughput = throughput
        self.address = address  # of this worker
        self.parked_pops = parked_pops
        self.looks = looks
        self.live = live
        self.maintenance = maintenance
        self.key_check = key_check
        self.rooms = rooms
        # Headers that every answer carries.
        self.headers = {
            "Access-Control-Allow-Origin": settings.cors_allowed_origins,
            "Access-Control-Allow-Methods": settings.cors_allowed_methods,
            "Access-Control-Allow-Headers": settings.cors_allowed_headers,
            "Access-Control-Max-Age": str(settings.cors_max_age),
        }
        self.heads = Heads(self.headers, lambda: self.draining)
        self.draining = False


STATE: web.AppKey[State] = web.AppKey("state", State)
