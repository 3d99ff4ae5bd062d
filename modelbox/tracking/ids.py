"""Ids: what a kind of object is called by, whoever makes it."""

from __future__ import annotations

import re
import secrets
from enum import StrEnum

from modelbox.errors import InvalidError
from modelbox.refs import shown

__all__ = (
    "ObjectKind",
    "check_id",
    "kind_of_id",
    "new_id",
)


class ObjectKind(StrEnum):
    """What an object is; each kind has ids with a prefix of its own."""

    NAMESPACE = "namespace"
    MODEL = "model"
    VERSION = "version"
    EXPERIMENT = "experiment"
    RUN = "run"
    CHECKPOINT = "checkpoint"
    DATASET = "dataset"
    DATASET_VERSION = "dataset_version"
    ARTIFACT = "artifact"
    EVENT = "event"
    COMMENT = "comment"


_PREFIXES = {
    ObjectKind.NAMESPACE: "nsp",
    ObjectKind.MODEL: "mdl",
    ObjectKind.VERSION: "ver",
    ObjectKind.EXPERIMENT: "exp",
    ObjectKind.RUN: "run",
    ObjectKind.CHECKPOINT: "ckp",
    ObjectKind.DATASET: "dst",
    ObjectKind.DATASET_VERSION: "dsv",
    ObjectKind.ARTIFACT: "art",
    ObjectKind.EVENT: "evt",
    ObjectKind.COMMENT: "cmt",
}
_KINDS = {prefix: kind for kind, prefix in _PREFIXES.items()}
_ID = re.compile(r"([a-z]{3})_[0-9a-f]{24}")


def new_id(kind: ObjectKind) -> str:
    """An id that is never given twice."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(12)}"


def kind_of_id(text: str) -> ObjectKind | None:
    """The kind that an id tells; None where ``text`` is no id."""
    match = _ID.fullmatch(text)
    return _KINDS.get(match[1]) if match else None


def check_id(text: str, *kinds: ObjectKind) -> str:
    """Returns ``text`` if it is an id, of one of ``kinds`` where any are given.

    Raises:
        InvalidError: It is not.
    """
    kind = kind_of_id(text) if isinstance(text, str) else None
    if kind is None or (kinds and kind not in kinds):
        wanted = " or ".join(f"{_PREFIXES[one]}_…" for one in kinds) or "such as run_5f0c…"
        raise InvalidError(f"{shown(text)} is not an id: expected {wanted} with 24 hexadecimal digits", what="id")
    return text
