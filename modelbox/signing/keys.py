"""Signing: the key that a publisher holds, and what it makes of a version.

Reads key files; writes them only in `create_key`. A private key never appears in an error, a log or a ``repr``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelbox.errors import ConfigError, InvalidError
from modelbox.manifest import Manifest
from modelbox.signing.bundle import Bundle, signed_bytes
from modelbox.signing.statement import statement_of, subject_of

if TYPE_CHECKING:
    from types import ModuleType

    from modelbox.objects import ModelVersion
    from modelbox.signing._crypto import PrivateKey

__all__ = ("KeyFiles", "SigningKey", "create_key", "crypto", "read_key_file")

_MAX_KEY_BYTES = 1 << 20


def crypto() -> ModuleType:
    """The part that needs the package ``cryptography``, imported on first use.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from modelbox.signing import _crypto
    except ImportError as exc:
        raise ConfigError(
            "signatures need the package cryptography: install the extra with pip install 'modelbox[signing]'",
            extra="signing",
        ) from exc
    return _crypto


def read_key_file(path: Path) -> bytes:
    """The bytes of a key or certificate file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
    if len(data) > _MAX_KEY_BYTES:
        raise ConfigError(f"{path} is no key: it has more than {_MAX_KEY_BYTES} bytes", path=str(path))
    return data


class SigningKey:
    """Signs versions; made by `load`.

    Attributes:
        key_id: Hexadecimal SHA-256 of the public key as PEM, the same in every tool of the format.

    Concurrency: may be used from any thread.
    """

    __slots__ = ("_certificates", "_key", "key_id")

    def __init__(self, key: PrivateKey, certificates: tuple[bytes, ...] = ()) -> None:
        self._key = key
        self._certificates = certificates
        self.key_id: str = crypto().key_id_of(key.public_key())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        password: str | bytes | None = None,
        certificates: Sequence[str | os.PathLike[str]] = (),
    ) -> SigningKey:
        """Reads a private key; blocks for the time of a few small reads.

        Args:
            path: PEM (PKCS #8); EC on P-256, P-384 or P-521, or Ed25519.
            password: Of an encrypted key.
            certificates: PEM files: the signer's certificate first, then those between it and a root. Without them the
                signature is one of the bare key.

        Raises:
            ConfigError: A file cannot be read, is no such key, can be read by everybody, or the first certificate is
                one of another key. Or the extra ``signing`` is not installed.
        """
        tools, file = crypto(), Path(path)
        data = read_key_file(file)
        if os.name == "posix" and stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH:
            raise ConfigError(f"{file} can be read by everybody on this machine: chmod 600 it", path=str(file))
        secret = password.encode() if isinstance(password, str) else password
        try:
            key = tools.load_private_key(data, secret or None)
        except InvalidError as exc:
            raise ConfigError(f"{file} cannot sign: {exc}", path=str(file)) from exc
        chain = []
        for each in certificates:
            try:
                chain += tools.load_certificates(read_key_file(Path(each)))
            except InvalidError as exc:
                raise ConfigError(f"{os.fspath(each)} cannot be used: {exc}", path=os.fspath(each)) from exc
        if chain and chain[0].public_key() != key.public_key():
            raise ConfigError(f"the first certificate is not one of the key {file}", path=str(file))
        return cls(key, tuple(tools.certificate_der(certificate) for certificate in chain))

    def sign(self, namespace: str, model: str, version: int, manifest: Manifest) -> str:
        """The signature of a version as a Sigstore bundle, JSON text.

        It is about this number and no other: sign again where a version gets another one.
        """
        payload = statement_of(subject_of(namespace, model, version), manifest)
        return Bundle(
            payload=payload,
            signature=crypto().sign_bytes(self._key, signed_bytes(payload)),
            key_id="" if self._certificates else self.key_id,
            certificates=self._certificates,
        ).to_json()

    def has_signed(self, version: ModelVersion) -> bool:
        """Whether the signature of ``version`` is a valid one by this key (and with the same certificates)."""
        try:
            bundle = Bundle.from_json(version.bundle)
        except InvalidError:
            return False
        payload = statement_of(subject_of(version.namespace, version.model, version.version), version.manifest)
        return (
            bundle.certificates == self._certificates
            and bundle.payload == payload
            and crypto().check_signature(self._key.public_key(), bundle.signature, signed_bytes(payload))
        )

    def public_pem(self) -> bytes:
        """The public key, for those who are to trust it."""
        return bytes(crypto().public_pem(self._key.public_key()))

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id[:16]!r}…)"


class KeyFiles:
    """What `create_key` wrote.

    Attributes:
        private: Stays with who signs.
        public: Goes to those who load.
        key_id: As `SigningKey.key_id`.
    """

    __slots__ = ("key_id", "private", "public")

    def __init__(self, private: Path, public: Path, key_id: str) -> None:
        self.private = private
        self.public = public
        self.key_id = key_id


def create_key(
    path: str | os.PathLike[str], *, kind: Literal["p256", "ed25519"] = "p256", password: str | None = None
) -> KeyFiles:
    """Makes a key pair: ``path`` (mode 0600) and ``path.pub``. Neither may exist.

    Args:
        path: Of the private key.
        kind: ``p256``, which every tool of OpenSSF model signing reads, or ``ed25519``.
        password: Encrypts the private key.

    Raises:
        ConfigError: A file exists already or cannot be written, or the extra ``signing`` is not installed.
    """
    tools = crypto()
    private, public = Path(path), Path(f"{os.fspath(path)}.pub")
    if public.exists():
        raise ConfigError(f"{public} exists already: choose another name", path=str(public))
    key = tools.create_private_key(kind)
    _write_new(private, tools.private_pem(key, password.encode() if password else None), 0o600)
    _write_new(public, tools.public_pem(key.public_key()), 0o644)
    return KeyFiles(private, public, tools.key_id_of(key.public_key()))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise ConfigError(f"{path} exists already: choose another name", path=str(path)) from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}", path=str(path)) from exc
