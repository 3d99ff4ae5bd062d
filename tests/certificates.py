"""Certificates for tests, made on the spot: an authority, and what it signs.

authority = Authority(tmp_path)
server = authority.issue("server", "localhost", "127.0.0.1")
ServerProcess(tmp_path / "data", tls_cert=server.certificate, tls_key=server.key)
Client("https://127.0.0.1:...", tls_ca=authority.certificate)
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    def replace_by(self, other: Pair) -> None:
        """Puts another pair into these files, one after the other, each at once."""
        for mine, its in ((self.certificate, other.certificate), (self.key, other.key)):
            put(mine, its.read_bytes())


def put(path: Path, content: bytes) -> None:
    """Replaces a file at once."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)


class Authority:
    """Signs certificates.

    Args:
        directory: Where files are put.
        name: Of the authority, and of its file.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def issue(self, file_name: str, *names: str, begins: timedelta = -DAY, ends: timedelta = 20 * DAY) -> Pair:
        """A certificate for servers and clients alike.

        Args:
            file_name: Of its files, without an ending.
            *names: What it is for: host names, addresses, or URIs.
            begins: From now.
            ends: From now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file_name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(_general(names)), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(certificate=self._directory / f"{file_name}.pem", key=self._directory / f"{file_name}.key")
        pair.certificate.write_bytes(_pem(certificate))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def serial_of(certificate: Path | bytes) -> int:
    """What tells one certificate from another; of a file in PEM, or of bytes in DER."""
    if isinstance(certificate, bytes):
        return x509.load_der_x509_certificate(certificate).serial_number
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def _general(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        if "://" in name:
            found.append(x509.UniformResourceIdentifier(name))
            continue
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
