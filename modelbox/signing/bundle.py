"""The envelope of a signature: a Sigstore bundle (v0.3, JSON) around a DSSE envelope with one signature.

Pure and strict: what is read here comes from a server that nobody has to believe. Says nothing about trust.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from modelbox.errors import InvalidError
from modelbox.manifest import Manifest
from modelbox.refs import shown
from modelbox.signing.statement import PAYLOAD_TYPE, loads_strictly, read_statement

__all__ = ("MAX_BUNDLE_BYTES", "Bundle", "check_bundle", "signed_bytes")

MAX_BUNDLE_BYTES = 4 << 20
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MAX_CERTIFICATES = 10
_MAX_CERTIFICATE_BYTES = 16 << 10
_MAX_SIGNATURE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A signature with what it is over and who says to have made it.

    Attributes:
        payload: The statement, see `modelbox.signing.statement`.
        signature: Over `signed_bytes` of it.
        key_id: Hexadecimal SHA-256 of the public key as PEM; a hint of where to look, nothing to believe. Empty with
            certificates.
        certificates: DER, the signer's first; empty where a bare key signed.
    """

    payload: bytes
    signature: bytes
    key_id: str = ""
    certificates: tuple[bytes, ...] = ()

    def to_json(self) -> str:
        """As text, the way it is stored and as ``model.sig`` of other tools."""
        material: dict[str, Any] = {"publicKey": {"hint": self.key_id}}
        if self.certificates:
            chain = [{"rawBytes": _encoded(certificate)} for certificate in self.certificates]
            material = {"x509CertificateChain": {"certificates": chain}}
        return json.dumps(
            {
                "mediaType": _MEDIA_TYPE,
                "verificationMaterial": {**material, "tlogEntries": []},
                "dsseEnvelope": {
                    "payload": _encoded(self.payload),
                    "payloadType": PAYLOAD_TYPE,
                    "signatures": [{"sig": _encoded(self.signature), "keyid": ""}],
                },
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Bundle:
        """Reads what `to_json` or another tool wrote.

        Raises:
            InvalidError: It is no bundle of this kind.
        """
        if len(text) > MAX_BUNDLE_BYTES:
            raise InvalidError(f"the signature has {len(text)} bytes, more than the {MAX_BUNDLE_BYTES} allowed")
        raw = loads_strictly(text, "the signature")
        try:
            if raw["mediaType"] != _MEDIA_TYPE:
                raise InvalidError(f"the signature is {shown(str(raw['mediaType']))}: expected {_MEDIA_TYPE}")
            envelope, material = raw["dsseEnvelope"], raw["verificationMaterial"]
            if envelope["payloadType"] != PAYLOAD_TYPE:
                raise InvalidError(f"a {shown(str(envelope['payloadType']))} was signed: expected {PAYLOAD_TYPE}")
            (signature,) = envelope["signatures"]
            chain: list[Any] = []
            key_id = ""
            if "x509CertificateChain" in material:
                chain = material["x509CertificateChain"]["certificates"]
                if not isinstance(chain, list) or not 0 < len(chain) <= _MAX_CERTIFICATES:
                    raise InvalidError(f"a signature has 1 to {_MAX_CERTIFICATES} certificates")
            else:
                key_id = material["publicKey"].get("hint") or ""
                if not isinstance(key_id, str) or len(key_id) > 256 or not key_id.isprintable():
                    raise InvalidError("the signature's hint at its key is no text")
            return cls(
                payload=_decoded(envelope["payload"], MAX_BUNDLE_BYTES),
                signature=_decoded(signature["sig"], _MAX_SIGNATURE_BYTES),
                key_id=key_id,
                certificates=tuple(_decoded(one["rawBytes"], _MAX_CERTIFICATE_BYTES) for one in chain),
            )
        except InvalidError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidError(f"this is not a Sigstore bundle: {type(exc).__name__} {shown(str(exc))}") from exc


def signed_bytes(payload: bytes) -> bytes:
    """What a signature over ``payload`` is made over (DSSE's pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def check_bundle(text: str, subject: str, manifest: Manifest) -> None:
    """Refuses a signature that could never be one of ``subject``, whoever made it.

    That is all a server does with it: whom to trust is for those to say who load.

    Raises:
        InvalidError: It does not parse, or is about something else.
    """
    differences = read_statement(Bundle.from_json(text).payload).differences(subject, manifest)
    if differences:
        raise InvalidError(
            f"the signature is not one of {subject}: {'; '.join(differences)}", reason="SUBJECT_MISMATCH"
        )


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(value: object, most: int) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        raise ValueError("expected base64")
    if len(value) > most * 4 // 3 + 4:
        raise ValueError(f"expected at most {most} bytes")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as exc:
        raise ValueError("expected base64") from exc
