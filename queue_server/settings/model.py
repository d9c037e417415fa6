"""`Settings`: everything an operator can set, one field each.

Secrets are masked in `repr` and never part of an error message.
"""

import dataclasses
import importlib.util
import ipaddress
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from queue_server.settings.cpus import usable_cpu_count
from queue_server.settings.parsers import (
    boolean,
    directory,
    header_value,
    hex_key,
    hex_keys,
    http_url,
    milliseconds,
    one_of,
    paths,
    postgresql_url,
    public_key_pem,
    whole,
    zero_or_whole,
)
from queue_server.settings.setting import Option, SettingsError, setting

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "EdDSA", "auto"]
SubscriptionMode = Literal["", "all", "new", "new-only"]

# A worker needs one connection each for pushes, pops and acks to make progress at the same time.
CONNECTIONS_PER_WORKER_MIN = 3
CONNECTIONS_PER_WORKER_DEFAULT = 8

# RFC 7518, 3.2: no shorter than the hash's output.
JWT_SECRET_BYTES_MIN = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings:
    """The settings as first read; passed down as an argument, never read again.

    Each field is declared as name, help, default, parser and example. The comments between dashes
    divide the fields into the tables of docs/configuration.md.
    """

    # The formatter would give each argument a line of its own and a setting half a screen.
    # fmt: off

    # -- the server --

    host: str = setting(("HOST", "QUEEN_BIND_ADDR"),
        "Address to listen on. 0.0.0.0 opens the server to the network.",
        "127.0.0.1", str, "10.0.0.5", flag="--host")
    port: int = setting("PORT",
        "Port to listen on; 0 picks a free one, which the log names.",
        6632, whole(0, 65535), "6632", flag="--port")
    workers: int = setting("NUM_WORKERS",
        "Serving processes, one event loop each.",
        0, whole(1, 1024), "4", flag="--workers", default_text="the CPUs this process may use")
    max_body_bytes: int = setting(("MAX_BODY_SIZE", "QUEEN_MAX_BODY_BYTES"),
        "Largest request body in bytes.",
        100 * 1024 * 1024, whole(1024, 2**31 - 1), "16777216")
    request_memory_bytes: int = setting("REQUEST_MEMORY",
        "Memory in bytes that the requests of one worker may take, with all that is made of their"
        " bodies; one that would exceed it is answered 429.",
        300 * 1024 * 1024, whole(1024 * 1024, 2**40), "157286400")
    max_connections: int = setting("MAX_CONNECTIONS",
        "Open client connections of one worker; one more is answered 503. Each needs a file"
        " descriptor (ulimit -n).",
        20_000, whole(1, 1_000_000), "1000")
    max_connections_per_address: int = setting("MAX_CONNECTIONS_PER_ADDRESS",
        "Of these, those of one client address (of IPv6: of one /64 network); one more is"
        " answered 429; 0 is no limit. Behind a proxy all clients have its address.",
        0, whole(0, 1_000_000), "200")
    header_timeout_ms: int = setting("HEADER_TIMEOUT",
        "How long a new connection may take to send its first request's headers, in milliseconds;"
        " then it is closed.",
        30_000, milliseconds, "10000")
    body_timeout_ms: int = setting("BODY_TIMEOUT",
        "How long a request body may make no progress, in milliseconds; then it is answered 408.",
        30_000, milliseconds, "10000")
    reader_timeout_ms: int = setting("READER_TIMEOUT",
        "How long a client may take nothing of what it is sent (less than a twentieth of what"
        " waits for it), in milliseconds; then its connection is closed.",
        120_000, milliseconds, "60000")
    max_header_bytes: int = setting("MAX_HEADER_SIZE",
        "Largest request line, and largest header, in bytes; above it the answer is 431.",
        16 * 1024, whole(1024, 1024 * 1024), "8192")
    max_batch_items: int = setting("MAX_BATCH_ITEMS",
        "Most items of one push, and most acknowledgments of one batch; above it 413.",
        100_000, whole(1, 10_000_000), "10000")
    max_transaction_operations: int = setting("MAX_TRANSACTION_OPERATIONS",
        "Most pushed messages and acknowledgments of one transaction; above it 413.",
        100_000, whole(1, 1_000_000), "1000")
    max_parked_pops: int = setting("MAX_PARKED_POPS",
        "Pops that may wait in one worker; one more is answered 429.",
        0, whole(1, 1_000_000), "5000",
        default_text="nine tenths of MAX_CONNECTIONS, so that pushes get in")
    max_parked_pops_per_address: int = setting("MAX_PARKED_POPS_PER_ADDRESS",
        "Of these, those of one client address (of IPv6: of one /64 network); 0 is no limit."
        " Behind a proxy all clients have its address.",
        0, whole(0, 1_000_000), "100")
    max_queues: int = setting("MAX_QUEUES",
        "Queues that there may be; whatever would create one more is answered 409. This and the"
        " next two hold for all servers on a database, as the last one that started has them.",
        100_000, whole(1, 1_000_000_000), "1000")
    max_groups_per_queue: int = setting("MAX_GROUPS_PER_QUEUE",
        "Consumer groups that a queue may have, consumers without a group being one; each costs"
        " every push to the queue a little.",
        1000, whole(1, 1_000_000_000), "50")
    max_partitions_per_queue: int = setting("MAX_PARTITIONS_PER_QUEUE",
        "Partitions that a queue may have.",
        1_000_000, whole(1, 1_000_000_000), "10000")
    request_rate: int = setting("REQUEST_RATE",
        "Requests a second that one principal (without authentication: one address, of IPv6 one"
        " /64 network) may send to one worker; above it 429. 0 is no limit.",
        0, whole(0, 1_000_000), "500")
    encryption_key: str = setting("QUEEN_ENCRYPTION_KEY",
        "Key for queues with encryptionEnabled: 64 hexadecimal digits (openssl rand -hex 32).",
        "", hex_key, "0f" * 32, secret=True)
    encryption_old_keys: str = setting("QUEEN_ENCRYPTION_OLD_KEYS",
        "Keys that were used before, still accepted for reading; separated by commas.",
        "", hex_keys, "1e" * 32, secret=True)
    encryption_fallback_plaintext: bool = setting("ENCRYPTION_FALLBACK_PLAINTEXT",
        "Without QUEEN_ENCRYPTION_KEY, store the messages of queues with encryptionEnabled as"
        " plain text, as Queen does. Otherwise pushes to them are refused with 503.",
        False, boolean, "true")
    drain_timeout_ms: int = setting("DRAIN_TIMEOUT",
        "How long running requests may take to finish at a stop, in milliseconds.",
        8000, milliseconds, "8000")
    tls_cert: str = setting("TLS_CERT",
        "Serve https with this certificate: a PEM file, the intermediate ones behind it.",
        "", str, "/etc/queue-server/tls.crt", default_text="none, http")
    tls_key: str = setting("TLS_KEY",
        "The certificate's private key: a PEM file without a password.",
        "", str, "/etc/queue-server/tls.key", default_text="none")
    tls_client_ca: str = setting("TLS_CLIENT_CA",
        "Serve only clients with a certificate of one of the authorities in this PEM file.",
        "", str, "/etc/queue-server/clients.crt", default_text="none, clients need no certificate")

    # -- who may use it --

    allow_anonymous: bool = setting("ALLOW_ANONYMOUS",
        "Serve everybody who reaches an address that is not loopback. Needed to listen there"
        " without JWT_ENABLED or API_KEYS_ENABLED.",
        False, boolean, "true")
    api_keys_enabled: bool = setting("API_KEYS_ENABLED",
        "Ask every request for an API key (queue-server keys --help), or for a token where"
        " JWT_ENABLED is set too.",
        False, boolean, "true")
    jwt_enabled: bool = setting("JWT_ENABLED",
        "Ask every request for a JSON Web Token (docs/security.md).",
        False, boolean, "true")
    jwt_algorithm: JwtAlgorithm = setting("JWT_ALGORITHM",
        "How tokens are signed: HS256, HS384, HS512, RS256 (the three of RSA), RS384, RS512,"
        " EdDSA, or auto (all that there is a key for).",
        "HS256", one_of(*get_args(JwtAlgorithm)), "EdDSA")
    jwt_secret: str = setting("JWT_SECRET",
        "The shared secret of the HS algorithms, at least 32 bytes (openssl rand -hex 32).",
        "", str, "0f" * 32, default_text="none", secret=True)
    jwt_public_key: str = setting("JWT_PUBLIC_KEY",
        "The public key of the RS algorithms or EdDSA as PEM text; it beats JWT_JWKS_URL.",
        "", public_key_pem, r"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hc"
        r"vPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----", default_text="none")
    jwt_jwks_url: str = setting("JWT_JWKS_URL",
        "Where the public keys are published as a JSON Web Key Set.",
        "", http_url, "https://login.example/.well-known/jwks.json", default_text="none")
    jwt_jwks_refresh_interval_s: int = setting("JWT_JWKS_REFRESH_INTERVAL",
        "How often they are fetched again, in seconds; for an unknown key id at once.",
        3600, whole(5, 7 * 24 * 3600), "600")
    jwt_jwks_timeout_ms: int = setting("JWT_JWKS_TIMEOUT_MS",
        "How long fetching them may take, in milliseconds.",
        5000, milliseconds, "2000")
    jwt_jwks_max_age_s: int = setting("JWT_JWKS_MAX_AGE",
        "Drop the keys, so that no token holds, when they could not be fetched for this many"
        " seconds; 0 keeps them.",
        0, whole(0, 365 * 24 * 3600), "86400")
    jwt_require_exp: bool = setting("JWT_REQUIRE_EXP",
        "Refuse tokens without an exp claim, which hold for ever.",
        False, boolean, "true")
    jwt_max_lifetime_s: int = setting("JWT_MAX_LIFETIME",
        "Refuse tokens that hold for longer than this many seconds, from iat (or now) to exp, and"
        " those without exp; 0 accepts any.",
        0, whole(0, 365 * 24 * 3600), "86400")
    jwt_issuer: str = setting("JWT_ISSUER",
        "The iss claim that a token must have.",
        "", str, "https://login.example", default_text="any")
    jwt_audience: str = setting("JWT_AUDIENCE",
        "What must be among a token's aud claim.",
        "", str, "queues", default_text="any")
    jwt_clock_skew_s: int = setting("JWT_CLOCK_SKEW",
        "By how much the issuer's clock may differ from this one, in seconds.",
        30, whole(0, 3600), "5")
    jwt_skip_paths: tuple[str, ...] = setting("JWT_SKIP_PATHS",
        "Paths that are open to everybody, separated by commas; one that ends in / opens all"
        " below it.",
        ("/health", "/livez", "/readyz", "/metrics", "/metrics/prometheus", "/"), paths,
        "/health,/assets/", default_text="/health,/livez,/readyz,/metrics,/metrics/prometheus,/")
    jwt_roles_claim: str = setting("JWT_ROLES_CLAIM",
        "The claim that names one role.",
        "role", str, "role")
    jwt_roles_array_claim: str = setting("JWT_ROLES_ARRAY_CLAIM",
        "The claim that lists roles.",
        "roles", str, "groups")
    jwt_queues_claim: str = setting("JWT_QUEUES_CLAIM",
        "The claim that lists patterns of queue names; a token with it is for these queues alone.",
        "queues", str, "allowed_queues")
    jwt_role_admin: str = setting("JWT_ROLE_ADMIN",
        "The role that may do everything.",
        "admin", str, "queue-admin")
    jwt_role_read_write: str = setting("JWT_ROLE_READ_WRITE",
        "The role that produces and consumes.",
        "read-write", str, "app")
    jwt_role_read_only: str = setting("JWT_ROLE_READ_ONLY",
        "The role that only looks.",
        "read-only", str, "viewer")
    jwt_role_write_only: str = setting("JWT_ROLE_WRITE_ONLY",
        "The role that only produces.",
        "write-only", str, "producer")

    # -- the database --

    data_dir: Path = setting("DATA_DIR",
        "Where the server keeps its own PostgreSQL. Unused with a given database.",
        Path("data"), directory, "/var/lib/queue-server", flag="--data-dir", default_text="./data")
    database_url: str = setting("DATABASE_URL",
        "Use this PostgreSQL (15 or newer) instead of an own one. Other users of the machine can"
        " read a command line: with a password better set the variable.",
        "", postgresql_url, "postgresql://queue:secret@db.example/queue",
        flag="--database-url", default_text="none", secret=True)
    pg_host: str = setting("PG_HOST",
        "The given server in parts, for those without a URL. Any PG_HOST, PG_PORT, PG_DB, PG_USER"
        " or PG_PASSWORD means that a server is given.",
        "", str, "db.example", default_text="localhost")
    pg_port: int = setting("PG_PORT",
        "Its port.",
        0, whole(1, 65535), "5432", default_text="5432")
    pg_db: str = setting("PG_DB",
        "Its database.",
        "", str, "queue", default_text="postgres")
    pg_user: str = setting("PG_USER",
        "The role to log in as.",
        "", str, "queue", default_text="postgres")
    pg_password: str = setting("PG_PASSWORD",
        "Its password.",
        "", str, "secret", default_text="postgres", secret=True)
    pg_use_ssl: bool = setting("PG_USE_SSL",
        "Refuse to talk to it without TLS.",
        False, boolean, "true")
    pg_ssl_reject_unauthorized: bool = setting("PG_SSL_REJECT_UNAUTHORIZED",
        "With PG_USE_SSL: check its certificate and name.",
        True, boolean, "false")
    pg_ssl_root_cert: str = setting(("PG_SSL_ROOT_CERT", "PGSSLROOTCERT"),
        "With PG_USE_SSL: file of the authorities to trust; 'system' means this machine's.",
        "system", str, "/etc/ssl/db.pem")
    db_pool_size: int = setting("DB_POOL_SIZE",
        "Database connections of the whole server, shared out to the workers"
        f" (at least {CONNECTIONS_PER_WORKER_MIN} for each).",
        0, whole(CONNECTIONS_PER_WORKER_MIN, 100_000), "32",
        default_text=f"{CONNECTIONS_PER_WORKER_DEFAULT} for each worker")
    db_connection_timeout_ms: int = setting("DB_CONNECTION_TIMEOUT",
        "How long a request waits for a database connection, in milliseconds.",
        2000, milliseconds, "2000")
    db_statement_timeout_ms: int = setting("DB_STATEMENT_TIMEOUT",
        "How long one statement may run, in milliseconds.",
        30_000, milliseconds, "30000")
    db_lock_timeout_ms: int = setting("DB_LOCK_TIMEOUT",
        "How long one statement may wait for a lock, in milliseconds.",
        10_000, milliseconds, "10000")
    read_connections: int = setting("READ_CONNECTIONS",
        "Database connections of one worker that listings, statistics and searches may use;"
        " others wait for one, and are answered 429 after 5 seconds.",
        0, whole(1, 10_000), "4", default_text="a quarter of a worker's, and 1 at least")
    read_timeout_ms: int = setting("READ_TIMEOUT",
        "How long one of their statements may run, in milliseconds. Statistics of a million"
        " partitions take some ten seconds.",
        20_000, milliseconds, "60000")

    # -- what clients get when they do not say --

    default_timeout_ms: int = setting(("DEFAULT_TIMEOUT", "POP_DEFAULT_TIMEOUT_MS"),
        "How long a waiting pop waits, in milliseconds.",
        30_000, milliseconds, "30000")
    max_timeout_ms: int = setting("MAX_TIMEOUT",
        "The longest wait a pop may ask for, in milliseconds.",
        60_000, milliseconds, "60000")
    default_batch_size: int = setting("DEFAULT_BATCH_SIZE",
        "Messages of a pop that names no batch size.",
        200, whole(1, 1_000_000), "1")
    default_subscription_mode: SubscriptionMode = setting("DEFAULT_SUBSCRIPTION_MODE",
        "Where a new consumer group begins: all, new or new-only.",
        "all", one_of("", "all", "new", "new-only"), "new")

    # -- what goes by itself --

    # A pass that finds nothing reads one row for each partition of the queues with a rule, so the
    # five seconds of the 2.x brokers cost little. The five minutes of 0.15 would let a queue that
    # keeps ten seconds grow to thirty times that.
    retention_interval_ms: int = setting("RETENTION_INTERVAL",
        "How often messages are looked for that retentionSeconds or completedRetentionSeconds let"
        " go, in milliseconds.",
        5000, milliseconds, "60000")
    retention_batch_size: int = setting("RETENTION_BATCH_SIZE",
        "Segments (stored batches, never parts of one) that one transaction of retention deletes"
        " at most.",
        1000, whole(1, 100_000), "200")
    eviction_interval_ms: int = setting("EVICTION_INTERVAL",
        "How often messages are looked for that are older than maxWaitTimeSeconds or ttl, in"
        " milliseconds.",
        0, milliseconds, "60000", default_text="as RETENTION_INTERVAL")
    eviction_batch_size: int = setting("EVICTION_BATCH_SIZE",
        "Segments that one transaction of eviction deletes at most.",
        1000, whole(1, 100_000), "200")
    partition_cleanup_days: int = setting("PARTITION_CLEANUP_DAYS",
        "After so many days without use an empty partition is removed; 0 keeps all.",
        30, whole(0, 36_500), "7")
    trace_retention_s: int = setting(("TRACE_RETENTION", "QUEEN_RAFT_TRACE_RETENTION_S"),
        "How long traces are kept, in seconds.",
        7 * 24 * 3600, whole(1, 36_500 * 24 * 3600), "86400")

    # -- consumer groups --

    group_idle_s: int = setting("GROUP_IDLE_SECONDS",
        "A consumer group that has neither popped nor acknowledged for so long is idle: while"
        " other groups of its queue are in use, it makes the queue neither deep nor late. 0: no"
        " group ever is. Holds for all servers on a database, as the last one that started has it.",
        3600, zero_or_whole(300, 1_000_000_000), "86400")
    group_expire_s: int = setting("GROUP_EXPIRE_SECONDS",
        "A consumer group that has neither popped nor acknowledged for so long is deleted; when"
        " it comes back it is new. 0: none is.",
        0, zero_or_whole(300, 1_000_000_000), "604800")

    # -- figures for charts --

    stats_interval_ms: int = setting("STATS_INTERVAL_MS",
        "How often each worker books in the database what it did, in milliseconds. Charts are"
        " late by as much.",
        10_000, milliseconds, "5000")
    ws_max_connections: int = setting("WS_MAX_CONNECTIONS",
        "WebSockets that dashboards may have open on this host.",
        1000, whole(0, 1_000_000), "100")
    metrics_retention_days: int = setting(
        ("METRICS_RETENTION_DAYS", "STATS_HISTORY_RETENTION_DAYS"),
        "How long the figures by minute are kept: a row for each worker and for each queue in"
        " use, every minute.",
        7, whole(1, 36_500), "30")

    # -- CORS --

    cors_allowed_origins: str = setting("CORS_ALLOWED_ORIGINS",
        "Value of Access-Control-Allow-Origin. Without authentication only pages of exactly this"
        " origin, and the server's own, may use it; * allows no other.",
        "*", header_value, "https://dashboard.example")
    cors_allowed_methods: str = setting("CORS_ALLOWED_METHODS",
        "Value of Access-Control-Allow-Methods.",
        "GET, POST, PUT, DELETE, OPTIONS", header_value, "GET, POST")
    cors_allowed_headers: str = setting("CORS_ALLOWED_HEADERS",
        "Value of Access-Control-Allow-Headers.",
        "Content-Type, Authorization", header_value, "Content-Type")
    cors_max_age: int = setting("CORS_MAX_AGE",
        "Value of Access-Control-Max-Age, in seconds.",
        86_400, whole(0, 2**31 - 1), "600")

    # -- metrics and spans --

    metrics_public_names: bool = setting("METRICS_PUBLIC_NAMES",
        "With authentication, name queues and groups in /metrics/prometheus also to those who"
        " send no credential.",
        False, boolean, "true")
    metrics_queues_max: int = setting("METRICS_QUEUES_MAX",
        "Queues with series of their own in /metrics/prometheus, the oldest first; the others are"
        " told together. As many pairs of queue and consumer group have theirs, those that are"
        " furthest behind.",
        100, whole(0, 10_000), "20")
    tracing: bool = setting("TRACING",
        "Make OpenTelemetry spans of pushes, pops and acknowledgements and send them as"
        " OTEL_EXPORTER_OTLP_ENDPOINT and the like say; messages keep the traceparent of their"
        " push. Needs the extra otel.",
        False, boolean, "true", flag="--tracing")

    # -- logs --

    log_level: LogLevel = setting("LOG_LEVEL",
        "Least severe records to log: debug, info, warning or error.",
        "info", one_of("debug", "info", "warning", "error", aliases={"warn": "warning"}), "debug",
        flag="--log-level")
    log_format: LogFormat = setting("LOG_FORMAT",
        "json (a record a line) or console (to be read).",
        "json", one_of("json", "console"), "json",
        flag="--log-format", default_text="console on a terminal, else json")

    # fmt: on

    def __post_init__(self) -> None:
        if not self.workers:
            self._set("workers", usable_cpu_count())
        if not self.db_pool_size:
            self._set("db_pool_size", self.workers * CONNECTIONS_PER_WORKER_DEFAULT)
        if self.db_pool_size < self.workers * CONNECTIONS_PER_WORKER_MIN:
            raise SettingsError(
                f"DB_POOL_SIZE={self.db_pool_size}: must be at least"
                f" {self.workers * CONNECTIONS_PER_WORKER_MIN}, {CONNECTIONS_PER_WORKER_MIN} for"
                f" each of the {self.workers} workers (see NUM_WORKERS)"
            )
        if not self.read_connections:
            self._set("read_connections", max(1, self.connections_per_worker // 4))
        if not self.max_parked_pops:
            self._set("max_parked_pops", max(1, self.max_connections * 9 // 10))
        if not self.eviction_interval_ms:
            self._set("eviction_interval_ms", self.retention_interval_ms)
        try:
            self._set("data_dir", self.data_dir.absolute())
        except OSError as exc:
            raise SettingsError(
                f"DATA_DIR: the working directory cannot be reached ({exc.strerror}); change to"
                " another one, or give an absolute DATA_DIR"
            ) from None
        if self.tracing and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise SettingsError(
                "TRACING=true: needs OpenTelemetry's packages: pip install 'queue-server[otel]'"
            )
        self._check_exposure()
        # A lowered limit lowers the default with it.
        self._set("default_timeout_ms", min(self.default_timeout_ms, self.max_timeout_ms))

    def _set(self, name: str, value: object) -> None:
        """Set a field that follows from others, before anyone else sees the instance."""
        object.__setattr__(self, name, value)

    def _check_exposure(self) -> None:
        """Check that the server is neither open to the network by mistake nor closed to everyone.

        Errors: `SettingsError`.
        """
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
            if self.jwt_public_key and not _is_key_for(algorithm, self.jwt_public_key):
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

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        return self._shown()

    def _shown(self) -> Iterator[tuple[str, Any]]:
        for name, option in options().items():
            value = getattr(self, name)
            yield name, "***" if option.secret and value else value


def options() -> dict[str, Option]:
    """Return the option of each field of `Settings`, in the order of the class."""
    return {field.name: field.metadata[Option] for field in dataclasses.fields(Settings)}


SECRETS = frozenset(name for name, option in options().items() if option.secret)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_key_for(algorithm: str, pem: str) -> bool:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    family = RSAPublicKey if algorithm.startswith("RS") else Ed25519PublicKey
    return isinstance(load_pem_public_key(pem.encode()), family)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False
