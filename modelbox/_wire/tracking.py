"""Experiments, runs, checkpoints, attributes and the operations of a spool as messages and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import datasets, lineage, metrics, notes
from modelbox._wire.values import (
    chosen,
    dumps,
    given,
    loads,
    member,
    pack_int64,
    pack_object,
    pack_optional_int64,
    pack_optional_time,
    pack_time,
    present,
    unpack_object,
    unpack_optional_time,
    unpack_time,
    unpack_time_or_now,
)
from modelbox.errors import InvalidError
from modelbox.objects import Created, JsonValue, from_json
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    Delivered,
    Experiment,
    ExperimentPatch,
    MetricColumns,
    NewCheckpoint,
    NewComment,
    NewDatasetVersion,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    ObjectKind,
    Operation,
    OperationPayload,
    ReadmeEdit,
    Rejection,
    Run,
    RunEdit,
    RunPatch,
    RunStatus,
    new_id,
)

# --- experiments -----------------------------------------------------------------------------------------------------


def pack_experiment(value: Experiment) -> pb.Experiment:
    """As a message."""
    return pb.Experiment(
        id=value.id,
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        framework=value.framework,
        task=value.task,
        external_id=value.external_id,
        description=value.description,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_experiment(message: pb.Experiment) -> Experiment:
    """From a message."""
    return Experiment(
        id=message.id,
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        framework=message.framework,
        task=message.task,
        external_id=message.external_id,
        description=message.description,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_experiment(value: NewExperiment) -> pb.CreateExperimentRequest:
    """As a request."""
    return pb.CreateExperimentRequest(
        id=value.id,
        namespace=value.namespace,
        name=value.name,
        owner=value.owner,
        framework=value.framework,
        task=value.task,
        external_id=value.external_id,
        description=value.description,
    )


def unpack_new_experiment(message: pb.CreateExperimentRequest) -> NewExperiment:
    """From a request; makes an id where it has none."""
    return NewExperiment(
        id=message.id or new_id(ObjectKind.EXPERIMENT),
        namespace=message.namespace,
        name=message.name,
        owner=message.owner,
        framework=message.framework,
        task=message.task,
        external_id=message.external_id,
        description=message.description,
    )


def unpack_created_experiment(message: pb.CreateExperimentResponse) -> Created[Experiment]:
    """From an answer."""
    return Created(item=unpack_experiment(present(message.experiment, "the experiment")), existed=message.existed)


def pack_experiment_patch(experiment: str, patch: ExperimentPatch) -> pb.UpdateExperimentRequest:
    """As a request."""
    return pb.UpdateExperimentRequest(
        experiment=experiment,
        owner=patch.owner,
        framework=patch.framework,
        task=patch.task,
        external_id=patch.external_id,
        description=patch.description,
    )


def unpack_experiment_patch(message: pb.UpdateExperimentRequest) -> ExperimentPatch:
    """From a request."""
    return ExperimentPatch(
        owner=message.owner,
        framework=message.framework,
        task=message.task,
        external_id=message.external_id,
        description=message.description,
    )


# --- runs ------------------------------------------------------------------------------------------------------------


def pack_run(value: Run, message: type[pb.Run] = pb.Run) -> pb.Run:
    """As a message, of another codec's class if need be."""
    return message(
        id=value.id,
        namespace=value.namespace,
        experiment_id=value.experiment_id,
        experiment=value.experiment,
        name=value.name,
        status=value.status,
        started_at_us=pack_time(value.started_at),
        ended_at_us=pack_optional_time(value.ended_at),
        parent_id=value.parent_id,
        cloned_from=value.cloned_from,
        reason=value.reason,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_run(message: pb.Run) -> Run:
    """From a message."""
    return Run(
        id=message.id,
        namespace=message.namespace,
        experiment_id=message.experiment_id,
        experiment=message.experiment,
        name=message.name,
        status=_status(message.status),
        started_at=unpack_time(message.started_at_us),
        ended_at=unpack_optional_time(message.ended_at_us),
        parent_id=message.parent_id,
        cloned_from=message.cloned_from,
        reason=message.reason,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def _status(text: str) -> RunStatus:
    return member(RunStatus, text, "a run's status")


def pack_new_run(value: NewRun) -> pb.CreateRunRequest:
    """As a request."""
    return pb.CreateRunRequest(
        id=value.id,
        experiment=value.experiment,
        name=value.name,
        status=value.status,
        started_at_us=pack_time(value.started_at),
        parent_id=value.parent_id,
        cloned_from=value.cloned_from,
        params_json=pack_object(value.params, "params"),
        tags_json=pack_object(value.tags, "tags"),
        metadata_json=pack_object(value.metadata, "metadata"),
    )


def unpack_new_run(message: pb.CreateRunRequest) -> NewRun:
    """From a request; without an id, a status or a start it is a new run that begins now."""
    return NewRun(
        id=message.id or new_id(ObjectKind.RUN),
        experiment=message.experiment,
        name=message.name,
        status=_status(message.status) if message.status else RunStatus.RUNNING,
        started_at=unpack_time_or_now(message.started_at_us),
        parent_id=message.parent_id,
        cloned_from=message.cloned_from,
        params=unpack_object(message.params_json, "params"),
        tags=unpack_object(message.tags_json, "tags"),
        metadata=unpack_object(message.metadata_json, "metadata"),
    )


def run_id_of(message: pb.CloneRunRequest) -> str:
    """The id of the run to make; a new one where the request has none."""
    return message.id or new_id(ObjectKind.RUN)


def unpack_created_run(message: pb.CreateRunResponse) -> Created[Run]:
    """From an answer."""
    return Created(item=unpack_run(present(message.run, "the run")), existed=message.existed)


def pack_run_patch(run_id: str, patch: RunPatch) -> pb.UpdateRunRequest:
    """As a request."""
    return pb.UpdateRunRequest(
        id=run_id,
        name=patch.name,
        status=patch.status,
        ended_at_us=None if patch.ended_at is None else pack_time(patch.ended_at),
        reason=patch.reason,
    )


def unpack_run_patch(message: pb.UpdateRunRequest) -> RunPatch:
    """From a request."""
    return RunPatch(
        name=given(message, "name"),
        status=None if (status := given(message, "status")) is None else _status(status),
        ended_at=None if (ended_at_us := given(message, "ended_at_us")) is None else unpack_time(ended_at_us),
        reason=given(message, "reason"),
    )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def pack_checkpoint(value: Checkpoint, message: type[pb.Checkpoint] = pb.Checkpoint) -> pb.Checkpoint:
    """As a message, of another codec's class if need be."""
    return message(
        id=value.id,
        namespace=value.namespace,
        parent_id=value.parent_id,
        epoch=value.epoch,
        step=value.step,
        path=value.path,
        metrics=dict(value.metrics),
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_checkpoint(message: pb.Checkpoint) -> Checkpoint:
    """From a message."""
    return Checkpoint(
        id=message.id,
        namespace=message.namespace,
        parent_id=message.parent_id,
        epoch=message.epoch,
        step=message.step,
        path=message.path,
        metrics=dict(message.metrics),
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_checkpoint(value: NewCheckpoint) -> pb.CreateCheckpointRequest:
    """As a request."""
    return pb.CreateCheckpointRequest(
        id=value.id,
        parent_id=value.parent_id,
        epoch=pack_int64(value.epoch, "epoch"),
        step=pack_optional_int64(value.step, "step"),
        path=value.path,
        metrics=dict(value.metrics),
    )


def unpack_new_checkpoint(message: pb.CreateCheckpointRequest) -> NewCheckpoint:
    """From a request; makes an id where it has none."""
    return NewCheckpoint(
        id=message.id or new_id(ObjectKind.CHECKPOINT),
        parent_id=message.parent_id,
        epoch=message.epoch,
        step=given(message, "step"),
        path=message.path,
        metrics=dict(message.metrics),
    )


def unpack_created_checkpoint(message: pb.CreateCheckpointResponse) -> Created[Checkpoint]:
    """From an answer."""
    return Created(item=unpack_checkpoint(present(message.checkpoint, "the checkpoint")), existed=message.existed)


# --- attributes ------------------------------------------------------------------------------------------------------


def attribute_kind(text: str) -> AttributeKind:
    """The kind that ``text`` names.

    Raises:
        InvalidError: There is none.
    """
    return member(AttributeKind, text, "a kind of attributes")


def pack_attributes_edit(value: AttributesEdit) -> pb.SetAttributesRequest:
    """As a request."""
    return pb.SetAttributesRequest(
        object=value.object,
        kind=value.kind,
        values_json=pack_object(value.values, f"the values of kind {value.kind}"),
        remove=list(value.remove),
        overwrite=value.overwrite,
    )


def unpack_attributes_edit(message: pb.SetAttributesRequest) -> AttributesEdit:
    """From a request."""
    kind = attribute_kind(message.kind)
    return AttributesEdit(
        object=message.object,
        kind=kind,
        values=unpack_object(message.values_json, f"the values of kind {kind}"),
        remove=tuple(message.remove),
        overwrite=message.overwrite,
    )


def pack_attributes(values: Sequence[Attribute]) -> pb.GetAttributesResponse:
    """As an answer."""
    rows = [
        {
            "object": one.object,
            "kind": one.kind,
            "key": one.key,
            "value": one.value,
            "updated_at": _iso(one.updated_at),
            "updated_by": one.updated_by,
        }
        for one in values
    ]
    return pb.GetAttributesResponse(attributes_json=dumps(rows).encode())


def unpack_attributes(message: pb.GetAttributesResponse) -> tuple[Attribute, ...]:
    """From an answer."""
    rows = _rows(message.attributes_json, "the attributes")
    return tuple(from_json(Attribute, row) for row in rows)


def pack_attribute_changes(values: Sequence[AttributeChange], next_token: str) -> pb.ListAttributeHistoryResponse:
    """As an answer."""
    rows = [
        {
            "object": one.object,
            "kind": one.kind,
            "key": one.key,
            "value": one.value,
            "deleted": one.deleted,
            "at": _iso(one.at),
            "by": one.by,
            "rev": one.rev,
        }
        for one in values
    ]
    return pb.ListAttributeHistoryResponse(changes_json=dumps(rows).encode(), next_page_token=next_token)


def unpack_attribute_changes(message: pb.ListAttributeHistoryResponse) -> tuple[AttributeChange, ...]:
    """From an answer."""
    return tuple(from_json(AttributeChange, row) for row in _rows(message.changes_json, "the history"))


def _rows(data: bytes, what: str) -> list[JsonValue]:
    if not data:
        return []
    rows = loads(data, what)
    if not isinstance(rows, list):
        raise InvalidError(f"{what} must be a JSON list")
    return rows


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- delivery --------------------------------------------------------------------------------------------------------


def pack_operation(value: Operation) -> pb.Operation:
    """As a message."""
    message = pb.Operation(seq=value.seq)
    match value.payload:
        case MetricColumns() as one:
            message.log_metrics = metrics.pack_columns(one)
        case AttributesEdit() as one:
            message.set_attributes = pack_attributes_edit(one)
        case NewRun() as one:
            message.create_run = pack_new_run(one)
        case RunEdit() as one:
            message.update_run = pack_run_patch(one.id, one.patch)
        case NewExperiment() as one:
            message.create_experiment = pack_new_experiment(one)
        case NewCheckpoint() as one:
            message.create_checkpoint = pack_new_checkpoint(one)
        case NewEvent() as one:
            message.log_event = notes.pack_new_event(one)
        case NewComment() as one:
            message.add_comment = notes.pack_new_comment(one)
        case ReadmeEdit() as one:
            message.set_readme = notes.pack_readme_edit(one)
        case NewEdges() as one:
            message.add_edges = lineage.pack_new_edges(one)
        case NewDatasetVersion() as one:
            message.create_dataset_version = datasets.pack_new_dataset_version(one)
    return message


def unpack_operation(message: pb.Operation) -> Operation:
    """From a message.

    Raises:
        InvalidError: Also for an operation that this program does not know.
    """
    return Operation(seq=message.seq, payload=_payload(message))


def _payload(message: pb.Operation) -> OperationPayload:
    name, content = chosen(message, "operation")
    read = _OPERATIONS.get(name)
    if read is None:
        raise InvalidError(f"operation {message.seq} of the spool is of a kind that this server does not know")
    return read(content)


def _run_edit(message: pb.UpdateRunRequest) -> RunEdit:
    return RunEdit(id=message.id, patch=unpack_run_patch(message))


_OPERATIONS: Mapping[str, Callable[[Any], OperationPayload]] = {
    "add_comment": notes.unpack_new_comment,
    "add_edges": lineage.unpack_new_edges,
    "create_checkpoint": unpack_new_checkpoint,
    "create_dataset_version": datasets.unpack_new_dataset_version,
    "create_experiment": unpack_new_experiment,
    "create_run": unpack_new_run,
    "log_event": notes.unpack_new_event,
    "log_metrics": metrics.unpack_columns,
    "set_attributes": unpack_attributes_edit,
    "set_readme": notes.unpack_readme_edit,
    "update_run": _run_edit,
}


def pack_delivered(value: Delivered, messages: Any = pb) -> pb.DeliverResponse:
    """As an answer, of another codec's classes if need be."""
    answer: pb.DeliverResponse = messages.DeliverResponse(
        delivered_seq=value.seq,
        rejections=[messages.Rejection(seq=one.seq, code=one.code, message=one.message) for one in value.rejections],
    )
    return answer


def unpack_delivered(message: pb.DeliverResponse) -> Delivered:
    """From an answer."""
    return Delivered(
        seq=message.delivered_seq,
        rejections=tuple(Rejection(seq=one.seq, code=one.code, message=one.message) for one in message.rejections),
    )
