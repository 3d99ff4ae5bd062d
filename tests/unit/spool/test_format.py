from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.spool.format import (
    Decoded,
    FilesRecord,
    SpooledFile,
    decode,
    encode_files,
    encode_name,
    encode_operation,
    encode_payload,
    encode_point,
    encode_points,
)
from modelbox.spool.operations import (
    attributes_data,
    event_data,
    operation_data,
    operations_of,
    parts_of,
    read_operation,
)
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    DatasetComponent,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    Operation,
    OperationPayload,
    ReadmeEdit,
    RunEdit,
    RunPatch,
    RunStatus,
)
from tests.unit.spool.servers import points_of

NOW = datetime(2026, 5, 3, 10, 0, 0, 123456, UTC)
RUN = "run_" + "0" * 24
NAMES = encode_name(1, RUN) + encode_name(2, "loss") + encode_name(3, "Genauigkeit/ä")

PAYLOADS: list[OperationPayload] = [
    NewExperiment(namespace="n", name="e", owner="x"),
    NewRun(experiment="n/e", name="first", started_at=NOW, params={"a": [1, {"b": None}]}, tags={"t": ""}),
    RunEdit(id=RUN, patch=RunPatch(status=RunStatus.FAILED, ended_at=NOW, reason="ValueError: ü")),
    NewCheckpoint(parent_id=RUN, epoch=3, step=9, metrics={"acc": 0.5, "inf": float("inf")}),
    AttributesEdit(object=RUN, kind=AttributeKind.METADATA, values={"k": {"x": [True, 1.5]}}, remove=("gone",)),
    NewEvent(object=RUN, name="gpu.lost", source="s", at=NOW, metadata={"gpu": 3}),
    NewComment(object=RUN, text="*hi*"),
    NewEdges(edges=(NewEdge(source=RUN, target="n/m@7", type="produced"),)),
    NewDatasetVersion(
        namespace="n", dataset="d", components=(DatasetComponent(type="path", location="/x", size_bytes=5),)
    ),
    ReadmeEdit(object=RUN, text="# hi"),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_operation_comes_back_as_it_was(payload: OperationPayload) -> None:
    assert read_operation(operation_data(payload)) == payload


def test_attributes_whose_values_are_texts_are_the_same_operation() -> None:
    data = attributes_data(RUN, AttributeKind.PARAM, {'a "b"': "[1,2]", "ü": '"x"'}, ("gone",), overwrite=True)
    assert read_operation(data) == AttributesEdit(
        object=RUN, kind=AttributeKind.PARAM, values={'a "b"': [1, 2], "ü": "x"}, remove=("gone",), overwrite=True
    )


def test_an_event_whose_metadata_are_texts_is_the_same_operation() -> None:
    event = NewEvent(object=RUN, name='gpu "3"', source="ü", at=NOW, metadata={"a": [1]})
    data = event_data(event.id, RUN, event.name, event.source, NOW, {"a": "[1]"})
    assert read_operation(data) == event


@pytest.mark.parametrize("data", [b"", b"[]", b'{"type":"bomb"}', b'{"type":"run","value":{}}', b"[" * 100_000])
def test_what_is_no_operation_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_operation(data)


record = st.one_of(
    st.tuples(
        st.just("point"), st.sampled_from([2, 3]), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62), st.floats()
    ),
    st.tuples(st.just("points"), st.integers(-5, 5), st.integers(0, 9), st.lists(st.floats(), min_size=1, max_size=3)),
    st.tuples(st.just("text"), st.integers(-5, 5), st.integers(0, 9), st.binary(max_size=9)),
    st.tuples(st.just("operation"), st.text(max_size=9)),
)


def _encoded(seq: int, one: tuple) -> bytes:  # type: ignore[type-arg]
    match one:
        case ("point", key, step, at, value):
            return encode_point(seq, 1, key, step, at, value)
        case ("points", step, at, values):
            return encode_points(seq, 1, step, at, [(2 + place % 2, value) for place, value in enumerate(values)])
        case ("text", step, at, payload):
            return encode_payload(seq, 1, 3, step, at, 2, payload)
        case ("operation", text):
            return encode_operation(seq, operation_data(NewComment(id="cmt_" + "1" * 24, object=RUN, text=text)))
    raise AssertionError(one)


def _expected(records: list) -> list[tuple]:  # type: ignore[type-arg]
    found: list[tuple] = []  # type: ignore[type-arg]
    for one in records:
        match one:
            case ("point", key, step, at, value):
                found.append((key, step, at, struct.pack("<d", value)))
            case ("points", step, at, values):
                found += [(2 + place % 2, step, at, struct.pack("<d", value)) for place, value in enumerate(values)]
            case ("text", step, at, payload):
                found.append((3, step, at, payload))
    return sorted(found)


@given(st.lists(record, max_size=40), st.data())
def test_records_are_read_as_they_were_written_however_the_bytes_are_cut(records: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    whole = NAMES + b"".join(_encoded(seq, one) for seq, one in enumerate(records, 1))
    names: dict[int, str] = {}
    at, cut = 0, data.draw(st.integers(1, len(whole)))
    operations: list[Operation] = []
    while at < len(whole):
        decoded = decode(whole[at : at + cut], names)
        assert not decoded.damage
        read, unreadable = operations_of(decoded, names)
        assert not unreadable
        operations += read
        at += decoded.size_bytes
        cut = len(whole)
    texts = [one.payload.text for one in operations if isinstance(one.payload, NewComment)]
    assert texts == [one[1] for one in records if one[0] == "operation"]
    keys = {name: index for index, name in names.items()}
    points = [
        (keys[key], step, time_us, value if isinstance(value, bytes) else struct.pack("<d", value))
        for one in operations
        if isinstance(one.payload, MetricColumns)
        for (_, key, step, time_us), value in points_of(one.payload)
    ]
    assert sorted(points) == _expected(records)


@given(st.lists(record, min_size=1, max_size=20), st.data())
def test_a_damaged_byte_is_noticed_and_what_lies_before_it_is_read(records: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    parts = [_encoded(seq, one) for seq, one in enumerate(records, 1)]
    whole = bytearray(NAMES + b"".join(parts))
    at = data.draw(st.integers(len(NAMES), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    decoded = decode(bytes(whole), {})
    intact, end = 0, len(NAMES)
    while end + len(parts[intact]) <= at:
        end += len(parts[intact])
        intact += 1
    assert decoded.size_bytes == end
    assert decoded.last_seq == intact


def test_zeros_at_the_end_are_damage_and_no_records() -> None:
    decoded = decode(NAMES + bytes(4096), {})
    assert (decoded.size_bytes, decoded.count) == (len(NAMES), 0)
    assert decoded.damage


def test_records_before_a_number_are_passed_over() -> None:
    whole = NAMES + b"".join(encode_point(seq, 1, 2, seq, 0, 0.5) for seq in range(1, 200))
    decoded = decode(whole, {}, after_seq=150)
    assert (decoded.count, decoded.last_seq, decoded.size_bytes) == (49, 199, len(whole))


def test_an_artifact_comes_alone() -> None:
    files = FilesRecord(
        seq=2,
        parent=RUN,
        name="w",
        files=(SpooledFile(path="a/b", local="files/x", size_bytes=5, mtime_ns=7, copied=True),),
        labels={"l": "v"},
        metadata={"m": [1]},
    )
    whole = NAMES + encode_point(1, 1, 2, 0, 0, 1.0) + encode_files(files) + encode_point(3, 1, 2, 1, 0, 1.0)
    names: dict[int, str] = {}
    first = decode(whole, names)
    second = decode(whole[first.size_bytes :], names)
    third = decode(whole[first.size_bytes + second.size_bytes :], names)
    assert [(one.count, one.files, len(one.points)) for one in (first, second, third)] == [
        (1, None, 1),
        (1, files, 0),
        (1, None, 1),
    ]


def test_operations_of_one_object_keep_their_order_among_points() -> None:
    decoded = Decoded()
    whole = NAMES + encode_name(4, "run_" + "1" * 24)
    whole += encode_point(1, 1, 2, 0, 0, 1.0) + encode_point(2, 4, 2, 0, 0, 2.0) + encode_point(3, 1, 3, 0, 0, 3.0)
    names: dict[int, str] = {}
    decoded = decode(whole, names)
    operations, _ = operations_of(decoded, names)
    assert [(one.seq, one.payload.object, one.payload.keys) for one in operations] == [  # type: ignore[union-attr]
        (2, "run_" + "1" * 24, ("loss",)),
        (3, RUN, ("loss", "Genauigkeit/ä")),
    ]


def test_parts_say_together_what_the_whole_says() -> None:
    edit = AttributesEdit(object=RUN, kind=AttributeKind.PARAM, values={"a": 1, "b": 2}, remove=("c",))
    edits = [one for one in parts_of(edit) if isinstance(one, AttributesEdit)]
    assert [(dict(one.values), one.remove) for one in edits] == [
        ({"a": 1}, ()),
        ({"b": 2}, ()),
        ({}, ("c",)),
    ]
    whole = NAMES + encode_points(1, 1, 7, 8, [(2, 0.5), (3, 1.5)]) + encode_payload(2, 1, 3, 9, 9, 1, b"x")
    whole += encode_point(3, 1, 2, 8, 8, 2.5)
    names: dict[int, str] = {}
    (columns,), _ = operations_of(decode(whole, names), names)
    assert isinstance(columns.payload, MetricColumns)
    parts = parts_of(columns.payload)
    assert [one.keys for one in parts if isinstance(one, MetricColumns)] == [("loss",), ("Genauigkeit/ä",)]
    assert sorted(point for one in parts if isinstance(one, MetricColumns) for point in points_of(one)) == sorted(
        points_of(columns.payload)
    )
    assert parts_of(parts[0]) == []
