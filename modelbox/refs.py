"""Names and references: ``namespace/model@selector``.

Owns the one grammar for namespaces, models, aliases and references. Pure: no I/O, no registry look-ups. A reference
that parses is safe to use in a path, a URL, a log line or a metric label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from modelbox.errors import InvalidError, RefError

__all__ = ("LATEST", "Digest", "ModelRef", "check_alias", "check_name", "parse_digest", "parse_path", "shown")

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits."""

LATEST = "latest"
"""The alias that the server moves by itself to the newest version."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_NAME_RULE = "1 to 64 of a-z, 0-9, dot, dash and underscore, beginning and ending with a letter or digit, without '..'"


def check_name(name: str, what: str) -> str:
    """Returns ``name`` if it may name a namespace, model or alias.

    Args:
        name: The text to check.
        what: What it names, for the error ("namespace", "model", "alias").

    Raises:
        InvalidError: The name breaks the rule; the text says which rule.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InvalidError(f"{shown(name)} is not a valid {what} name: expected {_NAME_RULE}", what=what)
    return name


def check_alias(name: str) -> str:
    """Returns ``name`` if it may name an alias: a name that cannot be mistaken for a version number."""
    check_name(name, "alias")
    if name.isdigit():
        raise InvalidError(f"{shown(name)} is not a valid alias name: digits alone mean a version", what="alias")
    return name


def parse_path(text: str, what: str) -> tuple[str, str]:
    """Namespace and name out of ``namespace/name``.

    Args:
        text: The text to take apart.
        what: What it names, for the error ("experiment", "dataset").

    Raises:
        InvalidError: It is not two names with a slash between; the text says which part, and what was expected.
    """
    namespace, slash, name = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not slash or "@" in text:
        raise InvalidError(f"{shown(text)} names no {what}: expected namespace/name", what=what)
    return check_name(namespace, "namespace"), check_name(name, what)


def parse_digest(text: str) -> Digest:
    """Returns ``text`` as a digest.

    Raises:
        InvalidError: It is not ``sha256:`` and 64 lower-case hexadecimal digits.
    """
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidError(f"{shown(text)} is not a digest: expected sha256: and 64 lower-case hexadecimal digits")
    return Digest(text)


def shown(value: object) -> str:
    """``value`` as it may stand in an error or a log line: escaped and short."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A parsed reference: which model, and which of its versions.

    Exactly one of ``alias``, ``version`` and ``digest`` is set. ``str(ref)`` gives the canonical text back.
    """

    namespace: str
    model: str
    alias: str | None = None
    version: int | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        check_name(self.namespace, "namespace")
        check_name(self.model, "model")
        if (self.alias is not None) + (self.version is not None) + (self.digest is not None) != 1:
            raise RefError("a reference names exactly one of alias, version and digest")
        if self.alias is not None:
            check_alias(self.alias)
        if self.digest is not None:
            parse_digest(self.digest)
        if self.version is not None and not 1 <= self.version < 10**18:
            raise RefError(f"{self.version} is not a version: versions count from 1")

    @classmethod
    def parse(cls, text: str | ModelRef) -> ModelRef:
        """Parses ``namespace/model``, ``…@alias``, ``…@7`` or ``…@sha256:…``; without a suffix, ``@latest``.

        Raises:
            RefError: The text is not a reference; the message says which part, and what was expected.
        """
        if isinstance(text, ModelRef):
            return text
        if not isinstance(text, str):
            raise RefError(f"a model reference is text like 'langtech/wav2vec@prod', not {type(text).__name__}")
        path, at, selector = text.partition("@")
        namespace, slash, model = path.partition("/")
        if not slash:
            raise RefError(f"{shown(text)} is not a model reference: expected namespace/model[@alias|@7|@sha256:…]")
        try:
            if not at:
                return cls(namespace=namespace, model=model, alias=LATEST)
            if selector.startswith("sha256:"):
                return cls(namespace=namespace, model=model, digest=parse_digest(selector))
            if _VERSION.fullmatch(selector):
                return cls(namespace=namespace, model=model, version=int(selector))
            return cls(namespace=namespace, model=model, alias=selector)
        except InvalidError as exc:
            raise RefError(f"{shown(text)} is not a model reference: {exc}") from exc

    @property
    def path(self) -> str:
        """``namespace/model``, the name of the model itself."""
        return f"{self.namespace}/{self.model}"

    @property
    def selector(self) -> str:
        """What stands behind the ``@``."""
        return str(self.alias or self.version or self.digest)

    @property
    def movable(self) -> bool:
        """Whether what it points to can change: true for an alias only."""
        return self.alias is not None

    def __str__(self) -> str:
        return f"{self.path}@{self.selector}"
