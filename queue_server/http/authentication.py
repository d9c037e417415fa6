"""Who sent a request, told by the JSON Web Token in its Authorization header.

The names and rules are those of wire-api 5.13. Signatures and claims are PyJWT's work; here is
which key a token may be checked with, where keys come from, and what a refusal says.

The key is chosen by the family of the algorithm, and only among the algorithms that the settings
allow, so a public key can never be taken for a shared secret. A token that held is remembered until
it expires, since clients send the same one with each request; a change of keys forgets them all.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from typing import Any

import jwt
import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.warnings import InsecureKeyLengthWarning

from queue_server.domain.access import Grants, Principal, Role
from queue_server.domain.errors import BadRequest, Unauthenticated, Unavailable
from queue_server.domain.names import check_text
from queue_server.observability.tasks import keep_running
from queue_server.settings import Settings

logger = logging.getLogger(__name__)

PublicKey = RSAPublicKey | Ed25519PublicKey

_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512")
_EDDSA = ("EdDSA",)
# Every other name stands for itself.
_ALLOWED: Mapping[str, tuple[str, ...]] = {"auto": _HMAC + _RSA + _EDDSA, "RS256": _RSA}

_TOKENS_KEPT_MAX = 4096
_TOKEN_BYTES_MAX = 8192
# The end of the year 9999.
_UNIX_TIME_MAX = 253_402_300_799
_KEY_SET_BYTES_MAX = 1024 * 1024
# An unknown key id asks for the key set anew; a stranger may name as many as they like.
_REFETCH_INTERVAL_S = 5.0


class KeySetUnavailable(Exception):
    """The key set could not be fetched; the message says why."""


class KeySet:
    """The public keys that a JWKS address publishes, fetched at the start and now and then."""

    def __init__(
        self, url: str, *, interval_s: float, timeout_ms: int, max_age_s: float = 0
    ) -> None:
        """*max_age_s*: keys are dropped when they were not fetched for so long; 0: never."""
        self._url = url
        self._interval_s = interval_s
        self._max_age_s = max_age_s or float("inf")
        self._renewed_at = time.monotonic()
        self._timeout = ClientTimeout(total=timeout_ms / 1000)
        self._keys: list[tuple[str | None, PublicKey]] = []
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()
        self.generation = 0  # rises with each change of keys

    async def find(self, family: type[PublicKey], key_id: str | None) -> PublicKey:
        """The key with an id, or the first of its kind for a token that names none.

        Errors: `Unauthenticated` when there is none, `Unavailable` when no key set was ever had.
        """
        key = self._known(family, key_id)
        if key is None:
            await self._refetch()
            key = self._known(family, key_id)
        if key is not None:
            return key
        if not self._keys:
            raise Unavailable("the keys that tokens are checked with (JWT_JWKS_URL) are not here")
        raise Unauthenticated("Unknown key ID")

    async def keep_fresh(self) -> None:
        """Fetch the keys again and again; runs until cancelled."""
        while True:
            await self._refetch()
            await asyncio.sleep(min(self._interval_s, self._max_age_s))

    def _known(self, family: type[PublicKey], key_id: str | None) -> PublicKey | None:
        for id_, key in self._keys:
            if isinstance(key, family) and key_id in (None, id_):
                return key
        return None

    async def _refetch(self) -> None:
        async with self._fetching:
            if time.monotonic() - self._fetched_at < _REFETCH_INTERVAL_S:
                return
            self._fetched_at = time.monotonic()
            try:
                keys = await self._fetch()
            except KeySetUnavailable as exc:
                # The keys at hand stay good for as long as the operator wants: an identity
                # provider that is down for a while stops nobody.
                logger.warning("cannot fetch the key set", extra={"reason": str(exc)})
            except Exception:
                # Of a document that somebody else made: whatever it is, a request goes on.
                logger.exception("cannot read the key set")
            else:
                self._renewed_at = time.monotonic()
                self._replace(keys)
                return
            age_s = time.monotonic() - self._renewed_at
            if self._keys and age_s >= self._max_age_s:
                logger.error(
                    "the key set is too old (JWT_JWKS_MAX_AGE): its keys open nothing any more",
                    extra={"event": "key_set_dropped", "age_s": round(age_s)},
                )
                self._replace([])

    def _replace(self, keys: list[tuple[str | None, PublicKey]]) -> None:
        if keys != self._keys:
            self._keys = keys
            self.generation += 1
            logger.info("the keys are replaced", extra={"keys": len(keys)})

    async def _fetch(self) -> list[tuple[str | None, PublicKey]]:
        """Errors: `KeySetUnavailable`."""
        try:
            async with (
                ClientSession(timeout=self._timeout) as session,
                # Where it leads may be another's, or something that only this host can reach.
                session.get(self._url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise KeySetUnavailable(_refusal(response))
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _KEY_SET_BYTES_MAX:
                        raise KeySetUnavailable(f"it is larger than {_KEY_SET_BYTES_MAX} bytes")
        except (ClientError, TimeoutError, OSError) as exc:
            raise KeySetUnavailable(f"{type(exc).__name__}: {exc}") from None
        return parse_key_set(bytes(body))


def _refusal(response: ClientResponse) -> str:
    if "Location" in response.headers:
        return (
            f"it is answered {response.status}, a redirect to {response.headers['Location'][:200]},"
            " which is not followed: set JWT_JWKS_URL to where it is"
        )
    return f"it is answered {response.status}"


def parse_key_set(body: bytes) -> list[tuple[str | None, PublicKey]]:
    """The RSA and Ed25519 keys of a JWKS document with their ids; others are skipped.

    Source: RFC 7517. Errors: `KeySetUnavailable` when it is no such document or has no such key.
    """
    try:
        listed = msgspec.json.decode(body, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise KeySetUnavailable(f"it is not a JSON object: {exc}") from None
    keys: list[tuple[str | None, PublicKey]] = []
    for entry in listed if isinstance(listed, list) else []:
        # A key for encryption signs nothing.
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry).key
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            continue  # a key that this version cannot read is not ours
        if isinstance(key, PublicKey):
            id_ = entry.get("kid")
            keys.append((id_ if isinstance(id_, str) else None, key))
    if not keys:
        raise KeySetUnavailable("it has no RSA or Ed25519 key")
    return keys


def websocket_credential(request: web.Request) -> str | None:
    """The Authorization that a browser offers with a WebSocket, to which it cannot add a header.

    Source: it comes as a subprotocol, `bearer.<credential>`, beside the one that is accepted.
    """
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return None
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    for protocol in offered.split(","):
        kind, _, credential = protocol.strip().partition(".")
        if kind == "bearer" and credential:
            return f"Bearer {credential}"
    return None


class _Known(msgspec.Struct, frozen=True):
    """A token that held."""

    principal: Principal
    expires_at: float  # Unix time, the allowed skew included


class TokenVerifier:
    """Checks tokens as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._algorithms = _ALLOWED.get(settings.jwt_algorithm, (settings.jwt_algorithm,))
        self._secret = settings.jwt_secret
        self._public_key = (
            load_pem_public_key(settings.jwt_public_key.encode())
            if settings.jwt_public_key
            else None
        )
        self._key_set = (
            KeySet(
                settings.jwt_jwks_url,
                interval_s=settings.jwt_jwks_refresh_interval_s,
                timeout_ms=settings.jwt_jwks_timeout_ms,
                max_age_s=settings.jwt_jwks_max_age_s,
            )
            if settings.jwt_jwks_url and self._public_key is None
            else None
        )
        self._issuer = settings.jwt_issuer or None
        self._audience = settings.jwt_audience or None
        self._skew_s = settings.jwt_clock_skew_s
        self._require_expiry = settings.jwt_require_exp
        self._lifetime_s_max = settings.jwt_max_lifetime_s or float("inf")
        self._role_claim = settings.jwt_roles_claim
        self._roles_claim = settings.jwt_roles_array_claim
        self._queues_claim = settings.jwt_queues_claim
        self._roles = {
            settings.jwt_role_admin: Role.ADMIN,
            settings.jwt_role_read_write: Role.READ_WRITE,
            settings.jwt_role_read_only: Role.READ_ONLY,
            settings.jwt_role_write_only: Role.WRITE_ONLY,
        }
        self._known: dict[str, _Known] = {}
        self._generation = 0

    async def running(self, _app: web.Application) -> AsyncIterator[None]:
        """Keep the key set fresh while the application runs: for `Application.cleanup_ctx`."""
        if self._key_set is None:
            yield
            return
        task = keep_running(self._key_set.keep_fresh, "key-set")
        yield
        task.cancel()
        await asyncio.wait([task])

    async def principal_of(self, authorization: str) -> Principal:
        """Who an Authorization header speaks for.

        Errors: `Unauthenticated` with the protocol's text; `Unavailable` when the keys are missing.
        """
        scheme, _, rest = authorization.strip().partition(" ")
        # The bare token, without a scheme, is accepted as well.
        token = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
        if not token or len(token) > _TOKEN_BYTES_MAX:
            raise Unauthenticated
        if self._key_set is not None and self._generation != self._key_set.generation:
            self._known.clear()
            self._generation = self._key_set.generation
        known = self._known.get(token)
        if known is not None and time.time() < known.expires_at:
            return known.principal
        known = await self._verify(token)
        if len(self._known) >= _TOKENS_KEPT_MAX:
            del self._known[next(iter(self._known))]
        self._known[token] = known
        return known.principal

    async def _verify(self, token: str) -> _Known:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Unauthenticated("Bad token header") from None
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise Unauthenticated("Unsupported token algorithm")
        key = await self._key_for(algorithm, header.get("kid"))
        claims = self._claims(token, algorithm, key)
        return _Known(
            Principal(
                _text_of(claims.get("sub")) or None, self._roles_of(claims), self._grants_of(claims)
            ),
            self._expiry_of(claims) + self._skew_s,
        )

    def _expiry_of(self, claims: Mapping[str, Any]) -> float:
        """When a token ends, in Unix time; infinity when it does not.

        Errors: `Unauthenticated` when the settings ask for an earlier end.
        """
        expires_at = claims.get("exp")
        if expires_at is None:
            if self._require_expiry or self._lifetime_s_max < float("inf"):
                raise Unauthenticated("Token has no expiry")
            return float("inf")
        issued_at = claims.get("iat")
        begin = time.time() if issued_at is None else _moment_of(issued_at)
        end = _moment_of(expires_at)
        if end - begin > self._lifetime_s_max:
            raise Unauthenticated("Token is valid for too long")
        return end

    async def _key_for(self, algorithm: str, key_id: str | None) -> PublicKey | str:
        if algorithm in _HMAC:
            if not self._secret:
                raise Unauthenticated("Unsupported token algorithm")
            return self._secret
        family = RSAPublicKey if algorithm in _RSA else Ed25519PublicKey
        if self._key_set is not None:
            return await self._key_set.find(family, key_id)
        if not isinstance(self._public_key, family):
            raise Unauthenticated("Unsupported token algorithm")
        return self._public_key

    def _claims(self, token: str, algorithm: str, key: PublicKey | str) -> dict[str, Any]:
        """The claims of a token that holds."""
        try:
            with warnings.catch_warnings():
                # A short secret is named once, at the start (`Settings.warnings`).
                warnings.simplefilter("ignore", InsecureKeyLengthWarning)
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=self._skew_s,
                    options={
                        "verify_iat": False,  # below, for a text of its own
                        "verify_iss": self._issuer is not None,
                        "verify_aud": self._audience is not None,
                    },
                )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("Token has expired") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("Token not yet valid") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("Invalid token issuer") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("Invalid token audience") from None
        except jwt.MissingRequiredClaimError as exc:
            what = {"iss": "issuer", "aud": "audience"}.get(exc.claim, exc.claim)
            raise Unauthenticated(f"Invalid token {what}") from None
        except (jwt.DecodeError, jwt.InvalidKeyError):
            raise Unauthenticated("Invalid token signature") from None
        except (jwt.InvalidTokenError, ValueError, OverflowError, RecursionError):
            # Also a number or a depth that the library does not expect in a token.
            raise Unauthenticated("Invalid token claims") from None
        if _moment_of(claims.get("iat", 0)) > time.time() + self._skew_s:
            raise Unauthenticated("Token issued in the future")
        return claims

    def _grants_of(self, claims: Mapping[str, Any]) -> Grants | None:
        if self._queues_claim not in claims:
            return None
        patterns = claims[self._queues_claim]
        if not isinstance(patterns, list) or None in patterns:
            # Whatever was meant by it, also by null, it was not every queue.
            raise Unauthenticated("Invalid token claims")
        read = tuple(_text_of(one) for one in patterns)
        return Grants(read, read, read)

    def _roles_of(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        named = [claims.get(self._role_claim)]
        listed = claims.get(self._roles_claim)
        if isinstance(listed, list):
            named += listed
        return frozenset(
            self._roles[name] for name in named if isinstance(name, str) and name in self._roles
        )


def _text_of(claim: Any) -> str:
    """A claim that is stored as text; empty when there is none. Errors: `Unauthenticated`."""
    try:
        return "" if claim is None else check_text(claim, "a claim")
    except (BadRequest, TypeError, AttributeError):
        raise Unauthenticated("Invalid token claims") from None


def _moment_of(claim: Any) -> float:
    """A claim that is a Unix time. Errors: `Unauthenticated` for one that no clock will show."""
    try:
        moment = float(claim)
    except (TypeError, ValueError, OverflowError):
        moment = float("nan")
    if not 0 <= moment <= _UNIX_TIME_MAX:
        raise Unauthenticated("Invalid token claims")
    return moment
