"""TLS on the listener: the supervisor reads the files, workers inherit what it read.

So a worker that is replaced after a crash has what its predecessor had, whatever the files hold by
then; SIGHUP reads them anew. All workers share the keys of session tickets, so a client resumes its
session wherever its next connection goes.
"""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path

from cryptography import x509

from queue_server.settings import Settings

logger = logging.getLogger(__name__)


class TlsError(Exception):
    """The files cannot be used; the message is one line and says why."""


def read_tls(settings: Settings) -> ssl.SSLContext | None:
    """What to serve with; None without TLS.

    Errors: `TlsError`.
    """
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as exc:
        raise TlsError(
            f"TLS_CERT={settings.tls_cert}, TLS_KEY={settings.tls_key}: {_reason(exc)}"
        ) from exc
    if Path(settings.tls_key).stat().st_mode & stat.S_IROTH:
        logger.warning(
            "TLS_KEY=%s can be read by every user of this machine (chmod o= %s)",
            settings.tls_key,
            settings.tls_key,
        )
    if settings.tls_client_ca:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (OSError, ValueError) as exc:
            raise TlsError(f"TLS_CLIENT_CA={settings.tls_client_ca}: {_reason(exc)}") from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def certificate_ends_at(settings: Settings) -> int:
    """Return when the first of the certificates in TLS_CERT ends, in Unix time; 0 without TLS.

    The files are those that `read_tls` has just accepted.
    """
    if not settings.tls_cert:
        return 0
    chain = x509.load_pem_x509_certificates(Path(settings.tls_cert).read_bytes())
    return int(min(one.not_valid_after_utc.timestamp() for one in chain))


def _reason(exc: OSError | ValueError) -> str:
    match exc:
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
        case ssl.SSLError():
            return "no PEM file, or a key with a password"
        case OSError(strerror=str(text)):
            return text
    return str(exc)
