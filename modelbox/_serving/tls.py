"""TLS of what a program listens on: its certificate, whose certificates it asks for, and files that are renewed.

Owns the four settings that both programs have, what must hold among them, and the renewal of the files while the
program runs: new handshakes get new certificates, connections that are open stay as they are. What the certificates of
clients say is read by `modelbox._serving.peers`.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from modelbox._serving.settings import choice, text
from modelbox._tls import LiveTls, harden, load_authorities, load_pair

__all__ = (
    "CERT_HELP",
    "CLIENT_AUTH",
    "CLIENT_AUTH_HELP",
    "CLIENT_CA_HELP",
    "KEY_HELP",
    "PEM_FILE",
    "ServerTls",
    "TlsOptions",
    "TlsSettings",
    "open_tls",
    "tls_problems",
)

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_WARN_DAYS = 14
_WARN_EVERY_S = 86400.0

PEM_FILE = text(4096, "a file in PEM, or empty")
CLIENT_AUTH = choice("off", "optional", "required")
CERT_HELP = (
    "File with the certificate and its chain, in PEM, for TLS on all ports; it is read again when it changes. Empty:"
    " plaintext."
)
KEY_HELP = "File with the key of tls_cert, without a password; empty: it is in the same file."
CLIENT_CA_HELP = "File with the authorities whose client certificates are taken, in PEM; for tls_client_auth."
CLIENT_AUTH_HELP = (
    "Whether clients show a certificate: off; optional, where some have one and others a token; or required, also of"
    " those who ask for health or metrics."
)


class TlsOptions(Protocol):
    """The settings, as both programs have them."""

    @property
    def tls_cert(self) -> str:
        """The certificate and its chain; empty for plaintext."""

    @property
    def tls_key(self) -> str:
        """See `KEY_HELP`."""

    @property
    def tls_client_ca(self) -> str:
        """See `CLIENT_CA_HELP`."""

    @property
    def tls_client_auth(self) -> str:
        """See `CLIENT_AUTH_HELP`."""


def tls_problems(options: TlsOptions) -> list[str]:
    """Says which settings do not fit together; looks at no file."""
    problems = []
    if not options.tls_cert:
        problems += [
            f"{key} is set, and tls_cert is not: there is no TLS without a certificate"
            for key in ("tls_key", "tls_client_ca")
            if getattr(options, key)
        ]
        if options.tls_client_auth != "off":
            problems.append(f"tls_client_auth = {options.tls_client_auth} needs tls_cert and tls_client_ca")
    elif options.tls_client_auth != "off" and not options.tls_client_ca:
        problems.append(
            f"tls_client_auth = {options.tls_client_auth} needs tls_client_ca: whose certificates are taken?"
        )
    elif options.tls_client_ca and options.tls_client_auth == "off":
        problems.append("tls_client_ca is set, and tls_client_auth is off: set that to optional or required, too")
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Which files.

    Attributes:
        certificate: With its chain.
        key: Of it.
        client_ca: None where clients' certificates are not asked for.
        client_required: Whether clients without one are refused.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_required: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


class ServerTls:
    """The contexts of a program's listeners.

    Attributes:
        grpc: For HTTP/2.
        http: For HTTP/1.1.
    """

    def __init__(self, settings: TlsSettings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._settings = settings
        self._live = LiveTls(
            ssl.PROTOCOL_TLS_SERVER,
            build=self._build,
            paths=settings.paths,
            certificate=settings.certificate,
            changed=self._tell,
            now=now,
        )
        self.grpc = self._live.context("h2")
        self.http = self._live.context("http/1.1")
        self._warned_at = -math.inf

    def open(self) -> None:
        """Reads the files.

        Raises:
            ConfigError: They cannot be used.
        """
        self._live.open()
        if self._settings.key.stat().st_mode & 0o007:
            _LOG.warning("everybody on this machine may read the key %s: give it mode 600", self._settings.key)
        self._warn()

    async def watch(self, *, every_s: float = _LOOK_EVERY_S) -> None:
        """Takes new files until it is cancelled; looks for them every so many seconds."""
        while True:
            await anyio.sleep(every_s)
            await anyio.to_thread.run_sync(self._live.refresh, abandon_on_cancel=True)
            self._warn()

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """What to show of it, by name: help text and value."""
        return {
            "modelbox_tls_certificate_days_left": (
                "Days until the certificate that is shown to clients ends.",
                self._live.days_left,
            ),
            "modelbox_tls_files_refused": (
                "1 while newer certificate files cannot be used and those before go on.",
                lambda: float(bool(self._live.problem)),
            ),
        }

    def _tell(self, live: LiveTls) -> None:
        if live.problem:
            _LOG.error("the new TLS files are not used, those before go on: %s", live.problem)
        else:
            _LOG.info("new TLS files are in use; the certificate ends in %.1f days", live.days_left())
            self._warned_at = -math.inf

    def _warn(self) -> None:
        left, now = self._live.days_left(), time.monotonic()
        if left < _WARN_DAYS and now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            when = f"ended {-left:.1f} days ago" if left < 0 else f"ends in {left:.1f} days"
            _LOG.warning("the TLS certificate %s: renew %s", when, self._settings.certificate)

    def _build(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        harden(context)
        load_pair(context, settings.certificate, settings.key)
        if settings.client_ca is not None:
            load_authorities(context, settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if settings.client_required else ssl.CERT_OPTIONAL
            # A resumed session would not show its certificate again.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context


async def open_tls(options: TlsOptions) -> ServerTls | None:
    """The TLS that the settings ask for; None for plaintext.

    Raises:
        ConfigError: The files cannot be used; names them.
    """
    if not options.tls_cert:
        return None
    tls = ServerTls(_settings_of(options))
    await anyio.to_thread.run_sync(tls.open)
    return tls


def _settings_of(options: TlsOptions) -> TlsSettings:
    certificate = Path(options.tls_cert).expanduser()
    return TlsSettings(
        certificate=certificate,
        key=Path(options.tls_key).expanduser() if options.tls_key else certificate,
        client_ca=Path(options.tls_client_ca).expanduser() if options.tls_client_ca else None,
        client_required=options.tls_client_auth == "required",
    )
