"""What every database must find: random objects and queries against an evaluation in plain Python.

Rows are written by hand, so that the suite says exactly what lies in the tables.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cmp_to_key
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from modelbox.errors import InvalidError, LimitError, NotFoundError
from modelbox.find import (
    And,
    Comparison,
    Expression,
    Field,
    FieldType,
    Not,
    Op,
    Or,
    Order,
    Scope,
    parse_columns,
    parse_order,
    parse_where,
    wildcards,
)
from modelbox.runtime.find_ports import FindKey, FindQuery, FoundColumns
from modelbox.runtime.store import find_columns
from modelbox.runtime.store.attributes import AttributeWrites
from modelbox.runtime.store.event_values import add_event_values
from modelbox.runtime.store.find import find_page
from modelbox.runtime.store.find_terms import KINDS
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.schema import checkpoints, events, experiments, namespaces, objects, runs
from modelbox.tracking import ObjectKind, new_id

NOW = datetime(2026, 5, 3, tzinfo=UTC)
SEEDS = int(os.environ.get("MODELBOX_TEST_FIND_SEEDS", "3"))
_GREATEST = sys.float_info.max
_COMPLEX = object()


@dataclass(kw_only=True)
class Thing:
    """A run or checkpoint as the evaluation knows it."""

    number: int
    uid: str
    attributes: dict[str, Any]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[Scope, dict[str, Any]] = field(default_factory=dict)
    deleted: bool = False


class World:
    """A database with objects of known values."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.things: dict[str, list[Thing]] = {"runs": [], "checkpoints": []}
        self._series_keys: dict[str, int] = {}
        self._owners = 0
        self._next = 1
        for number, name in enumerate(("one", "two"), 1):
            conn.execute(insert(namespaces).values(id=number, name=name, created_at_us=0, mod_rev=1))
        self.namespace = self._object(ObjectKind.NAMESPACE, 1, None)
        self._object(ObjectKind.NAMESPACE, 2, None)
        self.experiments = [self._experiment(1, "first"), self._experiment(2, "second")]

    def _object(
        self, kind: ObjectKind, namespace_id: int, parent: int | None, at_us: int = 0, deleted: bool = False
    ) -> tuple[int, str]:
        number, uid = self._next, new_id(kind)
        self._next += 1
        self.conn.execute(
            insert(objects).values(
                id=number,
                uid=uid,
                kind=kind.value,
                namespace_id=namespace_id,
                parent_id=parent,
                deleted_at_us=5 if deleted else None,
                created_at_us=at_us,
                created_by="",
                mod_rev=1,
            )
        )
        return number, uid

    def _experiment(self, namespace_id: int, name: str) -> tuple[int, str]:
        made = self._object(ObjectKind.EXPERIMENT, namespace_id, None)
        self.conn.execute(
            insert(experiments).values(
                id=made[0],
                namespace_id=namespace_id,
                name=name,
                owner="",
                framework="",
                task="",
                external_id="",
                description="",
            )
        )
        return made

    def run(
        self,
        *,
        place: int = 0,
        status: str = "finished",
        name: str = "run",
        reason: str = "",
        started_us: int = 0,
        ended_us: int | None = None,
        deleted: bool = False,
        parent: int | None = None,
        metrics: Mapping[str, Sequence[Any]] | None = None,
        values: Mapping[Scope, Mapping[str, Any]] | None = None,
    ) -> Thing:
        experiment = self.experiments[place]
        number, uid = self._object(ObjectKind.RUN, place + 1, experiment[0], started_us, deleted)
        self.conn.execute(
            insert(runs).values(
                id=number,
                experiment_id=experiment[0],
                name=name,
                status=status,
                started_at_us=started_us,
                ended_at_us=ended_us,
                parent_run_id=parent,
                cloned_from="",
                reason=reason,
            )
        )
        attributes = {
            "id": uid,
            "name": name,
            "status": status,
            "reason": reason or None,
            "experiment": ("first", "second")[place],
            "namespace": ("one", "two")[place],
            "started_at": started_us,
            "created_at": started_us,
            "ended_at": ended_us,
            "duration": None if ended_us is None else (ended_us - started_us) / 1e6,
        }
        return self._thing("runs", number, uid, attributes, deleted, metrics, values)

    def checkpoint(
        self,
        parent: int,
        epoch: int,
        *,
        step: int | None = None,
        projected: Mapping[str, float] | None = None,
        metrics: Mapping[str, Sequence[Any]] | None = None,
    ) -> Thing:
        number, uid = self._object(ObjectKind.CHECKPOINT, 1, parent)
        self.conn.execute(
            insert(checkpoints).values(id=number, parent_id=parent, epoch=epoch, step=step, path="", metrics="{}")
        )
        writes = AttributeWrites(at_us=0, actor="", rev=1)
        for key, value in (projected or {}).items():
            writes.add(number, "metric", key, value)
        writes.write(self.conn)
        return self._thing("checkpoints", number, uid, {"epoch": epoch, "step": step}, False, metrics, None)

    def event(self, of: Thing, name: str, metadata: Mapping[str, Any], *, at_us: int = 0) -> None:
        made = self.conn.execute(
            insert(events).values(
                uid=new_id(ObjectKind.EVENT),
                namespace_id=1,
                object_id=of.number,
                name=name,
                source="scheduler",
                at_us=at_us,
                received_at_us=9,
                metadata=json.dumps(metadata),
                created_by="",
                mod_rev=1,
            )
        )
        assert made.inserted_primary_key is not None
        add_event_values(self.conn, made.inserted_primary_key[0], metadata)

    def _thing(
        self,
        collection: str,
        number: int,
        uid: str,
        attributes: dict[str, Any],
        deleted: bool,
        metrics: Mapping[str, Sequence[Any]] | None,
        values: Mapping[Scope, Mapping[str, Any]] | None,
    ) -> Thing:
        thing = Thing(number=number, uid=uid, attributes=attributes, deleted=deleted)
        if metrics:
            self._owners += 1
            self.conn.execute(insert(metric_objects).values(id=self._owners, uid=uid))
        for key, points in (metrics or {}).items():
            thing.metrics[key] = self._series(key, points)
        writes = AttributeWrites(at_us=0, actor="", rev=1)
        for scope, by_key in (values or {}).items():
            thing.values[scope] = dict(by_key)
            for key, value in by_key.items():
                writes.add(number, KINDS[scope], key, value)
        writes.write(self.conn)
        self.things[collection].append(thing)
        return thing

    def _series(self, key: str, points: Sequence[Any]) -> dict[str, Any]:
        if key not in self._series_keys:
            self._series_keys[key] = len(self._series_keys) + 1
            self.conn.execute(insert(metric_keys).values(id=self._series_keys[key], name=key))
        latest = points[-1]
        is_text = isinstance(latest, str)
        numbers = [] if is_text else [point for point in points if not math.isnan(point)]
        least, most = (min(numbers), max(numbers)) if numbers else (None, None)
        flag = 1 if is_text else 3 if math.isnan(latest) else 0 if math.isfinite(latest) else 4 if latest > 0 else 5
        self.conn.execute(
            insert(metric_series).values(
                object_id=self._owners,
                key_id=self._series_keys[key],
                kind=1 if is_text else 0,
                count=len(points),
                min=_kept(least),
                max=_kept(most),
                latest=None if flag in (1, 3) else _kept(latest),
                latest_flag=flag,
                infinite=0,
                latest_step=len(points) - 1,
                latest_time_us=0,
                first_step=0,
            )
        )
        return {
            "latest": None if is_text else latest,
            "min": least,
            "max": most,
            "count": len(points),
            "step": len(points) - 1,
        }


def _kept(value: float | None) -> float | None:
    return math.copysign(_GREATEST, value) if value is not None and math.isinf(value) else value


# -- the evaluation ----------------------------------------------------------------------------------------------------


def leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(f"{path}.{key}", inner)]
    if isinstance(value, list):
        return [leaf for place, inner in enumerate(value) for leaf in leaves(f"{path}.{place}", inner)]
    return [(path, value)]


def scalar(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _COMPLEX if isinstance(value, dict | list) else value


def candidates(thing: Thing, what: Field) -> list[Any]:
    """The values that a field has, in the order in which they count."""
    if what.scope is Scope.ATTRIBUTE:
        return [value for value in [thing.attributes[what.name]] if value is not None]
    if what.scope is Scope.METRIC:
        return [value for value in [thing.metrics.get(what.name, {}).get(what.part)] if value is not None]
    values = thing.values.get(what.scope, {})
    found = [scalar(values[what.name])] if values.get(what.name) is not None else []
    if what.type is FieldType.JSON and "." in what.name:
        nested = [
            leaf for key, value in values.items() if isinstance(value, dict | list) for leaf in leaves(key, value)
        ]
        found += [scalar(value) for path, value in nested if path == what.name and value is not None]
        if any(path.startswith(f"{what.name}.") for path, _ in nested):
            found.append(_COMPLEX)
    return found


def equal(value: Any, literal: Any) -> bool:
    if value is _COMPLEX or isinstance(value, str) != isinstance(literal, str):
        return False
    if isinstance(value, float) and math.isnan(value):
        return isinstance(literal, float) and math.isnan(literal)
    return bool(value == literal)


def fulfils(value: Any, op: Op, literals: tuple[Any, ...]) -> bool:
    if op in (Op.EQ, Op.IN):
        return any(equal(value, literal) for literal in literals)
    if op in (Op.NE, Op.NOT_IN):
        return not any(equal(value, literal) for literal in literals)
    literal = literals[0]
    if op is Op.LIKE:
        pattern = re.escape(wildcards(literal)).replace(r"\*", ".*").replace(r"\?", ".")
        return isinstance(value, str) and re.fullmatch(pattern, value, re.IGNORECASE | re.DOTALL) is not None
    if value is _COMPLEX or isinstance(value, str) != isinstance(literal, str):
        return False
    return bool({Op.GT: value > literal, Op.GE: value >= literal, Op.LT: value < literal, Op.LE: value <= literal}[op])


def holds(thing: Thing, where: Expression | None) -> bool:
    match where:
        case None:
            return True
        case And(parts):
            return all(holds(thing, part) for part in parts)
        case Or(parts):
            return any(holds(thing, part) for part in parts)
        case Not(part):
            return not holds(thing, part)
        case Comparison(field=what, op=op, values=literals):
            values = candidates(thing, what)
            if literals == (None,):
                return not values if op is Op.EQ else bool(values)
            return any(fulfils(value, op, literals) for value in values)


def sort_keys(thing: Thing, orders: Sequence[Order]) -> list[tuple[Any, bool]]:
    keys: list[tuple[Any, bool]] = []
    for one in orders:
        values = candidates(thing, one.field)
        numbers = [value for value in values if isinstance(value, int | float) and not math.isnan(value)]
        texts = [value for value in values if isinstance(value, str)]
        if one.field.type is FieldType.JSON:
            keys.append((numbers[0] if numbers else None, one.descending))
            keys.append((texts[0] if texts else None, one.descending))
        else:
            keys.append((next(iter(numbers or texts), None), one.descending))
    return keys


def expected(things: Sequence[Thing], where: Expression | None, orders: Sequence[Order]) -> list[str]:
    found = [thing for thing in things if not thing.deleted and holds(thing, where)]
    if not orders:
        return [thing.uid for thing in sorted(found, key=lambda thing: -thing.number)]

    def compare(one: Thing, other: Thing) -> int:
        for (left, descending), (right, _) in zip(sort_keys(one, orders), sort_keys(other, orders), strict=True):
            if left == right:
                continue
            if left is None or right is None:
                return 1 if left is None else -1
            return (1 if left > right else -1) * (-1 if descending else 1)
        return one.number - other.number

    return [thing.uid for thing in sorted(found, key=cmp_to_key(compare))]


# -- asking ------------------------------------------------------------------------------------------------------------


def ask(
    conn: Connection,
    where: str = "",
    order: Sequence[str] = (),
    *,
    collection: str = "runs",
    within: str = "",
    columns: Sequence[str] = ("id",),
    include_deleted: bool = False,
    limit: int = 1000,
    after: FindKey | None = None,
) -> FoundColumns:
    query = FindQuery(
        collection=collection,
        where=parse_where(collection, where, now=NOW),
        order=parse_order(collection, order),
        within=within,
        columns=parse_columns(collection, columns),
        include_deleted=include_deleted,
    )
    return find_page(conn, query, limit, after)


def ids(page: FoundColumns) -> list[str]:
    found: list[str] = json.loads(page.columns_json)["id"]
    assert len(found) == page.count
    return found


def columns_of(page: FoundColumns) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads(page.columns_json)
    return found


_NUMBERS = [0, 1, -1, 2.5, 10, 9, 1e300, -0.5]
_METRICS = [0.0, 1.0, -1.0, 2.5, 0.1, math.nan, math.inf, -math.inf]
_TEXTS = ["a", "b", "10", "Adam", "adam w", "50%", "a_b", "", "true", "null", "größe", "!x", "it's"]
_VALUES: list[Any] = [*_NUMBERS, *_TEXTS, True, False, None, [], {}, [1, "a"], {"x": 1, "y": {"z": "a"}}, {"x": None}]
_FIELDS = [
    "name",
    "status",
    "reason",
    "experiment",
    "namespace",
    "started_at",
    "ended_at",
    "duration",
    "metrics.loss",
    "metrics.loss.min",
    "metrics.loss.max",
    "metrics.loss.count",
    "metrics.loss.step",
    "metrics.note",
    "metrics.never",
    "params.lr",
    "params.opt",
    "params.opt.x",
    "params.opt.y",
    "params.opt.y.z",
    "params.opt.0",
    "tags.team",
    "labels.gold",
    "metadata.opt.x",
]


def _random_run(world: World, chance: random.Random) -> None:
    metrics: dict[str, Sequence[Any]] = {}
    if chance.random() < 0.8:
        metrics["loss"] = [chance.choice(_METRICS) for _ in range(chance.randint(1, 3))]
    if chance.random() < 0.2:
        metrics["note"] = ["so"]
    values: dict[Scope, dict[str, Any]] = {scope: {} for scope in (Scope.PARAM, Scope.METADATA, Scope.TAG, Scope.LABEL)}
    for scope in (Scope.PARAM, Scope.METADATA):
        for key in ("lr", "opt"):
            if chance.random() < 0.8:
                values[scope][key] = chance.choice(_VALUES)
    if chance.random() < 0.1:
        values[Scope.PARAM]["opt.x"] = chance.choice(_VALUES[:-4])
        values[Scope.PARAM].pop("opt", None)
    for scope, key in ((Scope.TAG, "team"), (Scope.LABEL, "gold")):
        if chance.random() < 0.8:
            values[scope][key] = chance.choice(_TEXTS)
    started = chance.randint(0, 5) * 500_000
    world.run(
        place=chance.randint(0, 1),
        status=chance.choice(["running", "finished", "failed"]),
        name=chance.choice(_TEXTS[:5]),
        reason=chance.choice(["", "why"]),
        started_us=started,
        ended_us=chance.choice([None, started + 1_000_000, started + 2_500_000]),
        deleted=chance.random() < 0.1,
        metrics=metrics,
        values=values,
    )


def _literal(chance: random.Random, what: str) -> str:
    if what.endswith("_at"):
        return chance.choice(["1970-01-01T00:00:01Z", "'1970-01-01T00:00:00.5Z'", "now-1d"])
    number = json.dumps(chance.choice(_NUMBERS))
    if what.startswith("metrics."):
        return chance.choice([number, number, number, "nan", "inf", "-inf"])
    if what == "duration":
        return number
    text = "'" + chance.choice([*_TEXTS, "finished", "first", "one"]).replace("'", "\\'") + "'"
    return chance.choice([number, text]) if what.startswith(("params", "metadata")) else text


def _random_where(chance: random.Random, depth: int = 0) -> str:
    roll = chance.random()
    if depth < 3 and roll < 0.35:
        parts = [_random_where(chance, depth + 1) for _ in range(chance.randint(2, 3))]
        return "(" + chance.choice([" and ", " or "]).join(parts) + ")"
    if depth < 3 and roll < 0.45:
        return f"not ({_random_where(chance, depth + 1)})"
    what = chance.choice(_FIELDS)
    if roll < 0.55:
        return f"{what} {chance.choice(['=', '!='])} null"
    if roll < 0.7:
        literals = ", ".join(_literal(chance, what) for _ in range(chance.randint(1, 3)))
        return f"{what} {chance.choice(['in', 'not in'])} ({literals})"
    if roll < 0.8 and not what.startswith("metrics") and not what.endswith("_at") and what != "duration":
        pattern = chance.choice(["a", "A*", "*b", "?", "50%", "a_b", "d?m", "!", "*"])
        return f"{what} ~ '{pattern}'"
    return f"{what} {chance.choice(['=', '!=', '>', '>=', '<', '<='])} {_literal(chance, what)}"


class FindStoreContract:
    """Subclasses give ``connection``: an empty database with all tables."""

    @pytest.fixture
    def world(self, connection: Connection) -> World:
        return World(connection)

    @pytest.mark.parametrize("seed", range(SEEDS))
    @pytest.mark.parametrize("few", [0, 5, 2000])
    def test_random_queries(self, world: World, seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
        # How a page is computed depends on how many objects count as few; what it holds does not.
        monkeypatch.setattr("modelbox.runtime.store.find._FEW", few)
        chance = random.Random(seed)
        for _ in range(40):
            _random_run(world, chance)
        for _ in range(20):
            where = _random_where(chance)
            order = [
                f"{chance.choice(_FIELDS)} {chance.choice(['asc', 'desc'])}" for _ in range(chance.choice([0, 1, 1, 2]))
            ]
            tree = parse_where("runs", where, now=NOW)
            wanted = expected(world.things["runs"], tree, parse_order("runs", order))
            assert ids(ask(world.conn, where, order)) == wanted, (where, order)
            found: list[str] = []
            after: FindKey | None = None
            size = chance.choice([3, 7, 20])
            while True:
                page = ask(world.conn, where, order, limit=size, after=after)
                found += ids(page)
                after = page.next_key
                if after is None:
                    break
                # A key travels as JSON.
                after = tuple(json.loads(json.dumps(after)))
            assert found == wanted, (where, order, size)

    def test_top_and_bottom(self, world: World) -> None:
        made = [world.run(metrics={"acc": [value]}) for value in (0.5, 0.9, 0.1, 0.7)]
        world.run(metrics={"other": [9.0]})
        best = ask(world.conn, order=["metrics.acc desc"], limit=2)
        worst = ask(world.conn, order=["metrics.acc"], limit=2)
        assert ids(best) == [made[1].uid, made[3].uid]
        assert ids(worst) == [made[2].uid, made[0].uid]

    def test_pages_stay_where_they_are(self, world: World) -> None:
        made = [world.run(metrics={"acc": [float(value)]}) for value in range(6)]
        first = ask(world.conn, order=["metrics.acc"], limit=3)
        world.run(metrics={"acc": [-1.0]})
        world.run(metrics={"acc": [2.5]})
        second = ask(world.conn, order=["metrics.acc"], limit=3, after=first.next_key)
        assert ids(first) == [one.uid for one in made[:3]]
        assert ids(second) == [world.things["runs"][-1].uid, made[3].uid, made[4].uid]

    def test_within(self, world: World) -> None:
        here, there = world.run(place=0), world.run(place=1)
        child = world.run(place=0, parent=here.number)
        of_run = world.checkpoint(here.number, 1)
        of_experiment = world.checkpoint(world.experiments[0][0], 7)
        assert ids(ask(world.conn, within="one")) == [child.uid, here.uid]
        assert ids(ask(world.conn, within="two")) == [there.uid]
        assert ids(ask(world.conn, within="one/first")) == [child.uid, here.uid]
        assert ids(ask(world.conn, within=world.experiments[1][1])) == [there.uid]
        assert ids(ask(world.conn, within=here.uid)) == [child.uid]
        assert ids(ask(world.conn, collection="checkpoints", within=here.uid)) == [of_run.uid]
        assert ids(ask(world.conn, collection="checkpoints", within="one/first")) == [of_experiment.uid, of_run.uid]
        assert ids(ask(world.conn, collection="experiments", within="two")) == [world.experiments[1][1]]
        for nowhere in ("three", "one/third", new_id(ObjectKind.RUN)):
            with pytest.raises(NotFoundError):
                ask(world.conn, within=nowhere)

    def test_the_bin_is_left_out_unless_asked_for(self, world: World) -> None:
        kept, gone = world.run(), world.run(deleted=True)
        assert ids(ask(world.conn)) == [kept.uid]
        assert ids(ask(world.conn, include_deleted=True)) == [gone.uid, kept.uid]
        assert ids(ask(world.conn, "deleted_at != null", include_deleted=True)) == [gone.uid]

    def test_metrics_of_checkpoints_are_found_however_they_were_given(self, world: World) -> None:
        run = world.run()
        given = world.checkpoint(run.number, 1, projected={"loss": 0.5})
        logged = world.checkpoint(run.number, 2, metrics={"loss": [0.25]})
        world.checkpoint(run.number, 3)

        def found(where: str, *order: str) -> list[str]:
            return ids(ask(world.conn, where, order, collection="checkpoints"))

        assert found("metrics.loss > 0.1") == [logged.uid, given.uid]
        assert found("metrics.loss = 0.5") == [given.uid]
        assert found("metrics.loss.min < 0.3") == [logged.uid]
        assert found("epoch < 3", "metrics.loss") == [logged.uid, given.uid]
        page = ask(world.conn, "epoch < 3", collection="checkpoints", columns=[])
        assert columns_of(page)["metrics.loss"] == [0.25, 0.5]

    def test_columns(self, world: World) -> None:
        first = world.run(
            metrics={"loss": [1.0, 0.5], "bad": [math.nan], "up": [math.inf]},
            values={Scope.PARAM: {"lr": 0.1, "net": {"depth": 3}}, Scope.TAG: {"team": "größe"}},
        )
        second = world.run(name="other", metrics={"bad": [-math.inf], "note": ["text"]})
        page = ask(world.conn, order=["created_at"], columns=[])
        columns = columns_of(page)
        assert columns["id"] == [first.uid, second.uid]
        assert columns["name"] == ["run", "other"]
        assert columns["ended_at"] == [None, None]
        assert columns["metrics.loss"] == [0.5, None]
        assert columns["metrics.bad"] == ["NaN", "-Infinity"]
        assert columns["metrics.up"] == ["Infinity", None]
        assert columns["metrics.note"] == [None, None]
        assert columns["params.lr"] == [0.1, None]
        assert columns["params.net"] == [{"depth": 3}, None]
        assert columns["tags.team"] == ["größe", None]
        assert {"started_at", "created_at", "ended_at", "deleted_at"} == set(page.time_columns)
        assert {"duration", "metrics.loss", "metrics.bad"} <= set(page.number_columns)
        some = ["name", "metrics.loss.min", "metrics.up.max", "metrics.loss.count", "params.net.depth", "params.no"]
        assert columns_of(ask(world.conn, order=["created_at"], columns=some)) == {
            "id": [first.uid, second.uid],
            "name": ["run", "other"],
            "metrics.loss.min": [0.5, None],
            "metrics.up.max": ["Infinity", None],
            "metrics.loss.count": [2, None],
            "params.net.depth": [3, None],
            "params.no": [None, None],
        }

    def test_an_empty_page_has_its_columns(self, world: World) -> None:
        page = ask(world.conn, "name = nobody", columns=["name", "metrics.loss"])
        assert columns_of(page) == {"id": [], "name": [], "metrics.loss": []}
        assert page.count == 0
        assert page.next_key is None

    def test_too_much_for_one_answer(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            world.run(values={Scope.PARAM: {f"p{number}": "x" * 100}})
        monkeypatch.setattr(find_columns, "_MAX_CELLS", 8)
        with pytest.raises(LimitError, match="different keys"):
            ask(world.conn, columns=["params"])
        monkeypatch.setattr(find_columns, "_MAX_CELLS", 1000)
        monkeypatch.setattr(find_columns, "_MAX_BYTES", 200)
        with pytest.raises(LimitError, match="too much"):
            ask(world.conn, columns=["params"])

    def test_events(self, world: World) -> None:
        run, gone = world.run(), world.run(deleted=True)
        for number, of in enumerate((run, run, gone)):
            world.event(of, f"event {number}", {"n": number}, at_us=number)
        page = ask(world.conn, "source = scheduler", ["at desc"], collection="events", columns=[])
        columns = columns_of(page)
        assert columns["name"] == ["event 1", "event 0"]
        assert columns["object"] == [run.uid, run.uid]
        assert columns["metadata.n"] == [1, 0]
        assert ids(ask(world.conn, collection="events", within="one", limit=1)) == columns["id"][:1]
        assert len(ids(ask(world.conn, collection="events", within=run.uid))) == 2

    @pytest.mark.parametrize("few", [0, 2000])
    def test_metadata_of_events(self, world: World, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelbox.runtime.store.find._FEW", few)
        run = world.run()
        job: dict[str, Any] = {"id": 7, "hosts": ["a", {"name": "größe"}], "ok": True, "left": None, "a.b": {"c": 1}}
        world.event(run, "first", {"job": job, "cost": 2.5})
        world.event(run, "second", {"job": {"id": 10}, "cost": "much"})
        world.event(run, "third", {"cost": None, "job": []})
        world.event(run, "fourth", {"x" * 251: 1, "many": list(range(2000))})

        def found(where: str, *order: str) -> list[str]:
            page = ask(world.conn, where, order or ["at"], collection="events", columns=["name"])
            names: list[str] = columns_of(page)["name"]
            return names

        assert found("metadata.job.id > 7") == ["second"]
        assert found("metadata.job.id in (7, 10)") == ["first", "second"]
        assert found("metadata.job.id = '7'") == []
        assert found("metadata.job.hosts.1.name ~ GR*E and metadata.job.ok = 'true'") == ["first"]
        assert found("metadata.job.a.b.c = 1") == ["first"]
        assert found("metadata.job.left = null") == ["first", "second", "third", "fourth"]
        assert found("metadata.cost != null") == ["first", "second"]
        assert found("metadata.cost != 2.5") == ["second"]
        assert found("not (metadata.cost = 2.5)") == ["second", "third", "fourth"]
        assert found("metadata.job != null and metadata.job != 3") == ["first", "second", "third"]
        assert found("metadata.many.500 = 500 and metadata.many.1999 = null") == ["fourth"]
        assert found("metadata.cost > 1 or metadata.job.id = 10") == ["first", "second"]
        assert found("", "metadata.cost") == ["first", "second", "third", "fourth"]
        assert found("", "metadata.job.id desc") == ["second", "first", "third", "fourth"]
        first = ask(world.conn, order=["metadata.job.id"], collection="events", columns=["name"], limit=1)
        rest = ask(world.conn, order=["metadata.job.id"], collection="events", columns=["name"], after=first.next_key)
        assert columns_of(first)["name"] + columns_of(rest)["name"] == ["first", "second", "third", "fourth"]
        some = ["name", "metadata.job.hosts.1.name", "metadata.job.a.b", "metadata.none"]
        page = ask(world.conn, "metadata.job != null", ["at"], collection="events", columns=some)
        assert {name: column for name, column in columns_of(page).items() if name != "id"} == {
            "name": ["first", "second", "third"],
            "metadata.job.hosts.1.name": ["größe", None, None],
            "metadata.job.a.b": [{"c": 1}, None, None],
            "metadata.none": [None, None, None],
        }
        page = ask(world.conn, "metadata.cost != null", ["at"], collection="events", columns=["metadata"])
        assert columns_of(page)["metadata.cost"] == [2.5, "much"]
        assert columns_of(page)["metadata.job"] == [job, {"id": 10}]

    def test_every_attribute_of_every_collection(self, world: World) -> None:
        from modelbox.find import COLLECTIONS

        for collection, attributes in COLLECTIONS.items():
            for name, kind in attributes.items():
                literal = {FieldType.TEXT: "x", FieldType.NUMBER: "1", FieldType.TIME: "now"}[kind]
                ask(world.conn, f"{name} = {literal} or {name} != null", [name], collection=collection, columns=[])

    def test_keys_of_other_queries_are_refused(self, world: World) -> None:
        world.run()
        for bad in ((), (1.5,), (True,), ("x",), (1, 2)):
            with pytest.raises(InvalidError):
                ask(world.conn, after=bad)
