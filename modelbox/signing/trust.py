"""Whom this machine believes, and whether a version was signed by one of them.

Trust is local: it comes from files and settings of the machine that loads, and nothing that a server says adds to it.
The order of `verify` is its point: the signature over the bytes is verified before the bytes are read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbox.errors import ConfigError, InvalidError, SignatureRefused
from modelbox.signing.bundle import Bundle, signed_bytes
from modelbox.signing.keys import crypto, read_key_file
from modelbox.signing.statement import read_statement, subject_of

if TYPE_CHECKING:
    from modelbox.objects import ModelVersion

__all__ = ("Refusal", "SignedBy", "Trust", "TrustedFile", "key_id_of", "matches")

_log = logging.getLogger(__name__)


class Refusal(StrEnum):
    """Why a signature does not count."""

    NOT_SIGNED = "NOT_SIGNED"
    NOT_TRUSTED = "NOT_TRUSTED"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    SUBJECT_MISMATCH = "SUBJECT_MISMATCH"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedFile:
    """A file of trusted keys or roots.

    Attributes:
        path: PEM: one public key, or root certificates.
        pattern: The models for which it is trusted, see `matches`.
    """

    path: Path
    pattern: str = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy:
    """Who signed a version.

    Attributes:
        key_id: Hexadecimal SHA-256 of the public key as PEM.
        name: Whom the certificate names; empty for a bare key.
    """

    key_id: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} (key {self.key_id[:16]})" if self.name else f"key {self.key_id[:16]}"


def matches(pattern: str, path: str) -> bool:
    """Whether a model's path (``namespace/model``) is one of ``pattern``'s: ``*``, ``langtech``, ``langtech/wav*``."""
    return fnmatchcase(path, pattern if "/" in pattern or pattern == "*" else f"{pattern}/*")


def key_id_of(file: TrustedFile) -> str:
    """What signatures and errors call a public key.

    Raises:
        ConfigError: The file is none.
    """
    return str(crypto().key_id_of(Trust()._key(file)))


class Trust:
    """Trusted keys and roots, read anew for each verification, so that a rotation needs no restart.

    A file that cannot be read any more counts as it was when it last could; what was never read is an error.

    Args:
        keys: Public keys.
        roots: Root certificates.

    Concurrency: may be used from any thread; every method blocks for a few small reads.
    """

    def __init__(self, *, keys: Sequence[TrustedFile] = (), roots: Sequence[TrustedFile] = ()) -> None:
        self._keys = tuple(keys)
        self._roots = tuple(roots)
        self._last: dict[Path, Any] = {}

    @property
    def empty(self) -> bool:
        """Whether nobody is trusted."""
        return not self._keys and not self._roots

    def check(self) -> None:
        """Reads all files.

        Raises:
            ConfigError: One of them cannot be used, or the extra ``signing`` is not installed.
        """
        crypto()
        for file in self._keys:
            self._key(file)
        for file in self._roots:
            self._certificates(file)

    def verify(self, version: ModelVersion) -> SignedBy:
        """Finds out who signed ``version``; its manifest must be the one that its digest names.

        Raises:
            SignatureRefused: Nobody whom this machine trusts has signed this very version; see `Refusal`.
            ConfigError: A file of trusted keys cannot be used, or the extra ``signing`` is not installed.
        """
        subject = subject_of(version.namespace, version.model, version.version)
        if not version.bundle:
            raise _refused(
                Refusal.NOT_SIGNED, f"{subject} is not signed: sign it with `modelbox sign {subject} --key FILE`"
            )
        try:
            bundle = Bundle.from_json(version.bundle)
        except InvalidError as exc:
            raise _refused(Refusal.BAD_SIGNATURE, f"the signature of {subject} does not parse: {exc}") from exc
        signer = self._signer(bundle, subject, f"{version.namespace}/{version.model}")
        try:
            differences = read_statement(bundle.payload).differences(subject, version.manifest)
        except InvalidError as exc:
            raise _refused(Refusal.SUBJECT_MISMATCH, f"{signer} did not sign {subject}: {exc}") from exc
        if differences:
            raise _refused(
                Refusal.SUBJECT_MISMATCH, f"the signature by {signer} is not one of {subject}: {'; '.join(differences)}"
            )
        return signer

    def _signer(self, bundle: Bundle, subject: str, path: str) -> SignedBy:
        """Who made the signature over the bundle's bytes, if that is somebody trusted for this model."""
        tools = crypto()
        candidates: list[tuple[Any, str]]
        if bundle.certificates:
            roots = [c for file in self._roots if matches(file.pattern, path) for c in self._certificates(file)]
            try:
                candidates = [tools.certified_key(bundle.certificates, roots)]
            except InvalidError as exc:
                raise _refused(Refusal.NOT_TRUSTED, f"{subject} is signed by nobody trusted: {exc}") from exc
        else:
            keys = [self._key(file) for file in self._keys if matches(file.pattern, path)]
            candidates = [(key, "") for key in keys if bundle.key_id in ("", tools.key_id_of(key))]
            if not candidates:
                hint = f"the key {bundle.key_id[:16]}" if bundle.key_id else "an unknown key"
                raise _refused(
                    Refusal.NOT_TRUSTED,
                    f"{subject} is signed by {hint}, which is not among the {len(keys)} trusted ones for {path}: add "
                    "its public key to `trusted_keys` if you trust it",
                )
        for key, name in candidates:
            if tools.check_signature(key, bundle.signature, signed_bytes(bundle.payload)):
                return SignedBy(key_id=tools.key_id_of(key), name=name)
        raise _refused(Refusal.BAD_SIGNATURE, f"the signature of {subject} is not one by the key that it names")

    def _key(self, file: TrustedFile) -> Any:
        return self._read(file.path, lambda data: crypto().load_public_key(data))

    def _certificates(self, file: TrustedFile) -> Any:
        return self._read(file.path, lambda data: crypto().load_certificates(data))

    def _read(self, path: Path, parse: Any) -> Any:
        try:
            self._last[path] = parse(read_key_file(path))
        except (ConfigError, InvalidError) as exc:
            if isinstance(exc, ConfigError) and exc.fields.get("extra"):
                raise
            if path not in self._last:
                raise ConfigError(f"the trusted file {path} cannot be used: {exc}", path=str(path)) from exc
            _log.warning("the trusted file %s cannot be used, it counts as it was: %s", path, exc)
        return self._last[path]


def _refused(reason: Refusal, text: str) -> SignatureRefused:
    return SignatureRefused(f"{reason}: {text}", reason=str(reason))
