"""TLS on the listener of two workers: who is served, with which certificate, after which signal."""

import asyncio
import datetime
import ipaddress
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.client import eventually, unique
from tests.cluster_process import ClusterProcess

DAY = datetime.timedelta(days=1)


@dataclass
class Identity:
    """A certificate and its key, signed by itself or by another."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """The paths of certificate and key."""
        cert, key = folder / f"{name}.crt", folder / f"{name}.key"
        cert.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(cert), str(key)

    @property
    def serial(self) -> int:
        return self.certificate.serial_number


def identity(name: str, signer: Identity | None = None) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    return Identity(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


@pytest.fixture
def authority() -> Identity:
    return identity("authority")


@pytest.fixture
def trust(authority: Identity) -> ssl.SSLContext:
    pem = authority.certificate.public_bytes(serialization.Encoding.PEM).decode()
    return ssl.create_default_context(cadata=pem)


@contextmanager
def serving(data_dir: Path, cert: str, key: str, **env: str) -> Iterator[ClusterProcess]:
    with ClusterProcess(
        env={"TLS_CERT": cert, "TLS_KEY": key, **env}, data_dir=data_dir
    ) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


async def push(url: str, trust: ssl.SSLContext, queue: str) -> int:
    """The status of a push over a connection of its own."""
    connector = aiohttp.TCPConnector(ssl=trust, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        body = {"items": [{"queue": queue, "payload": 1}]}
        async with session.post(f"{url}/api/v1/push", json=body) as answer:
            return answer.status


async def serials(url: str, trust: ssl.SSLContext, count: int = 8) -> set[int]:
    """The certificates that connections get; both workers are among them."""
    parts = urlsplit(url)
    found = set()
    for _ in range(count):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=trust)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        found.add(x509.load_der_x509_certificate(der).serial_number)
        writer.close()
        await writer.wait_closed()
    return found


async def test_requests_are_served_over_tls_alone(
    data_dir: Path, tmp_path: Path, authority: Identity, trust: ssl.SSLContext
) -> None:
    own = identity("server", authority)
    with serving(data_dir, *own.write(tmp_path, "server")) as cluster:
        assert cluster.url.startswith("https://")
        ends_at = int(own.certificate.not_valid_after_utc.timestamp())
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{cluster.url}/metrics/prometheus", ssl=trust) as answer,
        ):
            text = await answer.text()
        told = re.search(r"queue_server_certificate_end_time_seconds (\d\S+)", text)
        assert told is not None
        assert float(told[1]) == ends_at
        queue = unique("tls")
        assert {await push(cluster.url, trust, queue) for _ in range(8)} == {201}
        # Who does not trust the authority, or speaks no TLS, or an old one, is not served.
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await push(cluster.url, ssl.create_default_context(), queue)
        plain = cluster.url.replace("https", "http")
        with pytest.raises(aiohttp.ClientError):
            await push(plain, trust, queue)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = (
                ssl.TLSVersion.TLSv1,
                ssl.TLSVersion.TLSv1_1,
            )
        with pytest.raises(aiohttp.ClientConnectorError):
            await push(cluster.url, old, queue)
        # And the others do not notice.
        assert await push(cluster.url, trust, queue) == 201


async def test_a_client_that_shakes_no_hand_is_closed(
    data_dir: Path, tmp_path: Path, authority: Identity, trust: ssl.SSLContext
) -> None:
    files = identity("server", authority).write(tmp_path, "server")
    with serving(data_dir, *files, HEADER_TIMEOUT="1000") as cluster:
        parts = urlsplit(cluster.url)
        for sent in (b"", b"\x16\x03\x01\x02\x00"):
            with socket.create_connection((str(parts.hostname), int(parts.port or 0))) as silent:
                silent.sendall(sent)
                silent.settimeout(5)
                assert await asyncio.to_thread(silent.recv, 1) == b""
        assert await push(cluster.url, trust, unique("tls")) == 201


async def test_only_clients_with_a_certificate_of_the_authority_are_served(
    data_dir: Path, tmp_path: Path, authority: Identity, trust: ssl.SSLContext
) -> None:
    files = identity("server", authority).write(tmp_path, "server")
    clients = identity("clients")
    ca, _ = clients.write(tmp_path, "clients")
    queue = unique("mutual")
    with serving(data_dir, *files, TLS_CLIENT_CA=ca) as cluster:
        with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
            await push(cluster.url, trust, queue)
        for signer, served in ((identity("stranger"), False), (clients, True)):
            trust.load_cert_chain(*identity("client", signer).write(tmp_path, "client"))
            if served:
                assert await push(cluster.url, trust, queue) == 201
            else:
                with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
                    await push(cluster.url, trust, queue)


async def test_sighup_reads_the_files_anew_and_bad_ones_change_nothing(
    data_dir: Path, tmp_path: Path, authority: Identity, trust: ssl.SSLContext
) -> None:
    first, second = identity("server", authority), identity("server", authority)
    cert, key = first.write(tmp_path, "server")
    queue = unique("renewed")
    with serving(data_dir, cert, key) as cluster:
        assert await serials(cluster.url, trust) == {first.serial}
        workers = cluster.worker_pids()
        good = Path(cert).read_bytes()
        other = identity("other").write(tmp_path, "other")[0]
        for bad in (b"nonsense", Path(other).read_bytes(), b""):  # of no key, of another key
            Path(cert).write_bytes(bad)
            lines = len(cluster.lines)
            cluster.signal(signal.SIGHUP)
            await asyncio.to_thread(cluster.wait_for_line, '"reload_failed"', 20, lines)
            assert await push(cluster.url, trust, queue) == 201
        Path(cert).write_bytes(good)
        assert cluster.worker_pids() == workers
        second.write(tmp_path, "server")
        lines = len(cluster.lines)
        cluster.signal(signal.SIGHUP)

        async def push_on() -> None:
            while not any('"workers_replaced"' in line for line in cluster.lines[lines:]):
                assert await push(cluster.url, trust, queue) == 201

        await asyncio.wait_for(asyncio.gather(*(push_on() for _ in range(4))), 60)
        assert not set(cluster.worker_pids()) & set(workers)

        async def is_renewed() -> bool:
            return await serials(cluster.url, trust) == {second.serial}

        await eventually(is_renewed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("no certificate", "No such file or directory"),
        ("no key", "No such file or directory"),
        ("another key", "key values mismatch"),
        ("a key with a password", "TLS_KEY="),
        ("no authority", "TLS_CLIENT_CA="),
    ],
)
def test_files_that_cannot_be_used_end_the_start(
    tmp_path: Path, data_dir: Path, change: str, complaint: str
) -> None:
    one = identity("server")
    cert, key = one.write(tmp_path, "server")
    env = {"TLS_CERT": cert, "TLS_KEY": key}
    match change:
        case "no certificate":
            Path(cert).unlink()
        case "no key":
            Path(key).unlink()
        case "another key":
            env["TLS_KEY"] = identity("other").write(tmp_path, "other")[1]
        case "a key with a password":
            Path(key).write_bytes(
                one.key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                )
            )
        case "no authority":
            env["TLS_CLIENT_CA"] = str(tmp_path / "absent.crt")
    with ClusterProcess(env=env, data_dir=data_dir) as cluster:
        assert cluster.wait() == 1
        assert complaint in cluster.output
        assert "Traceback" not in cluster.output
