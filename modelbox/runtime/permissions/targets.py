"""What calls are about: the names in requests, read into places.

A place is a namespace and a model, or a namespace alone for what belongs to none of its models. Names tell their place
by themselves; of an id it has to be looked up (`modelbox.runtime.permissions.places`). Pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from modelbox.errors import InvalidError
from modelbox.refs import ModelRef, check_name, shown
from modelbox.tracking import kind_of_id

__all__ = (
    "SERVER",
    "Place",
    "Target",
    "model_of",
    "namespace_of",
    "object_of",
    "path_of",
    "ref_of",
    "scope_of",
    "uid_of",
)

_KNOWN_TEXTS = 16_384
_MAX_CHARS = 255


class Place(NamedTuple):
    """Where something is; both empty for what concerns the whole server."""

    namespace: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.model}" if self.model else self.namespace


SERVER = Place("")


class Target(NamedTuple):
    """Something that a call names.

    Attributes:
        what: Its kind, for errors.
        text: As the caller wrote it.
        place: Where it is; None where that has to be looked up, as ``text`` is an id.
    """

    what: str
    text: str
    place: Place | None


@lru_cache(_KNOWN_TEXTS)
def namespace_of(text: str) -> Target:
    """A namespace by its name."""
    return Target("namespace", text, Place(check_name(text, "namespace")))


@lru_cache(_KNOWN_TEXTS)
def model_of(namespace: str, name: str) -> Target:
    """A model by its names."""
    place = Place(check_name(namespace, "namespace"), check_name(name, "model"))
    return Target("model", str(place), place)


@lru_cache(_KNOWN_TEXTS)
def ref_of(text: str) -> Target:
    """A model by a reference to one of its versions.

    The version is not in the target: whoever may not see the model is told the same for all of its versions.
    """
    ref = ModelRef.parse(text)
    return model_of(ref.namespace, ref.model)


@lru_cache(_KNOWN_TEXTS)
def uid_of(text: str) -> Target:
    """Anything by its id."""
    if len(text) > _MAX_CHARS:
        raise InvalidError(f"{shown(text)} is not an id: it has more than {_MAX_CHARS} characters", what="id")
    return Target("object", text, None)


@lru_cache(_KNOWN_TEXTS)
def object_of(text: str) -> Target:
    """Any object: by its id, as a namespace, as ``namespace/model``, or as a reference to a version."""
    if kind_of_id(text) is not None:
        return uid_of(text)
    return ref_of(text) if "/" in text else namespace_of(text)


@lru_cache(_KNOWN_TEXTS)
def path_of(text: str) -> Target:
    """What belongs to no model: by its id, as ``namespace/name``, perhaps with ``@3``, or a namespace."""
    if kind_of_id(text) is not None:
        return uid_of(text)
    if "/" not in text:
        return namespace_of(text)
    namespace, _, name = text.partition("/")
    check_name(name.partition("@")[0], "object")
    return Target("object", text[:_MAX_CHARS], Place(check_name(namespace, "namespace")))


@lru_cache(_KNOWN_TEXTS)
def scope_of(text: str) -> Target:
    """A namespace, or ``namespace/model``; empty for the whole server."""
    if not text:
        return Target("server", "", SERVER)
    namespace, slash, model = text.partition("/")
    return model_of(namespace, model) if slash else namespace_of(text)
