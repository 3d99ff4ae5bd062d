"""Operations of a spool as JSON and back, and points as the columns that travel.

Pure. The names in the JSON are a format on disk: they may be added to, never changed.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue, from_json, to_json
from modelbox.refs import shown
from modelbox.spool.format import Decoded, PayloadPoint, Points
from modelbox.tracking import (
    AttributeKind,
    AttributesEdit,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    Operation,
    OperationPayload,
    ReadmeEdit,
    RunEdit,
)

__all__ = ("attributes_data", "event_data", "operation_data", "operations_of", "parts_of", "read_operation")

_TYPES: dict[str, type[OperationPayload]] = {
    "experiment": NewExperiment,
    "run": NewRun,
    "run_edit": RunEdit,
    "checkpoint": NewCheckpoint,
    "attributes": AttributesEdit,
    "event": NewEvent,
    "comment": NewComment,
    "edges": NewEdges,
    "dataset_version": NewDatasetVersion,
    "readme": ReadmeEdit,
}
_NAMES = {cls: name for name, cls in _TYPES.items()}
_POINTS = "points"
_COLUMNS = ("key_index", "steps", "times_us", "values", "kinds")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def operation_data(payload: OperationPayload) -> bytes:
    """An operation as it lies in a spool; points only where they are kept aside."""
    if isinstance(payload, MetricColumns):
        columns = {name: b64encode(getattr(payload, name)).decode() for name in _COLUMNS}
        payloads = [b64encode(one).decode() for one in payload.payloads]
        value = {"object": payload.object, "keys": list(payload.keys), **columns, "payloads": payloads}
        return _encode({"type": _POINTS, "value": value}).encode()
    return f'{{"type":"{_NAMES[type(payload)]}","value":{_encode(to_json(payload))}}}'.encode()


def attributes_data(
    object_id: str, kind: AttributeKind, values: Mapping[str, str], remove: tuple[str, ...], *, overwrite: bool
) -> bytes:
    """The same of an `AttributesEdit` whose ``values`` are JSON texts already."""
    inner = ",".join(f"{_encode(key)}:{text}" for key, text in values.items())
    return (
        f'{{"type":"attributes","value":{{"object":{_encode(object_id)},"kind":"{kind.value}","values":{{{inner}}},'
        f'"remove":{_encode(list(remove))},"overwrite":{"true" if overwrite else "false"}}}}}'
    ).encode()


def event_data(
    event_id: str, object_id: str, name: str, source: str, at: datetime, metadata: Mapping[str, str]
) -> bytes:
    """The same of a `NewEvent` whose ``metadata`` are JSON texts already."""
    inner = ",".join([f"{_encode(key)}:{text}" for key, text in metadata.items()])
    return (
        f'{{"type":"event","value":{{"id":"{event_id}","object":{_encode(object_id)},"name":{_encode(name)},'
        f'"source":{_encode(source)},"at":"{at.astimezone(UTC).isoformat()}","metadata":{{{inner}}}}}}}'
    ).encode()


def read_operation(data: bytes) -> OperationPayload:
    """What `operation_data` wrote.

    Raises:
        InvalidError: It is something else.
    """
    try:
        read: JsonValue = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"an operation of a spool is not JSON: {exc}") from exc
    if not isinstance(read, dict):
        raise InvalidError("an operation of a spool is not a JSON object")
    if read.get("type") == _POINTS:
        return _read_columns(read.get("value"))
    cls = _TYPES.get(str(read.get("type")))
    if cls is None:
        raise InvalidError(f"an operation of a spool is of the unknown type {shown(read.get('type'))}")
    return from_json(cls, read.get("value"))


def _read_columns(value: JsonValue) -> MetricColumns:
    if not isinstance(value, dict):
        raise InvalidError("points of a spool are not a JSON object")
    keys, payloads = value.get("keys"), value.get("payloads")
    if not isinstance(keys, list) or not isinstance(payloads, list):
        raise InvalidError("points of a spool have no keys, or no payloads")
    columns = {name: _read_bytes(value.get(name)) for name in _COLUMNS}
    found = MetricColumns(
        object=str(value.get("object")),
        keys=tuple(str(key) for key in keys),
        payloads=tuple(_read_bytes(one) for one in payloads),
        **columns,
    )
    count = len(found)
    sizes = [len(columns[name]) for name in ("steps", "times_us", "values")]
    index = np.frombuffer(found.key_index[: len(found.key_index) // 4 * 4], "<u4")
    if (
        not count
        or sizes != [8 * count] * 3
        or len(found.key_index) != (4 * count if len(keys) > 1 else 0)
        or (len(index) and int(index.max()) >= len(keys))
        or len(found.kinds) not in (0, count)
        or sum(kind != 0 for kind in found.kinds) != len(payloads)
        or not keys
    ):
        raise InvalidError("columns of points of a spool do not fit together")
    return found


def _read_bytes(value: JsonValue) -> bytes:
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError as exc:
        raise InvalidError("points of a spool are not in base64") from exc


def operations_of(decoded: Decoded, names: Mapping[int, str]) -> tuple[list[Operation], list[tuple[int, InvalidError]]]:
    """The operations of a stretch of a spool, with the points of each object put together, in order of their numbers.

    Returns:
        The operations, and what cannot be read, by number.
    """
    found: list[Operation] = []
    unreadable: list[tuple[int, InvalidError]] = []
    for record in decoded.operations:
        try:
            found.append(Operation(seq=record.seq, payload=read_operation(record.data)))
        except InvalidError as exc:
            unreadable.append((record.seq, exc))
    found += _columns(decoded.points, decoded.payloads, names)
    return sorted(found, key=lambda operation: operation.seq), unreadable


def _columns(points: list[Points], payloads: list[PayloadPoint], names: Mapping[int, str]) -> list[Operation]:
    texts: dict[str, list[PayloadPoint]] = {}
    for point in payloads:
        texts.setdefault(point.object, []).append(point)
    found: list[Operation] = []
    if points:
        whole = points[0] if len(points) == 1 else _joined(points)
        objects = np.unique(whole.objects).tolist()
        for index in objects:
            part = whole if len(objects) == 1 else _where(whole, whole.objects == index)
            object_id = names[index]
            found.append(_operation(object_id, part, texts.pop(object_id, []), names))
    found += [_operation(object_id, None, some, names) for object_id, some in texts.items()]
    return found


def _operation(
    object_id: str, numbers: Points | None, texts: list[PayloadPoint], names: Mapping[int, str]
) -> Operation:
    seq, count = 0, 0
    keys: dict[str, int] = {}
    key_index: npt.NDArray[Any] = np.empty(0, np.uint32)
    steps = times = np.empty(0, np.int64)
    values = np.empty(0, np.float64)
    if numbers is not None:
        seq, count = int(numbers.seqs.max()), len(numbers)
        used, key_index = np.unique(numbers.keys, return_inverse=True)
        keys = {names[index]: place for place, index in enumerate(used.tolist())}
        steps, times, values = numbers.steps, numbers.times_us, numbers.values
    kinds = b""
    if texts:
        seq = max(seq, *(point.seq for point in texts))
        more = [keys.setdefault(point.key, len(keys)) for point in texts]
        key_index = np.concatenate([key_index, np.array(more)])
        steps = np.concatenate([steps, np.array([point.step for point in texts], np.int64)])
        times = np.concatenate([times, np.array([point.time_us for point in texts], np.int64)])
        values = np.concatenate([values, np.zeros(len(texts))])
        kinds = bytes(count) + bytes(point.kind for point in texts)
    return Operation(
        seq=seq,
        payload=MetricColumns(
            object=object_id,
            keys=tuple(keys),
            key_index=key_index.astype("<u4").tobytes() if len(keys) > 1 else b"",
            steps=np.ascontiguousarray(steps, "<i8").tobytes(),
            times_us=np.ascontiguousarray(times, "<i8").tobytes(),
            values=np.ascontiguousarray(values, "<f8").tobytes(),
            kinds=kinds,
            payloads=tuple(point.payload for point in texts),
        ),
    )


def _joined(parts: list[Points]) -> Points:
    return Points(
        seqs=np.concatenate([part.seqs for part in parts]),
        objects=np.concatenate([part.objects for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        steps=np.concatenate([part.steps for part in parts]),
        times_us=np.concatenate([part.times_us for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def _where(points: Points, mask: npt.NDArray[np.bool_]) -> Points:
    return Points(
        seqs=points.seqs[mask],
        objects=points.objects[mask],
        keys=points.keys[mask],
        steps=points.steps[mask],
        times_us=points.times_us[mask],
        values=points.values[mask],
    )


def parts_of(payload: OperationPayload) -> list[OperationPayload]:
    """An operation as one for each key, so that a bad key does not take the others with it; empty if it has only one.

    The parts together say what the whole says.
    """
    if isinstance(payload, AttributesEdit):
        if len(payload.values) + len(payload.remove) < 2:
            return []
        changed = [(({key: value}), ()) for key, value in payload.values.items()]
        removed: list[tuple[dict[str, JsonValue], tuple[str, ...]]] = [({}, (key,)) for key in payload.remove]
        return [
            AttributesEdit(
                object=payload.object, kind=payload.kind, values=values, remove=remove, overwrite=payload.overwrite
            )
            for values, remove in [*changed, *removed]
        ]
    if isinstance(payload, MetricColumns) and len(payload.keys) > 1:
        return list(_by_key(payload))
    return []


def _by_key(columns: MetricColumns) -> list[OperationPayload]:
    index = np.frombuffer(columns.key_index, "<u4")
    kinds = np.frombuffer(columns.kinds or bytes(len(columns)), np.uint8)
    steps, times = np.frombuffer(columns.steps, "<i8"), np.frombuffer(columns.times_us, "<i8")
    values = np.frombuffer(columns.values, "<f8")
    payload_of = np.cumsum(kinds != 0) - 1
    parts: list[OperationPayload] = []
    for place, key in enumerate(columns.keys):
        mask = index == place
        textual = mask & (kinds != 0)
        parts.append(
            MetricColumns(
                object=columns.object,
                keys=(key,),
                steps=steps[mask].tobytes(),
                times_us=times[mask].tobytes(),
                values=values[mask].tobytes(),
                kinds=kinds[mask].tobytes() if textual.any() else b"",
                payloads=tuple(columns.payloads[at] for at in payload_of[textual].tolist()),
            )
        )
    return parts
