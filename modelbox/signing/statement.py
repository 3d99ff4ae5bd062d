"""What a signature says: an in-toto statement about one version and its files, in the form of OpenSSF model signing.

Pure. A statement names one subject, ``namespace/model@version``, and binds it to two sums: that of all files, which
every verifier of the format checks, and the digest of the manifest, which also covers what the files are to ModelBox
(framework, entry point, inputs and outputs). A statement about another model, or about the same files under another
number, is about something else.

Refuses to judge who signed it: read a statement only once the signature over its bytes has been verified.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from modelbox.errors import InvalidError
from modelbox.manifest import MAX_FILES, Manifest
from modelbox.refs import shown

__all__ = ("PAYLOAD_TYPE", "Statement", "loads_strictly", "read_statement", "statement_of", "subject_of")

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MANIFEST_KEY = "modelbox-manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was signed.

    Attributes:
        subject: ``namespace/model@version``; another tool's signatures have the name of a directory.
        manifest: Hexadecimal SHA-256 of the manifest; empty in signatures of other tools.
        resources: Path and hexadecimal SHA-256 of every file.
    """

    subject: str
    manifest: str
    resources: tuple[tuple[str, str], ...]

    def differences(self, subject: str, manifest: Manifest) -> list[str]:
        """In what it is not about ``subject`` with this manifest; empty if it is."""
        found = []
        if self.subject != subject:
            found.append(f"it is about {shown(self.subject)}, not about {subject}")
        if self.manifest != manifest.digest.removeprefix("sha256:"):
            found.append("it is about another manifest" if self.manifest else "it does not name the manifest")
        if dict(self.resources) != dict(_resources(manifest)):
            found.append("it lists other files")
        return found


def subject_of(namespace: str, model: str, version: int) -> str:
    """What a statement about a version is about."""
    return f"{namespace}/{model}@{version}"


def statement_of(subject: str, manifest: Manifest) -> bytes:
    """The bytes to sign for a version; equal ones for equal versions."""
    resources = _resources(manifest)
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [
            {
                "name": subject,
                "digest": {"sha256": _root(resources), _MANIFEST_KEY: manifest.digest.removeprefix("sha256:")},
            }
        ],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in resources],
        },
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_statement(payload: bytes) -> Statement:
    """Reads a statement.

    Raises:
        InvalidError: It is none of this format, or contradicts itself.
    """
    raw = loads_strictly(payload, "the signed statement")
    try:
        if raw["_type"] != _STATEMENT_TYPE or raw["predicateType"] != _PREDICATE_TYPE:
            raise InvalidError(
                f"the signature is of the type {shown(str(raw['predicateType']))}: expected {_PREDICATE_TYPE}"
            )
        (subject,) = raw["subject"]
        listed = raw["predicate"]["resources"]
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_FILES:
            raise InvalidError(f"a signed statement lists 1 to {MAX_FILES} files")
        if raw["predicate"]["serialization"]["method"] != "files" or any(r["algorithm"] != "sha256" for r in listed):
            raise InvalidError("the signature sums up its files in another way: expected whole files by SHA-256")
        resources = tuple((_text(r["name"]), _hex(r["digest"])) for r in listed)
        statement = Statement(
            subject=_text(subject["name"]),
            manifest=_hex(subject["digest"][_MANIFEST_KEY]) if _MANIFEST_KEY in subject["digest"] else "",
            resources=resources,
        )
        root = subject["digest"]["sha256"]
    except InvalidError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidError(
            f"the signed statement is not of this format: {type(exc).__name__} {shown(str(exc))}"
        ) from exc
    if len(dict(resources)) != len(resources):
        raise InvalidError("the signed statement lists a file twice")
    if root != _root(resources):
        raise InvalidError("the signed statement contradicts itself: its sum is not that of the files it lists")
    return statement


def loads_strictly(data: bytes | str, what: str) -> dict[str, Any]:
    """One JSON object in which no key comes twice, so that no two readers understand it differently.

    Raises:
        InvalidError: It is something else; ``what`` is named.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InvalidError(f"{what} has a key twice")
        return found

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except InvalidError:
        raise
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"{what} is not JSON") from exc
    if not isinstance(value, dict):
        raise InvalidError(f"{what} is not a JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _resources(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    return tuple((file.path, file.digest.removeprefix("sha256:")) for file in manifest.files)


def _root(resources: tuple[tuple[str, str], ...]) -> str:
    root = hashlib.sha256()
    for _, digest in resources:
        root.update(bytes.fromhex(digest))
    return root.hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise ValueError("expected text")
    return value


def _hex(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError("expected a SHA-256 in hexadecimal")
    return value
