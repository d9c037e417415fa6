"""How much one client may ask for at a time. Each worker counts for itself."""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from queue_server.domain.errors import Overloaded
from queue_server.http.request import PRINCIPAL

# A bucket that is full again says nothing; with more than this they are looked through.
_BUCKETS_MAX = 10_000
# Looking through them all with each request would be what a flood is after.
_LOOK_INTERVAL_S = 1.0


@functools.lru_cache(maxsize=4096)
def client_network(address: str | None) -> str:
    """Return the name under which a client's address is counted: of IPv6 its network of 64 bits.

    A client there has all of its network's addresses, so a limit for each of them is none.
    """
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return ""  # it has left already
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return parsed.packed[:8].hex()


class ParkedPops:
    """How many pops wait; a maximum of 0 is none."""

    def __init__(self, total_max: int, per_address_max: int) -> None:
        self._total_max = total_max
        self._per_address_max = per_address_max
        self._total = 0
        self._by_address: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._total

    @contextmanager
    def one_more(self, address: str | None) -> Iterator[None]:
        """While a pop of a client at *address* waits.

        Errors: `Overloaded` when there are too many already.
        """
        if self._total_max and self._total >= self._total_max:
            raise Overloaded("too many pops are waiting here; try again")
        network = client_network(address) if self._per_address_max else ""
        if self._per_address_max and self._by_address[network] >= self._per_address_max:
            raise Overloaded("too many pops of your address are waiting; try again")
        self._total += 1
        if self._per_address_max:
            self._by_address[network] += 1
        try:
            yield
        finally:
            self._total -= 1
            if self._per_address_max:
                self._by_address[network] -= 1
                if not self._by_address[network]:
                    del self._by_address[network]


class TokenBuckets:
    """*rate* requests a second of each client, and as many at once after a second of silence."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size = max(1.0, rate)
        # What is left in each bucket, and when that was so.
        self._buckets: dict[str, tuple[float, float]] = {}
        self._looked_at = -math.inf

    def take(self, name: str, now: float) -> None:
        """Errors: `Overloaded`, with the time after which the next request may come."""
        left, at = self._buckets.get(name, (self._size, now))
        left = min(self._size, left + (now - at) * self._rate)
        if left < 1:
            error = Overloaded("too many requests; try again later")
            error.retry_after_s = math.ceil((1 - left) / self._rate)
            raise error
        if len(self._buckets) >= _BUCKETS_MAX and now - self._looked_at >= _LOOK_INTERVAL_S:
            self._looked_at = now
            self._forget_full(now)
        self._buckets[name] = (left - 1, now)

    def _forget_full(self, now: float) -> None:
        self._buckets = {
            name: (left, at)
            for name, (left, at) in self._buckets.items()
            if left + (now - at) * self._rate < self._size
        }


def limit_rate(rate: float, open_paths: tuple[str, ...]) -> Middleware:
    """Bound the requests of each principal, or of each address where nobody is known by name."""
    open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
    buckets = TokenBuckets(rate)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in open_paths and not request.path.startswith(open_folders):
            principal = request.get(PRINCIPAL)
            name = (
                f"at {client_network(request.remote)}"
                if principal is None
                else f"is {principal.subject}"
            )
            buckets.take(name, time.monotonic())
        return await handler(request)

    return middleware
