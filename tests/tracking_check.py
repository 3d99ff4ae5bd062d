"""Comparing a server with the model beside it: `Checks.run` reads everything that can be read, in every way.

Raises `AssertionError` for whatever differs, and says what.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from modelbox.feed import Action, Change
from modelbox.find import Scope, parse_order, parse_where
from modelbox.objects import JsonValue, to_json
from modelbox.tracking import AttributeKind, MetricKind, ObjectKind
from tests.contract.find_stores import Thing, expected
from tests.tracking_model import GONE, NOW, Item, same, summary_of

if TYPE_CHECKING:
    from tests.tracking_world import World

__all__ = ("Checks",)


class Checks:
    """Of one world; follows the feed from the world's beginning.

    Args:
        world: Just begun.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: dict[tuple[str, str], Change] = {}
        self._created: dict[tuple[str, str], int] = {}
        with world.client.changes(namespace=world.namespace, list_first=True) as feed:
            self._read_feed(feed, self._told, created=self._created)
            self._token = feed.token

    def run(self, chance: random.Random) -> None:
        """Compares everything that can be read with the model.

        Args:
            chance: Decides which queries are asked.
        """
        self._check_lists()
        for item in self._world.items.values():
            self._check_item(item)
        self._check_attributes()
        self._check_metrics()
        self._check_find(chance)
        self._check_feed()

    def _check_lists(self) -> None:
        names = [one.name for one in self._world.client.iter_experiments(self._world.namespace, include_deleted=True)]
        assert names == sorted(one.about["name"] for one in self._world.of(ObjectKind.EXPERIMENT))
        for deleted in (False, True):
            listed = [one.id for one in self._world.client.iter_runs(self._world.namespace, include_deleted=deleted)]
            wanted = {one.uid for one in self._world.of(ObjectKind.RUN) if deleted or not one.root}
            assert len(listed) == len(set(listed))
            assert set(listed) == wanted, f"runs that are listed: {set(listed) ^ wanted}"

    def _check_item(self, item: Item) -> None:
        get = {
            ObjectKind.EXPERIMENT: self._world.client.get_experiment,
            ObjectKind.RUN: self._world.client.get_run,
            ObjectKind.CHECKPOINT: self._world.client.get_checkpoint,
        }[item.kind]
        found = get(item.uid)
        item.about["found"] = found
        for name, value in item.about.items():
            if name != "found":
                assert getattr(found, name) == value, f"{name} of {item.uid} is {getattr(found, name)}, not {value}"
        assert (found.deleted_at is not None) == bool(item.root), f"{item.uid} in the bin: {found.deleted_at}"
        events = [(one.id, one.name) for one in self._world.client.iter_events(item.uid)]
        known = [one for one in events if one[1] not in item.perhaps | item.told]
        assert sorted(known) == sorted(item.events.items()), f"events of {item.uid}: {known}, not {item.events}"
        for name in item.told:
            assert sum(one[1] == name for one in events) == 1, f"the event {name} of {item.uid}: {events}"
        for name in item.perhaps:
            assert sum(one[1] == name for one in events) <= 1, f"the event {name} is there twice"
        comments = [(one.id, one.text) for one in self._world.client.iter_comments(item.uid)]
        assert comments == list(item.comments.items()), f"comments on {item.uid}: {comments}, not {item.comments}"
        if item.kind is not ObjectKind.CHECKPOINT:
            epochs = [one.epoch for one in self._world.client.iter_checkpoints(item.uid, include_deleted=True)]
            checkpoints = [one for one in self._world.of(ObjectKind.CHECKPOINT) if item.uid in one.above]
            assert epochs == sorted(one.about["epoch"] for one in checkpoints)

    def _check_attributes(self) -> None:
        uids = list(self._world.items)
        for start in range(0, len(uids), 100):
            found: dict[str, dict[AttributeKind, dict[str, JsonValue]]] = {}
            for one in self._world.client.get_attributes(*uids[start : start + 100]):
                values = found.setdefault(one.object, {kind: {} for kind in AttributeKind})[one.kind]
                assert one.key not in values
                values[one.key] = one.value
            for uid in uids[start : start + 100]:
                item = self._world.items[uid]
                there = found.get(uid, {kind: {} for kind in AttributeKind})
                assert same(_plain(there), _plain(item.values)), f"values of {uid}: {there}, not {item.values}"
        for item in self._world.items.values():
            for kind in {kind for kind, _ in item.history}:
                history: dict[str, list[Any]] = {}
                for change in self._world.client.iter_attribute_history(item.uid, kind):
                    history.setdefault(change.key, []).insert(0, GONE if change.deleted else change.value)
                wanted = {key: values for (of, key), values in item.history.items() if of is kind}
                assert history.keys() == wanted.keys()
                for key, steps in wanted.items():
                    assert len(steps) == len(history[key]), (
                        f"history of {key} of {item.uid}: {history[key]}, not {steps}"
                    )
                    assert all(map(same, history[key], steps))

    def _check_metrics(self) -> None:
        for item in self._world.items.values():
            summaries = {one.key: one for one in self._world.client.metric_summaries(item.uid)}
            projected = {"acc"} if item.kind is ObjectKind.CHECKPOINT else set()
            assert summaries.keys() - projected == item.points.keys(), f"metrics of {item.uid}"
            for key, points in item.points.items():
                wanted = summary_of(points)
                found = summaries[key]
                told = {name: getattr(found, name) for name in wanted}
                assert _alike(told, wanted), f"{key} of {item.uid} is {told}, not {wanted}"
                series = self._world.client.read_series(item.uid, key)
                places = sorted(points)
                assert list(zip(series.steps.tolist(), series.times_us.tolist(), strict=True)) == places
                kept = [points[place] for place in places]
                if found.kind is MetricKind.TEXT:
                    assert list(series.payloads) == kept
                else:
                    assert np.array_equal(series.values, np.array(kept, float), equal_nan=True)

    def _check_find(self, chance: random.Random) -> None:
        ages = [one.id for one in self._world.client.iter_runs(self._world.namespace, include_deleted=True)][::-1]
        things = [self._thing(self._world.items[uid], number) for number, uid in enumerate(ages)]
        narrow: dict[str, Any] = {"within": self._world.namespace, "columns": ["id"]}
        for _ in range(6):
            where, order = _random_where(chance), _random_order(chance)
            wanted = expected(things, parse_where("runs", where, now=NOW), parse_order("runs", order))
            found = [row["id"] for row in self._world.client.find("runs", where, order_by=order, limit=None, **narrow)]
            assert found == wanted, f"{where!r} by {order}: {found}, not {wanted}"
            if wanted:
                first = self._world.client.find("runs", where, order_by=order, limit=2, **narrow)
                assert list(first.columns["id"]) == wanted[:2]

    def _thing(self, item: Item, number: int) -> Thing:
        metrics = {}
        for key, points in item.points.items():
            told = summary_of(points)
            metrics[key] = {name: told[name] for name in ("latest", "min", "max", "count")} | {
                "step": told["latest_step"]
            }
        names = ("name", "status", "reason", "experiment", "parent_id")
        return Thing(
            number=number,
            uid=item.uid,
            attributes={name: item.about[name] or None for name in names} | {"namespace": self._world.namespace},
            metrics=metrics,
            values={
                Scope.PARAM: item.values[AttributeKind.PARAM],
                Scope.TAG: item.values[AttributeKind.TAG],
                Scope.LABEL: item.values[AttributeKind.LABEL],
                Scope.METADATA: item.values[AttributeKind.METADATA],
            },
            deleted=bool(item.root),
        )

    # -- the feed ------------------------------------------------------------------------------------------------------

    def _read_feed(
        self, feed: Any, into: dict[tuple[str, str], Change], *, created: dict[tuple[str, str], int] | None
    ) -> None:
        """Reads until what is there now has been told."""
        # Only when a list has begun does something new come behind it.
        first = next(feed)
        mark = self._world.sure(lambda: self._world.client.log_event(self._world.namespace, "mark", at=NOW)).id
        for item in _chain(first, feed):
            assert isinstance(item, Change), f"the feed lost its place: {item}"
            name = (item.kind, item.object)
            before = into.get(name)
            assert before is None or item.rev >= before.rev
            if created is not None and item.action == Action.CREATED and (before is None or item.rev > before.rev):
                created[name] = created.get(name, 0) + 1
            into[name] = item
            if item.object == mark:
                return

    def _check_feed(self) -> None:
        self._world.sure(lambda: self._world.client.log_event(self._world.namespace, "mark", at=NOW))
        with self._world.client.changes(self._token, namespace=self._world.namespace) as feed:
            self._read_feed(feed, self._told, created=self._created)
            self._token = feed.token
        listed: dict[tuple[str, str], Change] = {}
        with self._world.client.changes(namespace=self._world.namespace, list_first=True) as feed:
            self._read_feed(feed, listed, created=None)
        assert max(self._created.values(), default=0) <= 1, "something was made twice"
        told = {name: change for name, change in self._told.items() if name[0] != "event"}
        # Lists leave out what is in the bin, and what people say.
        now = {name: change for name, change in listed.items() if name[0] not in ("event", "comment")}
        shown = {
            name
            for name, change in told.items()
            if name[0] != "comment" and not self._hidden(name[1]) and not _is_empty(change)
        }
        assert shown == now.keys(), f"told or listed alone: {shown ^ now.keys()}"
        for name, change in now.items():
            before = told[name].state
            if isinstance(before, dict) and isinstance(change.state, dict) and "deleted_at" in change.state:
                # What came back with what it belongs to was told by that.
                before = before | {"deleted_at": None}
            assert change.state == before, f"{name} was told as {before}, and is {change.state}"
        wanted = {("namespace", self._world.namespace)}
        for item in self._world.items.values():
            name = (item.kind.value, item.uid)
            wanted.add(name)
            assert name in told, f"{name} was never told"
            self._check_told(item, told[name])
            for kind in AttributeKind:
                if any(of is kind for of, _ in item.history):
                    wanted.add(("attributes", f"{item.uid}/{kind.value}"))
                    last = told.get(("attributes", f"{item.uid}/{kind.value}"))
                    assert last is not None, f"nothing was told of the {kind.value} of {item.uid}"
                    assert isinstance(last.state, dict)
                    assert same(last.state["values"], item.values[kind])
            wanted |= {("comment", uid) for uid in item.comments}
        wanted |= {("artifact", uid) for uid in self._world.artifacts}
        assert told.keys() == wanted, f"told or known alone: {told.keys() ^ wanted}"
        perhaps = {name for item in self._world.items.values() for name in item.perhaps | item.told}
        events = {uid for item in self._world.items.values() for uid in item.events}
        for (what, uid), change in self._told.items():
            if what == "event" and isinstance(change.state, dict) and change.state["name"] not in {"mark", *perhaps}:
                assert uid in events, f"told of an event {change.state} that nobody logged"
        assert {("event", uid) for uid in events} <= self._told.keys()

    def _hidden(self, path: str) -> bool:
        item = self._world.items.get(self._world.artifacts.get(path, path.partition("/")[0]))
        return item is not None and bool(item.root)

    def _check_told(self, item: Item, change: Change) -> None:
        state = dict(change.state) if isinstance(change.state, dict) else {}
        now = to_json(item.about["found"])
        assert isinstance(now, dict)
        if item.root not in ("", item.uid) or item.born_hidden:
            # What is below something that went into the bin or came back is told by that.
            state["deleted_at"] = now["deleted_at"]
        assert state == now, f"{item.uid} was told as {state}, and is {now}"


def _is_empty(change: Change) -> bool:
    return change.kind == "attributes" and isinstance(change.state, dict) and not change.state["values"]


def _chain(first: Any, rest: Any) -> Iterator[Any]:
    yield first
    yield from rest


def _plain(values: Mapping[AttributeKind, Any]) -> dict[str, Any]:
    return {kind.value: found for kind, found in values.items() if found}


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(
        value == other[name]
        or (
            isinstance(value, float)
            and isinstance(other[name], float)
            and math.isnan(value)
            and math.isnan(other[name])
        )
        for name, value in one.items()
    )


# -- queries -----------------------------------------------------------------------------------------------------------

_FIELDS = {
    "metrics.loss": ("-1", "0", "0.5", "1", "nan", "inf"),
    "metrics.loss.min": ("-1", "0.5", "-inf"),
    "metrics.loss.max": ("0.5", "1", "inf"),
    "metrics.loss.count": ("1", "2", "5"),
    "metrics.loss.step": ("-1", "0", "3", "9223372036854775807"),
    "metrics.acc": ("0", "0.5", "1"),
    "metrics.note.count": ("1", "2"),
    "params.a": ("0", "1.5", "'a'", "true"),
    "params.b": ("0", "1.5", "'a'", "true"),
    "params.b.c": ("1", "2"),
    "tags.a": ("'x'", "''", "'y z'"),
    "tags.b": ("'x'", "'y z'"),
    "labels.a": ("'x'", "'y z'"),
    "metadata.a": ("0", "'a'"),
    "metadata.b.c": ("1", "2"),
    "status": ("running", "finished", "failed"),
    "name": ("n1", "n2", "n7"),
}


def _random_where(chance: random.Random, depth: int = 0) -> str:
    draw = chance.random()
    if depth < 2 and draw < 0.45:
        parts = [_random_where(chance, depth + 1) for _ in range(chance.randint(2, 3))]
        return f"({chance.choice([' and ', ' or ']).join(parts)})"
    if depth < 2 and draw < 0.55:
        return f"not ({_random_where(chance, depth + 1)})"
    name = chance.choice(list(_FIELDS))
    if chance.random() < 0.2:
        return f"{name} {chance.choice(['=', '!='])} null"
    if chance.random() < 0.2:
        some = chance.sample(_FIELDS[name], 2)
        return f"{name} {chance.choice(['in', 'not in'])} ({', '.join(some)})"
    if not name.startswith("metrics.") and chance.random() < 0.2:
        return f"{name} ~ '{chance.choice(['*', 'x', 'y*', '?', 'n*'])}'"
    return f"{name} {chance.choice(['=', '!=', '<', '<=', '>', '>='])} {chance.choice(_FIELDS[name])}"


def _random_order(chance: random.Random) -> list[str]:
    names = chance.sample(list(_FIELDS), chance.randint(0, 2))
    return [f"{name}{chance.choice(['', ' desc'])}" for name in names]
