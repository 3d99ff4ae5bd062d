"""How something that is not there is answered, and what the answer tells of what there is instead.

Whoever may not see something is answered as if it were not there; so such an answer must not tell of it either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from modelbox.access import Scope
from modelbox.errors import ModelBoxError, NotFoundError

__all__ = ("hide", "missing")


def missing(what: str, asked: str, plural: str, exists: Sequence[str]) -> NotFoundError:
    """That there is no ``what`` called ``asked``, and what there is instead."""
    instead = f"{plural} there are: {', '.join(exists)}" if exists else f"there are no {plural} there yet"
    return NotFoundError(f"no {what} {asked}: {instead}", what=what, name=asked, exists=list(exists))


def _shows_model(scope: Scope, path: str) -> bool:
    namespace, _, model = path.partition("/")
    return scope.shows(namespace, model)


def _shows_inside(scope: Scope, path: str) -> bool:
    return scope.shows(path.partition("/")[0])


_Shows = Callable[[Scope, str], bool]

_SHOWN: Mapping[str, tuple[str, _Shows]] = {
    "namespace": ("namespaces", Scope.shows_namespace),
    "model": ("models", _shows_model),
    "experiment": ("experiments", _shows_inside),
    "dataset": ("datasets", _shows_inside),
}


def hide(error: ModelBoxError, scope: Scope) -> ModelBoxError:
    """The error as its caller may read it: ``exists`` lists only what the caller may see.

    Lists are of what lies beside something that was asked for; what lies inside of it (aliases, files) is seen by
    whoever sees the thing itself.
    """
    exists = error.fields.get("exists")
    if scope.everything or not isinstance(error, NotFoundError) or not isinstance(exists, list):
        return error
    plural, shows = _SHOWN.get(str(error.fields.get("what")), ("", None))
    if shows is None:
        return error
    some = [name for name in exists if shows(scope, str(name))]
    return error if some == exists else missing(str(error.fields["what"]), str(error.fields["name"]), plural, some)
