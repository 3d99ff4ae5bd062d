"""The change feed's data: changes, resume tokens, bookmarks, filters, and the hash chain.

Pure. The contract, published in ``docs/protocol.md``:

* One totally ordered history per installation, ``(epoch, rev)``; ``rev`` counts from 1 without holes, one per committed
  control-plane transaction. The changes of one revision are ``(rev, idx)`` and travel in one message.
* Ordered, gap-free, at least once. A change carries the whole new state of its object and ``mod_rev``; apply it iff
  ``mod_rev`` is greater than what you hold.
* A resume token means "after this revision". It is answered with changes, or with a `Resync` that ends the stream.
* A bookmark promises that every change up to its revision that the filter lets through has been sent on this stream.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.tracking import kind_of_id

__all__ = (
    "Action",
    "Bookmark",
    "Change",
    "FeedItem",
    "Filter",
    "Kind",
    "ResumeToken",
    "Resync",
    "ResyncReason",
    "Revision",
    "Snapshot",
    "next_chain",
)


class Kind(StrEnum):
    """What a change is about."""

    NAMESPACE = "namespace"
    MODEL = "model"
    VERSION = "version"
    ALIAS = "alias"
    ARTIFACT = "artifact"
    DOWNLOAD = "download"
    EXPERIMENT = "experiment"
    RUN = "run"
    CHECKPOINT = "checkpoint"
    ATTRIBUTES = "attributes"
    EVENT = "event"
    COMMENT = "comment"
    README = "readme"
    DATASET = "dataset"
    DATASET_VERSION = "dataset_version"
    LINEAGE = "lineage"
    RULE = "rule"
    ACCESS = "access"
    DENIAL = "denial"


class Action(StrEnum):
    """What happened to it."""

    CREATED = "created"
    UPDATED = "updated"
    MOVED = "moved"
    DELETED = "deleted"
    RESTORED = "restored"
    DENIED = "denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that ModelBox did.

    Attributes:
        rev: The revision of the transaction; ``idx`` orders the changes inside it.
        object: The object's path: ``ns``, ``ns/model``, ``ns/model@7``, ``ns/model@prod``, or an artifact's id.
        kind: Of the object. A kind that this program does not know arrives as text.
        actor: Who did it.
        state: The whole new state as `modelbox.objects.to_json` writes it; the last state for a deletion.
    """

    rev: int
    idx: int
    namespace: str
    object: str
    kind: str
    action: str
    actor: str
    at: datetime
    state: JsonValue

    @property
    def mod_rev(self) -> int:
        """The revision to compare with what is held."""
        return self.rev


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeToken:
    """A place in one installation's history; opaque to clients in its text form.

    Attributes:
        scope: Tells what the reader could see from what it can see later; empty for everything.
    """

    server_id: str
    epoch: str
    rev: int
    chain: str
    scope: str = ""

    def __str__(self) -> str:
        parts: list[str | int] = [self.server_id, self.epoch, self.rev, self.chain]
        if self.scope:
            parts.append(self.scope)
        raw = json.dumps(parts, separators=(",", ":"))
        return base64.urlsafe_b64encode(raw.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> ResumeToken:
        """Reads a token.

        Raises:
            InvalidError: It is not a token that a server made.
        """
        try:
            raw = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            server_id, epoch, rev, chain, *more = raw
            scope = more[0] if more else ""
            if len(more) > 1 or not all(isinstance(part, str) for part in (server_id, epoch, chain, scope)):
                raise TypeError("text expected")
            if isinstance(rev, bool) or not isinstance(rev, int) or not 0 <= rev < 2**63:
                raise ValueError("revision out of range")
        except (ValueError, TypeError, binascii.Error, UnicodeError, RecursionError) as exc:
            raise InvalidError(
                f"{shown(text)} is not a resume token: pass one that a list or watch of this server returned"
            ) from exc
        return cls(server_id=server_id, epoch=epoch, rev=rev, chain=chain, scope=scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The changes of one transaction, never split.

    Attributes:
        prev_rev: The revision sent before this one on the same stream (at its start, the resume token's); a reader
            that holds another one has lost something.
        token: Resumes after this revision.
    """

    rev: int
    prev_rev: int
    changes: tuple[Change, ...]
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Everything up to ``rev`` that the filter lets through has been sent; ``head_rev`` is how far history is."""

    rev: int
    head_rev: int
    token: str


class ResyncReason(StrEnum):
    """Why a resume token cannot be honoured."""

    COMPACTED = "compacted"
    FUTURE = "future"
    DIVERGED = "diverged"
    SLOW = "slow"
    AUTHZ = "authz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The stream ends here: list again, then watch from the list's token."""

    reason: ResyncReason
    message: str


FeedItem = Revision | Bookmark | Resync


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which changes a reader wants; empty parts let everything through.

    Attributes:
        namespace: One namespace.
        objects: Object paths; a model's path takes in its versions, aliases and downloads, an id the attributes and the
            readme of the object.
        kinds: Of `Kind`.
    """

    namespace: str = ""
    objects: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    def matches(self, change: Change) -> bool:
        """Whether the reader wants ``change``."""
        if self.namespace and change.namespace != self.namespace:
            return False
        if self.kinds and change.kind not in self.kinds:
            return False
        return not self.objects or any(_below(change.object, wanted) for wanted in self.objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One page of the current state of everything that a filter lets through.

    Watch from the *first* page's ``token``: what changed while paging arrives again, and ``mod_rev`` settles it.
    """

    items: tuple[Change, ...]
    next_token: str
    token: str
    rev: int


def _below(path: str, wanted: str) -> bool:
    if path == wanted or path.startswith(f"{wanted}@"):
        return True
    return path.startswith(f"{wanted}/") and kind_of_id(wanted) is not None


def next_chain(chain: bytes, rev: int, bodies: Sequence[bytes]) -> bytes:
    """The hash that binds revision ``rev`` to everything before it.

    ``sha256(chain || rev as 8 bytes big-endian || (length as 8 bytes big-endian || body) for each change)``.
    """
    digest = hashlib.sha256(chain + rev.to_bytes(8, "big"))
    for body in bodies:
        digest.update(len(body).to_bytes(8, "big"))
        digest.update(body)
    return digest.digest()
