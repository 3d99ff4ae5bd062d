"""What training records comes back the same over the wire, by both codecs; what is malformed is an `InvalidError`."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox import tracking as t
from modelbox._proto.modelbox import v1 as pb
from modelbox._serving.messages import GoogleMessages, decode_google
from modelbox._wire import datasets, decode_message, find, lineage, metrics, notes, tracking
from modelbox._wire.encode import encode_delivery, encode_log_metrics
from modelbox._wire.values import loads, unpack_object
from modelbox.errors import InvalidError
from modelbox.objects import Created

GOOGLE = GoogleMessages("modelbox.v1")
text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
ids = st.binary(min_size=12, max_size=12).map(lambda raw: f"run_{raw.hex()}")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
# 0 stands for no time on the wire.
times = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
numbers = st.floats(allow_nan=False)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: text,
    int: st.integers(-(2**63), 2**63 - 1),
    float: numbers,
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    datetime: times,
    types.NoneType: st.none(),
    Any: json_values,
}


def whole(cls: type) -> st.SearchStrategy[Any]:
    """Values of a dataclass with every field drawn, as its annotations say."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: _of(hints[field.name], field.name) for field in fields(cls)})


def _of(hint: Any, name: str) -> st.SearchStrategy[Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if name == "id":
        return ids  # an empty one asks for a new one
    if name in ("columns_json",):
        return st.binary(max_size=20)
    if name in ("depth", "count"):
        return st.integers(0, 2**31 - 1)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of(one, "") for one in inner])
    if origin is tuple:
        return st.lists(_of(inner[0], ""), max_size=3).map(tuple)
    if origin is Mapping or hint is Mapping:
        return st.dictionaries(text, _of(inner[1], ""), max_size=3)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    return PLAIN[hint] if hint in PLAIN else whole(hint)


Case = tuple[Callable[[Any], Any], Callable[[Any], Any], st.SearchStrategy[Any]]
CASES: dict[str, Case] = {
    "experiment": (tracking.pack_experiment, tracking.unpack_experiment, whole(t.Experiment)),
    "new experiment": (tracking.pack_new_experiment, tracking.unpack_new_experiment, whole(t.NewExperiment)),
    "experiment patch": (
        lambda patch: tracking.pack_experiment_patch("ns/name", patch),
        tracking.unpack_experiment_patch,
        whole(t.ExperimentPatch),
    ),
    "run": (tracking.pack_run, tracking.unpack_run, whole(t.Run)),
    "created run": (
        lambda run: pb.CreateRunResponse(run=tracking.pack_run(run.item), existed=run.existed),
        tracking.unpack_created_run,
        st.builds(Created, item=whole(t.Run), existed=st.booleans()),
    ),
    "checkpoint": (tracking.pack_checkpoint, tracking.unpack_checkpoint, whole(t.Checkpoint)),
    "attributes": (
        tracking.pack_attributes,
        tracking.unpack_attributes,
        st.lists(whole(t.Attribute), max_size=3).map(tuple),
    ),
    "attribute history": (
        lambda changes: tracking.pack_attribute_changes(changes, "next"),
        tracking.unpack_attribute_changes,
        st.lists(whole(t.AttributeChange), max_size=3).map(tuple),
    ),
    "delivered": (tracking.pack_delivered, tracking.unpack_delivered, whole(t.Delivered)),
    "summary": (metrics.pack_summary, metrics.unpack_summary, whole(t.MetricSummary)),
    "sampled": (metrics.pack_sampled, metrics.unpack_sampled, whole(t.SampledSeries)),
    "series": (
        metrics.pack_series,
        lambda message: metrics.unpack_series(message, "run", "loss"),
        st.builds(
            t.MetricColumns,
            object=st.just("run"),
            keys=st.just(("loss",)),
            steps=st.binary(max_size=16),
            times_us=st.binary(max_size=16),
            values=st.binary(max_size=16),
            kinds=st.binary(max_size=2),
            payloads=st.lists(st.binary(max_size=4), max_size=2).map(tuple),
        ),
    ),
    "event": (notes.pack_event, notes.unpack_event, whole(t.Event)),
    "comment": (notes.pack_comment, notes.unpack_comment, whole(t.Comment)),
    "readme": (notes.pack_readme, notes.unpack_readme, whole(t.Readme)),
    "dataset": (datasets.pack_dataset, datasets.unpack_dataset, whole(t.Dataset)),
    "new dataset": (datasets.pack_new_dataset, datasets.unpack_new_dataset, whole(t.NewDataset)),
    "dataset version": (datasets.pack_dataset_version, datasets.unpack_dataset_version, whole(t.DatasetVersion)),
    "removed edges": (
        lambda edges: lineage.pack_removed_edges(edges.edges),
        lineage.unpack_new_edges,
        whole(t.NewEdges),
    ),
    "lineage": (lineage.pack_lineage, lineage.unpack_lineage, whole(t.Lineage)),
    "found": (find.pack_found, find.unpack_found, whole(t.Found)),
}
# What the server reads with google's codec, where calls are many.
HOT: dict[str, Case] = {
    "new run": (tracking.pack_new_run, tracking.unpack_new_run, whole(t.NewRun)),
    "run patch": (lambda patch: tracking.pack_run_patch("run_1", patch), tracking.unpack_run_patch, whole(t.RunPatch)),
    "new checkpoint": (tracking.pack_new_checkpoint, tracking.unpack_new_checkpoint, whole(t.NewCheckpoint)),
    "attributes edit": (tracking.pack_attributes_edit, tracking.unpack_attributes_edit, whole(t.AttributesEdit)),
    "new event": (notes.pack_new_event, notes.unpack_new_event, whole(t.NewEvent)),
    "columns": (metrics.pack_columns, metrics.unpack_columns, whole(t.MetricColumns)),
    **{
        f"operation: {payload.__name__}": (
            tracking.pack_operation,
            tracking.unpack_operation,
            st.builds(t.Operation, seq=st.integers(1, 2**63 - 1), payload=whole(payload)),
        )
        for payload in typing.get_args(t.OperationPayload)
    },
}


@pytest.mark.parametrize("case", CASES | HOT)
@given(data=st.data())
def test_what_is_packed_comes_back_the_same(case: str, data: st.DataObject) -> None:
    pack, unpack, values = (CASES | HOT)[case]
    value = data.draw(values)
    message = pack(value)
    assert unpack(decode_message(type(message), bytes(message))) == value


@pytest.mark.parametrize("case", HOT)
@given(data=st.data())
def test_google_s_codec_reads_the_same(case: str, data: st.DataObject) -> None:
    pack, unpack, values = HOT[case]
    value = data.draw(values)
    message = pack(value)
    read = decode_google(getattr(GOOGLE, type(message).__name__), bytes(message))
    assert unpack(read) == value


@given(run=whole(t.Run), checkpoint=whole(t.Checkpoint), event=whole(t.Event))
def test_google_s_codec_writes_the_same(run: t.Run, checkpoint: t.Checkpoint, event: t.Event) -> None:
    answer = GOOGLE.CreateRunResponse(run=tracking.pack_run(run, GOOGLE.Run), existed=True)
    read = decode_message(pb.CreateRunResponse, answer.SerializeToString())
    assert tracking.unpack_created_run(read) == Created(item=run, existed=True)
    raw = tracking.pack_checkpoint(checkpoint, GOOGLE.Checkpoint).SerializeToString()
    assert tracking.unpack_checkpoint(decode_message(pb.Checkpoint, raw)) == checkpoint
    raw = notes.pack_event(event, GOOGLE.Event).SerializeToString()
    assert notes.unpack_event(decode_message(pb.Event, raw)) == event


@given(
    spool=text,
    operations=st.lists(
        st.builds(
            t.Operation,
            seq=st.integers(-(2**63), 2**63 - 1),
            payload=st.one_of([whole(payload) for payload in typing.get_args(t.OperationPayload)]),
        ),
        max_size=3,
    ),
)
def test_a_delivery_is_encoded_as_the_codec_does(spool: str, operations: list[t.Operation]) -> None:
    read = decode_message(pb.DeliverRequest, encode_delivery(spool, operations))
    assert (read.spool, [tracking.unpack_operation(one) for one in read.operations]) == (spool, operations)


@given(columns=st.lists(whole(t.MetricColumns), max_size=3))
def test_points_are_encoded_as_the_codec_does(columns: list[t.MetricColumns]) -> None:
    read = decode_message(pb.LogMetricsRequest, encode_log_metrics(columns))
    assert [metrics.unpack_columns(one) for one in read.columns] == columns


def test_half_a_character_stays_with_the_caller() -> None:
    broken = t.MetricColumns(object="run", keys=("\ud800",), steps=b"", times_us=b"", values=b"")
    with pytest.raises(InvalidError, match="holds half of a character"):
        encode_log_metrics([broken])


def test_a_long_column_is_encoded_as_the_codec_does() -> None:
    wide = t.MetricColumns(object="run", keys=("a",), steps=b"x" * 70_000, times_us=b"y" * 128, values=b"z" * 127)
    (read,) = decode_message(pb.LogMetricsRequest, encode_log_metrics([wide])).columns
    assert metrics.unpack_columns(read) == wide


def test_what_a_request_leaves_out_is_made_up() -> None:
    before = datetime.now(UTC)
    run = tracking.unpack_new_run(pb.CreateRunRequest(experiment="a/b"))
    assert t.kind_of_id(run.id) is t.ObjectKind.RUN
    assert run.status is t.RunStatus.RUNNING
    assert before <= run.started_at <= datetime.now(UTC)
    event = notes.unpack_new_event(pb.LogEventRequest(object=run.id, name="seen"))
    assert t.kind_of_id(event.id) is t.ObjectKind.EVENT
    assert before <= event.at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.CreateRunRequest(params_json=b"{"), "params cannot be read as JSON"),
        (pb.CreateRunRequest(params_json=b"[1]"), "params must be one JSON object"),
        (pb.CreateRunRequest(params_json=b'{"a": NaN}'), "params cannot be read as JSON"),
        (pb.CreateRunRequest(params_json=b'{"a": "\xff"}'), "params cannot be read as JSON"),
        (pb.CreateRunRequest(tags_json=b'{"a": "\\ud800"}'), "tags cannot be read as JSON"),
        (pb.CreateRunRequest(tags_json=b"[" * 10_000 + b"]" * 10_000), "tags cannot be read as JSON"),
        (pb.CreateRunRequest(metadata_json=b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "metadata cannot be read"),
        (pb.CreateRunRequest(metadata_json=b'{"a": 1' + b"0" * 5000 + b"}"), "metadata cannot be read"),
        (pb.CreateRunRequest(status="asleep"), "'asleep' is not a run's status: expected running, finished"),
        (pb.CreateRunRequest(started_at_us=2**63 - 1), "is not a time"),
    ],
)
def test_a_request_that_cannot_be_read_is_invalid(message: pb.CreateRunRequest, expected: str) -> None:
    for read in (message, decode_google(GOOGLE.CreateRunRequest, bytes(message))):
        with pytest.raises(InvalidError, match=expected):
            tracking.unpack_new_run(read)


def test_whole_characters_may_be_escaped() -> None:
    assert unpack_object(b'{"a": "\\ud83d\\ude00"}', "tags") == {"a": "😀"}
    assert loads('"😀"'.encode(), "x") == "😀"


def test_values_that_are_no_json_stay_with_the_caller() -> None:
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, {1, 2}, float("nan"), object()):
        edit = t.AttributesEdit(object="run", kind=t.AttributeKind.PARAM, values={"good": 1, "x": value})
        with pytest.raises(InvalidError, match="the values of kind param must be JSON: 'x' is not"):
            tracking.pack_attributes_edit(edit)


def test_an_operation_of_an_unknown_kind_is_invalid() -> None:
    for message in (pb.Operation(seq=7), GOOGLE.Operation(seq=7)):
        with pytest.raises(InvalidError, match="operation 7 of the spool is of a kind that this server does not know"):
            tracking.unpack_operation(message)


@given(data=st.binary(max_size=60), name=st.sampled_from(["DeliverRequest", "LogMetricsRequest", "CreateRunRequest"]))
def test_malformed_bytes_are_invalid_for_google_s_codec_and_nothing_else(data: bytes, name: str) -> None:
    try:
        decode_google(getattr(GOOGLE, name), data)
    except InvalidError:
        return


def test_text_that_is_not_utf_8_is_invalid_for_google_s_codec() -> None:
    with pytest.raises(InvalidError, match="these 3 bytes are not a valid MetricColumns message"):
        decode_google(GOOGLE.MetricColumns, b"\x0a\x01\xff")


def test_a_message_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"modelbox\.v1 has no message Nonsense"):
        _ = GOOGLE.Nonsense
