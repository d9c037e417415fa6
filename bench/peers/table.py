"""All peers, in the order they run."""

from bench.peers import Peer, nats, pgboss, pgqueuer, rabbitmq

PEERS: tuple[Peer, ...] = (
    rabbitmq.PEER, nats.SYNCED, nats.UNSYNCED, pgboss.PEER, pgqueuer.PEER,
)  # fmt: skip
