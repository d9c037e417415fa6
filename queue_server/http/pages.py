"""Which pages may use a server that asks nobody for a credential.

A browser lends every page that somebody visits its way to this machine: without a look at where a
request comes from, any of them could push and pop here. CORS does not prevent that: it keeps the
answer from the page, after the request was carried out. With authentication there is no need, as no
page can send a credential that it does not have.

What a browser says of a request, a page cannot take away or change: `Sec-Fetch-Site`, `Origin` and
`Accept-Language` (source: the Fetch and Fetch Metadata standards). Other clients send none of them.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Collection

from aiohttp import hdrs, web
from multidict import istr

from queue_server.domain.errors import Forbidden
from queue_server.settings import Settings

PageCheck = Callable[[web.Request], None]

_SEC_FETCH_SITE = istr("Sec-Fetch-Site")
# Names that lead to this machine or network, and that nobody outside can give an address to.
_LOCAL_NAMES = (".localhost", ".internal")
_IPV6_LOOPBACK = ipaddress.IPv6Address("::1")


def page_check(settings: Settings, open_routes: Collection[web.AbstractRoute]) -> PageCheck | None:
    """What refuses the requests of foreign pages; None where a credential is asked for.

    *open_routes* say nothing about queues: a link may lead there from anywhere. Every request pays
    for this: without the headers it is three look-ups.
    """
    if settings.has_authentication:
        return None
    allowed = settings.cors_allowed_origins
    allowed_host = allowed.partition("://")[2]
    # Elsewhere people call the server by a name.
    is_on_loopback = settings.is_on_loopback

    def check(request: web.Request) -> None:
        headers = request.headers
        site = headers.get(_SEC_FETCH_SITE)
        origin = headers.get(hdrs.ORIGIN)
        if (
            (site is not None or origin is not None)
            and not _is_own(request, site, origin)
            and (origin is None or origin != allowed)
            and request.match_info.route not in open_routes
        ):
            raise Forbidden(
                "Pages of other origins may not use this server: set CORS_ALLOWED_ORIGINS to the"
                " origin of the page, or ask for credentials (API_KEYS_ENABLED=true)"
            )
        # DNS rebinding: a page's own name, made to lead here, is no foreign origin to its browser.
        if is_on_loopback:
            host = headers.get(hdrs.HOST, "")
            if not _is_local(host) and host != allowed_host and _is_of_browser(request):
                raise Forbidden(
                    f"This server is for this machine alone, and {host[:255]!r} is no name of it:"
                    " use localhost, or set CORS_ALLOWED_ORIGINS to the origin that browsers see"
                )

    return check


def is_own_origin(request: web.Request, origin: str) -> bool:
    return origin.partition("://")[2] == request.headers.get(hdrs.HOST)


def _is_own(request: web.Request, site: str | None, origin: str | None) -> bool:
    if site is not None:
        # Also true behind a proxy that changes Host. "none": a person typed the address.
        return site in ("same-origin", "none")
    # Over plain http, but to loopback, browsers tell the origin alone.
    return origin is None or is_own_origin(request, origin)


@functools.lru_cache(maxsize=64)
def _is_local(host: str) -> bool:
    """Whether a Host is a name that only this machine has. Without one: no browser.

    To 127.0.0.0/8, ::1 and names below localhost browsers say where a request comes from, or else
    the page was reached by such a name itself. Other addresses lead here, too (0.0.0.0, [::],
    those of IPv4 written as IPv6, one that is forwarded), and to these they do not: an image in any
    page could pop (source: Secure Contexts, "potentially trustworthy origin").
    """
    if not host:
        return True
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:].partition("]")[0]) == _IPV6_LOOPBACK
        name = host.partition(":")[0].lower().removesuffix(".")
        if name == "localhost" or name.endswith(_LOCAL_NAMES):
            return True
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


def _is_of_browser(request: web.Request) -> bool:
    """A page can choose its Accept-Language, but not send none; programs do not send it."""
    headers = request.headers
    return (
        _SEC_FETCH_SITE in headers
        or hdrs.ORIGIN in headers
        or hdrs.ACCEPT_LANGUAGE in headers
        or "text/html" in headers.get(hdrs.ACCEPT, "")
    )
