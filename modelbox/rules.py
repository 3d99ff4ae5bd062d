"""What a version must have, and which aliases are protected: rules, and what is decided by them.

Pure: looks at what it is given and at nothing else.

Invariants:

* All rules that match hold. A model's rule adds to its namespace's and takes nothing away; so with protections.
* Nothing here concerns ``latest``, which moves by itself.
* What is missing is said all at once, each part once, with the command that adds it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from modelbox.errors import InvalidError, RuleError
from modelbox.objects import JsonValue, to_json
from modelbox.refs import LATEST, check_name, shown

__all__ = (
    "AliasProtection",
    "AliasRequest",
    "Facts",
    "Missing",
    "RequestState",
    "Rule",
    "check_pattern",
    "check_rule",
    "check_rule_scope",
    "find_missing",
    "in_scope",
    "loss",
    "matches_alias",
    "parse_patterns",
    "refusal",
)

_PATTERN = re.compile(r"[a-z0-9._*?-]{1,64}")
_MAX_KEYS = 64
_MAX_KEY_CHARS = 250
_MAX_PATTERNS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What versions must have.

    Attributes:
        scope: ``namespace``, or ``namespace/model``.
        alias: Which aliases must point to such versions only: a name, or a pattern such as ``prod*``. Empty: every
            version that is published must be so.
        labels: Keys of labels that must have a value.
        metadata: Keys of metadata that must have a value.
        owner: The model must say who answers for it.
        description: The version must be described.
        dataset: It must be made from a version of a dataset, by lineage or by its metadata ``dataset``.
        signed: Somebody must have signed it. The server does not judge signatures: whom to trust is up
            to those who load the version.
        updated_at: When the rule was set; None for one that is not yet.
        updated_by: Who set it.
    """

    scope: str
    alias: str = ""
    labels: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    owner: bool = False
    description: bool = False
    dataset: bool = False
    signed: bool = False
    updated_at: datetime | None = None
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasProtection:
    """Aliases that only a promoter moves.

    Attributes:
        scope: ``namespace``, or ``namespace/model``; empty for what the server's settings protect everywhere.
        alias: A name, or a pattern such as ``prod*``.
        approval: A move waits until a second promoter approves it.
        updated_at: When it was set; None for the server's settings.
        updated_by: Who set it.
    """

    scope: str
    alias: str
    approval: bool = False
    updated_at: datetime | None = None
    updated_by: str = ""


class RequestState(StrEnum):
    """What became of a request to move an alias.

    ``outdated``: the alias moved meanwhile, so that nobody can approve it any more. ``bypassed``: it was a rollback,
    which waits for nobody, and is noted here.
    """

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    OUTDATED = "outdated"
    BYPASSED = "bypassed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRequest:
    """A move that waits for a second person, or did.

    Attributes:
        from_version: Where the alias pointed when it was asked for; None where it did not exist.
        to_version: Where it is to point; None for its deletion.
        expires_at: From then on nobody can approve it.
        decided_by: Who approved or rejected it; empty while nobody has.
        comment: What they said.
    """

    id: str
    namespace: str
    model: str
    alias: str
    from_version: int | None
    to_version: int | None
    reason: str = ""
    state: RequestState
    requested_by: str
    requested_at: datetime
    expires_at: datetime
    decided_by: str = ""
    decided_at: datetime | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a version when rules are applied to it.

    Attributes:
        path: ``namespace/model``.
        version: Its number; None for one that is just being published.
        owner: The model's.
        has_model: The model is there; only false for the first version of a new one.
        dataset: It was made from a version of a dataset.
        signed: It comes with a signature.
    """

    path: str
    version: int | None
    owner: str = ""
    has_model: bool = True
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    dataset: bool = False
    signed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A part that a version lacks.

    Attributes:
        what: ``label``, ``metadata``, ``owner``, ``description``, ``dataset`` or ``signature``.
        key: Of a label or of metadata.
        scope: Of the rule that asks for it; of the widest, where several do.
        fix: The command that adds it.
    """

    what: str
    key: str = ""
    scope: str
    fix: str

    def __str__(self) -> str:
        return {
            "label": f"the label {self.key}",
            "metadata": f"the metadata {self.key}",
            "owner": "an owner of the model",
            "description": "a description",
            "dataset": "a dataset that it was made from",
            "signature": "a signature",
        }[self.what]


# -- checks ----------------------------------------------------------------------------------------------------------


def check_rule_scope(scope: str) -> str:
    """Returns ``scope`` if it is ``namespace`` or ``namespace/model``.

    Raises:
        InvalidError: It is neither.
    """
    namespace, slash, model = scope.partition("/") if isinstance(scope, str) else ("", "", "")
    check_name(namespace, "namespace")
    if slash:
        check_name(model, "model")
    return scope


def check_pattern(text: str) -> str:
    """Returns ``text`` if it may stand for aliases: their letters, and ``*`` and ``?``.

    Raises:
        InvalidError: It may not, or it is ``latest``, which nobody moves by hand.
    """
    if not isinstance(text, str) or not _PATTERN.fullmatch(text):
        raise InvalidError(
            f"{shown(text)} does not stand for aliases: expected 1 to 64 of a-z, 0-9, dot, dash and underscore, with * "
            "for any letters and ? for any one",
            what="alias",
        )
    if text == LATEST:
        raise InvalidError("'latest' moves by itself to the newest version: rules are for other aliases", what="alias")
    return text


def parse_patterns(text: str) -> tuple[str, ...]:
    """Patterns with commas between, each once.

    Raises:
        InvalidError: One of them does not stand for aliases, or there are more than 32.
    """
    found = tuple(dict.fromkeys(check_pattern(part.strip()) for part in text.split(",") if part.strip()))
    if len(found) > _MAX_PATTERNS:
        raise InvalidError(f"{len(found)} patterns of aliases: at most {_MAX_PATTERNS} are allowed", what="alias")
    return found


def check_rule(rule: Rule) -> Rule:
    """Returns ``rule`` if it can be followed, with each key once.

    Raises:
        InvalidError: It asks for nothing, or for what cannot be.
    """
    check_rule_scope(rule.scope)
    if rule.alias:
        check_pattern(rule.alias)
    if not (rule.labels or rule.metadata or rule.owner or rule.description or rule.dataset or rule.signed):
        raise InvalidError("the rule asks for nothing: name labels, metadata, or other parts", what="rule")
    for name, keys in (("labels", rule.labels), ("metadata", rule.metadata)):
        if len(keys) > _MAX_KEYS:
            raise InvalidError(f"the rule has {len(keys)} keys of {name}: at most {_MAX_KEYS} are allowed", what=name)
        for key in keys:
            if not isinstance(key, str) or not key or len(key) > _MAX_KEY_CHARS or not key.isprintable():
                raise InvalidError(
                    f"{shown(key)} is not a key: expected 1 to {_MAX_KEY_CHARS} printable characters", what=name
                )
    return rule


# -- decisions -------------------------------------------------------------------------------------------------------


def in_scope(scope: str, namespace: str, model: str) -> bool:
    """Whether what is set for ``scope`` holds for a model; what is set for the empty one holds everywhere."""
    return scope in ("", namespace, f"{namespace}/{model}")


def matches_alias(pattern: str, alias: str) -> bool:
    """Whether ``alias`` is one that the pattern stands for. ``latest`` never is."""
    return alias != LATEST and fnmatchcase(alias, pattern)


def find_missing(rules: Iterable[Rule], facts: Facts) -> tuple[Missing, ...]:
    """What the version lacks by some rules, which all hold for it; a part once, by the rule that comes first."""
    found: dict[tuple[str, str], str] = {}
    for rule in sorted(rules, key=lambda rule: (rule.scope, rule.alias)):
        asked = [("label", key, bool(facts.labels.get(key))) for key in rule.labels]
        # What is false or zero is a value; what is empty is none.
        asked += [("metadata", key, facts.metadata.get(key) not in (None, "", [], {})) for key in rule.metadata]
        asked += [
            (what, "", there)
            for what, wanted, there in (
                ("owner", rule.owner, bool(facts.owner)),
                ("description", rule.description, bool(facts.description)),
                ("dataset", rule.dataset, facts.dataset),
                ("signature", rule.signed, facts.signed),
            )
            if wanted
        ]
        for what, key, there in asked:
            if not there:
                found.setdefault((what, key), rule.scope)
    return tuple(
        Missing(what=what, key=key, scope=scope, fix=_fix(what, [key], facts)) for (what, key), scope in found.items()
    )


def _fix(what: str, keys: Sequence[str], facts: Facts) -> str:
    """The command that adds a part: all labels at once, and all metadata."""
    if what == "owner":
        verb = "update" if facts.has_model else "create"
        return f"modelbox models {verb} {facts.path} --owner WHO"
    if facts.version is None:
        return f"modelbox models publish {facts.path} FILE... {_option(what, keys)}"
    ref = f"{facts.path}@{facts.version}"
    return {
        "label": f"modelbox labels set {ref} {_pairs(keys, 'TEXT')}",
        "metadata": f"modelbox metadata set {ref} {_pairs(keys, 'JSON')}",
        "description": f"modelbox models update {ref} --description TEXT",
        "dataset": f"modelbox lineage add dataset:NAMESPACE/NAME@NUMBER {ref}",
        "signature": f"modelbox sign {ref} --key FILE",
    }[what]


def _option(what: str, keys: Sequence[str]) -> str:
    """What `modelbox models publish` takes for a part."""
    return {
        "label": " ".join(f"--label {_pairs([key], 'TEXT')}" for key in keys),
        "metadata": " ".join(f"--metadata {_pairs([key], 'JSON')}" for key in keys),
        "description": "--description TEXT",
        "dataset": "--run RUN",
        "signature": "--sign-key FILE",
    }[what]


def _pairs(keys: Sequence[str], value: str) -> str:
    return " ".join(shlex.quote(f"{key}={value}") for key in keys)


def _fixes(missing: Sequence[Missing], facts: Facts) -> list[str]:
    """As few commands as add everything."""
    keys: dict[str, list[str]] = {}
    for one in missing:
        keys.setdefault(one.what, []).append(one.key)
    if facts.version is not None:
        return [_fix(what, some, facts) for what, some in keys.items()]
    options = [_option(what, some) for what, some in keys.items() if what != "owner"]
    commands = [_fix("owner", [], facts)] if "owner" in keys else []
    return [*commands, f"modelbox models publish {facts.path} FILE... {' '.join(options)}"] if options else commands


def refusal(missing: Sequence[Missing], facts: Facts, alias: str = "") -> RuleError:
    """The error for a version that lacks something: for being published, or for having an alias."""
    what = facts.path if facts.version is None else f"{facts.path}@{facts.version}"
    done = f"cannot be {alias}" if alias else "cannot be published so"
    scopes = " and ".join(dict.fromkeys(one.scope for one in missing))
    return RuleError(
        f"{what} {done}: it lacks {_listed([str(one) for one in missing])} (rules of {scopes}). "
        f"Add it by: {'; '.join(_fixes(missing, facts))}",
        what="rule",
        alias=alias,
        missing=to_json(tuple(missing)),
    )


def loss(missing: Sequence[Missing], what: str) -> RuleError:
    """The error for an edit of a model or version that would take something away."""
    scopes = " and ".join(dict.fromkeys(one.scope for one in missing))
    return RuleError(
        f"{what} must keep {_listed([str(one) for one in missing])} (rules of {scopes}): give another value instead",
        what="rule",
        alias="",
        missing=to_json(tuple(missing)),
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
