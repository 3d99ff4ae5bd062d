"""What a call needs: a permission on everything that it names, and where in its request these names are.

The builders below make rows of `modelbox.runtime.permissions.table`. A field is a name, with dots into what it holds:
of a message ``policy.scope``; of a request over HTTP ``path.ns``, ``query.object`` or ``body.edges``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbox.access import Permission
from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.runtime.permissions import targets
from modelbox.runtime.permissions.targets import SERVER, Target

__all__ = (
    "Asked",
    "Finder",
    "Need",
    "Rule",
    "anybody",
    "at",
    "each",
    "listing",
    "model",
    "namespace",
    "nobody",
    "optional",
    "refs",
    "server",
    "things",
)


class Asked:
    """A request over HTTP, as rules read it.

    Args:
        path: The parts of its path by name.
        query: All values of a parameter of its query.
        body: Its body; empty where none is read.
    """

    __slots__ = ("_body", "_path", "_query")

    def __init__(self, path: Mapping[str, str], query: Callable[[str], list[str]], body: Mapping[str, object]) -> None:
        self._path = path
        self._query = query
        self._body = body

    def read(self, where: str, field: str) -> object:
        """What is at a place of the request; None if nothing is."""
        if where == "path":
            return self._path.get(field)
        return self._query(field) if where == "query" else self._body.get(field)


def _reader(field: str) -> Callable[[Any], Sequence[str]]:
    """Reads the texts of a field: one, several, or none."""
    values = _values_of(field)

    def read(source: Any) -> Sequence[str]:
        found = values(source)
        for value in found:
            if not isinstance(value, str):
                raise InvalidError(f"{shown(value)} is not text, as {field} is", what=field)
        return found

    return read


def _one_of(field: str) -> Callable[[Any], str]:
    """Reads the text of a field; empty if there is none."""
    texts = _reader(field)

    def read(source: Any) -> str:
        found = texts(source)
        if len(found) > 1:
            raise InvalidError(f"{field} is given more than once", what=field)
        return found[0] if found else ""

    return read


def _values_of(field: str) -> Callable[[Any], Sequence[Any]]:
    """Reads what a field holds, whatever that is."""
    first, *rest = field.split(".")

    def read(source: Any) -> Sequence[Any]:
        names = rest
        found: Any
        if type(source) is Asked:
            found = source.read(first, rest[0])
            names = rest[1:]
        else:
            found = _part(source, first)
        for name in names:
            found = _part(found, name)
        if type(found) is str:
            return (found,)
        if found is None:
            return ()
        # Messages of neither codec have a length; lists of google's have nothing else in common with lists.
        return tuple(found) if hasattr(found, "__len__") and type(found) is not dict else (found,)

    return read


def _part(of: Any, name: str) -> Any:
    return of.get(name) if type(of) is dict else getattr(of, name, None)


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds what a request names.

    Attributes:
        find: Gives the targets, out of a message or `Asked`.
        fields: Where it looks.
        about: What it finds, for people.
    """

    find: Callable[[Any], Sequence[Target]]
    fields: tuple[str, ...]
    about: str

    def __add__(self, other: Finder) -> Finder:
        return Finder(
            lambda source: (*self.find(source), *other.find(source)),
            (*self.fields, *other.fields),
            f"{self.about}, {other.about}",
        )


def server() -> Finder:
    """The server as a whole."""
    return Finder(lambda _: (Target("server", "", SERVER),), (), "the server")


def namespace(field: str) -> Finder:
    """A namespace by name."""
    text = _one_of(field)
    return Finder(lambda source: (targets.namespace_of(text(source)),), (field,), "the namespace")


def model(namespace: str, name: str) -> Finder:
    """A model by both its names."""
    first, second = _one_of(namespace), _one_of(name)
    return Finder(
        lambda source: (targets.model_of(first(source), second(source)),),
        (namespace, name),
        "the model",
    )


def at(field: str) -> Finder:
    """A namespace or model as a path; empty for the server."""
    text = _one_of(field)
    return Finder(lambda source: (targets.scope_of(text(source)),), (field,), "the namespace or model")


_READERS: Mapping[str, tuple[Callable[[str], Target], str]] = {
    "object": (targets.object_of, "any object"),
    "path": (targets.path_of, "by id or path"),
    "id": (targets.uid_of, "by id"),
    "ref": (targets.ref_of, "the model"),
}


def things(field: str, read: str = "object") -> Finder:
    """One thing or several: any ``object``, by ``path`` what belongs to no model, by ``id``, or by a ``ref``."""
    one, about = _READERS[read]
    texts = _reader(field)

    def find(source: Any) -> Sequence[Target]:
        found = texts(source)
        if len(found) == 1:
            return (one(found[0]),)
        if not found:
            raise InvalidError(f"{field} is missing", what=field)
        return [one(text) for text in found]

    return Finder(find, (field,), about)


def refs(field: str) -> Finder:
    """A model by a reference."""
    return things(field, "ref")


def each(field: str, finder: Finder) -> Finder:
    """The same of each element of a list."""
    elements = _values_of(field)

    def find(source: Any) -> Sequence[Target]:
        found = elements(source)
        if len(found) == 1:
            return finder.find(found[0])
        return [target for element in found for target in finder.find(element)]

    return Finder(find, (field,), finder.about)


def optional(finder: Finder) -> Finder:
    """The same, or nothing where the field is empty."""
    (field,) = finder.fields
    texts = _reader(field)
    return Finder(
        lambda source: finder.find(source) if any(texts(source)) else (),
        finder.fields,
        f"{finder.about}, if one is named",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A permission on what a call names.

    Attributes:
        creates: Kinds of targets that are made where they are named and not there: who may not is told so, whether they
            are there or not.
        listing: A namespace is enough where any of its models may be read: the service leaves out the rest.
        somewhere: A namespace is enough where the permission is had on any of its models.
    """

    permission: Permission
    on: Finder
    creates: frozenset[str] = frozenset()
    listing: bool = False
    somewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a method or route needs.

    Attributes:
        needs: All of these.
        token: Whether the caller has to be somebody; what needs no token says nothing that anybody could not know.
        screened: It is a delivery of operations, each of which is judged by the row of its own call.
        fresh: Ids that the caller made for what is to be made. One that is taken is answered with what has it, so it
            must not lie where the caller may not look.
        made: Gives id and place of what is in an answer of gRPC; for where ``fresh`` is checked afterwards.
    """

    needs: tuple[Need, ...] = ()
    token: bool = True
    screened: bool = False
    fresh: Finder | None = None
    made: Callable[[Any], Iterable[tuple[str, str]]] | None = None

    def __and__(self, other: Rule) -> Rule:
        """All that both need."""
        return Rule(needs=(*self.needs, *other.needs), fresh=self.fresh or other.fresh, made=self.made or other.made)

    @property
    def reads_body(self) -> bool:
        """Whether it has to know a body of HTTP."""
        finders = [need.on for need in self.needs] + ([self.fresh] if self.fresh is not None else [])
        return any(field.startswith("body.") for finder in finders for field in finder.fields)


def nobody() -> Rule:
    """What needs no token."""
    return Rule(token=False)


def anybody() -> Rule:
    """What everybody with a token may ask; the answer depends on who it is."""
    return Rule()


def listing(*on: Finder) -> Rule:
    """A list of what may be read: everywhere, or in what is named."""
    return Rule(needs=tuple(Need(permission=Permission.READ, on=one, listing=True) for one in on))
