"""A listener's certificate, and its renewal: files that have changed are taken without a restart."""

from __future__ import annotations

import asyncio
import ssl

from relay import metrics
from relay.certificate import VERSIONS, Stamps, complaint, load_into, stamps
from relay.maillog import MailLog
from relay.secrets import SecretError
from relay.settings import ServerTls

HANDSHAKE_TIMEOUT = 30.0  # seconds
SHUTDOWN_TIMEOUT = 5.0  # for a client that does not answer close_notify
EXPIRES = metrics.Gauge(
    "relay_listener_certificate_expires_seconds", "When a listener's certificate ends, epoch seconds", ["listener"]
)


class Certificate:
    """The context in force. `refresh` keeps it where new files are no good."""

    def __init__(self, name: str, tls: ServerTls, log: MailLog) -> None:
        self._name, self._tls, self._log = name, tls, log
        self._seen: Stamps = ()
        self._complaint = ""
        self.expires = 0.0
        self.context: ssl.SSLContext | None = None

    async def refresh(self) -> None:
        """Load if a file is newer than what is in force. What is wrong is told once, and the old one stays."""
        try:
            seen = await asyncio.to_thread(stamps, self._tls.certificate, self._tls.key)
            if seen == self._seen:
                return
            self.context, self.expires = await asyncio.to_thread(made, self._tls)
            self._seen = seen  # not of files that are no good: what mends them may leave their time as it is
        except (OSError, ssl.SSLError, SecretError, ValueError) as error:
            if str(error) != self._complaint:
                stays = "the old one stays in force" if self.context else "without one the relay does not start"
                self._log.error("certificate_refused", listener=self._name, error=complaint(error), hint=stays)
            self._complaint = str(error)
            return
        self._complaint = ""
        self._log.event("certificate_loaded", listener=self._name, expires=round(self.expires))

    async def renewing(self) -> ssl.SSLContext:
        """For a server of asyncio: a renewed certificate counts for its next handshake. Raises OSError."""
        await self.refresh()
        if self.context is None:
            raise OSError("its certificate can't be used; the log says why")
        self.context.sni_callback = self._renewed  # OpenSSL asks without a name of the server too
        return self.context

    def _renewed(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self.context not in (None, connection.context):
            connection.context = self.context


def made(tls: ServerTls) -> tuple[ssl.SSLContext, float]:
    """A context and when its certificate ends. Reads files. Raises OSError, ssl.SSLError, SecretError, ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[tls.minimum]
    load_into(context, tls.certificate, tls.key)
    from cryptography import x509  # 8 MiB, for those alone who have a certificate

    leaf = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0]
    return context, leaf.not_valid_after_utc.timestamp()


def why(error: Exception) -> str:
    """Why a handshake failed, for the log."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error) or type(error).__name__
