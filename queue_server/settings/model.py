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
        "Port to listen on; 0 picks a free port and logs it.",
        6632, whole(0, 65535), "6632", flag="--port")
    workers: int = setting("NUM_WORKERS",
        "Worker processes, with one event loop each.",
        0, whole(1, 1024), "4",
        flag="--workers", default_text="the number of CPUs this process may use")
    drain_timeout_ms: int = setting("DRAIN_TIMEOUT",
        "Time in milliseconds that running requests may take to finish when the server stops.",
        8000, milliseconds, "8000")
    tls_cert: str = setting("TLS_CERT",
        "PEM file with the certificate for HTTPS, followed by the intermediate certificates.",
        "", str, "/etc/queue-server/tls.crt", default_text="none; the server speaks HTTP")
    tls_key: str = setting("TLS_KEY",
        "PEM file with the certificate's private key, without a password.",
        "", str, "/etc/queue-server/tls.key", default_text="none")
    tls_client_ca: str = setting("TLS_CLIENT_CA",
        "PEM file of certificate authorities; only clients with a certificate issued by one of"
        " them are served.",
        "", str, "/etc/queue-server/clients.crt", default_text="none; clients need no certificate")

    # -- limits --

    max_body_bytes: int = setting(("MAX_BODY_SIZE", "QUEEN_MAX_BODY_BYTES"),
        "Maximum size of a request body, in bytes.",
        100 * 1024 * 1024, whole(1024, 2**31 - 1), "16777216")
    max_header_bytes: int = setting("MAX_HEADER_SIZE",
        "Maximum size of the request line and of each header, in bytes; a larger one is answered"
        " 431.",
        16 * 1024, whole(1024, 1024 * 1024), "8192")
    max_batch_items: int = setting("MAX_BATCH_ITEMS",
        "Maximum number of items in a push, and of acknowledgements in a batch; more are answered"
        " 413.",
        100_000, whole(1, 10_000_000), "10000")
    max_transaction_operations: int = setting("MAX_TRANSACTION_OPERATIONS",
        "Maximum number of pushed messages and acknowledgements in a transaction; more are"
        " answered 413.",
        100_000, whole(1, 1_000_000), "1000")
    request_memory_bytes: int = setting("REQUEST_MEMORY",
        "Memory in bytes for the requests of one worker: their bodies and everything decoded from"
        " them. A request that would exceed it is answered 429.",
        300 * 1024 * 1024, whole(1024 * 1024, 2**40), "157286400")
    max_connections: int = setting("MAX_CONNECTIONS",
        "Maximum number of client connections of one worker; a further one is answered 503. Each"
        " needs a file descriptor (ulimit -n).",
        20_000, whole(1, 1_000_000), "1000")
    max_connections_per_address: int = setting("MAX_CONNECTIONS_PER_ADDRESS",
        "Maximum number of one worker's connections from the same client address (for IPv6, from"
        " the same /64 network); a further one is answered 429. 0 means no limit. Behind a proxy,"
        " all clients have its address.",
        0, whole(0, 1_000_000), "200")
    request_rate: int = setting("REQUEST_RATE",
        "Requests per second that one worker accepts from a principal (without authentication,"
        " from a client address or an IPv6 /64 network); above it, the answer is 429. 0 means no"
        " limit.",
        0, whole(0, 1_000_000), "500")
    header_timeout_ms: int = setting("HEADER_TIMEOUT",
        "Time in milliseconds that a new connection may take to send the headers of its first"
        " request before it is closed.",
        30_000, milliseconds, "10000")
    body_timeout_ms: int = setting("BODY_TIMEOUT",
        "Time in milliseconds that a request body may make no progress before the request is"
        " answered 408.",
        30_000, milliseconds, "10000")
    reader_timeout_ms: int = setting("READER_TIMEOUT",
        "Time in milliseconds that a client may stop reading (taking less than a twentieth of the"
        " data that waits for it) before its connection is closed.",
        120_000, milliseconds, "60000")
    max_parked_pops: int = setting("MAX_PARKED_POPS",
        "Maximum number of pops that wait in one worker; a further one is answered 429.",
        0, whole(1, 1_000_000), "5000",
        default_text="nine tenths of MAX_CONNECTIONS, which leaves room for pushes")
    max_parked_pops_per_address: int = setting("MAX_PARKED_POPS_PER_ADDRESS",
        "Maximum number of pops from the same client address (for IPv6, from the same /64"
        " network) that wait in one worker; a further one is answered 429. 0 means no limit."
        " Behind a proxy, all clients have its address.",
        0, whole(0, 1_000_000), "100")
    max_queues: int = setting("MAX_QUEUES",
        "Maximum number of queues; a request that would create a further one is answered 409."
        " This limit and the next two apply to all servers on a database; the server that started"
        " last sets them.",
        100_000, whole(1, 1_000_000_000), "1000")
    max_groups_per_queue: int = setting("MAX_GROUPS_PER_QUEUE",
        "Maximum number of consumer groups of a queue; its consumers without a group count as"
        " one. Each group adds a little to the cost of every push to the queue.",
        1000, whole(1, 1_000_000_000), "50")
    max_partitions_per_queue: int = setting("MAX_PARTITIONS_PER_QUEUE",
        "Maximum number of partitions of a queue.",
        1_000_000, whole(1, 1_000_000_000), "10000")

    # -- encryption of stored messages --

    encryption_key: str = setting("QUEEN_ENCRYPTION_KEY",
        "Key for queues with encryptionEnabled: 64 hexadecimal digits (openssl rand -hex 32).",
        "", hex_key, "0f" * 32, default_text="none", secret=True)
    encryption_old_keys: str = setting("QUEEN_ENCRYPTION_OLD_KEYS",
        "Earlier keys, separated by commas, which are still accepted for reading.",
        "", hex_keys, "1e" * 32, default_text="none", secret=True)
    encryption_fallback_plaintext: bool = setting("ENCRYPTION_FALLBACK_PLAINTEXT",
        "Without QUEEN_ENCRYPTION_KEY, store the messages of queues with encryptionEnabled as"
        " plain text, as Queen does. Otherwise pushes to them are refused with 503.",
        False, boolean, "true")

    # -- authentication --

    allow_anonymous: bool = setting("ALLOW_ANONYMOUS",
        "Serve clients without authentication on an address other than loopback. Required to"
        " listen there without JWT_ENABLED or API_KEYS_ENABLED.",
        False, boolean, "true")
    api_keys_enabled: bool = setting("API_KEYS_ENABLED",
        "Require an API key with each request (queue-server keys --help), or a token where"
        " JWT_ENABLED is set too.",
        False, boolean, "true")
    jwt_enabled: bool = setting("JWT_ENABLED",
        "Require a JSON Web Token with each request (docs/security.md).",
        False, boolean, "true")
    jwt_algorithm: JwtAlgorithm = setting("JWT_ALGORITHM",
        "Algorithm of the tokens' signatures: HS256, HS384, HS512, RS256 (accepts RS384 and RS512"
        " too), RS384, RS512, EdDSA, or auto (each for which there is a key).",
        "HS256", one_of(*get_args(JwtAlgorithm)), "EdDSA")
    jwt_secret: str = setting("JWT_SECRET",
        "Shared secret of the HS algorithms, at least 32 bytes (openssl rand -hex 32).",
        "", str, "0f" * 32, default_text="none", secret=True)
    jwt_public_key: str = setting("JWT_PUBLIC_KEY",
        "Public key of the RS algorithms or EdDSA as PEM text; takes precedence over"
        " JWT_JWKS_URL.",
        "", public_key_pem, r"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hc"
        r"vPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----", default_text="none")
    jwt_jwks_url: str = setting("JWT_JWKS_URL",
        "Address at which the public keys are published as a JSON Web Key Set.",
        "", http_url, "https://login.example/.well-known/jwks.json", default_text="none")
    jwt_jwks_refresh_interval_s: int = setting("JWT_JWKS_REFRESH_INTERVAL",
        "Seconds between two fetches of the key set; an unknown key id causes one at once.",
        3600, whole(5, 7 * 24 * 3600), "600")
    jwt_jwks_timeout_ms: int = setting("JWT_JWKS_TIMEOUT_MS",
        "Time in milliseconds that fetching the key set may take.",
        5000, milliseconds, "2000")
    jwt_jwks_max_age_s: int = setting("JWT_JWKS_MAX_AGE",
        "Seconds without a successful fetch after which the keys are dropped, so that no token is"
        " accepted; 0 keeps them.",
        0, whole(0, 365 * 24 * 3600), "86400")
    jwt_require_exp: bool = setting("JWT_REQUIRE_EXP",
        "Refuse tokens without an exp claim, which never expire.",
        False, boolean, "true")
    jwt_max_lifetime_s: int = setting("JWT_MAX_LIFETIME",
        "Refuse tokens that are valid for more than this many seconds, from iat (or now) to exp,"
        " and tokens without exp; 0 accepts any lifetime.",
        0, whole(0, 365 * 24 * 3600), "86400")
    jwt_issuer: str = setting("JWT_ISSUER",
        "The iss claim that a token must have.",
        "", str, "https://login.example", default_text="any")
    jwt_audience: str = setting("JWT_AUDIENCE",
        "Value that a token's aud claim must contain.",
        "", str, "queues", default_text="any")
    jwt_clock_skew_s: int = setting("JWT_CLOCK_SKEW",
        "Tolerated difference between the issuer's clock and this one, in seconds.",
        30, whole(0, 3600), "5")
    jwt_skip_paths: tuple[str, ...] = setting("JWT_SKIP_PATHS",
        "Paths that are served without authentication, separated by commas; one that ends in /"
        " includes everything below it.",
        ("/health", "/livez", "/readyz", "/metrics", "/metrics/prometheus", "/"), paths,
        "/health,/assets/", default_text="/health,/livez,/readyz,/metrics,/metrics/prometheus,/")
    jwt_roles_claim: str = setting("JWT_ROLES_CLAIM",
        "Claim that names one role.",
        "role", str, "role")
    jwt_roles_array_claim: str = setting("JWT_ROLES_ARRAY_CLAIM",
        "Claim that lists roles.",
        "roles", str, "groups")
    jwt_queues_claim: str = setting("JWT_QUEUES_CLAIM",
        "Claim that lists patterns of queue names; a token with it is valid for these queues"
        " only.",
        "queues", str, "allowed_queues")
    jwt_role_admin: str = setting("JWT_ROLE_ADMIN",
        "Name of the role that may do everything.",
        "admin", str, "queue-admin")
    jwt_role_read_write: str = setting("JWT_ROLE_READ_WRITE",
        "Name of the role that may produce and consume.",
        "read-write", str, "app")
    jwt_role_read_only: str = setting("JWT_ROLE_READ_ONLY",
        "Name of the role that may only read.",
        "read-only", str, "viewer")
    jwt_role_write_only: str = setting("JWT_ROLE_WRITE_ONLY",
        "Name of the role that may only produce.",
        "write-only", str, "producer")

    # -- the database --

    data_dir: Path = setting("DATA_DIR",
        "Directory of the PostgreSQL that the server runs itself; not used with a given database.",
        Path("data"), directory, "/var/lib/queue-server", flag="--data-dir", default_text="./data")
    database_url: str = setting("DATABASE_URL",
        "PostgreSQL (15 or newer) to use instead of one that the server runs. Other users of the"
        " machine can read a command line: prefer the variable for a URL with a password.",
        "", postgresql_url, "postgresql://queue:secret@db.example/queue",
        flag="--database-url", default_text="none", secret=True)
    pg_host: str = setting("PG_HOST",
        "Host of the given PostgreSQL, as an alternative to DATABASE_URL. Any of PG_HOST,"
        " PG_PORT, PG_DB, PG_USER and PG_PASSWORD selects a given PostgreSQL.",
        "", str, "db.example", default_text="localhost")
    pg_port: int = setting("PG_PORT",
        "Port of the given PostgreSQL.",
        0, whole(1, 65535), "5432", default_text="5432")
    pg_db: str = setting("PG_DB",
        "Database to connect to.",
        "", str, "queue", default_text="postgres")
    pg_user: str = setting("PG_USER",
        "Role to connect as.",
        "", str, "queue", default_text="postgres")
    pg_password: str = setting("PG_PASSWORD",
        "Password of the role.",
        "", str, "secret", default_text="postgres", secret=True)
    pg_use_ssl: bool = setting("PG_USE_SSL",
        "Refuse to connect to PG_HOST without TLS. A DATABASE_URL has sslmode instead.",
        False, boolean, "true")
    pg_ssl_reject_unauthorized: bool = setting("PG_SSL_REJECT_UNAUTHORIZED",
        "With PG_USE_SSL: verify the certificate of the PostgreSQL server and the name in it.",
        True, boolean, "false")
    pg_ssl_root_cert: str = setting(("PG_SSL_ROOT_CERT", "PGSSLROOTCERT"),
        "With PG_USE_SSL: file of the trusted certificate authorities; 'system' means those of"
        " this machine.",
        "system", str, "/etc/ssl/db.pem")
    db_pool_size: int = setting("DB_POOL_SIZE",
        "Database connections of the whole server, divided among the workers"
        f" (at least {CONNECTIONS_PER_WORKER_MIN} for each).",
        0, whole(CONNECTIONS_PER_WORKER_MIN, 100_000), "32",
        default_text=f"{CONNECTIONS_PER_WORKER_DEFAULT} for each worker")
    db_connection_timeout_ms: int = setting("DB_CONNECTION_TIMEOUT",
        "Time in milliseconds that a request waits for a database connection.",
        2000, milliseconds, "2000")
    db_statement_timeout_ms: int = setting("DB_STATEMENT_TIMEOUT",
        "Time in milliseconds that a statement may run.",
        30_000, milliseconds, "30000")
    db_lock_timeout_ms: int = setting("DB_LOCK_TIMEOUT",
        "Time in milliseconds that a statement may wait for a lock.",
        10_000, milliseconds, "10000")
    read_connections: int = setting("READ_CONNECTIONS",
        "Maximum number of a worker's database connections that listings, statistics and searches"
        " use; further ones wait, and are answered 429 after 5 seconds.",
        0, whole(1, 10_000), "4", default_text="a quarter of a worker's connections, at least 1")
    read_timeout_ms: int = setting("READ_TIMEOUT",
        "Time in milliseconds that a statement of a listing, statistic or search may run."
        " Statistics of a million partitions take about ten seconds.",
        20_000, milliseconds, "60000")

    # -- defaults for clients --

    default_timeout_ms: int = setting(("DEFAULT_TIMEOUT", "POP_DEFAULT_TIMEOUT_MS"),
        "Time in milliseconds that a waiting pop without a timeout waits.",
        30_000, milliseconds, "30000")
    max_timeout_ms: int = setting("MAX_TIMEOUT",
        "Longest time in milliseconds that a pop may wait.",
        60_000, milliseconds, "60000")
    default_batch_size: int = setting("DEFAULT_BATCH_SIZE",
        "Maximum number of messages of a pop without a batch size.",
        200, whole(1, 1_000_000), "1")
    default_subscription_mode: SubscriptionMode = setting("DEFAULT_SUBSCRIPTION_MODE",
        "Place where a new consumer group starts: all, new or new-only.",
        "all", one_of("", "all", "new", "new-only"), "new")

    # -- retention --

    # A pass that finds nothing reads one row for each partition of the queues with a rule, so the
    # five seconds of the 2.x brokers cost little. The five minutes of 0.15 would let a queue that
    # keeps ten seconds grow to thirty times that.
    retention_interval_ms: int = setting("RETENTION_INTERVAL",
        "Time in milliseconds between two passes that delete messages past the retentionSeconds or"
        " completedRetentionSeconds of their queue.",
        5000, milliseconds, "60000")
    retention_batch_size: int = setting("RETENTION_BATCH_SIZE",
        "Maximum number of segments (stored batches, never parts of one) that a transaction of"
        " retention deletes.",
        1000, whole(1, 100_000), "200")
    eviction_interval_ms: int = setting("EVICTION_INTERVAL",
        "Time in milliseconds between two passes that evict messages older than the"
        " maxWaitTimeSeconds or ttl of their queue.",
        0, milliseconds, "60000", default_text="the value of RETENTION_INTERVAL")
    eviction_batch_size: int = setting("EVICTION_BATCH_SIZE",
        "Maximum number of segments that a transaction of eviction deletes.",
        1000, whole(1, 100_000), "200")
    partition_cleanup_days: int = setting("PARTITION_CLEANUP_DAYS",
        "Days without use after which an empty partition is removed; 0 keeps all.",
        30, whole(0, 36_500), "7")
    trace_retention_s: int = setting(("TRACE_RETENTION", "QUEEN_RAFT_TRACE_RETENTION_S"),
        "Time in seconds that traces are kept.",
        7 * 24 * 3600, whole(1, 36_500 * 24 * 3600), "86400")

    # -- consumer groups --

    group_idle_s: int = setting("GROUP_IDLE_SECONDS",
        "Seconds without a pop or an acknowledgement after which a consumer group is idle: while"
        " other groups of its queue are in use, an idle group does not count in the queue's depth"
        " and ages. 0 means that no group becomes idle. Applies to all servers on a database; the"
        " server that started last sets it.",
        3600, zero_or_whole(300, 1_000_000_000), "86400")
    group_expire_s: int = setting("GROUP_EXPIRE_SECONDS",
        "Seconds without a pop or an acknowledgement after which a consumer group is deleted; if"
        " it returns, it is a new group. 0 keeps all.",
        0, zero_or_whole(300, 1_000_000_000), "604800")

    # -- statistics --

    stats_interval_ms: int = setting("STATS_INTERVAL_MS",
        "Time in milliseconds between two reports of a worker's statistics to the database."
        " Charts lag by as much.",
        10_000, milliseconds, "5000")
    ws_max_connections: int = setting("WS_MAX_CONNECTIONS",
        "Maximum number of WebSockets of dashboards on this host.",
        1000, whole(0, 1_000_000), "100")
    metrics_retention_days: int = setting(
        ("METRICS_RETENTION_DAYS", "STATS_HISTORY_RETENTION_DAYS"),
        "Days that the per-minute history is kept, which has a row for each worker and for each"
        " queue in use, every minute.",
        7, whole(1, 36_500), "30")

    # -- CORS --

    cors_allowed_origins: str = setting("CORS_ALLOWED_ORIGINS",
        "Value of Access-Control-Allow-Origin. Without authentication, only pages of exactly this"
        " origin and of the server itself may use it; * allows no other.",
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

    # -- metrics and tracing --

    metrics_public_names: bool = setting("METRICS_PUBLIC_NAMES",
        "With authentication, expose the names of queues and groups in /metrics/prometheus even"
        " to clients without a credential.",
        False, boolean, "true")
    metrics_queues_max: int = setting("METRICS_QUEUES_MAX",
        "Maximum number of queues with their own series in /metrics/prometheus, the oldest first;"
        " the others are added up. The limit also applies to pairs of queue and consumer group,"
        " those with the largest lag first.",
        100, whole(0, 10_000), "20")
    tracing: bool = setting("TRACING",
        "Create OpenTelemetry spans of pushes, pops and acknowledgements and export them as"
        " OTEL_EXPORTER_OTLP_ENDPOINT and its siblings configure; messages keep the traceparent of"
        " their push. Needs the extra otel.",
        False, boolean, "true", flag="--tracing")

    # -- logging --

    log_level: LogLevel = setting("LOG_LEVEL",
        "Lowest severity of the records to log: debug, info, warning or error.",
        "info", one_of("debug", "info", "warning", "error", aliases={"warn": "warning"}), "debug",
        flag="--log-level")
    log_format: LogFormat = setting("LOG_FORMAT",
        "Format of the log: json (one record per line) or console (for people).",
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
            raise SettingsError("TLS_CERT and TLS_KEY: must be set together")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("TLS_CLIENT_CA: needs TLS_CERT and TLS_KEY")
        if not (self.has_authentication or _is_loopback(self.host) or self.allow_anonymous):
            raise SettingsError(
                f"HOST={self.host}: opens the server to every client that can reach it; set"
                " JWT_ENABLED=true and a key, or API_KEYS_ENABLED=true, or ALLOW_ANONYMOUS=true if"
                " that is intended"
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
        """Sentences for the log about settings that weaken the security of the server."""
        found = []
        if not self.has_authentication and not _is_loopback(self.host):
            found.append(
                f"every client that can reach {self.host} may use this server (ALLOW_ANONYMOUS)"
            )
        if self.jwt_enabled and 0 < len(self.jwt_secret.encode()) < JWT_SECRET_BYTES_MIN:
            found.append(
                f"JWT_SECRET is shorter than {JWT_SECRET_BYTES_MIN} bytes and may be guessed"
            )
        url = urlsplit(self.jwt_jwks_url)
        if self.jwt_enabled and url.scheme == "http" and not _is_loopback(url.hostname or ""):
            found.append("JWT_JWKS_URL is not https: an attacker on the path can forge tokens")
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
    except ModuleNotFoundError:  # nor is its parent package
        return False
