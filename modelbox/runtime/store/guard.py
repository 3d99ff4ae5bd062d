"""What a transaction asks before it publishes a version or moves an alias: who may, and what the version must have.

Runs inside the transaction that makes the change, behind the lock of the model's row, so that nothing comes between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from modelbox.access import ANYBODY, Caller, Permission, Role
from modelbox.errors import ApprovalNeeded, AuthError
from modelbox.objects import ModelVersion, NewVersion
from modelbox.refs import LATEST, parse_path
from modelbox.rules import AliasProtection, Facts, Missing, Rule, find_missing, loss, matches_alias, refusal
from modelbox.runtime.store.lineage import has_ancestor
from modelbox.runtime.store.objects import ObjectRow, object_id
from modelbox.runtime.store.rows import version_of
from modelbox.runtime.store.rules import protections_for, rules_for
from modelbox.runtime.store.schema import aliases, dataset_versions, datasets, namespaces, objects
from modelbox.tracking import ObjectKind

__all__ = (
    "Guard",
    "check_kept",
    "check_owned",
    "check_promotion",
    "check_publication",
    "check_published_aliases",
    "facts_of",
    "find_missing_of",
    "server_wide",
    "with_dataset",
)

_MAX_NAMED = 10
_DATASET_VERSION = (
    select(dataset_versions.c.id)
    .join(datasets, dataset_versions.c.dataset_id == datasets.c.id)
    .join(namespaces, datasets.c.namespace_id == namespaces.c.id)
    .join(objects, dataset_versions.c.id == objects.c.id)
    .where(
        namespaces.c.name == bindparam("ns"),
        datasets.c.name == bindparam("dataset_name"),
        dataset_versions.c.version == bindparam("number"),
        objects.c.deleted_at_us.is_(None),
    )
)


def server_wide(patterns: Iterable[str]) -> tuple[AliasProtection, ...]:
    """The protections that the server's settings give to every model."""
    return tuple(AliasProtection(scope="", alias=pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Who makes a change, and what is protected whatever the database says.

    Attributes:
        caller: Whose permissions count.
        protected: Patterns of aliases, from the server's settings.
    """

    caller: Caller = ANYBODY
    protected: tuple[str, ...] = ()

    def check_alias(self, conn: Connection, namespace: str, model: str, alias: str) -> bool:
        """Whether a change of the alias waits for a second person.

        Raises:
            AuthError: It is protected, and the caller is no promoter.
        """
        if alias == LATEST:
            return False
        found = [*server_wide(self.protected), *protections_for(conn, namespace, model)]
        holding = [one for one in found if matches_alias(one.alias, alias)]
        if holding:
            path = f"{namespace}/{model}@{alias}"
            self.check_promoter(namespace, model, f"{path} is protected", name=path)
        return any(one.approval for one in holding)

    def check_promoter(self, namespace: str, model: str, why: str, *, name: str) -> None:
        """Lets promoters of the model pass.

        Args:
            namespace: Of the model.
            model: Its name.
            why: For the error, such as "the alias is protected".
            name: What the call is about, for the audit log.

        Raises:
            AuthError: The caller is none.
        """
        if not self.caller.may(Permission.PROMOTE, namespace, model):
            raise AuthError(
                f"{why}: {self.caller.name or 'the caller'} needs the role {Role.PROMOTER} of {namespace}, or of "
                f"{namespace}/{model}",
                what="alias",
                role=Role.PROMOTER.value,
                namespace=namespace,
                name=name,
            )


def find_missing_of(rules: Sequence[Rule], facts: Facts, alias: str) -> tuple[Missing, ...]:
    """What the version lacks for having an alias, or for being published where that is empty."""
    return find_missing((one for one in rules if (matches_alias(one.alias, alias) if alias else not one.alias)), facts)


def check_published_aliases(conn: Connection, guard: Guard, namespace: str, model: str, names: Sequence[str]) -> None:
    """Lets aliases pass that a publication may move at once.

    Raises:
        AuthError: One of them is protected, and the caller is no promoter.
        ApprovalNeeded: A second person has to approve the move of one, which is asked for once the version is there.
    """
    for alias in names:
        if guard.check_alias(conn, namespace, model, alias):
            path = f"{namespace}/{model}@{alias}"
            raise ApprovalNeeded(
                f"{path} moves when a second person has approved it: publish without this alias, then ask for it by "
                f"modelbox models promote {path} NUMBER",
                what="alias",
                name=path,
                request="",
            )


def check_publication(
    conn: Connection, guard: Guard, new: NewVersion, model: Any | None, origins: Sequence[ObjectRow]
) -> None:
    """Lets a new version pass that has all that the rules ask for, also for the aliases that are to point to it.

    Args:
        conn: The transaction.
        guard: Who publishes.
        new: What is published.
        model: The model's row, if it is there.
        origins: What it is made from.

    Raises:
        RuleError: It lacks something.
    """
    rules = rules_for(conn, new.namespace, new.model)
    if not rules:
        return
    facts = Facts(
        path=f"{new.namespace}/{new.model}",
        version=None,
        owner="" if model is None else model.owner,
        has_model=model is not None,
        description=new.description,
        labels=new.labels,
        metadata=new.metadata,
        signed=bool(new.bundle),
    )
    _check(conn, guard, rules, facts, ("", *new.aliases), [row.id for row in origins])


def check_promotion(
    conn: Connection,
    guard: Guard,
    model: Any,
    version: Any,
    names: Sequence[str],
    *,
    origins: Sequence[ObjectRow] = (),
    signed: bool = False,
) -> None:
    """Lets aliases move to a version that has all that the rules ask for.

    Args:
        conn: The transaction.
        guard: Who moves them.
        model: The model's row.
        version: The version's row.
        names: Which aliases.
        origins: What the version will have been made from, beside what lineage says already.
        signed: The version will have a signature.

    Raises:
        RuleError: It lacks something.
    """
    rules = rules_for(conn, model.namespace, model.name)
    if rules and names:
        facts = facts_of(model, version_of(version))
        facts = replace(facts, signed=facts.signed or signed)
        seeds = [object_id(conn, version.uid), *(row.id for row in origins)]
        _check(conn, guard, rules, facts, names, seeds)


def check_kept(conn: Connection, model: Any, row: Any, old: ModelVersion, new: ModelVersion) -> None:
    """Lets an edit pass that takes nothing away which a rule asks for. What was missing before may stay so.

    Args:
        conn: The transaction.
        model: The model's row.
        row: The version's row.
        old: The version before the edit.
        new: Behind it.

    Raises:
        RuleError: A rule asks for what the edit would remove.
    """
    rules = rules_for(conn, model.namespace, model.name)
    if not rules:
        return
    names = conn.execute(select(aliases.c.name).where(aliases.c.version_id == row.id)).scalars().all()
    holding = [rule for rule in rules if not rule.alias or any(matches_alias(rule.alias, name) for name in names)]
    # A dataset that the metadata named was one of them when it was published or promoted; that is not asked again.
    facts = replace(facts_of(model, old), dataset=True), replace(facts_of(model, new), dataset=True)
    before = {(one.what, one.key) for one in find_missing(holding, facts[0])}
    lost = [one for one in find_missing(holding, facts[1]) if (one.what, one.key) not in before]
    if lost:
        raise loss(lost, str(old.ref))


def check_owned(conn: Connection, model: Any) -> None:
    """Refuses to take a model's owner away where a rule asks for one.

    Raises:
        RuleError: One does, of its versions or of what its aliases point to.
    """
    rules = [rule for rule in rules_for(conn, model.namespace, model.name) if rule.owner]
    if not rules:
        return
    names = conn.execute(select(aliases.c.name).where(aliases.c.model_id == model.id)).scalars().all()
    holding = [rule for rule in rules if not rule.alias or any(matches_alias(rule.alias, name) for name in names)]
    path = f"{model.namespace}/{model.name}"
    missing = [one for one in find_missing(holding, Facts(path=path, version=None)) if one.what == "owner"]
    if missing:
        raise loss(missing, path)


def facts_of(model: Any, version: ModelVersion) -> Facts:
    """What is known of a version by its own row and the model's."""
    return Facts(
        path=f"{version.namespace}/{version.model}",
        version=version.version,
        owner=model.owner,
        description=version.description,
        labels=version.labels,
        metadata=version.metadata,
        signed=bool(version.bundle),
    )


def _check(
    conn: Connection, guard: Guard, rules: Sequence[Rule], facts: Facts, names: Sequence[str], seeds: Sequence[int]
) -> None:
    if any(rule.dataset for rule in rules):
        facts = with_dataset(conn, guard.caller, facts, seeds)
    for alias in names:
        missing = find_missing_of(rules, facts, alias)
        if missing:
            raise refusal(missing, facts, alias)


def with_dataset(conn: Connection, caller: Caller, facts: Facts, seeds: Sequence[int]) -> Facts:
    """The facts, with whether the version was made from a version of a dataset.

    Args:
        conn: The transaction.
        caller: A dataset that they may not read is none, so that rules cannot be asked what there is.
        facts: Of the version.
        seeds: Row numbers of the version and of what it was made from.
    """
    named = _names_dataset(conn, caller, facts.metadata.get("dataset"))
    return replace(facts, dataset=named or has_ancestor(conn, seeds, ObjectKind.DATASET_VERSION))


def _names_dataset(conn: Connection, caller: Caller, value: object) -> bool:
    """Whether metadata name a version of a dataset that is there, as ``namespace/name@3``, alone or in a list."""
    for text in value[:_MAX_NAMED] if isinstance(value, list) else [value]:
        path, at_sign, number = text.partition("@") if isinstance(text, str) else ("", "", "")
        if not at_sign or not (number.isascii() and number.isdigit() and len(number) <= 18):
            continue
        try:
            namespace, name = parse_path(path, "dataset")
        except ValueError:
            continue
        wanted = {"ns": namespace, "dataset_name": name, "number": int(number)}
        if caller.may(Permission.READ, namespace) and conn.execute(_DATASET_VERSION, wanted).first() is not None:
            return True
    return False
