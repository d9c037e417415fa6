"""Buckets of tokens, by a clock of their own, and what counts as one client."""

import pytest

from queue_server.domain.errors import Overloaded
from queue_server.http.limits import ParkedPops, TokenBuckets, client_network


def test_a_bucket_gives_what_it_holds_and_fills_again() -> None:
    buckets = TokenBuckets(rate=2)
    for _ in range(2):
        buckets.take("a", now=10.0)
    with pytest.raises(Overloaded) as refused:
        buckets.take("a", now=10.0)
    assert refused.value.retry_after_s == 1
    buckets.take("b", now=10.0)  # others have their own
    buckets.take("a", now=10.5)
    with pytest.raises(Overloaded):
        buckets.take("a", now=10.6)
    # However long the silence, no more than it holds.
    for _ in range(2):
        buckets.take("a", now=1000.0)
    with pytest.raises(Overloaded):
        buckets.take("a", now=1000.0)


def test_full_buckets_are_forgotten_and_empty_ones_are_not() -> None:
    buckets = TokenBuckets(rate=1)
    buckets.take("greedy", now=100.0)
    for number in range(20_000):
        buckets.take(f"{number}", now=0.0)
    assert len(buckets._buckets) <= 20_001
    for number in range(20_000):
        buckets.take(f"later {number}", now=100.1)
    assert len(buckets._buckets) < 20_100
    with pytest.raises(Overloaded):
        buckets.take("greedy", now=100.2)


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff:1")
    assert client_network("2001:db8::1") != client_network("2001:db8:0:1::1")
    assert client_network("::ffff:192.0.2.7") == client_network("192.0.2.7") == "192.0.2.7"
    assert client_network(None) == ""
    pops = ParkedPops(total_max=10, per_address_max=1)
    with pops.one_more("2001:db8::1"):
        with pytest.raises(Overloaded, match="your address"), pops.one_more("2001:db8::2"):
            pass
        with pops.one_more("2001:db8:0:1::1"), pops.one_more("192.0.2.7"):
            assert pops.count == 3
    with pops.one_more("2001:db8::2"):
        assert pops.count == 1
