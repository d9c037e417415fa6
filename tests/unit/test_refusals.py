"""Which refusals of PostgreSQL are final, and the fix for each."""

import psycopg
import pytest

from queue_server.storage.refusals import explain_refusal

CONNINFO = "host=db user=app dbname=queue password=s3cret"
AT = 'connection failed: connection to server at "10.0.0.7", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ('FATAL:  database "queue" does not exist', 'CREATE DATABASE "queue" OWNER "app"'),
        ("FATAL:  no such database: queue", 'CREATE DATABASE "queue"'),
        ('FATAL:  role "app" does not exist', 'CREATE ROLE "app" LOGIN PASSWORD'),
        ('FATAL:  role "app" is not permitted to log in', 'ALTER ROLE "app" LOGIN'),
        ('FATAL:  password authentication failed for user "app"', "PG_PASSWORD"),
        ("FATAL:  SASL authentication failed", "PG_PASSWORD"),
        ("fe_sendauth: no password supplied", "PG_PASSWORD"),
        ('FATAL:  Peer authentication failed for user "app"', "run the server as that user"),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "app", database "queue", no'
            " encryption",
            'hostssl "queue" "app"',
        ),
        ('FATAL:  permission denied for database "queue"', "ALTER DATABASE"),
        ("server does not support SSL, but SSL was required", "PG_USE_SSL=false"),
        ("SSL error: certificate verify failed", "PG_SSL_ROOT_CERT"),
    ],
)
def test_what_time_does_not_heal_comes_with_the_fix(text: str, fix: str) -> None:
    explained = explain_refusal(psycopg.OperationalError(AT + text), CONNINFO)
    assert explained is not None
    assert fix in explained
    assert "\n" not in explained
    assert "s3cret" not in explained


@pytest.mark.parametrize(
    "text",
    [
        "Connection refused\n\tIs the server running on that host?",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "could not translate host name",
        "timeout expired",
        "session is read-only",
    ],
)
def test_what_may_pass_is_waited_for(text: str) -> None:
    assert explain_refusal(psycopg.OperationalError(AT + text), CONNINFO) is None


def test_another_host_may_still_come_up() -> None:
    error = psycopg.OperationalError(AT + 'FATAL:  database "queue" does not exist')
    assert explain_refusal(error, "host=one,two user=app dbname=queue") is None


def test_names_in_a_fix_are_quoted() -> None:
    error = psycopg.OperationalError(AT + 'FATAL:  database "a"b" does not exist')
    explained = explain_refusal(error, "host=db user=O'Hara dbname='a\"b'")
    assert explained is not None
    assert "CREATE DATABASE" in explained
    assert 'OWNER "O\'Hara"' in explained
