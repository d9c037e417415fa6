"""What an operator writes, and what the server makes of it."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from queue_server import __version__
from queue_server.settings import (
    Settings,
    SettingsError,
    load_settings,
    misspelt_variables,
    options,
    usable_cpu_count,
)

ROOT = Path(__file__).resolve().parents[2]


def load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


def error(*argv: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*argv, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- what is nearly a setting --


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("NUM_WORKRES", "NUM_WORKERS"),
        ("NUM_WORKER", "NUM_WORKERS"),
        ("NUM_WORKERSS", "NUM_WORKERS"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("xATA_DIR", "DATA_DIR"),
        ("data_dir", "DATA_DIR"),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_warned_of(given: str, meant: str) -> None:
    assert misspelt_variables({given: "secret", "PATH": "/bin", meant: "x"}) == [
        f"{given!r} in the environment is not a setting; did you mean {meant}?"
    ]


def test_variables_of_others_are_not_warned_of() -> None:
    names = ["PGHOST", "PGPORT", "HOSTS", "SPORT", "HOSTNAME", "WORKERS", "DATABASE", "LOGLEVELS"]
    known = [name for option in options().values() for name in option.env]
    assert misspelt_variables(dict.fromkeys([*names, *known, ""], "x")) == []


def test_an_option_that_is_nearly_one_is_suggested_and_its_value_not_repeated() -> None:
    assert error("--prot", "1234") == "there is no option --prot; did you mean --port? (see --help)"
    given = "--databse-url=postgresql://u:secret@h/d"
    message = error(given, "--zzz")
    assert message == (
        "there is no option --databse-url; did you mean --database-url?; there is no option --zzz"
        " (see --help)"
    )
    assert "secret" not in error("--databse-url", "postgresql://u:secret@h/d")


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not enter, also when root runs the tests."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    if os.geteuid():
        folder.chmod(0)
        yield folder
        folder.chmod(0o700)
        return
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)


def test_a_data_directory_that_cannot_be_reached_is_one_line(closed_folder: Path) -> None:
    message = error("--data-dir", str(closed_folder / "data"))
    assert "cannot be reached: Permission denied; choose another directory" in message
    assert "cannot be reached: File name too long" in error(DATA_DIR="x" * 300)
    assert "home of a user that does not exist" in error(DATA_DIR="~nobody-of-this-name/data")


def test_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "give an absolute DATA_DIR" in error()
    assert load(DATA_DIR="/var/lib/queue-server").data_dir == Path("/var/lib/queue-server")


# -- where values come from --


def test_defaults() -> None:
    settings = load()
    assert (settings.host, settings.port) == ("127.0.0.1", 6632)
    assert settings.workers == usable_cpu_count()
    assert settings.data_dir == Path.cwd() / "data"
    assert settings.conninfo is None
    assert settings.db_pool_size == 8 * settings.workers
    assert settings.connections_per_worker == 8
    assert settings.default_batch_size == 200
    assert settings.default_subscription_mode == "all"
    assert settings.max_body_bytes == 104_857_600
    assert settings.drain_timeout_ms == 8000
    assert settings.cors_allowed_methods == "GET, POST, PUT, DELETE, OPTIONS"


def test_eviction_looks_as_often_as_retention_unless_told() -> None:
    assert load().eviction_interval_ms == load().retention_interval_ms == 5000
    assert load(RETENTION_INTERVAL="2000").eviction_interval_ms == 2000
    assert load(RETENTION_INTERVAL="2000", EVICTION_INTERVAL="9000").eviction_interval_ms == 9000


def test_the_command_line_beats_the_environment_and_that_the_default() -> None:
    assert load("--port", "1", PORT="2").port == 1
    assert load(PORT="2").port == 2


def test_the_first_name_of_a_variable_wins() -> None:
    assert load(HOST="127.0.0.2", QUEEN_BIND_ADDR="127.0.0.3").host == "127.0.0.2"
    assert load(QUEEN_BIND_ADDR="127.0.0.3").host == "127.0.0.3"
    assert load(DEFAULT_TIMEOUT="7", POP_DEFAULT_TIMEOUT_MS="8").default_timeout_ms == 7
    assert load(POP_DEFAULT_TIMEOUT_MS="8").default_timeout_ms == 8
    assert load(QUEEN_MAX_BODY_BYTES="2048").max_body_bytes == 2048


def test_an_empty_variable_counts_as_not_set() -> None:
    # `PORT=` in a compose file.
    settings = load(PORT="", NUM_WORKERS=" ", PG_HOST="", DEFAULT_SUBSCRIPTION_MODE="")
    assert settings.port == 6632
    assert settings.conninfo is None
    assert settings.default_subscription_mode == "all"


def test_logs_are_for_people_on_a_terminal_unless_said_otherwise() -> None:
    assert load_settings([], {}, terminal=True).log_format == "console"
    assert load_settings([], {}, terminal=False).log_format == "json"
    assert load_settings(["--log-format", "json"], {}, terminal=True).log_format == "json"
    assert load(LOG_LEVEL="WARN").log_level == "warning"


def test_a_shorter_longest_wait_shortens_the_usual_one() -> None:
    assert load(MAX_TIMEOUT="5000").default_timeout_ms == 5000


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load().port = 1  # type: ignore[misc]


# -- bad values --


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "66\n32"),
        ("PORT", "٣"),
        ("PORT", "1_000"),
        ("NUM_WORKERS", "0"),
        ("NUM_WORKERS", "two"),
        ("DEFAULT_TIMEOUT", "30s"),
        ("MAX_BODY_SIZE", "1e6"),
        ("DB_POOL_SIZE", "2"),
        ("DB_LOCK_TIMEOUT", "0"),
        ("DEFAULT_SUBSCRIPTION_MODE", "newest"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("PG_USE_SSL", "maybe"),
        ("PG_PORT", "0"),
        ("CORS_ALLOWED_ORIGINS", "*\r\nSet-Cookie: a=b"),
        ("DATA_DIR", __file__),
        ("DRAIN_TIMEOUT", "99999999999999999999"),
    ],
)
def test_a_bad_value_is_reported_in_one_line_that_names_the_setting(name: str, value: str) -> None:
    assert error(**{name: value}).startswith(name)


def test_a_bad_option_is_named_as_it_was_written() -> None:
    assert error("--port", "http").startswith("--port='http': ")
    assert "--prot" in error("--prot", "1")
    assert "--port" in error("--port")


def test_too_few_connections_for_the_workers() -> None:
    message = error(NUM_WORKERS="4", DB_POOL_SIZE="11")
    assert message.startswith("DB_POOL_SIZE=11: must be at least 12")
    assert load(NUM_WORKERS="4", DB_POOL_SIZE="12").connections_per_worker == 3


def test_reads_get_a_quarter_of_the_connections_unless_told() -> None:
    assert load(NUM_WORKERS="2").read_connections == 2
    assert load(NUM_WORKERS="2", DB_POOL_SIZE="6").read_connections == 1
    assert load(NUM_WORKERS="2", READ_CONNECTIONS="5").read_connections == 5


# -- the database --


def test_a_url_is_used_as_given() -> None:
    conninfo = load(DATABASE_URL="postgresql://me:pw@db:1234/q?sslmode=require").conninfo
    assert conninfo is not None
    parts = conninfo_to_dict(conninfo)
    assert (parts["host"], parts["port"], parts["dbname"]) == ("db", "1234", "q")
    assert (parts["user"], parts["password"], parts["sslmode"]) == ("me", "pw", "require")
    assert parts["target_session_attrs"] == "read-write"


def test_what_a_url_says_beats_our_defaults() -> None:
    conninfo = load(DATABASE_URL="postgresql://db/q?target_session_attrs=primary").conninfo
    assert conninfo_to_dict(conninfo or "")["target_session_attrs"] == "primary"


def test_any_part_means_a_given_server() -> None:
    for name, value in (("PG_HOST", "db"), ("PG_DB", "q"), ("PG_PASSWORD", "x")):
        parts = conninfo_to_dict(load(**{name: value}).conninfo or "")
        assert parts["host"] == ("db" if name == "PG_HOST" else "localhost")
        assert parts["port"] == "5432"
        assert parts["target_session_attrs"] == "read-write"


def test_a_url_beats_the_parts() -> None:
    conninfo = load(DATABASE_URL="postgresql://first/q", PG_HOST="second").conninfo
    assert conninfo_to_dict(conninfo or "")["host"] == "first"


def test_odd_passwords_survive() -> None:
    password = "it's a \\ 'secret' = @:/ß"
    parts = conninfo_to_dict(load(PG_HOST="db", PG_PASSWORD=password).conninfo or "")
    assert parts["password"] == password


def test_tls_checks_the_certificate_unless_told_not_to() -> None:
    strict = conninfo_to_dict(load(PG_HOST="db", PG_USE_SSL="true").conninfo or "")
    assert (strict["sslmode"], strict["sslrootcert"]) == ("verify-full", "system")
    lax = load(PG_HOST="db", PG_USE_SSL="1", PG_SSL_REJECT_UNAUTHORIZED="false")
    assert conninfo_to_dict(lax.conninfo or "")["sslmode"] == "require"


def test_the_authorities_of_the_database_are_a_setting() -> None:
    for name in ("PG_SSL_ROOT_CERT", "PGSSLROOTCERT"):
        conninfo = load(PG_HOST="db", PG_USE_SSL="true", **{name: "/etc/db.pem"}).conninfo
        assert conninfo_to_dict(conninfo or "")["sslrootcert"] == "/etc/db.pem"


def test_reads_get_a_quarter_of_the_connections_of_a_worker_by_default() -> None:
    assert load(NUM_WORKERS="2", DB_POOL_SIZE="32").read_connections == 4
    assert load(NUM_WORKERS="2", DB_POOL_SIZE="6").read_connections == 1
    assert load(READ_CONNECTIONS="7").read_connections == 7


def test_a_group_is_idle_never_or_after_five_minutes_at_the_earliest() -> None:
    assert load(GROUP_IDLE_SECONDS="0", GROUP_EXPIRE_SECONDS="0").group_idle_s == 0
    for name in ("GROUP_IDLE_SECONDS", "GROUP_EXPIRE_SECONDS"):
        assert error(**{name: "299"}).endswith("from 300 to 1000000000, or 0")


def test_passwords_are_shown_nowhere() -> None:
    url = load(DATABASE_URL="postgresql://me:hunter2@db/q")
    parts = load(PG_HOST="db", PG_PASSWORD="hunter2")
    for settings in (url, parts):
        assert "hunter2" in (settings.conninfo or "")
        assert "hunter2" not in repr(settings)
        assert "hunter2" not in str(settings)
    for bad in ("hunter2", "postgresql://me:hunter2@db:port/q", "postgresql://db/q?hunter2=1"):
        assert "hunter2" not in error(DATABASE_URL=bad)
        assert "hunter2" not in error("--database-url", bad)


# -- authentication --

ED25519 = next(option.example for name, option in options().items() if name == "jwt_public_key")


def test_only_loopback_is_open_without_being_asked_for() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert load(HOST=host).warnings == []
    for host in ("0.0.0.0", "::", "10.0.0.5", "queue.example"):
        assert "ALLOW_ANONYMOUS=true" in error(HOST=host)
        assert "every client" in load(HOST=host, ALLOW_ANONYMOUS="true").warnings[0]
        assert load(HOST=host, JWT_ENABLED="true", JWT_SECRET="0f" * 32).warnings == []


def test_authentication_needs_its_key() -> None:
    for algorithm, needed in (
        ("HS256", "JWT_SECRET"),
        ("hs512", "JWT_SECRET"),
        ("RS256", "JWT_PUBLIC_KEY or JWT_JWKS_URL"),
        ("eddsa", "JWT_PUBLIC_KEY or JWT_JWKS_URL"),
        ("auto", "JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"),
    ):
        assert needed in error(JWT_ENABLED="true", JWT_ALGORITHM=algorithm)
    assert "EdDSA" in error(JWT_ALGORITHM="none")
    assert "is not a key for" in error(
        JWT_ENABLED="true", JWT_ALGORITHM="RS256", JWT_PUBLIC_KEY=ED25519
    )
    load(JWT_ENABLED="true", JWT_ALGORITHM="EdDSA", JWT_PUBLIC_KEY=ED25519)
    assert "PEM" in error(JWT_PUBLIC_KEY="ssh-ed25519 AAAA")


def test_keys_are_not_dropped_before_they_are_fetched_again() -> None:
    jwks = {"JWT_ENABLED": "true", "JWT_ALGORITHM": "RS256", "JWT_JWKS_URL": "https://x.example/k"}
    assert "at least JWT_JWKS_REFRESH_INTERVAL, 3600" in error(**jwks, JWT_JWKS_MAX_AGE="60")
    assert load(**jwks, JWT_JWKS_MAX_AGE="7200").jwt_jwks_max_age_s == 7200


def test_weak_doors_are_warned_of_and_the_secret_is_not_shown() -> None:
    settings = load(JWT_ENABLED="true", JWT_SECRET="hunter2")
    assert "shorter than 32 bytes" in settings.warnings[0]
    assert "hunter2" not in repr(settings)
    url = "http://login.example/keys.json"
    assert "https" in load(
        JWT_ENABLED="true", JWT_ALGORITHM="RS256", JWT_JWKS_URL=url
    ).warnings[0]  # fmt: skip
    assert "JWT_JWKS_URL" in error(JWT_JWKS_URL="file:///etc/keys")


def test_tls_needs_a_certificate_and_its_key() -> None:
    for given in ({"TLS_CERT": "a"}, {"TLS_KEY": "a"}, {"TLS_CLIENT_CA": "a"}):
        assert "TLS_CERT and TLS_KEY" in error(**given)


# -- help --


def test_every_setting_has_sentences_for_help_and_names_its_default() -> None:
    for name, option in options().items():
        assert re.fullmatch(r"[A-Z].*\.", option.text), name
        assert option.default_text or str(option.default), name


def test_help_teaches_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load("--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name, option in options().items():
        for variable in option.env:
            assert variable in text, name
        assert f"{option.env[0]}={option.example}" in re.sub(r"\s+", " ", text)
        assert option.flag in text


def test_every_example_in_the_help_is_accepted() -> None:
    for option in options().values():
        # Some need another one beside them, as the help says.
        beside = {
            "ALLOW_ANONYMOUS": "true",
            "JWT_SECRET": "0f" * 32,
            "TLS_CERT": "tls.crt",
            "TLS_KEY": "tls.key",
        }
        load(**beside | {option.env[0]: option.example})


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load("--version")
    assert exit_.value.code == 0
    assert __version__ in capsys.readouterr().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


# -- usable CPUs --


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
class TestUsableCpus:
    def test_affinity(self, tmp_path: Path) -> None:
        assert usable_cpu_count(tmp_path) == 8

    def test_cgroup_v2_quota(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
        write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "250000 100000\n")
        assert usable_cpu_count(tmp_path) == 3

    def test_cgroup_v2_quota_of_a_group_above(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
        write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
        write(tmp_path, "sys/fs/cgroup/cpu.max", "50000 100000\n")
        assert usable_cpu_count(tmp_path) == 1

    def test_cgroup_v1_quota(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/c\n0::/\n")
        folder = "sys/fs/cgroup/cpu,cpuacct/c"
        write(tmp_path, f"{folder}/cpu.cfs_quota_us", "400000\n")
        write(tmp_path, f"{folder}/cpu.cfs_period_us", "100000\n")
        assert usable_cpu_count(tmp_path) == 4

    def test_cgroup_v1_without_a_quota(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/cgroup", "4:cpu:/\n")
        write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        assert usable_cpu_count(tmp_path) == 8


def test_tracing_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(TRACING="true").tracing
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert not load().tracing
    with pytest.raises(SettingsError, match=r"queue-server\[otel\]"):
        load("--tracing", "true")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://me:hunter2@db/q?schema=public", "'schema'"),
        ("postgresql://me:hunter2@db/q?application_name=x&pool_max=3", "'pool_max'"),
        ("host=db schema=public password=hunter2", "'schema'"),
        ("postgresql://db/q?currentSchema=q", "'currentSchema'"),
        # What is taken for a parameter may be a piece of a password that is not escaped.
        ("postgresql://me:a/b?hunter=x@db/q", None),
        ("host=db password=a hunter=b", None),
    ],
)
def test_an_unknown_parameter_of_the_database_url_is_named(url: str, named: str | None) -> None:
    message = error(DATABASE_URL=url)
    assert "DATABASE_URL" in message
    assert "hunter" not in message
    assert (named or "must look like") in message
