"""Remote calls about what training code and people record, with our objects in and out.

Owns which of these calls may be repeated: creates are idempotent by id, points of metrics by what they are, deliveries
by the spool's numbers. Goes over the channels of a `Connection`; refuses to know about files and spools.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime

import anyio
import numpy as np

from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.faults import backoff_s
from modelbox._transport.grpc import Connection, page, rpc
from modelbox._wire import datasets, find, lineage, metrics, notes, tracking
from modelbox._wire.encode import encode_delivery, encode_log_metrics
from modelbox._wire.values import pack_int64, pack_optional_int64, pack_time
from modelbox.errors import ModelBoxError
from modelbox.objects import Created, Page
from modelbox.tracking import (
    Attribute,
    AttributeChange,
    AttributeKind,
    AttributesEdit,
    Checkpoint,
    Comment,
    Dataset,
    DatasetVersion,
    Delivered,
    Event,
    Experiment,
    ExperimentPatch,
    Found,
    Lineage,
    MetricColumns,
    MetricSummary,
    NewCheckpoint,
    NewComment,
    NewDataset,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    NewExperiment,
    NewRun,
    Operation,
    Readme,
    ReadmeEdit,
    Run,
    RunPatch,
    SampledSeries,
)

__all__ = ("TrackingCalls",)

_MAX_INT32 = 2**31 - 1
_ATTEMPTS = 6
"""To go on reading a series, one after the other, without a point between them; a restart takes a second or two."""
_T = "TrackingService"
_CREATE_EXPERIMENT = rpc(
    _T, "CreateExperiment", pb.CreateExperimentRequest, pb.CreateExperimentResponse, idempotent=True
)
_GET_EXPERIMENT = rpc(_T, "GetExperiment", pb.GetExperimentRequest, pb.Experiment, idempotent=True)
_UPDATE_EXPERIMENT = rpc(_T, "UpdateExperiment", pb.UpdateExperimentRequest, pb.Experiment, idempotent=True)
_LIST_EXPERIMENTS = rpc(_T, "ListExperiments", pb.ListExperimentsRequest, pb.ListExperimentsResponse, idempotent=True)
_CREATE_RUN = rpc(_T, "CreateRun", pb.CreateRunRequest, pb.CreateRunResponse, idempotent=True)
_GET_RUN = rpc(_T, "GetRun", pb.GetRunRequest, pb.Run, idempotent=True)
_UPDATE_RUN = rpc(_T, "UpdateRun", pb.UpdateRunRequest, pb.Run, idempotent=True)
_LIST_RUNS = rpc(_T, "ListRuns", pb.ListRunsRequest, pb.ListRunsResponse, idempotent=True)
_CLONE_RUN = rpc(_T, "CloneRun", pb.CloneRunRequest, pb.CreateRunResponse, idempotent=True)
_CREATE_CHECKPOINT = rpc(
    _T, "CreateCheckpoint", pb.CreateCheckpointRequest, pb.CreateCheckpointResponse, idempotent=True
)
_GET_CHECKPOINT = rpc(_T, "GetCheckpoint", pb.GetCheckpointRequest, pb.Checkpoint, idempotent=True)
_LIST_CHECKPOINTS = rpc(_T, "ListCheckpoints", pb.ListCheckpointsRequest, pb.ListCheckpointsResponse, idempotent=True)
# Their answers count, or say what is missing: that would be wrong the second time.
_DELETE_OBJECTS = rpc(_T, "DeleteObjects", pb.DeleteObjectsRequest, pb.DeleteObjectsResponse)
_RESTORE_OBJECTS = rpc(_T, "RestoreObjects", pb.RestoreObjectsRequest, pb.RestoreObjectsResponse)
_PURGE = rpc(_T, "Purge", pb.PurgeRequest, pb.PurgeResponse)
_SET_ATTRIBUTES = rpc(_T, "SetAttributes", pb.SetAttributesRequest, pb.SetAttributesResponse, idempotent=True)
_GET_ATTRIBUTES = rpc(_T, "GetAttributes", pb.GetAttributesRequest, pb.GetAttributesResponse, idempotent=True)
_LIST_ATTRIBUTE_HISTORY = rpc(
    _T, "ListAttributeHistory", pb.ListAttributeHistoryRequest, pb.ListAttributeHistoryResponse, idempotent=True
)
_DELIVER = rpc(_T, "Deliver", bytes, pb.DeliverResponse, idempotent=True)
_M = "MetricService"
_LOG_METRICS = rpc(_M, "LogMetrics", bytes, pb.LogMetricsResponse, idempotent=True)
_GET_METRIC_SUMMARIES = rpc(
    _M, "GetMetricSummaries", pb.GetMetricSummariesRequest, pb.GetMetricSummariesResponse, idempotent=True
)
_READ_SERIES = rpc(_M, "ReadSeries", pb.ReadSeriesRequest, pb.SeriesColumns, streaming=True)
_SAMPLE_SERIES = rpc(_M, "SampleSeries", pb.SampleSeriesRequest, pb.SampleSeriesResponse, idempotent=True)
_N = "NoteService"
_LOG_EVENT = rpc(_N, "LogEvent", pb.LogEventRequest, pb.Event, idempotent=True)
_LIST_EVENTS = rpc(_N, "ListEvents", pb.ListEventsRequest, pb.ListEventsResponse, idempotent=True)
_ADD_COMMENT = rpc(_N, "AddComment", pb.AddCommentRequest, pb.Comment, idempotent=True)
_EDIT_COMMENT = rpc(_N, "EditComment", pb.EditCommentRequest, pb.Comment, idempotent=True)
_LIST_COMMENTS = rpc(_N, "ListComments", pb.ListCommentsRequest, pb.ListCommentsResponse, idempotent=True)
_SET_README = rpc(_N, "SetReadme", pb.SetReadmeRequest, pb.Readme, idempotent=True)
_GET_README = rpc(_N, "GetReadme", pb.GetReadmeRequest, pb.Readme, idempotent=True)
_D = "DatasetService"
_CREATE_DATASET = rpc(_D, "CreateDataset", pb.CreateDatasetRequest, pb.CreateDatasetResponse, idempotent=True)
_GET_DATASET = rpc(_D, "GetDataset", pb.GetDatasetRequest, pb.Dataset, idempotent=True)
_LIST_DATASETS = rpc(_D, "ListDatasets", pb.ListDatasetsRequest, pb.ListDatasetsResponse, idempotent=True)
_CREATE_DATASET_VERSION = rpc(
    _D, "CreateDatasetVersion", pb.CreateDatasetVersionRequest, pb.CreateDatasetVersionResponse, idempotent=True
)
_GET_DATASET_VERSION = rpc(_D, "GetDatasetVersion", pb.GetDatasetVersionRequest, pb.DatasetVersion, idempotent=True)
_LIST_DATASET_VERSIONS = rpc(
    _D, "ListDatasetVersions", pb.ListDatasetVersionsRequest, pb.ListDatasetVersionsResponse, idempotent=True
)
_L = "LineageService"
_ADD_EDGES = rpc(_L, "AddEdges", pb.AddEdgesRequest, pb.AddEdgesResponse, idempotent=True)
_REMOVE_EDGES = rpc(_L, "RemoveEdges", pb.RemoveEdgesRequest, pb.RemoveEdgesResponse)
_GET_LINEAGE = rpc(_L, "GetLineage", pb.GetLineageRequest, pb.GetLineageResponse, idempotent=True)
_FIND = rpc("FindService", "Find", pb.FindRequest, pb.FindResponse, idempotent=True)


class TrackingCalls:
    """The server's calls about tracking, one method each.

    Concurrency: any number of tasks of one event loop.
    Errors: as those of `Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- experiments ---------------------------------------------------------------------------------------------

    async def create_experiment(self, new: NewExperiment) -> Created[Experiment]:
        """Makes an experiment."""
        return await self._connection.unary(
            _CREATE_EXPERIMENT, tracking.pack_new_experiment(new), tracking.unpack_created_experiment
        )

    async def get_experiment(self, experiment: str) -> Experiment:
        """One experiment, by id or ``namespace/name``."""
        return await self._connection.unary(
            _GET_EXPERIMENT, pb.GetExperimentRequest(experiment=experiment), tracking.unpack_experiment
        )

    async def update_experiment(self, experiment: str, patch: ExperimentPatch) -> Experiment:
        """Edits an experiment."""
        return await self._connection.unary(
            _UPDATE_EXPERIMENT, tracking.pack_experiment_patch(experiment, patch), tracking.unpack_experiment
        )

    async def list_experiments(
        self, namespace: str = "", *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Experiment]:
        """One page of experiments."""
        return await self._connection.unary(
            _LIST_EXPERIMENTS,
            pb.ListExperimentsRequest(
                namespace=namespace, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.experiments, tracking.unpack_experiment, answer.next_page_token),
        )

    # --- runs ----------------------------------------------------------------------------------------------------

    async def create_run(self, new: NewRun) -> Created[Run]:
        """Makes a run."""
        return await self._connection.unary(_CREATE_RUN, tracking.pack_new_run(new), tracking.unpack_created_run)

    async def get_run(self, run: str) -> Run:
        """One run."""
        return await self._connection.unary(_GET_RUN, pb.GetRunRequest(id=run), tracking.unpack_run)

    async def update_run(self, run: str, patch: RunPatch) -> Run:
        """Edits a run, or ends it."""
        return await self._connection.unary(_UPDATE_RUN, tracking.pack_run_patch(run, patch), tracking.unpack_run)

    async def list_runs(
        self, parent: str, *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Run]:
        """One page of the runs of an experiment or a namespace, newest first."""
        return await self._connection.unary(
            _LIST_RUNS,
            pb.ListRunsRequest(
                parent=parent, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.runs, tracking.unpack_run, answer.next_page_token),
        )

    async def clone_run(self, source: str, *, id: str, name: str = "") -> Created[Run]:
        """Makes a run with the parameters, tags, labels and metadata of another one."""
        return await self._connection.unary(
            _CLONE_RUN, pb.CloneRunRequest(id=id, source_id=source, name=name), tracking.unpack_created_run
        )

    # --- checkpoints ---------------------------------------------------------------------------------------------

    async def create_checkpoint(self, new: NewCheckpoint) -> Created[Checkpoint]:
        """Makes a checkpoint."""
        return await self._connection.unary(
            _CREATE_CHECKPOINT, tracking.pack_new_checkpoint(new), tracking.unpack_created_checkpoint
        )

    async def get_checkpoint(self, checkpoint: str) -> Checkpoint:
        """One checkpoint."""
        return await self._connection.unary(
            _GET_CHECKPOINT, pb.GetCheckpointRequest(id=checkpoint), tracking.unpack_checkpoint
        )

    async def list_checkpoints(
        self, parent: str, *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Checkpoint]:
        """One page of the checkpoints of a run or experiment, by epoch."""
        return await self._connection.unary(
            _LIST_CHECKPOINTS,
            pb.ListCheckpointsRequest(
                parent_id=parent, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.checkpoints, tracking.unpack_checkpoint, answer.next_page_token),
        )

    # --- the bin -------------------------------------------------------------------------------------------------

    async def delete_objects(self, ids: Sequence[str]) -> int:
        """Puts objects and all below them into the bin; returns how many."""
        return await self._connection.unary(
            _DELETE_OBJECTS, pb.DeleteObjectsRequest(ids=list(ids)), lambda answer: answer.count
        )

    async def restore_objects(self, ids: Sequence[str]) -> int:
        """Takes objects out of the bin with all that went there with them; returns how many."""
        return await self._connection.unary(
            _RESTORE_OBJECTS, pb.RestoreObjectsRequest(ids=list(ids)), lambda answer: answer.count
        )

    async def purge(self, namespace: str = "", *, before: datetime, dry_run: bool = False, timeout_s: float = 0) -> int:
        """Removes for good what was put into the bin before a time; returns how many objects."""
        return await self._connection.unary(
            _PURGE,
            pb.PurgeRequest(namespace=namespace, deleted_before_us=pack_time(_aware(before)), dry_run=dry_run),
            lambda answer: answer.count,
            timeout_s,
        )

    # --- attributes ----------------------------------------------------------------------------------------------

    async def set_attributes(self, edit: AttributesEdit) -> int:
        """Sets and removes values by key; returns the revision of the change, 0 if there was nothing to change."""
        return await self._connection.unary(
            _SET_ATTRIBUTES, tracking.pack_attributes_edit(edit), lambda answer: answer.rev
        )

    async def get_attributes(
        self, objects: Sequence[str], kinds: Sequence[AttributeKind] = ()
    ) -> tuple[Attribute, ...]:
        """Values by key of objects; of all kinds where none is named."""
        return await self._connection.unary(
            _GET_ATTRIBUTES,
            pb.GetAttributesRequest(objects=list(objects), kinds=[str(kind) for kind in kinds]),
            tracking.unpack_attributes,
        )

    async def list_attribute_history(
        self, object: str, kind: AttributeKind, key: str = "", *, page_size: int = 0, page_token: str = ""
    ) -> Page[AttributeChange]:
        """One page of what was set and removed, newest first; of all keys where none is named."""
        return await self._connection.unary(
            _LIST_ATTRIBUTE_HISTORY,
            pb.ListAttributeHistoryRequest(
                object=object, kind=str(kind), key=key, page_size=page_size, page_token=page_token
            ),
            lambda answer: Page(items=tracking.unpack_attribute_changes(answer), next_token=answer.next_page_token),
        )

    # --- delivery ------------------------------------------------------------------------------------------------

    async def deliver(self, spool: str, operations: Sequence[Operation], *, timeout_s: float = 0) -> Delivered:
        """Delivers operations of a spool; those that the server has already are skipped.

        Args:
            spool: 32 hexadecimal digits.
            operations: In order; together below the server's ``max_message_bytes``.
            timeout_s: For all attempts together; 0 for the setting ``request_timeout_s``.
        """
        request = encode_delivery(spool, operations)
        return await self._connection.unary(_DELIVER, request, tracking.unpack_delivered, timeout_s)

    # --- metrics -------------------------------------------------------------------------------------------------

    async def log_metrics(self, columns: Sequence[MetricColumns], *, timeout_s: float = 0) -> tuple[int, int]:
        """Appends points; returns how many were stored, and how many were there already."""
        return await self._connection.unary(
            _LOG_METRICS,
            encode_log_metrics(columns),
            lambda answer: (answer.stored, answer.repeated_points),
            timeout_s,
        )

    async def get_metric_summaries(self, objects: Sequence[str], keys: Sequence[str] = ()) -> tuple[MetricSummary, ...]:
        """What is known of series without reading them; of all keys where none is named."""
        return await self._connection.unary(
            _GET_METRIC_SUMMARIES,
            pb.GetMetricSummariesRequest(objects=list(objects), keys=list(keys)),
            lambda answer: tuple(metrics.unpack_summary(one) for one in answer.summaries),
        )

    async def read_series(
        self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None
    ) -> AsyncGenerator[MetricColumns, None]:
        """One series by step and time, in parts of at most 65,536 points. Close the iterator if you leave it early.

        When the connection breaks, it goes on from the last point.

        Args:
            object: Any object.
            key: The metric.
            from_step: The first step.
            to_step: The last step.
        """
        first, end = pack_optional_int64(from_step, "step"), pack_optional_int64(to_step, "step")
        last: tuple[int, int] | None = None
        failures = 0
        while True:
            begin = first if last is None else last[0]
            request = pb.ReadSeriesRequest(object=object, key=key, from_step=begin, to_step=end)
            parts = self._connection.stream(
                _READ_SERIES, request, lambda message: metrics.unpack_series(message, object, key)
            )
            try:
                async with aclosing(parts):
                    async for part in parts:
                        failures = 0
                        rest = part if last is None else _after(part, last)
                        if len(rest):
                            last = _last(rest.steps), _last(rest.times_us)
                            yield rest
                return
            except ModelBoxError as exc:
                failures += 1
                if not exc.retryable or failures == _ATTEMPTS:
                    raise
            await anyio.sleep(backoff_s(failures))

    async def sample_series(
        self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None, buckets: int = 0
    ) -> SampledSeries:
        """One series in at most so many buckets (1 to 10,000; 0 for 500)."""
        return await self._connection.unary(
            _SAMPLE_SERIES,
            pb.SampleSeriesRequest(
                object=object,
                key=key,
                from_step=pack_optional_int64(from_step, "step"),
                to_step=pack_optional_int64(to_step, "step"),
                buckets=min(pack_int64(buckets, "number of buckets"), _MAX_INT32),
            ),
            metrics.unpack_sampled,
        )

    # --- events, comments, readmes -------------------------------------------------------------------------------

    async def log_event(self, new: NewEvent) -> Event:
        """Records what an outside system reports."""
        return await self._connection.unary(_LOG_EVENT, notes.pack_new_event(new), notes.unpack_event)

    async def list_events(
        self,
        object: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        name: str = "",
        source: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Event]:
        """One page of events of an object or a namespace, newest first; at ``since`` or later, before ``until``."""
        return await self._connection.unary(
            _LIST_EVENTS,
            pb.ListEventsRequest(
                object=object,
                since_us=0 if since is None else pack_time(_aware(since)),
                until_us=0 if until is None else pack_time(_aware(until)),
                name=name,
                source=source,
                page_size=page_size,
                page_token=page_token,
            ),
            lambda answer: page(answer.events, notes.unpack_event, answer.next_page_token),
        )

    async def add_comment(self, new: NewComment) -> Comment:
        """Says something about an object."""
        return await self._connection.unary(_ADD_COMMENT, notes.pack_new_comment(new), notes.unpack_comment)

    async def edit_comment(self, comment: str, text: str) -> Comment:
        """Says it in other words."""
        return await self._connection.unary(
            _EDIT_COMMENT, pb.EditCommentRequest(id=comment, text=text), notes.unpack_comment
        )

    async def list_comments(
        self, object: str, *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Comment]:
        """One page of comments on an object, oldest first."""
        return await self._connection.unary(
            _LIST_COMMENTS,
            pb.ListCommentsRequest(
                object=object, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.comments, notes.unpack_comment, answer.next_page_token),
        )

    async def set_readme(self, edit: ReadmeEdit) -> Readme:
        """Writes the page of an object, or removes it."""
        return await self._connection.unary(_SET_README, notes.pack_readme_edit(edit), notes.unpack_readme)

    async def get_readme(self, object: str) -> Readme:
        """The page of an object."""
        return await self._connection.unary(_GET_README, pb.GetReadmeRequest(object=object), notes.unpack_readme)

    # --- datasets ------------------------------------------------------------------------------------------------

    async def create_dataset(self, new: NewDataset) -> Created[Dataset]:
        """Makes a dataset."""
        return await self._connection.unary(
            _CREATE_DATASET, datasets.pack_new_dataset(new), datasets.unpack_created_dataset
        )

    async def get_dataset(self, dataset: str) -> Dataset:
        """One dataset, by id or ``namespace/name``."""
        return await self._connection.unary(
            _GET_DATASET, pb.GetDatasetRequest(dataset=dataset), datasets.unpack_dataset
        )

    async def list_datasets(
        self, namespace: str = "", *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Dataset]:
        """One page of datasets."""
        return await self._connection.unary(
            _LIST_DATASETS,
            pb.ListDatasetsRequest(
                namespace=namespace, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.datasets, datasets.unpack_dataset, answer.next_page_token),
        )

    async def create_dataset_version(self, new: NewDatasetVersion) -> Created[DatasetVersion]:
        """Makes the next version of a dataset."""
        return await self._connection.unary(
            _CREATE_DATASET_VERSION, datasets.pack_new_dataset_version(new), datasets.unpack_created_dataset_version
        )

    async def get_dataset_version(self, version: str) -> DatasetVersion:
        """One version, by id, ``namespace/name@3``, or ``namespace/name`` for the newest."""
        return await self._connection.unary(
            _GET_DATASET_VERSION, pb.GetDatasetVersionRequest(version=version), datasets.unpack_dataset_version
        )

    async def list_dataset_versions(
        self, dataset: str, *, include_deleted: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[DatasetVersion]:
        """One page of versions, newest first."""
        return await self._connection.unary(
            _LIST_DATASET_VERSIONS,
            pb.ListDatasetVersionsRequest(
                dataset=dataset, include_deleted=include_deleted, page_size=page_size, page_token=page_token
            ),
            lambda answer: page(answer.versions, datasets.unpack_dataset_version, answer.next_page_token),
        )

    # --- lineage -------------------------------------------------------------------------------------------------

    async def add_edges(self, new: NewEdges) -> int:
        """Adds edges, all or none; returns how many are new."""
        return await self._connection.unary(_ADD_EDGES, lineage.pack_new_edges(new), lambda answer: answer.added)

    async def remove_edges(self, edges: Sequence[NewEdge]) -> int:
        """Removes edges; returns how many there were."""
        return await self._connection.unary(
            _REMOVE_EDGES, lineage.pack_removed_edges(edges), lambda answer: answer.removed
        )

    async def get_lineage(self, objects: Sequence[str], direction: str = "both", *, max_depth: int = 0) -> Lineage:
        """Where objects come from (``ancestors``), what came of them (``descendants``), or both."""
        return await self._connection.unary(
            _GET_LINEAGE,
            pb.GetLineageRequest(objects=list(objects), direction=direction, max_depth=max_depth),
            lineage.unpack_lineage,
        )

    # --- find ----------------------------------------------------------------------------------------------------

    async def find(
        self,
        collection: str,
        *,
        where: str = "",
        order_by: Sequence[str] = (),
        within: str = "",
        columns: Sequence[str] = (),
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> Found:
        """One page of the objects of a collection that a query lets through; see ``docs/find.md``."""
        return await self._connection.unary(
            _FIND,
            pb.FindRequest(
                collection=collection,
                where=where,
                order_by=list(order_by),
                within=within,
                columns=list(columns),
                include_deleted=include_deleted,
                page_size=page_size,
                page_token=page_token,
            ),
            find.unpack_found,
        )


def _after(part: MetricColumns, last: tuple[int, int]) -> MetricColumns:
    """What comes after a point in a part that may begin before it."""
    steps, times = np.frombuffer(part.steps, "<i8"), np.frombuffer(part.times_us, "<i8")
    seen = int(np.count_nonzero((steps < last[0]) | ((steps == last[0]) & (times <= last[1]))))
    return replace(
        part,
        steps=part.steps[seen * 8 :],
        times_us=part.times_us[seen * 8 :],
        values=part.values[seen * 8 :],
        kinds=part.kinds[seen:],
        # A series is of one kind: there is a payload for every point, or none.
        payloads=part.payloads[seen:],
    )


def _last(column: bytes) -> int:
    return int.from_bytes(column[-8:], "little", signed=True)


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.astimezone()
