"""Keys, certificates and signatures: the one place that knows the package `cryptography`.

Signs with EC keys on P-256, P-384 and P-521 (each with the SHA-2 of its size, as OpenSSF model signing does) and with
Ed25519 (which the tools of OpenSSF do not read). Certificates have EC keys. A chain is judged as of the moment in which
the signer's certificate begins to be valid: nothing in a bundle says when it was made, and a model must not stop
loading because its certificate has expired since. Who is not to be trusted any more leaves the trusted files.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from modelbox.errors import InvalidError

__all__ = (
    "PrivateKey",
    "PublicKey",
    "certificate_der",
    "certified_key",
    "check_signature",
    "create_private_key",
    "key_id_of",
    "load_certificates",
    "load_private_key",
    "load_public_key",
    "private_pem",
    "public_pem",
    "sign_bytes",
)

_KINDS = "EC keys on P-256, P-384 and P-521, and Ed25519"
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


def create_private_key(kind: str) -> PrivateKey:
    """A new key: ``p256`` or ``ed25519``."""
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def private_pem(key: PrivateKey, password: bytes | None) -> bytes:
    """As PKCS #8, encrypted where there is a password."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: PublicKey) -> bytes:
    """As SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id_of(key: PublicKey) -> str:
    """What a bundle hints at it with: hexadecimal SHA-256 of the PEM."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def load_private_key(data: bytes, password: bytes | None) -> PrivateKey:
    """Reads a PEM file.

    Raises:
        InvalidError: It is no key of these kinds, or the password is not its own.
    """
    try:
        key = serialization.load_pem_private_key(data, password)
    except _UNREADABLE as exc:
        # Never quote the reason of the library: nothing of a private key belongs into a message.
        raise InvalidError("it is no private key in PEM, or needs another password") from exc
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _HASHES:
        return key
    raise InvalidError(f"it is a key of another kind: expected {_KINDS}")


def load_public_key(data: bytes) -> PublicKey:
    """Reads a PEM file.

    Raises:
        InvalidError: It is no key of these kinds.
    """
    try:
        return _usable(serialization.load_pem_public_key(data))
    except _UNREADABLE as exc:
        if isinstance(exc, InvalidError):
            raise
        raise InvalidError("it is no public key in PEM") from exc


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """Reads a PEM file with one certificate or more.

    Raises:
        InvalidError: There is none.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except _UNREADABLE as exc:
        raise InvalidError("it holds no certificate in PEM") from exc


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The form in which it travels."""
    return certificate.public_bytes(serialization.Encoding.DER)


def sign_bytes(key: PrivateKey, data: bytes) -> bytes:
    """The signature over ``data``."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(_HASHES[key.curve.name]))


def check_signature(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is one of ``data`` by this key."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def certified_key(chain: tuple[bytes, ...], roots: list[x509.Certificate]) -> tuple[PublicKey, str]:
    """The key of the first certificate of a chain, and whom it names, if one of ``roots`` vouches for it.

    Raises:
        InvalidError: None does, or the certificate is not for signing; says why.
    """
    try:
        leaf, *between = (x509.load_der_x509_certificate(der) for der in chain)
        # A root that the signer sent along is no reason to trust it, and confuses nobody.
        between = [certificate for certificate in between if certificate not in roots]
        policy = PolicyBuilder().store(Store(roots)).time(leaf.not_valid_before_utc).max_chain_depth(8)
        policy = policy.extension_policies(ca_policy=_authorities(), ee_policy=_signers())
        policy.build_client_verifier().verify(leaf, between)
        return _usable(leaf.public_key()), leaf.subject.rfc4514_string()
    except InvalidError:
        raise
    except VerificationError as exc:
        raise InvalidError(f"no trusted root vouches for its certificate ({exc})") from exc
    except _UNREADABLE as exc:
        raise InvalidError("its certificates do not parse") from exc


def _authorities() -> ExtensionPolicy:
    return ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)


def _signers() -> ExtensionPolicy:
    return (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _signs_code)
    )


def _no_authority(_: Policy, certificate: x509.Certificate, usage: x509.BasicConstraints | None) -> None:
    if usage is not None and usage.ca:
        raise ValueError("a certificate of an authority signs no models")


def _signs(_: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is None and not _has(certificate, x509.ExtendedKeyUsage):
        raise ValueError("it does not say that it is for signing")
    if usage is not None and not usage.digital_signature:
        raise ValueError("it is not for signing")


def _signs_code(_: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    allowed = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usage is not None and allowed.isdisjoint(usage):
        raise ValueError("it is for something else than signing code")


def _has(certificate: x509.Certificate, extension: type[x509.ExtensionType]) -> bool:
    try:
        certificate.extensions.get_extension_for_class(extension)
    except x509.ExtensionNotFound:
        return False
    return True


def _usable(key: object) -> PublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES:
        return key
    raise InvalidError(f"it is a key of another kind: expected {_KINDS}")
