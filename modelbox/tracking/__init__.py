"""What training code and people record: experiments, runs, checkpoints, datasets, and what attaches to any object.

Frozen data, the same on the server, on the wire and in user code; `modelbox.objects.to_json` gives the one JSON form.

Every object has an opaque id: a prefix that tells its kind and 24 hexadecimal digits (``run_5f0c…``). Ids are made by
whoever creates the object, so that a program can record while no server is in reach; creating an object twice with one
id makes it once. Parameters, tags, labels, metadata, metrics, events, artifacts, comments, a readme and lineage attach
to *any* object by its id. A namespace may also be named by its name, a model by ``namespace/model``, a version by
``namespace/model@7``.

Times are aware datetimes in UTC; ``mod_rev`` is the revision of the change feed that wrote the state.
"""

from modelbox.tracking.attributes import Attribute, AttributeChange, AttributeKind
from modelbox.tracking.datasets import (
    Dataset,
    DatasetComponent,
    DatasetVersion,
    NewDataset,
    NewDatasetVersion,
    digest_of_components,
)
from modelbox.tracking.delivery import (
    AttributesEdit,
    Delivered,
    NewComment,
    NewEdges,
    Operation,
    OperationPayload,
    ReadmeEdit,
    Rejection,
    RunEdit,
)
from modelbox.tracking.experiments import (
    Checkpoint,
    Experiment,
    ExperimentPatch,
    NewCheckpoint,
    NewExperiment,
    NewRun,
    Run,
    RunPatch,
    RunStatus,
)
from modelbox.tracking.finding import Found
from modelbox.tracking.ids import ObjectKind, check_id, kind_of_id, new_id
from modelbox.tracking.lineage import Lineage, LineageEdge, LineageNode, NewEdge
from modelbox.tracking.metrics import MetricColumns, MetricKind, MetricSummary, SampledSeries
from modelbox.tracking.notes import Comment, Event, NewEvent, Readme

__all__ = (
    "Attribute",
    "AttributeChange",
    "AttributeKind",
    "AttributesEdit",
    "Checkpoint",
    "Comment",
    "Dataset",
    "DatasetComponent",
    "DatasetVersion",
    "Delivered",
    "Event",
    "Experiment",
    "ExperimentPatch",
    "Found",
    "Lineage",
    "LineageEdge",
    "LineageNode",
    "MetricColumns",
    "MetricKind",
    "MetricSummary",
    "NewCheckpoint",
    "NewComment",
    "NewDataset",
    "NewDatasetVersion",
    "NewEdge",
    "NewEdges",
    "NewEvent",
    "NewExperiment",
    "NewRun",
    "ObjectKind",
    "Operation",
    "OperationPayload",
    "Readme",
    "ReadmeEdit",
    "Rejection",
    "Run",
    "RunEdit",
    "RunPatch",
    "RunStatus",
    "SampledSeries",
    "check_id",
    "digest_of_components",
    "kind_of_id",
    "new_id",
)
