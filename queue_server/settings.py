"""Everything an operator can set, read once from the command line and the environment.

`Settings` is one frozen Struct. Each field carries its own `Option`: the environment variables it
is read from, its command-line flag, what it means and what it may be. `--help`, the checks and the
error messages all come from there, so adding a setting is adding a field.

The command line beats the environment, which beats the default. An environment variable that is set
but empty counts as not set, as `PORT=` in a compose file means. A bad value ends the start with one
line that names the setting.

Secrets (`SECRETS`) are masked in `repr` and never part of an error message.
"""

import argparse
import difflib
import importlib.util
import ipaddress
import math
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec

from queue_server import __version__

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "EdDSA", "auto"]
SubscriptionMode = Literal["", "all", "new", "new-only"]

# A worker needs one connection each for pushes, pops and acks to make progress at the same time.
CONNECTIONS_PER_WORKER_MIN = 3
CONNECTIONS_PER_WORKER_DEFAULT = 8

# RFC 7518, 3.2: no shorter than the hash's output.
JWT_SECRET_BYTES_MIN = 32


SECRETS = frozenset(
    {"database_url", "pg_password", "encryption_key", "encryption_old_keys", "jwt_secret"}
)


class SettingsError(Exception):
    """A setting cannot be used; the message is one line and names it."""


class Option(msgspec.Struct, frozen=True):
    """Where a setting comes from, and what `--help` says about it."""

    env: tuple[str, ...]  # read in this order, the first that is set wins
    text: str
    example: str
    parse: Callable[[str], Any] = str  # raises ValueError with what the value must be
    flag: str = ""  # such as `--port`; empty: environment only
    default_text: str = ""  # for defaults that are worked out at the start


def usable_cpu_count(root: Path = Path("/")) -> int:
    """How many CPUs this process may keep busy: its affinity, capped by its cgroup's quota.

    Source: the kernel's cgroup-v2.rst, "cpu.max", and sched-bwc.rst for version 1. A quota of two
    and a half CPUs counts as three: the workers also wait for the database. *root* is for tests.
    """
    count = len(os.sched_getaffinity(0))
    return max(1, min([count, *(math.ceil(quota) for quota in _cgroup_cpu_quotas(root))]))


def _cgroup_cpu_quotas(root: Path) -> list[float]:
    """The CPU quotas that bind this process, its own cgroup's and those of the groups above."""
    quotas = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for group in [Path(path), *Path(path).parents]:
            below_mount = str(group).lstrip("/")
            if not controllers:  # version 2 has one hierarchy and names no controller
                limit = _read_text(root / "sys/fs/cgroup" / below_mount / "cpu.max").split()
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers / below_mount
                limit = [
                    _read_text(folder / "cpu.cfs_quota_us").strip(),
                    _read_text(folder / "cpu.cfs_period_us").strip(),
                ]
            else:
                break
            # "max" in version 2, -1 in version 1 and an absent file all mean no limit.
            if len(limit) == 2 and limit[0].isdecimal() and limit[1].isdecimal():
                quotas.append(int(limit[0]) / max(1, int(limit[1])))
    return quotas


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take "1_000" and digits of other scripts.
        if not (text.isascii() and text.lstrip("-").isdigit() and low <= int(text) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _off_or_integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return 0 if text == "0" else _integer(low, high)(text)
        except ValueError as exc:
            raise ValueError(f"{exc}, or 0") from None

    return parse


def _algorithm(text: str) -> str:
    names: dict[str, str] = {name.lower(): name for name in get_args(JwtAlgorithm)}
    if text.lower() not in names:
        raise ValueError("must be one of " + ", ".join(names.values()))
    return names[text.lower()]


def _one_of(*choices: str, aliases: Mapping[str, str] | None = None) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = (aliases or {}).get(text.lower(), text.lower())
        if value not in choices:
            raise ValueError("must be one of " + ", ".join(choice for choice in choices if choice))
        return value

    return parse


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _encryption_key(text: str) -> str:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32 or len(text) != 64:
        raise ValueError("must be 64 hexadecimal digits")
    return text


def _encryption_keys(text: str) -> str:
    for key in text.split(","):
        _encryption_key(key.strip())
    return text


def _public_key(text: str) -> str:
    """PEM text; in an environment file a line break is often written as \\n."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = text.replace("\\n", "\n")
    try:
        load_pem_public_key(pem.encode())
    except ValueError:
        raise ValueError("must be the PEM text of an RSA or Ed25519 public key") from None
    return pem


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as https://login.example/keys.json")
    return text


def _paths(text: str) -> tuple[str, ...]:
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    if not all(path.startswith("/") for path in paths):
        raise ValueError("must be paths that begin with /, separated by commas")
    return paths


def _header_value(text: str) -> str:
    # It is sent with every answer; a line break in it would be a header of its own.
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII on one line")
    return text


def _data_dir(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError("must be a directory, or absent so that it can be made")
        return path.absolute()
    except OSError as exc:
        raise ValueError(f"cannot be reached: {exc.strerror}; {_REACH}") from None
    except RuntimeError:  # of `expanduser`
        raise ValueError("begins with the home of a user that does not exist") from None


_REACH = "choose another directory, or let this user enter those above it (chmod o+x, or chown)"


def _default_data_dir() -> Path:
    try:
        return Path("data").absolute()
    except OSError as exc:
        raise SettingsError(
            f"DATA_DIR: the working directory cannot be reached ({exc.strerror}); change to another"
            " one, or give an absolute DATA_DIR"
        ) from None


def _database_url(text: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        ports = str(conninfo_to_dict(text).get("port") or "5432").split(",")
        for port in filter(None, ports):  # libpq looks at them when it connects, not before
            _integer(1, 65535)(port)
    except (psycopg.Error, ValueError) as exc:
        unknown = _unknown_parameter(text, str(exc))
        if unknown is not None:
            raise ValueError(
                f"has the parameter {unknown!r}, which is none of a PostgreSQL connection"
            ) from None
        # The parser's own message may quote a piece of the password.
        raise ValueError("must look like postgresql://user:password@host:5432/database") from None
    return text


def _unknown_parameter(text: str, error: str) -> str | None:
    """The parameter that libpq's *error* complains of; None where it may be a piece of a password.

    Such a piece is taken for a parameter behind a slash or a space that is not escaped.
    """
    found = re.match(
        r'invalid (?:URI query parameter|connection option):? "([A-Za-z_]{1,63})"', error
    )
    if found is None:
        return None
    if "://" in text:
        is_behind_host = "@" not in text.partition("?")[2]
    else:
        is_behind_host = "password" not in text.partition(f"{found[1]}=")[0]
    return found[1] if is_behind_host else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fits(pem: str, algorithm: str) -> bool:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    family = RSAPublicKey if algorithm.startswith("RS") else Ed25519PublicKey
    return isinstance(load_pem_public_key(pem.encode()), family)


# Seven days bound every duration: a value above is a mistaken unit.
_milliseconds = _integer(1, 7 * 24 * 3600 * 1000)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings as first read; passed down as an argument, never read again."""

    # -- the server --

    host: Annotated[
        str,
        Option(
            ("HOST", "QUEEN_BIND_ADDR"),
            "Address to listen on. 0.0.0.0 opens the server to the network.",
            "10.0.0.5",
            flag="--host",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Option(
            ("PORT",),
            "Port to listen on; 0 picks a free one, which the log names.",
            "6632",
            _integer(0, 65535),
            flag="--port",
        ),
    ] = 6632
    workers: Annotated[
        int,
        Option(
            ("NUM_WORKERS",),
            "Serving processes, one event loop each.",
            "4",
            _integer(1, 1024),
            flag="--workers",
            default_text="the CPUs this process may use",
        ),
    ] = msgspec.field(default_factory=usable_cpu_count)
    max_body_bytes: Annotated[
        int,
        Option(
            ("MAX_BODY_SIZE", "QUEEN_MAX_BODY_BYTES"),
            "Largest request body in bytes.",
            "16777216",
            _integer(1024, 2**31 - 1),
        ),
    ] = 100 * 1024 * 1024
    request_memory_bytes: Annotated[
        int,
        Option(
            ("REQUEST_MEMORY",),
            "Memory in bytes that the requests of one worker may take, with all that is made of"
            " their bodies; one that would exceed it is answered 429.",
            "157286400",
            _integer(1024 * 1024, 2**40),
        ),
    ] = 300 * 1024 * 1024
    max_connections: Annotated[
        int,
        Option(
            ("MAX_CONNECTIONS",),
            "Open client connections of one worker; one more is answered 503. Each needs a file"
            " descriptor (ulimit -n).",
            "1000",
            _integer(1, 1_000_000),
        ),
    ] = 20_000
    max_connections_per_address: Annotated[
        int,
        Option(
            ("MAX_CONNECTIONS_PER_ADDRESS",),
            "Of these, those of one client address (of IPv6: of one /64 network); one more is"
            " answered 429; 0 is no limit. Behind a proxy all clients have its address.",
            "200",
            _integer(0, 1_000_000),
        ),
    ] = 0
    header_timeout_ms: Annotated[
        int,
        Option(
            ("HEADER_TIMEOUT",),
            "How long a new connection may take to send its first request's headers, in"
            " milliseconds; then it is closed.",
            "10000",
            _milliseconds,
        ),
    ] = 30_000
    body_timeout_ms: Annotated[
        int,
        Option(
            ("BODY_TIMEOUT",),
            "How long a request body may make no progress, in milliseconds; then it is answered"
            " 408.",
            "10000",
            _milliseconds,
        ),
    ] = 30_000
    reader_timeout_ms: Annotated[
        int,
        Option(
            ("READER_TIMEOUT",),
            "How long a client may take nothing of what it is sent (less than a twentieth of what"
            " waits for it), in milliseconds; then its connection is closed.",
            "60000",
            _milliseconds,
        ),
    ] = 120_000
    max_header_bytes: Annotated[
        int,
        Option(
            ("MAX_HEADER_SIZE",),
            "Largest request line, and largest header, in bytes; above it the answer is 431.",
            "8192",
            _integer(1024, 1024 * 1024),
        ),
    ] = 16 * 1024
    max_batch_items: Annotated[
        int,
        Option(
            ("MAX_BATCH_ITEMS",),
            "Most items of one push, and most acknowledgments of one batch; above it 413.",
            "10000",
            _integer(1, 10_000_000),
        ),
    ] = 100_000
    max_transaction_operations: Annotated[
        int,
        Option(
            ("MAX_TRANSACTION_OPERATIONS",),
            "Most pushed messages and acknowledgments of one transaction; above it 413.",
            "1000",
            _integer(1, 1_000_000),
        ),
    ] = 100_000
    max_parked_pops: Annotated[
        int,
        Option(
            ("MAX_PARKED_POPS",),
            "Pops that may wait in one worker; one more is answered 429.",
            "5000",
            _integer(1, 1_000_000),
            default_text="nine tenths of MAX_CONNECTIONS, so that pushes get in",
        ),
    ] = 0  # worked out in __post_init__
    max_parked_pops_per_address: Annotated[
        int,
        Option(
            ("MAX_PARKED_POPS_PER_ADDRESS",),
            "Of these, those of one client address; 0 is no limit. Behind a proxy all clients have"
            " its address.",
            "100",
            _integer(0, 1_000_000),
        ),
    ] = 0
    max_queues: Annotated[
        int,
        Option(
            ("MAX_QUEUES",),
            "Queues that there may be; whatever would create one more is answered 409. This and the"
            " next two hold for all servers on a database, as the last one that started has them.",
            "1000",
            _integer(1, 1_000_000_000),
        ),
    ] = 100_000
    max_groups_per_queue: Annotated[
        int,
        Option(
            ("MAX_GROUPS_PER_QUEUE",),
            "Consumer groups that a queue may have, consumers without a group being one; each costs"
            " every push to the queue a little.",
            "50",
            _integer(1, 1_000_000_000),
        ),
    ] = 1000
    max_partitions_per_queue: Annotated[
        int,
        Option(
            ("MAX_PARTITIONS_PER_QUEUE",),
            "Partitions that a queue may have.",
            "10000",
            _integer(1, 1_000_000_000),
        ),
    ] = 1_000_000
    request_rate: Annotated[
        int,
        Option(
            ("REQUEST_RATE",),
            "Requests a second that one principal (without authentication: one address) may send to"
            " one worker; above it 429. 0 is no limit.",
            "500",
            _integer(0, 1_000_000),
        ),
    ] = 0
    encryption_key: Annotated[
        str,
        Option(
            ("QUEEN_ENCRYPTION_KEY",),
            "Key for queues with encryptionEnabled: 64 hexadecimal digits (openssl rand -hex 32).",
            "0f" * 32,
            _encryption_key,
        ),
    ] = ""
    encryption_old_keys: Annotated[
        str,
        Option(
            ("QUEEN_ENCRYPTION_OLD_KEYS",),
            "Keys that were used before, still accepted for reading; separated by commas.",
            "1e" * 32,
            _encryption_keys,
        ),
    ] = ""
    encryption_fallback_plaintext: Annotated[
        bool,
        Option(
            ("ENCRYPTION_FALLBACK_PLAINTEXT",),
            "Without QUEEN_ENCRYPTION_KEY, store the messages of queues with encryptionEnabled as"
            " plain text, as Queen does. Otherwise pushes to them are refused with 503.",
            "true",
            _boolean,
        ),
    ] = False
    drain_timeout_ms: Annotated[
        int,
        Option(
            ("DRAIN_TIMEOUT",),
            "How long running requests may take to finish at a stop, in milliseconds.",
            "8000",
            _milliseconds,
        ),
    ] = 8000

    tls_cert: Annotated[
        str,
        Option(
            ("TLS_CERT",),
            "Serve https with this certificate: a PEM file, the intermediate ones behind it.",
            "/etc/queue-server/tls.crt",
            default_text="none, http",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        Option(
            ("TLS_KEY",),
            "The certificate's private key: a PEM file without a password.",
            "/etc/queue-server/tls.key",
            default_text="none",
        ),
    ] = ""
    tls_client_ca: Annotated[
        str,
        Option(
            ("TLS_CLIENT_CA",),
            "Serve only clients with a certificate of one of the authorities in this PEM file.",
            "/etc/queue-server/clients.crt",
            default_text="none, clients need no certificate",
        ),
    ] = ""

    # -- who may use it --

    allow_anonymous: Annotated[
        bool,
        Option(
            ("ALLOW_ANONYMOUS",),
            "Serve everybody who reaches an address that is not loopback. Needed to listen there"
            " without JWT_ENABLED or API_KEYS_ENABLED.",
            "true",
            _boolean,
        ),
    ] = False
    api_keys_enabled: Annotated[
        bool,
        Option(
            ("API_KEYS_ENABLED",),
            "Ask every request for an API key (queue-server keys --help), or for a token where"
            " JWT_ENABLED is set too.",
            "true",
            _boolean,
        ),
    ] = False
    jwt_enabled: Annotated[
        bool,
        Option(
            ("JWT_ENABLED",),
            "Ask every request for a JSON Web Token (docs/security.md).",
            "true",
            _boolean,
        ),
    ] = False
    jwt_algorithm: Annotated[
        JwtAlgorithm,
        Option(
            ("JWT_ALGORITHM",),
            "How tokens are signed: HS256, HS384, HS512, RS256 (the three of RSA), RS384, RS512,"
            " EdDSA, or auto (all that there is a key for).",
            "EdDSA",
            _algorithm,
        ),
    ] = "HS256"
    jwt_secret: Annotated[
        str,
        Option(
            ("JWT_SECRET",),
            "The shared secret of the HS algorithms, at least 32 bytes (openssl rand -hex 32).",
            "0f" * 32,
            default_text="none",
        ),
    ] = ""
    jwt_public_key: Annotated[
        str,
        Option(
            ("JWT_PUBLIC_KEY",),
            "The public key of the RS algorithms or EdDSA as PEM text; it beats JWT_JWKS_URL.",
            r"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHU"
            r"Ro=\n-----END PUBLIC KEY-----",
            _public_key,
            default_text="none",
        ),
    ] = ""
    jwt_jwks_url: Annotated[
        str,
        Option(
            ("JWT_JWKS_URL",),
            "Where the public keys are published as a JSON Web Key Set.",
            "https://login.example/.well-known/jwks.json",
            _http_url,
            default_text="none",
        ),
    ] = ""
    jwt_jwks_refresh_interval_s: Annotated[
        int,
        Option(
            ("JWT_JWKS_REFRESH_INTERVAL",),
            "How often they are fetched again, in seconds; for an unknown key id at once.",
            "600",
            _integer(5, 7 * 24 * 3600),
        ),
    ] = 3600
    jwt_jwks_timeout_ms: Annotated[
        int,
        Option(
            ("JWT_JWKS_TIMEOUT_MS",),
            "How long fetching them may take, in milliseconds.",
            "2000",
            _milliseconds,
        ),
    ] = 5000
    jwt_jwks_max_age_s: Annotated[
        int,
        Option(
            ("JWT_JWKS_MAX_AGE",),
            "Drop the keys, so that no token holds, when they could not be fetched for this many"
            " seconds; 0 keeps them.",
            "86400",
            _integer(0, 365 * 24 * 3600),
        ),
    ] = 0
    jwt_require_exp: Annotated[
        bool,
        Option(
            ("JWT_REQUIRE_EXP",),
            "Refuse tokens without an exp claim, which hold for ever.",
            "true",
            _boolean,
        ),
    ] = False
    jwt_max_lifetime_s: Annotated[
        int,
        Option(
            ("JWT_MAX_LIFETIME",),
            "Refuse tokens that hold for longer than this many seconds, from iat (or now) to exp,"
            " and those without exp; 0 accepts any.",
            "86400",
            _integer(0, 365 * 24 * 3600),
        ),
    ] = 0
    jwt_issuer: Annotated[
        str,
        Option(
            ("JWT_ISSUER",),
            "The iss claim that a token must have.",
            "https://login.example",
            default_text="any",
        ),
    ] = ""
    jwt_audience: Annotated[
        str,
        Option(
            ("JWT_AUDIENCE",),
            "What must be among a token's aud claim.",
            "queues",
            default_text="any",
        ),
    ] = ""
    jwt_clock_skew_s: Annotated[
        int,
        Option(
            ("JWT_CLOCK_SKEW",),
            "By how much the issuer's clock may differ from this one, in seconds.",
            "5",
            _integer(0, 3600),
        ),
    ] = 30
    jwt_skip_paths: Annotated[
        tuple[str, ...],
        Option(
            ("JWT_SKIP_PATHS",),
            "Paths that are open to everybody, separated by commas; one that ends in / opens all"
            " below it.",
            "/health,/assets/",
            _paths,
            default_text="/health,/livez,/readyz,/metrics,/metrics/prometheus,/",
        ),
    ] = ("/health", "/livez", "/readyz", "/metrics", "/metrics/prometheus", "/")
    jwt_roles_claim: Annotated[
        str, Option(("JWT_ROLES_CLAIM",), "The claim that names one role.", "role")
    ] = "role"
    jwt_roles_array_claim: Annotated[
        str, Option(("JWT_ROLES_ARRAY_CLAIM",), "The claim that lists roles.", "groups")
    ] = "roles"
    jwt_queues_claim: Annotated[
        str,
        Option(
            ("JWT_QUEUES_CLAIM",),
            "The claim that lists patterns of queue names; a token with it is for these queues"
            " alone.",
            "allowed_queues",
        ),
    ] = "queues"
    jwt_role_admin: Annotated[
        str, Option(("JWT_ROLE_ADMIN",), "The role that may do everything.", "queue-admin")
    ] = "admin"
    jwt_role_read_write: Annotated[
        str, Option(("JWT_ROLE_READ_WRITE",), "The role that produces and consumes.", "app")
    ] = "read-write"
    jwt_role_read_only: Annotated[
        str, Option(("JWT_ROLE_READ_ONLY",), "The role that only looks.", "viewer")
    ] = "read-only"
    jwt_role_write_only: Annotated[
        str, Option(("JWT_ROLE_WRITE_ONLY",), "The role that only produces.", "producer")
    ] = "write-only"

    # -- the database --

    data_dir: Annotated[
        Path,
        Option(
            ("DATA_DIR",),
            "Where the server keeps its own PostgreSQL. Unused with a given database.",
            "/var/lib/queue-server",
            _data_dir,
            flag="--data-dir",
            default_text="./data",
        ),
    ] = msgspec.field(default_factory=_default_data_dir)
    database_url: Annotated[
        str,
        Option(
            ("DATABASE_URL",),
            "Use this PostgreSQL (15 or newer) instead of an own one. Other users of the machine"
            " can read a command line: with a password better set the variable.",
            "postgresql://queue:secret@db.example/queue",
            _database_url,
            flag="--database-url",
            default_text="none",
        ),
    ] = ""
    pg_host: Annotated[
        str,
        Option(
            ("PG_HOST",),
            "The given server in parts, for those without a URL. Any PG_HOST, PG_PORT, PG_DB,"
            " PG_USER or PG_PASSWORD means that a server is given.",
            "db.example",
            default_text="localhost",
        ),
    ] = ""
    pg_port: Annotated[
        int, Option(("PG_PORT",), "Its port.", "5432", _integer(1, 65535), default_text="5432")
    ] = 0
    pg_db: Annotated[str, Option(("PG_DB",), "Its database.", "queue", default_text="postgres")] = (
        ""
    )
    pg_user: Annotated[
        str, Option(("PG_USER",), "The role to log in as.", "queue", default_text="postgres")
    ] = ""
    pg_password: Annotated[
        str, Option(("PG_PASSWORD",), "Its password.", "secret", default_text="postgres")
    ] = ""
    pg_use_ssl: Annotated[
        bool, Option(("PG_USE_SSL",), "Refuse to talk to it without TLS.", "true", _boolean)
    ] = False
    pg_ssl_reject_unauthorized: Annotated[
        bool,
        Option(
            ("PG_SSL_REJECT_UNAUTHORIZED",),
            "With PG_USE_SSL: check its certificate and name.",
            "false",
            _boolean,
        ),
    ] = True
    pg_ssl_root_cert: Annotated[
        str,
        Option(
            ("PG_SSL_ROOT_CERT", "PGSSLROOTCERT"),
            "With PG_USE_SSL: file of the authorities to trust; 'system' means this machine's.",
            "/etc/ssl/db.pem",
        ),
    ] = "system"
    db_pool_size: Annotated[
        int,
        Option(
            ("DB_POOL_SIZE",),
            "Database connections of the whole server, shared out to the workers"
            f" (at least {CONNECTIONS_PER_WORKER_MIN} for each).",
            "32",
            _integer(CONNECTIONS_PER_WORKER_MIN, 100_000),
            default_text=f"{CONNECTIONS_PER_WORKER_DEFAULT} for each worker",
        ),
    ] = 0  # worked out in __post_init__
    db_connection_timeout_ms: Annotated[
        int,
        Option(
            ("DB_CONNECTION_TIMEOUT",),
            "How long a request waits for a database connection, in milliseconds.",
            "2000",
            _milliseconds,
        ),
    ] = 2000
    db_statement_timeout_ms: Annotated[
        int,
        Option(
            ("DB_STATEMENT_TIMEOUT",),
            "How long one statement may run, in milliseconds.",
            "30000",
            _milliseconds,
        ),
    ] = 30_000
    db_lock_timeout_ms: Annotated[
        int,
        Option(
            ("DB_LOCK_TIMEOUT",),
            "How long one statement may wait for a lock, in milliseconds.",
            "10000",
            _milliseconds,
        ),
    ] = 10_000
    read_connections: Annotated[
        int,
        Option(
            ("READ_CONNECTIONS",),
            "Database connections of one worker that listings, statistics and searches may use;"
            " others wait for one, and are answered 429 after 5 seconds.",
            "4",
            _integer(1, 10_000),
            default_text="a quarter of a worker's, and 1 at least",
        ),
    ] = 0  # worked out in __post_init__
    read_timeout_ms: Annotated[
        int,
        Option(
            ("READ_TIMEOUT",),
            "How long one of their statements may run, in milliseconds. Statistics of a million"
            " partitions take some ten seconds.",
            "60000",
            _milliseconds,
        ),
    ] = 20_000

    # -- what clients get when they do not say --

    default_timeout_ms: Annotated[
        int,
        Option(
            ("DEFAULT_TIMEOUT", "POP_DEFAULT_TIMEOUT_MS"),
            "How long a waiting pop waits, in milliseconds.",
            "30000",
            _milliseconds,
        ),
    ] = 30_000
    max_timeout_ms: Annotated[
        int,
        Option(
            ("MAX_TIMEOUT",),
            "The longest wait a pop may ask for, in milliseconds.",
            "60000",
            _milliseconds,
        ),
    ] = 60_000
    default_batch_size: Annotated[
        int,
        Option(
            ("DEFAULT_BATCH_SIZE",),
            "Messages of a pop that names no batch size.",
            "1",
            _integer(1, 1_000_000),
        ),
    ] = 200
    default_subscription_mode: Annotated[
        SubscriptionMode,
        Option(
            ("DEFAULT_SUBSCRIPTION_MODE",),
            "Where a new consumer group begins: all, new or new-only.",
            "new",
            _one_of("", "all", "new", "new-only"),
        ),
    ] = "all"

    # -- what goes by itself --

    retention_interval_ms: Annotated[
        int,
        Option(
            ("RETENTION_INTERVAL",),
            "How often messages are looked for that retentionSeconds or"
            " completedRetentionSeconds let go, in milliseconds.",
            "60000",
            _milliseconds,
        ),
        # A pass that finds nothing reads one row for each partition of the queues with a rule, so
        # the five seconds of the 2.x brokers cost little. The five minutes of 0.15 would let a
        # queue that keeps ten seconds grow to thirty times that.
    ] = 5000
    retention_batch_size: Annotated[
        int,
        Option(
            ("RETENTION_BATCH_SIZE",),
            "Segments (stored batches, never parts of one) that one transaction of retention"
            " deletes at most.",
            "200",
            _integer(1, 100_000),
        ),
    ] = 1000
    eviction_interval_ms: Annotated[
        int,
        Option(
            ("EVICTION_INTERVAL",),
            "How often messages are looked for that are older than maxWaitTimeSeconds or ttl, in"
            " milliseconds.",
            "60000",
            _milliseconds,
            default_text="as RETENTION_INTERVAL",
        ),
    ] = 0  # worked out in __post_init__
    eviction_batch_size: Annotated[
        int,
        Option(
            ("EVICTION_BATCH_SIZE",),
            "Segments that one transaction of eviction deletes at most.",
            "200",
            _integer(1, 100_000),
        ),
    ] = 1000
    partition_cleanup_days: Annotated[
        int,
        Option(
            ("PARTITION_CLEANUP_DAYS",),
            "After so many days without use an empty partition is removed; 0 keeps all.",
            "7",
            _integer(0, 36_500),
        ),
    ] = 30
    trace_retention_s: Annotated[
        int,
        Option(
            ("TRACE_RETENTION", "QUEEN_RAFT_TRACE_RETENTION_S"),
            "How long traces are kept, in seconds.",
            "86400",
            _integer(1, 36_500 * 24 * 3600),
        ),
    ] = 7 * 24 * 3600

    # -- consumer groups --

    group_idle_s: Annotated[
        int,
        Option(
            ("GROUP_IDLE_SECONDS",),
            "A consumer group that has neither popped nor acknowledged for so long is idle: while"
            " other groups of its queue are in use, it makes the queue neither deep nor late. 0: no"
            " group ever is. Holds for all servers on a database, as the last one that started has"
            " it.",
            "86400",
            _off_or_integer(300, 1_000_000_000),
        ),
    ] = 3600
    group_expire_s: Annotated[
        int,
        Option(
            ("GROUP_EXPIRE_SECONDS",),
            "A consumer group that has neither popped nor acknowledged for so long is deleted; when"
            " it comes back it is new. 0: none is.",
            "604800",
            _off_or_integer(300, 1_000_000_000),
        ),
    ] = 0

    # -- figures for charts --

    stats_interval_ms: Annotated[
        int,
        Option(
            ("STATS_INTERVAL_MS",),
            "How often each worker books in the database what it did, in milliseconds. Charts are"
            " late by as much.",
            "5000",
            _milliseconds,
        ),
    ] = 10_000
    ws_max_connections: Annotated[
        int,
        Option(
            ("WS_MAX_CONNECTIONS",),
            "WebSockets that dashboards may have open on this host.",
            "100",
            _integer(0, 1_000_000),
        ),
    ] = 1000
    metrics_retention_days: Annotated[
        int,
        Option(
            ("METRICS_RETENTION_DAYS", "STATS_HISTORY_RETENTION_DAYS"),
            "How long the figures by minute are kept: a row for each worker and for each queue in"
            " use, every minute.",
            "30",
            _integer(1, 36_500),
        ),
    ] = 7

    # -- CORS --

    cors_allowed_origins: Annotated[
        str,
        Option(
            ("CORS_ALLOWED_ORIGINS",),
            "Value of Access-Control-Allow-Origin. Without authentication only pages of exactly"
            " this origin, and the server's own, may use it; * allows no other.",
            "https://dashboard.example",
            _header_value,
        ),
    ] = "*"
    cors_allowed_methods: Annotated[
        str,
        Option(
            ("CORS_ALLOWED_METHODS",),
            "Value of Access-Control-Allow-Methods.",
            "GET, POST",
            _header_value,
        ),
    ] = "GET, POST, PUT, DELETE, OPTIONS"
    cors_allowed_headers: Annotated[
        str,
        Option(
            ("CORS_ALLOWED_HEADERS",),
            "Value of Access-Control-Allow-Headers.",
            "Content-Type",
            _header_value,
        ),
    ] = "Content-Type, Authorization"
    cors_max_age: Annotated[
        int,
        Option(
            ("CORS_MAX_AGE",),
            "Value of Access-Control-Max-Age, in seconds.",
            "600",
            _integer(0, 2**31 - 1),
        ),
    ] = 86_400

    # -- metrics and spans --

    metrics_public_names: Annotated[
        bool,
        Option(
            ("METRICS_PUBLIC_NAMES",),
            "With authentication, name queues and groups in /metrics/prometheus also to those who"
            " send no credential.",
            "true",
            _boolean,
        ),
    ] = False
    metrics_queues_max: Annotated[
        int,
        Option(
            ("METRICS_QUEUES_MAX",),
            "Queues with series of their own in /metrics/prometheus, the oldest first; the others"
            " are told together. As many pairs of queue and consumer group have theirs, those that"
            " are furthest behind.",
            "20",
            _integer(0, 10_000),
        ),
    ] = 100

    tracing: Annotated[
        bool,
        Option(
            ("TRACING",),
            "Make OpenTelemetry spans of pushes, pops and acknowledgements and send them as"
            " OTEL_EXPORTER_OTLP_ENDPOINT and the like say; messages keep the traceparent of their"
            " push. Needs the extra otel.",
            "true",
            _boolean,
            flag="--tracing",
        ),
    ] = False

    # -- logs --

    log_level: Annotated[
        LogLevel,
        Option(
            ("LOG_LEVEL",),
            "Least severe records to log: debug, info, warning or error.",
            "debug",
            _one_of("debug", "info", "warning", "error", aliases={"warn": "warning"}),
            flag="--log-level",
        ),
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Option(
            ("LOG_FORMAT",),
            "json (a record a line) or console (to be read).",
            "json",
            _one_of("json", "console"),
            flag="--log-format",
            default_text="console on a terminal, else json",
        ),
    ] = "json"

    def __post_init__(self) -> None:
        if not self.db_pool_size:
            size = self.workers * CONNECTIONS_PER_WORKER_DEFAULT
            msgspec.structs.force_setattr(self, "db_pool_size", size)
        if self.db_pool_size < self.workers * CONNECTIONS_PER_WORKER_MIN:
            raise SettingsError(
                f"DB_POOL_SIZE={self.db_pool_size}: must be at least"
                f" {self.workers * CONNECTIONS_PER_WORKER_MIN}, {CONNECTIONS_PER_WORKER_MIN} for"
                f" each of the {self.workers} workers (see NUM_WORKERS)"
            )
        if not self.read_connections:
            most = max(1, self.db_pool_size // self.workers // 4)
            msgspec.structs.force_setattr(self, "read_connections", most)
        if not self.max_parked_pops:
            most = max(1, self.max_connections * 9 // 10)
            msgspec.structs.force_setattr(self, "max_parked_pops", most)
        if not self.eviction_interval_ms:
            msgspec.structs.force_setattr(self, "eviction_interval_ms", self.retention_interval_ms)
        if self.tracing and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise SettingsError(
                "TRACING=true: needs OpenTelemetry's packages: pip install 'queue-server[otel]'"
            )
        self._check_doors()
        # Who lowers the longest wait alone means the usual wait too.
        default_timeout_ms = min(self.default_timeout_ms, self.max_timeout_ms)
        msgspec.structs.force_setattr(self, "default_timeout_ms", default_timeout_ms)

    def _check_doors(self) -> None:
        """Errors: `SettingsError` for doors that nobody can mean, open or shut."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("TLS_CERT and TLS_KEY: one needs the other")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("TLS_CLIENT_CA: needs TLS_CERT and TLS_KEY")
        if not (self.has_authentication or _is_loopback(self.host) or self.allow_anonymous):
            raise SettingsError(
                f"HOST={self.host}: opens the server to everybody who reaches it; set"
                " JWT_ENABLED=true and a key, or API_KEYS_ENABLED=true, or ALLOW_ANONYMOUS=true if"
                " that is meant"
            )
        if not self.jwt_enabled:
            return
        algorithm = self.jwt_algorithm
        public = bool(self.jwt_public_key or self.jwt_jwks_url)
        if algorithm == "auto" and not (public or self.jwt_secret):
            raise SettingsError(
                "JWT_ENABLED=true: needs a key: JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"
            )
        if algorithm.startswith("HS") and not self.jwt_secret:
            raise SettingsError(
                f"JWT_ENABLED=true with JWT_ALGORITHM={algorithm}: needs JWT_SECRET"
            )
        if 0 < self.jwt_jwks_max_age_s < self.jwt_jwks_refresh_interval_s:
            raise SettingsError(
                f"JWT_JWKS_MAX_AGE={self.jwt_jwks_max_age_s}: must be at least"
                f" JWT_JWKS_REFRESH_INTERVAL, {self.jwt_jwks_refresh_interval_s}"
            )
        if algorithm.startswith(("RS", "Ed")):
            if not public:
                raise SettingsError(
                    f"JWT_ENABLED=true with JWT_ALGORITHM={algorithm}: needs JWT_PUBLIC_KEY or"
                    " JWT_JWKS_URL"
                )
            if self.jwt_public_key and not _fits(self.jwt_public_key, algorithm):
                raise SettingsError(f"JWT_PUBLIC_KEY: is not a key for JWT_ALGORITHM={algorithm}")

    @property
    def warnings(self) -> list[str]:
        """What an operator ought to know of these settings: sentences for the log."""
        found = []
        if not self.has_authentication and not _is_loopback(self.host):
            found.append(f"everybody who reaches {self.host} may use this server (ALLOW_ANONYMOUS)")
        if self.jwt_enabled and 0 < len(self.jwt_secret.encode()) < JWT_SECRET_BYTES_MIN:
            found.append(
                f"JWT_SECRET is shorter than {JWT_SECRET_BYTES_MIN} bytes and may be guessed"
            )
        url = urlsplit(self.jwt_jwks_url)
        if self.jwt_enabled and url.scheme == "http" and not _is_loopback(url.hostname or ""):
            found.append("JWT_JWKS_URL is not https: who is on the way can forge every token")
        return found

    @property
    def is_on_loopback(self) -> bool:
        return _is_loopback(self.host)

    @property
    def has_authentication(self) -> bool:
        return self.jwt_enabled or self.api_keys_enabled

    @property
    def connections_per_worker(self) -> int:
        return self.db_pool_size // self.workers

    @property
    def conninfo(self) -> str | None:
        """The libpq connection string of the given server; None means the embedded one.

        It holds the password: pass it on, never log it.
        """
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        defaults: dict[str, str | int] = {
            # After a failover the old primary may still answer, but only for reading.
            "target_session_attrs": "read-write",
            "application_name": "queue-server",
            # libpq takes whole seconds and treats 1 as 2.
            "connect_timeout": max(2, math.ceil(self.db_connection_timeout_ms / 1000)),
        }
        if self.database_url:
            given = {k: v for k, v in conninfo_to_dict(self.database_url).items() if v is not None}
            return make_conninfo("", **(defaults | given))
        parts = (self.pg_host, self.pg_port, self.pg_db, self.pg_user, self.pg_password)
        if not any(parts):
            return None
        if self.pg_use_ssl and self.pg_ssl_reject_unauthorized:
            defaults |= {"sslmode": "verify-full", "sslrootcert": self.pg_ssl_root_cert}
        elif self.pg_use_ssl:
            defaults["sslmode"] = "require"
        return make_conninfo(
            "",
            **defaults,
            host=self.pg_host or "localhost",
            port=self.pg_port or 5432,
            dbname=self.pg_db or "postgres",
            user=self.pg_user or "postgres",
            password=self.pg_password or "postgres",
        )

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self._shown())})"

    def __rich_repr__(self) -> Any:
        yield from self._shown()

    def _shown(self) -> list[tuple[str, Any]]:
        return [
            (name, "***" if name in SECRETS and value else value)
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        ]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def options() -> dict[str, Option]:
    """The option of each field of `Settings`, in the order of the class."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in Settings.__struct_fields__}


def load_settings(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    terminal: bool = False,
    program: str = "cluster.py",
) -> Settings:
    """Read the settings; *argv* is without the name of the *program*, which `--help` shows.

    *terminal* says whether people read the log as it is written.
    Errors: `SettingsError` for the first value that cannot be used. `--help` and `--version`
    print and raise SystemExit, as argparse does.
    """
    given = vars(_parser(program).parse_args(argv))
    values: dict[str, Any] = {"log_format": "console" if terminal else "json"}
    for name, option in options().items():
        if given.get(name) is not None:
            values[name] = _parse(name, option, option.flag, given[name])
            continue
        for variable in option.env:
            if text := environ.get(variable, "").strip():
                values[name] = _parse(name, option, variable, text)
                break
    return Settings(**values)


def _parse(name: str, option: Option, source: str, text: str) -> Any:
    try:
        return option.parse(text)
    except ValueError as exc:
        # One line whatever the value holds, and no secret: a URL is not repeated.
        shown = "" if name in SECRETS else f"={text[:100]!r}"
        raise SettingsError(f"{source}{shown}: {exc}") from None


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that is nearly a setting's, which thus has no effect.

    Nearly: one letter more, less or other, two exchanged, or in another case.
    """
    known = {name for option in options().values() for name in option.env}
    found = []
    for given in sorted(environ):
        # Variables of libpq, such as PGHOST, lack only the underscore.
        if given in known or re.fullmatch(r"PG[A-Z]+", given):
            continue
        meant = [
            name
            for name in sorted(known)
            # HOST and PORT are near to too many words.
            if len(name) > _SHORT_NAME and _is_nearly(given.upper(), name)
        ]
        if meant:
            # A name from the environment may hold anything but `=`.
            found.append(f"{given!r} in the environment is no setting; is {meant[0]} meant?")
    return found


_SHORT_NAME = 4


def _is_nearly(given: str, name: str) -> bool:
    """Whether the texts differ by one letter at most, or by two neighbours that are exchanged."""
    if abs(len(given) - len(name)) > 1:
        return False
    pairs = enumerate(zip(given, name, strict=False))
    start = next((at for at, (one, other) in pairs if one != other), min(len(given), len(name)))
    a, b = given[start:], name[start:]
    return a == b or a[1:] in (b, b[1:]) or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self._unknown_options(unknown.split()) or message
        raise SettingsError(f"{message} (see --help)")

    def _unknown_options(self, words: Sequence[str]) -> str:
        """Name the options among *words*, without their values: one may be a password."""
        sentences = []
        for word in words:
            if not word.startswith("-"):
                continue
            given = word.partition("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            guess = f"; is {near[0]} meant?" if near else ""
            sentences.append(f"there is no option {given}{guess}")
        return "; ".join(sentences)

    def print_help(self, file: Any = None) -> None:
        # argparse knows nothing of the settings that come from the environment alone.
        super().print_help(file)
        print("\n" + _environment_help(), file=file)


def _parser(program: str) -> _Parser:
    command = f"python {program}" if program.endswith(".py") else program
    parser = _Parser(
        prog=program,
        description="A clustered, partitioned message-queue server on PostgreSQL. Without a"
        " database it runs its own in the data directory.",
        epilog="examples:\n"
        f"  {command}\n"
        f"  {command} --workers 4 --port 6632\n"
        f"  DATABASE_URL=postgresql://queue:secret@db/queue {command}\n"
        "other commands: queue-server --help (in a checkout: python -m queue_server --help)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, option in options().items():
        if option.flag:
            text = f"{option.text} [{', '.join(option.env)}; default: {_default(name, option)}]"
            parser.add_argument(
                option.flag,
                dest=name,
                metavar=option.flag.lstrip("-").upper().replace("-", "_"),
                help=text.replace("%", "%%"),
            )
    parser.add_argument("--version", action="version", version=f"queue-server {__version__}")
    return parser


def _environment_help() -> str:
    width = min(100, shutil.get_terminal_size().columns)
    lines = ["environment (an option of the same meaning wins):"]
    for name, option in options().items():
        also = f" (also {', '.join(option.env[1:])})" if option.env[1:] else ""
        text = (
            f"{option.text} Default: {_default(name, option)}."
            f" Example: {option.env[0]}={option.example}{also}"
        )
        lines.append(f"  {option.env[0]}")
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines += [
        "",
        "stop: Ctrl-C, SIGTERM or closing the terminal drains, twice ends at once;"
        " SIGHUP replaces workers.",
    ]
    return "\n".join(lines)


def _default(name: str, option: Option) -> str:
    if option.default_text:
        return option.default_text
    for field in msgspec.structs.fields(Settings):
        if field.name == name:
            value = field.default
            return str(value).lower() if isinstance(value, bool) else str(value)
    raise AssertionError(name)
