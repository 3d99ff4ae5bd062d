"""TLS from files that are replaced while a program runs: what servers and clients share.

Owns the contexts of one set of files, their renewal, and what a certificate's file says of its time. Refuses to decide
whom to trust: `modelbox._serving.tls` and `modelbox._transport.security` do.

Invariants: a handshake uses one whole set of files, the newest that works. Files that do not work (half of a pair, not
there, no certificates, out of date while those before are not) change nothing. TLS 1.2 with forward secrecy at least.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelbox.errors import ConfigError

__all__ = ("MIN_VERSION", "LiveTls", "Validity", "harden", "load_authorities", "load_pair", "read_validity")

MIN_VERSION = ssl.TLSVersion.TLSv1_2
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: what HTTP/2 allows (RFC 9113, 9.2.2). TLS 1.3 has nothing else."""
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_SEQUENCE, _EXPLICIT_VERSION = 0x30, 0xA0

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when a certificate holds."""

    not_before: datetime
    not_after: datetime

    def holds(self, now: datetime) -> bool:
        """Whether it does at ``now``."""
        return self.not_before <= now <= self.not_after


class _LiveContext(ssl.SSLContext):
    """Begins every connection by the newest context of its `LiveTls`.

    Event loops keep the context that they were given, and call its `wrap_bio` once for each connection.
    """

    def __new__(cls, protocol: int, newest: Callable[[], ssl.SSLContext]) -> _LiveContext:
        return super().__new__(cls, protocol)

    def __init__(self, protocol: int, newest: Callable[[], ssl.SSLContext]) -> None:
        self._newest = newest

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begins a connection."""
        return self._newest().wrap_bio(*args, **kwargs)


class LiveTls:
    """The contexts of one set of files.

    Args:
        protocol: ``ssl.PROTOCOL_TLS_SERVER`` or ``ssl.PROTOCOL_TLS_CLIENT``.
        build: Makes a context of the files as they are; raises `ConfigError`.
        paths: The files.
        certificate: The one whose time is watched; None for none.
        changed: Told whenever `refresh` changed something.
        now: The time.

    Attributes:
        problem: What is wrong with the newest files, which are not used; empty while all is well.
        validity: Of the certificate in use.

    Concurrency: `refresh` by one thread at a time; connections may begin in another one meanwhile.
    """

    def __init__(
        self,
        protocol: int,
        *,
        build: Callable[[], ssl.SSLContext],
        paths: tuple[Path, ...],
        certificate: Path | None,
        changed: Callable[[LiveTls], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._protocol = protocol
        self._changed = changed
        self._build = build
        self._paths = paths
        self._certificate = certificate
        self._now = now
        self._alpn: list[tuple[str, ...]] = []
        self._stamps: tuple[Stamp | None, ...] = ()
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        self.problem = ""
        self.validity: Validity | None = None

    def context(self, *alpn: str, look: bool = False) -> ssl.SSLContext:
        """A context that always has the newest files; ask for all before `open`.

        Args:
            *alpn: Protocols to agree on, best first.
            look: Look at the files before each connection, where nobody else does.
        """
        self._alpn.append(alpn)

        def newest() -> ssl.SSLContext:
            if look:
                self.refresh()
            return self._contexts[alpn]

        return _LiveContext(self._protocol, newest)

    def open(self) -> None:
        """Reads the files for the first time.

        Raises:
            ConfigError: They cannot be used.
        """
        self._stamps = self._look()
        self._take()

    def refresh(self) -> None:
        """Reads the files again if they changed; those that cannot be used leave a `problem`."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        # Of before the files are read: what changes meanwhile is another change.
        self._stamps = stamps
        before = self.problem
        try:
            self._take()
        except ConfigError as exc:
            self.problem = exc.message
            if self.problem != before:
                self._changed(self)
        else:
            self.problem = ""
            self._changed(self)

    def days_left(self) -> float:
        """Until the certificate in use ends; negative when it did, NaN without one."""
        if self.validity is None:
            return float("nan")
        return (self.validity.not_after - self._now()).total_seconds() / 86400

    def _take(self) -> None:
        validity = None if self._certificate is None else read_validity(self._certificate)
        contexts = {}
        for alpn in self._alpn:
            contexts[alpn] = self._build()
            contexts[alpn].set_alpn_protocols(list(alpn))
        now = self._now()
        if validity is not None and not validity.holds(now) and self.validity is not None and self.validity.holds(now):
            raise ConfigError(
                f"{self._certificate}: the certificate is for the time from {validity.not_before:%Y-%m-%d %H:%M} to "
                f"{validity.not_after:%Y-%m-%d %H:%M} UTC, which is not now"
            )
        self._contexts, self.validity = contexts, validity

    def _look(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def harden(context: ssl.SSLContext) -> None:
    """What no connection of ours goes below."""
    context.minimum_version = MIN_VERSION
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Has ``context`` show a certificate.

    Raises:
        ConfigError: The files cannot be read or do not belong together.
    """
    with _named(certificate), certificate.open("rb"):
        pass
    with _named(key), key.open("rb"):
        pass
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key}: the key is not that of the certificate in {certificate}") from exc
        raise ConfigError(f"{certificate}, {key}: no certificate and key in PEM ({_reason(exc)})") from exc
    except OSError as exc:
        raise ConfigError(f"{certificate}, {key}: cannot be read: {exc.strerror or exc}") from exc


def load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Has ``context`` believe the authorities in a file.

    Raises:
        ConfigError: There are none.
    """
    with _named(path):
        try:
            context.load_verify_locations(cafile=path)
        except ssl.SSLError as exc:
            raise ConfigError(f"{path}: no certificates in PEM ({_reason(exc)})") from exc


def read_validity(path: Path) -> Validity:
    """The time of the first certificate in a file.

    Raises:
        ConfigError: There is none.
    """
    with _named(path):
        text = path.read_bytes().decode("latin-1")
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        if begin < 0 or end < 0:
            raise ValueError
        return _validity(ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)]))
    except ValueError as exc:
        raise ConfigError(f"{path}: no certificate in PEM") from exc


class _named:
    """Says which file it is that cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or error}") from error


def _no_password() -> str:
    raise ConfigError("a key that needs a password cannot be used: store it without one, in a file of mode 600")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


# --- the little of X.509 that we read ----------------------------------------------------------------------------


def _validity(der: bytes) -> Validity:
    """Certificate > tbsCertificate > version?, serial, algorithm, issuer, validity (RFC 5280, 4.1)."""
    tag, certificate, _ = _element(der, 0)
    tbs_tag, tbs, _ = _element(certificate, 0)
    if tag != _SEQUENCE or tbs_tag != _SEQUENCE:
        raise ValueError
    tag, _, at = _element(tbs, 0)
    for _ in range(3 if tag == _EXPLICIT_VERSION else 2):
        _, _, at = _element(tbs, at)
    _, times, _ = _element(tbs, at)
    first_tag, first, at = _element(times, 0)
    last_tag, last, _ = _element(times, at)
    return Validity(not_before=_time(first_tag, first), not_after=_time(last_tag, last))


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag and content of the DER element at ``at``, and where the next one begins."""
    if len(data) < at + 2:
        raise ValueError
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or len(data) < start + size:
            raise ValueError
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    if len(data) < start + length:
        raise ValueError
    return tag, data[start : start + length], start + length


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # Two digits of the year, from 1950 to 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
