"""All peers, in the order they run."""

from bench.peers import Peer, nats, pgboss, pgqueuer, rabbitmq

PEERS: tuple[Peer, ...] = (rabbitmq.PEER, nats.PEER, pgboss.PEER, pgqueuer.PEER)
