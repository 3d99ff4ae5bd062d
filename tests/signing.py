"""Keys, certificates and signed versions for tests, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelbox.objects import ModelVersion
from modelbox.signing import SigningKey, Trust, TrustedFile, create_key

BEGIN = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Keys:
    """A key pair on disk, and the key."""

    private: Path
    public: Path
    signing: SigningKey

    def trust(self, pattern: str = "*") -> Trust:
        return Trust(keys=[TrustedFile(path=self.public, pattern=pattern)])


def make_keys(directory: Path, name: str = "ci", *, kind: str = "p256") -> Keys:
    made = create_key(directory / name, kind=kind)  # type: ignore[arg-type]
    return Keys(private=made.private, public=made.public, signing=SigningKey.load(made.private))


def signed(version: ModelVersion, key: SigningKey) -> ModelVersion:
    return replace(version, bundle=key.sign(version.namespace, version.model, version.version, version.manifest))


@dataclass(frozen=True)
class Authority:
    """A certificate that vouches for others."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path


def make_authority(name: str, *, by: Authority | None = None, ca: bool = True, days: int = 3650) -> Authority:
    """An authority of its own right, or one below another."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(key=key, certificate=_certificate(name, key, by, ca=ca, days=days, purposes=()))


def make_signer(
    directory: Path,
    by: Authority,
    *,
    name: str = "release bot",
    days: int = 30,
    purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,),
    between: Sequence[Authority] = (),
) -> SigningKey:
    """A key with a certificate; by default one that expired long ago, as certificates of signers soon have."""
    made = create_key(directory / name.replace(" ", "-"))
    loaded = serialization.load_pem_private_key(made.private.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    certificate = _certificate(name, loaded, by, ca=False, days=days, purposes=purposes)
    chain = directory / f"{name.replace(' ', '-')}.crt"
    chain.write_bytes(
        b"".join(
            each.public_bytes(serialization.Encoding.PEM)
            for each in (certificate, *(authority.certificate for authority in between))
        )
    )
    return SigningKey.load(made.private, certificates=[chain])


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    by: Authority | None,
    *,
    ca: bool,
    days: int,
    purposes: Sequence[x509.ObjectIdentifier],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = by.certificate.subject if by else subject
    signer = by.key if by else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(signer, hashes.SHA256())
