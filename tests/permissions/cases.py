"""What every call and every route asks for, said once more and independently of the server's own table.

A case is the role that a caller has to have where the named thing is, and how somebody is answered who may not see it:

* ``hidden``: as if it were not there;
* ``made``: refused, whether it is there or not, since the call would make it;
* ``server``: refused, as it concerns the whole server;
* ``any``: let in, as the answer itself depends on the caller;
* ``open``: let in without a token.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelbox._proto.modelbox import v1 as pb

DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace with one thing of each kind, or names as if there were one."""

    ns: str
    model: str = "shared"
    run: str
    victim: str
    experiment: str
    checkpoint: str
    dataset: str
    dataset_version: str
    artifact: str
    event: str
    comment: str
    upload: str

    @property
    def path(self) -> str:
        return f"{self.ns}/{self.model}"

    @property
    def ref(self) -> str:
        return f"{self.path}@1"


@dataclass(frozen=True, slots=True)
class Case:
    """One call."""

    role: str
    answer: str
    fields: Callable[[Place], Mapping[str, Any]] = field(default=lambda _: {})


Fields = Callable[[Place], Mapping[str, Any]]


def _nothing(_: Place) -> Mapping[str, Any]:
    return {}


def read(fields: Fields) -> Case:
    return Case("reader", "hidden", fields)


def write(fields: Fields) -> Case:
    return Case("writer", "hidden", fields)


def made(fields: Fields) -> Case:
    return Case("writer", "made", fields)


def promote(fields: Fields) -> Case:
    return Case("promoter", "hidden", fields)


def admin(fields: Fields) -> Case:
    return Case("admin", "hidden", fields)


def server(role: str, fields: Fields = _nothing) -> Case:
    return Case(role, "server", fields)


def anyone(fields: Fields = _nothing) -> Case:
    return Case("", "any", fields)


def open_to_all(fields: Fields = _nothing) -> Case:
    return Case("", "open", fields)


def _points(p: Place) -> pb.MetricColumns:
    number = struct.pack("<q", 1)
    return pb.MetricColumns(object=p.run, keys=["loss"], steps=number, times_us=number, values=struct.pack("<d", 0.5))


def _edge(p: Place) -> Mapping[str, Any]:
    return {"edges": [pb.LineageEdge(source=p.run, target=p.path, type="made")]}


def _named(p: Place) -> Mapping[str, Any]:
    return {"namespace": p.ns, "name": p.model}


def _model(**more: Any) -> Fields:
    return lambda p: {"namespace": p.ns, "model": p.model, **more}


def _in(p: Place) -> Mapping[str, Any]:
    return {"namespace": p.ns}


def _scope(p: Place) -> Mapping[str, Any]:
    return {"scope": p.path}


CALLS: Mapping[str, Case] = {
    "RegistryService/CreateModel": made(_named),
    "RegistryService/GetModel": read(_named),
    "RegistryService/UpdateModel": write(_named),
    "RegistryService/DeleteModel": admin(lambda p: {"namespace": p.ns, "name": "nothing-here"}),
    "RegistryService/ListModels": read(_in),
    "RegistryService/ListNamespaces": anyone(),
    "RegistryService/PublishVersion": made(_model(manifest_json=b"{}")),
    "RegistryService/GetVersion": read(lambda p: {"ref": p.ref}),
    "RegistryService/UpdateVersion": write(_model(version=1, description="x")),
    "RegistryService/DeleteVersion": admin(_model(version=99)),
    "RegistryService/ListVersions": read(_model()),
    "RegistryService/Resolve": read(lambda p: {"ref": p.path}),
    "RegistryService/MoveAlias": write(_model(alias="beta", version=1)),
    "RegistryService/RollbackAlias": write(_model(alias="beta")),
    "RegistryService/DeleteAlias": write(_model(alias="gone")),
    "RegistryService/ListAliases": read(_model()),
    "RegistryService/ListAliasMoves": read(_model()),
    "ArtifactService/BeginUpload": made(lambda p: {"namespace": p.ns, "digest": DIGEST, "size_bytes": 1}),
    "ArtifactService/Upload": write(lambda p: {"upload_id": p.upload, "offset": 99}),
    "ArtifactService/BeginDownload": read(lambda p: {"ref": p.ref}),
    "ArtifactService/Download": read(lambda p: {"ref": p.ref, "path": "file0.bin"}),
    "ArtifactService/CreateArtifact": write(lambda p: {"parent": p.run, "name": "notes"}),
    "ArtifactService/GetArtifact": read(lambda p: {"artifact_id": p.artifact}),
    "ArtifactService/ListArtifacts": read(lambda p: {"parent": p.run}),
    "ArtifactService/DeleteArtifact": admin(lambda p: {"artifact_id": p.artifact}),
    "WatchService/List": read(lambda p: {"filter": pb.Filter(namespace=p.ns)}),
    "WatchService/Watch": read(lambda p: {"filter": pb.Filter(namespace=p.ns)}),
    "FleetService/Report": read(
        lambda p: {"reports": [pb.InstanceReport(instance_id="one", ref=p.ref, state="active")]}
    ),
    "FleetService/ListInstances": read(lambda p: {"path": p.path}),
    "TrackingService/CreateExperiment": made(lambda p: {"namespace": p.ns, "name": "new"}),
    "TrackingService/GetExperiment": read(lambda p: {"experiment": f"{p.ns}/speech"}),
    "TrackingService/UpdateExperiment": write(lambda p: {"experiment": p.experiment}),
    "TrackingService/ListExperiments": read(_in),
    "TrackingService/CreateRun": made(lambda p: {"experiment": f"{p.ns}/speech"}),
    "TrackingService/GetRun": read(lambda p: {"id": p.run}),
    "TrackingService/UpdateRun": write(lambda p: {"id": p.run, "name": "renamed"}),
    "TrackingService/ListRuns": read(lambda p: {"parent": p.experiment}),
    "TrackingService/CloneRun": write(lambda p: {"source_id": p.run}),
    "TrackingService/CreateCheckpoint": write(lambda p: {"parent_id": p.run, "epoch": 7}),
    "TrackingService/GetCheckpoint": read(lambda p: {"id": p.checkpoint}),
    "TrackingService/ListCheckpoints": read(lambda p: {"parent_id": p.run}),
    "TrackingService/DeleteObjects": write(lambda p: {"ids": [p.victim]}),
    "TrackingService/RestoreObjects": write(lambda p: {"ids": [p.victim]}),
    "TrackingService/Purge": admin(lambda p: {"namespace": p.ns, "deleted_before_us": 1, "dry_run": True}),
    "TrackingService/SetAttributes": write(lambda p: {"object": p.run, "kind": "tag", "values_json": b'{"a": 1}'}),
    "TrackingService/GetAttributes": read(lambda p: {"objects": [p.run]}),
    "TrackingService/ListAttributeHistory": read(lambda p: {"object": p.path, "kind": "tag"}),
    "TrackingService/Deliver": anyone(),
    "MetricService/LogMetrics": write(lambda p: {"columns": [_points(p)]}),
    "MetricService/GetMetricSummaries": read(lambda p: {"objects": [p.run]}),
    "MetricService/ReadSeries": read(lambda p: {"object": p.run, "key": "loss"}),
    "MetricService/SampleSeries": read(lambda p: {"object": p.run, "key": "loss"}),
    "NoteService/LogEvent": write(lambda p: {"object": p.run, "name": "started"}),
    "NoteService/ListEvents": read(lambda p: {"object": p.ns}),
    "NoteService/AddComment": write(lambda p: {"object": p.run, "text": "hm"}),
    "NoteService/EditComment": write(lambda p: {"id": p.comment, "text": "oh"}),
    "NoteService/ListComments": read(lambda p: {"object": p.path}),
    "NoteService/SetReadme": write(lambda p: {"object": p.run, "text": "# hi"}),
    "NoteService/GetReadme": read(lambda p: {"object": p.run}),
    "DatasetService/CreateDataset": made(lambda p: {"namespace": p.ns, "name": "new"}),
    "DatasetService/GetDataset": read(lambda p: {"dataset": f"{p.ns}/corpus"}),
    "DatasetService/ListDatasets": read(_in),
    "DatasetService/CreateDatasetVersion": made(
        lambda p: {
            "namespace": p.ns,
            "dataset": "corpus",
            "components": [pb.DatasetComponent(type="path", location="/data/a")],
        }
    ),
    "DatasetService/GetDatasetVersion": read(lambda p: {"version": p.dataset_version}),
    "DatasetService/ListDatasetVersions": read(lambda p: {"dataset": p.dataset}),
    "LineageService/AddEdges": write(_edge),
    "LineageService/RemoveEdges": write(_edge),
    "LineageService/GetLineage": read(lambda p: {"objects": [p.run], "direction": "both"}),
    "FindService/Find": read(lambda p: {"collection": "runs", "within": p.experiment}),
    "RetentionService/SetPolicy": admin(
        lambda p: {"policy": pb.RetentionPolicy(scope=p.path, kind="versions", keep_all=True)}
    ),
    "RetentionService/GetPolicy": read(lambda p: {"scope": p.path, "kind": "versions"}),
    "RetentionService/ListPolicies": read(_in),
    "RetentionService/DeletePolicy": admin(lambda p: {"scope": p.path, "kind": "runs"}),
    "RetentionService/Plan": read(lambda p: {"scope": p.path, "kind": "versions"}),
    "RetentionService/RunRetention": admin(_scope),
    "RetentionService/LockVersion": promote(_model(version=1)),
    "RetentionService/UnlockVersion": promote(_model(version=1)),
    "RetentionService/ListLocks": read(_scope),
    "SpaceService/SetQuota": server("admin", lambda p: {"namespace": p.ns, "limit_bytes": 1 << 40}),
    "SpaceService/DeleteQuota": server("admin", _in),
    "SpaceService/ListQuotas": read(_in),
    "SpaceService/ListUsage": read(_in),
    "SpaceService/GetSpaceTotals": server("reader"),
    "SpaceService/Collect": server("admin", lambda _: {"dry_run": True}),
    "SpaceService/CheckSpace": server("admin"),
    "RuleService/SetRule": admin(lambda p: {"rule": pb.Rule(scope=p.path, labels=["team"], alias="never")}),
    "RuleService/ListRules": read(_scope),
    "RuleService/DeleteRule": admin(lambda p: {"scope": p.path, "alias": "never"}),
    "RuleService/CheckRules": read(_model(version=1)),
    "RuleService/ProtectAlias": admin(lambda p: {"scope": p.path, "alias": "never"}),
    "RuleService/ListProtections": read(_scope),
    "RuleService/UnprotectAlias": admin(lambda p: {"scope": p.path, "alias": "never"}),
    "RuleService/ListAliasRequests": read(_model()),
    "RuleService/ApproveAliasRequest": promote(_model(id="nothing")),
    "RuleService/RejectAliasRequest": write(_model(id="nothing")),
    "AccessService/WhoAmI": anyone(),
    "AccessService/CreateAccount": anyone(),
    "AccessService/ListAccounts": anyone(),
    "AccessService/UpdateAccount": anyone(),
    "AccessService/DeleteAccount": anyone(),
    "AccessService/GrantRole": anyone(lambda p: {"account": "stranger", "namespace": p.ns, "role": "reader"}),
    "AccessService/RevokeRole": anyone(lambda p: {"account": "stranger", "namespace": p.ns}),
    "AccessService/ListGrants": anyone(_in),
    "AccessService/CreateToken": anyone(),
    "AccessService/ListTokens": anyone(),
    "AccessService/RevokeToken": anyone(),
    "AuditService/ListAudit": anyone(lambda p: {"filter": pb.AuditFilter(namespace=p.ns)}),
    "ServerService/GetServerInfo": open_to_all(),
    "ServerService/ListMembers": server("reader"),
    "grpc.health.v1.Health/Check": open_to_all(),
    "grpc.health.v1.Health/Watch": open_to_all(),
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": open_to_all(),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": open_to_all(),
}


def _path(**more: Any) -> Fields:
    """A model in the path of a route; ``more`` are its other parts, or ``query`` and ``body``."""
    return lambda p: {"ns": p.ns, "model": p.model, **more}


def _query(name: str, attribute: str) -> Fields:
    return lambda p: {"query": {name: getattr(p, attribute)}}


def _part(name: str, attribute: str, **more: Any) -> Fields:
    return lambda p: {name: getattr(p, attribute), **more}


def _body(**fields: str | Callable[[Place], Any]) -> Fields:
    return lambda p: {"body": {key: one(p) if callable(one) else one for key, one in fields.items()}}


_edges: Fields = lambda p: {"body": {"edges": [{"source": p.run, "target": p.path, "type": "made"}]}}  # noqa: E731
_lock = _path(version="1", body={"reason": "x"})

ROUTES: Mapping[str, Case] = {
    "GET /healthz": open_to_all(),
    "GET /readyz": open_to_all(),
    "GET /api/v1/server": open_to_all(),
    "GET /api/v1/members": server("reader"),
    "POST /api/v1/uploads": made(_body(namespace=lambda p: p.ns, digest=DIGEST, size_bytes=lambda _: 1)),
    "GET /api/v1/uploads/{id}": write(_part("id", "upload")),
    "PATCH /api/v1/uploads/{id}": write(_part("id", "upload")),
    "POST /api/v1/uploads/{id}/urls": write(_part("id", "upload")),
    "GET /api/v1/models/{ns}/{model}/versions/{selector}": read(_path(selector="1")),
    "GET /api/v1/models/{ns}/{model}/versions/{selector}/files/{path}": read(_path(selector="1", path="file0.bin")),
    "GET /api/v1/artifacts/{id}/files/{path}": read(_part("id", "artifact", path="file0.bin")),
    "GET /api/v1/changes": read(_query("namespace", "ns")),
    "GET /api/v1/experiments": read(_query("namespace", "ns")),
    "POST /api/v1/experiments": made(_body(namespace=lambda p: p.ns, name="new")),
    "GET /api/v1/experiments/{experiment}": read(_part("experiment", "experiment")),
    "PATCH /api/v1/experiments/{experiment}": write(_part("experiment", "experiment", body={"task": "asr"})),
    "GET /api/v1/runs": read(_query("parent", "experiment")),
    "POST /api/v1/runs": made(_body(experiment=lambda p: f"{p.ns}/speech")),
    "GET /api/v1/runs/{run}": read(_part("run", "run")),
    "PATCH /api/v1/runs/{run}": write(_part("run", "run", body={"name": "renamed"})),
    "POST /api/v1/runs/{run}/clone": write(_part("run", "run")),
    "GET /api/v1/checkpoints": read(_query("parent", "run")),
    "POST /api/v1/checkpoints": write(_body(parent_id=lambda p: p.run, epoch=lambda _: 8)),
    "GET /api/v1/checkpoints/{checkpoint}": read(_part("checkpoint", "checkpoint")),
    "POST /api/v1/objects/delete": write(_body(ids=lambda p: [p.victim])),
    "POST /api/v1/objects/restore": write(_body(ids=lambda p: [p.victim])),
    "GET /api/v1/attributes": read(_query("object", "path")),
    "POST /api/v1/attributes": write(_body(object=lambda p: p.run, kind="tag", values=lambda _: {"a": 2})),
    "GET /api/v1/attributes/history": read(lambda p: {"query": {"object": p.run, "kind": "tag"}}),
    "GET /api/v1/metrics": read(_query("object", "run")),
    "POST /api/v1/metrics": write(
        _body(object=lambda p: p.run, points=lambda _: [{"key": "loss", "step": 2, "value": 1}])
    ),
    "GET /api/v1/metrics/series": read(lambda p: {"query": {"object": p.run, "key": "loss"}}),
    "GET /api/v1/metrics/sample": read(lambda p: {"query": {"object": p.run, "key": "loss"}}),
    "GET /api/v1/find": read(lambda p: {"query": {"collection": "runs", "within": p.ns}}),
    "POST /api/v1/find": read(_body(collection="runs", within=lambda p: p.ns)),
    "GET /api/v1/events": read(_query("object", "run")),
    "POST /api/v1/events": write(_body(object=lambda p: p.run, name="started")),
    "GET /api/v1/comments": read(_query("object", "run")),
    "POST /api/v1/comments": write(_body(object=lambda p: p.run, text="hm")),
    "PATCH /api/v1/comments/{comment}": write(_part("comment", "comment", body={"text": "ah"})),
    "GET /api/v1/readme": read(_query("object", "run")),
    "PUT /api/v1/readme": write(_body(object=lambda p: p.run, text="# hi")),
    "GET /api/v1/datasets": read(_query("namespace", "ns")),
    "POST /api/v1/datasets": made(_body(namespace=lambda p: p.ns, name="new")),
    "GET /api/v1/datasets/{dataset}": read(_part("dataset", "dataset")),
    "GET /api/v1/dataset-versions": read(_query("dataset", "dataset")),
    "POST /api/v1/dataset-versions": made(
        _body(
            namespace=lambda p: p.ns, dataset="corpus", components=lambda _: [{"type": "path", "location": "/data/b"}]
        )
    ),
    "GET /api/v1/dataset-versions/{version}": read(_part("version", "dataset_version")),
    "GET /api/v1/lineage": read(_query("object", "run")),
    "POST /api/v1/lineage": write(_edges),
    "POST /api/v1/lineage/remove": write(_edges),
    "GET /api/v1/retention": read(_query("namespace", "ns")),
    "PUT /api/v1/retention": admin(_body(scope=lambda p: p.path, kind="versions", keep_all=lambda _: True)),
    "DELETE /api/v1/retention": admin(lambda p: {"query": {"scope": p.path, "kind": "runs"}}),
    "GET /api/v1/retention/plan": read(lambda p: {"query": {"scope": p.path, "kind": "versions"}}),
    "POST /api/v1/retention/run": admin(_query("scope", "path")),
    "GET /api/v1/locks": read(_query("scope", "path")),
    "PUT /api/v1/models/{ns}/{model}/versions/{version}/lock": promote(_lock),
    "DELETE /api/v1/models/{ns}/{model}/versions/{version}/lock": promote(_lock),
    "GET /api/v1/quotas": read(_query("namespace", "ns")),
    "PUT /api/v1/quotas/{namespace}": server("admin", _part("namespace", "ns", body={"limit_bytes": 1 << 40})),
    "DELETE /api/v1/quotas/{namespace}": server("admin", _part("namespace", "ns")),
    "GET /api/v1/space": read(_query("namespace", "ns")),
    "GET /api/v1/space/totals": server("reader"),
    "GET /api/v1/rules": read(_query("scope", "path")),
    "PUT /api/v1/rules": admin(_body(scope=lambda p: p.path, alias="never", labels=lambda _: ["team"])),
    "DELETE /api/v1/rules": admin(lambda p: {"query": {"scope": p.path, "alias": "never"}}),
    "GET /api/v1/protections": read(_query("scope", "path")),
    "PUT /api/v1/protections": admin(_body(scope=lambda p: p.path, alias="never")),
    "DELETE /api/v1/protections": admin(lambda p: {"query": {"scope": p.path, "alias": "never"}}),
    "GET /api/v1/models/{ns}/{model}/rules/missing": read(_path(query={"version": "1"})),
    "GET /api/v1/models/{ns}/{model}/requests": read(_path()),
    "POST /api/v1/models/{ns}/{model}/requests/{id}/approve": promote(_path(id="nothing", body={})),
    "POST /api/v1/models/{ns}/{model}/requests/{id}/reject": write(_path(id="nothing", body={})),
    "GET /api/v1/audit": anyone(_query("namespace", "ns")),
    "GET /api/v1/audit/export": anyone(_query("namespace", "ns")),
    "GET /api/v1/whoami": anyone(),
    "GET /api/v1/accounts": anyone(),
    "POST /api/v1/accounts": anyone(),
    "PATCH /api/v1/accounts/{account}": anyone(lambda _: {"account": "nobody"}),
    "DELETE /api/v1/accounts/{account}": anyone(lambda _: {"account": "nobody"}),
    "GET /api/v1/roles": anyone(_query("namespace", "ns")),
    "PUT /api/v1/roles": anyone(_body(account="stranger", namespace=lambda p: p.ns, role="reader")),
    "DELETE /api/v1/roles": anyone(lambda p: {"query": {"account": "stranger", "namespace": p.ns}}),
    "GET /api/v1/tokens": anyone(),
    "POST /api/v1/tokens": anyone(),
    "DELETE /api/v1/tokens/{id}": anyone(lambda _: {"id": "nothing"}),
}
