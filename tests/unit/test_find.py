"""The find language: what parses to what, and how what does not parse is told."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import FindError, InvalidError, error_from_dict
from modelbox.find import (
    COLLECTIONS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_QUERY_CHARS,
    MAX_VALUES,
    And,
    Comparison,
    Expression,
    Field,
    FieldType,
    Not,
    Op,
    Or,
    Scalar,
    Scope,
    parse_columns,
    parse_order,
    parse_where,
    wildcards,
)

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)


def parse(text: str, collection: str = "runs") -> Expression | None:
    return parse_where(collection, text, now=NOW)


def one(text: str, collection: str = "runs") -> Comparison:
    found = parse(text, collection)
    assert isinstance(found, Comparison)
    return found


def value(text: str, collection: str = "runs") -> Scalar:
    return one(text, collection).values[0]


def us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_nothing_lets_everything_through() -> None:
    assert parse("") is None
    assert parse(" \n\t") is None


@pytest.mark.parametrize(
    ("text", "scope", "name", "part"),
    [
        ("status = finished", Scope.ATTRIBUTE, "status", ""),
        ("metrics.loss < 1", Scope.METRIC, "loss", "latest"),
        ("metrics.loss.min < 1", Scope.METRIC, "loss", "min"),
        ("metrics.loss.step < 1", Scope.METRIC, "loss", "step"),
        ("metrics.val.loss < 1", Scope.METRIC, "val.loss", "latest"),
        ("metrics.max < 1", Scope.METRIC, "max", "latest"),
        ('metrics."loss.max" < 1', Scope.METRIC, "loss.max", "latest"),
        ('metrics."loss.max".max < 1', Scope.METRIC, "loss.max", "max"),
        ("metrics.loss.`max` < 1", Scope.METRIC, "loss.max", "latest"),
        ("metrics.train/loss-1 < 1", Scope.METRIC, "train/loss-1", "latest"),
        ('params."learning rate" = 1', Scope.PARAM, "learning rate", ""),
        ("params.optimizer.lr=1", Scope.PARAM, "optimizer.lr", ""),
        ("tags.`say \\`so\\`` = x", Scope.TAG, "say `so`", ""),
        ("labels.gold = x", Scope.LABEL, "gold", ""),
        ("metadata.data.splits.0.name = x", Scope.METADATA, "data.splits.0.name", ""),
        ("metadata.größe = x", Scope.METADATA, "größe", ""),
    ],
)
def test_fields(text: str, scope: Scope, name: str, part: str) -> None:
    field = one(text).field
    assert (field.scope, field.name, field.part) == (scope, name, part)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params.x = 10", 10),
        ("params.x = -1.5e-3", -0.0015),
        ("params.x = .5", 0.5),
        ("params.x = 1e999", math.inf),
        ("params.x = -inf", -math.inf),
        ("params.x = '10'", "10"),
        ("params.x = adam", "adam"),
        ("params.x = true", "true"),
        ("params.x = 2026-05-03", "2026-05-03"),
        ("params.x = null", None),
        ("params.x = 'null'", "null"),
        (r"params.x = 'it\'s'", "it's"),
        (r'params.x = "a \"b\" \\"', 'a "b" \\'),
        ("params.x ~ 10", "10"),
        ("params.x = 123456789012345678901234567890", 123456789012345678901234567890.0),
        ("created_at > 2026-05-03", us(datetime(2026, 5, 3, tzinfo=UTC))),
        ("created_at > '2026-05-03T10:00:00+02:00'", us(datetime(2026, 5, 3, 8, tzinfo=UTC))),
        ("created_at > now-7d", us(NOW - timedelta(days=7))),
        ("created_at > NOW+90s", us(NOW + timedelta(seconds=90))),
        ("created_at > now", us(NOW)),
        ("id = run_0123456789abcdef01234567", "run_0123456789abcdef01234567"),
    ],
)
def test_values(text: str, expected: Scalar) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_number() -> None:
    found = value("metrics.loss = nan")
    assert isinstance(found, float)
    assert math.isnan(found)


def test_and_binds_closer_than_or_and_not_closest() -> None:
    name = Field(scope=Scope.ATTRIBUTE, name="name", type=FieldType.TEXT)
    a, b, c = (Comparison(field=name, op=Op.EQ, values=(text,)) for text in "abc")
    assert parse("name = a or name = b AND NOT name = c") == Or((a, And((b, Not(c)))))
    assert parse("(name = a Or name = b) and name=c") == And((Or((a, b)), c))
    assert parse("not(name = a and name = b)") == Not(And((a, b)))
    assert parse("not not name = a") == Not(Not(a))


def test_lists() -> None:
    assert one("status in (failed, 'finished')").values == ("failed", "finished")
    assert one("status NOT  IN (failed)").op is Op.NOT_IN
    assert one("params.x in (1,two , 3.5)").values == (1, "two", 3.5)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("naem = x", 0, "name"),
        ("name", 4, "="),
        ("name =", 6, "'text'"),
        ("name = x name = y", 9, "AND"),
        ("name = x and", 12, "name"),
        ("(name = x", 9, ")"),
        ("name = x)", 8, "the end"),
        ("name = 'x", 7, "'"),
        ("metrics > 1", 7, "metrics.NAME"),
        ("metrics. > 1", 8, "a name"),
        ("metrics.loss > high", 15, "a number"),
        ("metrics.loss ~ 1", 13, "="),
        ("metrics.loss > null", 15, "= null"),
        ("tags.n = 10", 9, "'10'"),
        ("name.x = 1", 0, "metrics.NAME"),
        ("created_at > yesterday", 13, "now-7d"),
        ("created_at > 2026-13-03", 13, "2026-05-03"),
        ("created_at > now-999999999w", 13, "now-7d"),
        ("status in failed", 10, "("),
        ("status in (failed", 17, ")"),
        ("status not failed", 11, "in"),
        ("name == x", 6, "'text'"),
        ("name = \0", 7, "text without NUL"),
        ("name = '\ud800'", 8, "text without NUL"),
    ],
)
def test_errors_point_at_the_place(text: str, position: int, expected: str) -> None:
    with pytest.raises(FindError) as caught:
        parse(text)
    error = caught.value
    assert error.fields["position"] == position
    assert expected in error.fields["expected"]  # type: ignore[operator]
    shown, caret = error.message.splitlines()[-2:]
    assert caret.index("^") - 2 == position
    assert shown.strip().isprintable()
    error.message.encode()


def test_the_caret_stays_in_a_long_text() -> None:
    text = " and ".join(["name = x"] * 40) + " and nope = 1 and " + " and ".join(["name = x"] * 10)
    with pytest.raises(FindError) as caught:
        parse(text)
    shown, caret = caught.value.message.splitlines()[-2:]
    assert len(shown) < 120
    assert shown[caret.index("^") :].startswith("nope")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "(" * (MAX_DEPTH + 1) + "name = x" + ")" * (MAX_DEPTH + 1),
        "not " * 2000 + "name = x",
        " or ".join(["name = x"] * (MAX_COMPARISONS + 1)),
        f"params.n in ({','.join(['1'] * (MAX_VALUES + 1))})",
        "name = '" + "x" * MAX_QUERY_CHARS + "'",
        f"params.{'x' * 251} = 1",
    ],
)
def test_bounds(text: str) -> None:
    with pytest.raises(FindError, match="at most"):
        parse(text)


def test_the_error_is_an_invalid_argument_on_both_sides_of_the_wire() -> None:
    with pytest.raises(InvalidError) as caught:
        parse("name =")
    told = error_from_dict(caught.value.to_dict())
    assert isinstance(told, FindError)
    assert told.fields["position"] == 6


def test_order() -> None:
    first, second, third = parse_order("runs", ["metrics.loss.min desc", "name ASC", "params.x"])
    assert (str(first.field), first.descending) == ("metrics.loss.min", True)
    assert (str(second.field), second.descending) == ("name", False)
    assert not third.descending
    with pytest.raises(FindError, match="one of asc, desc, the end"):
        parse_order("runs", ["name down"])
    with pytest.raises(FindError):
        parse_order("runs", [""])
    with pytest.raises(FindError, match="at most"):
        parse_order("runs", ["name"] * 9)


def test_columns() -> None:
    assert parse_columns("runs", []) == tuple(Scope)
    assert parse_columns("events", []) == (Scope.ATTRIBUTE, Scope.METADATA)
    assert parse_columns("runs", ["attributes", "metrics"]) == (Scope.ATTRIBUTE, Scope.METRIC)
    (loss,) = parse_columns("runs", ["metrics.loss"])
    assert isinstance(loss, Field)
    assert loss.name == "loss"
    with pytest.raises(FindError):
        parse_columns("runs", ["nope"])
    with pytest.raises(FindError):
        parse_columns("events", ["metrics"])


def test_collections() -> None:
    with pytest.raises(FindError, match="no such collection") as caught:
        parse("", "run")
    assert caught.value.fields["expected"] == list(COLLECTIONS)
    for collection, attributes in COLLECTIONS.items():
        for name, kind in attributes.items():
            literal = {FieldType.TEXT: "x", FieldType.NUMBER: "1", FieldType.TIME: "now"}[kind]
            assert one(f"{name} = {literal}", collection).field.type is kind


def test_wildcards() -> None:
    assert wildcards("abc") == "*abc*"
    assert wildcards("abc*") == "abc*"
    assert wildcards("a?c") == "a?c"


_PIECES = st.sampled_from(
    [
        *("metrics.loss", "params.x", "tags.`a b`", "name", "status", "created_at", "=", "!=", "~", "<", ">=", "in"),
        *("not in", "(", ")", ",", "and", "OR", "not", "null", "nan", "1", "-2.5e3", "'text'", '"x', "now-7d", "."),
        *("2026-05-03", "\\"),
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=12).map(" ".join), st.lists(_PIECES).map("".join)))
def test_whatever_is_written_parses_or_is_refused_at_a_place(text: str) -> None:
    refused: FindError | None = None
    try:
        parse(text)
    except FindError as error:
        refused = error
    if refused is not None:
        position = refused.fields["position"]
        assert isinstance(position, int)
        assert 0 <= position <= len(text)
        assert refused.fields["expected"]
