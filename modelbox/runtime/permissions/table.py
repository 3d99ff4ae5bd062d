"""The one table: what every method of gRPC and every route of HTTP needs.

A method or route without a row stops the server's start (`check_calls`, `check_routes`), and one with a row and nothing
behind it fails a test.

To add a row: name the method as ``Service/Method`` in `CALLS`, or the route as ``METHOD /api/v1/path/{part}`` in
`ROUTES` (HEAD goes by the row of GET), and say

* ``READ``, ``WRITE``, ``PROMOTE`` or ``ADMIN`` on what the request names: ``_read(model("namespace", "name"))``. The
  builders (`model`, `things`, `at` …) are in `modelbox.runtime.permissions.rules`; several things are added:
  ``_write(things("target")) & _read(things("source"))``;
* `listing` where the service leaves out what the caller may not see (`modelbox.runtime.caller.current_scope`);
* `anybody` where a token is all that is needed, as the service decides by `current_caller` itself;
* `nobody` where not even that is, as the answer holds nothing that anybody could not know.

What a row names and the caller may not read is answered as if it were not there, which nobody can tell from its not
being there. What a request names to have it made (``_write(…, "model")``) is refused in so many words instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from modelbox.access import Permission
from modelbox.errors import ConfigError
from modelbox.runtime.permissions.rules import (
    Finder,
    Need,
    Rule,
    anybody,
    at,
    each,
    listing,
    model,
    namespace,
    nobody,
    optional,
    refs,
    server,
    things,
)

__all__ = ("CALLS", "PACKAGE", "ROUTES", "check_calls", "check_routes", "rule_of_call", "rule_of_route", "short_name")

PACKAGE = "modelbox.v1"
_READ, _WRITE, _PROMOTE, _ADMIN = Permission


def _read(on: Finder) -> Rule:
    return Rule(needs=(Need(permission=_READ, on=on),))


def _promote(on: Finder) -> Rule:
    return Rule(needs=(Need(permission=_PROMOTE, on=on),))


def _admin(on: Finder) -> Rule:
    return Rule(needs=(Need(permission=_ADMIN, on=on),))


def _write(
    on: Finder,
    *creates: str,
    fresh: Finder | None = None,
    made: Callable[[Any], Iterable[tuple[str, str]]] | None = None,
) -> Rule:
    """Writes; ``creates`` are the kinds of what is made where it is named and not there."""
    need = Need(permission=_WRITE, on=on, creates=frozenset(creates))
    return Rule(needs=(need,), fresh=fresh, made=made)


def _upload(on: Finder) -> Rule:
    """Bytes are of a namespace; they are of use to who may write a model of it, too."""
    return Rule(needs=(Need(permission=_WRITE, on=on, creates=frozenset({"namespace"}), somewhere=True),))


def _made(field: str) -> Callable[[Any], Iterable[tuple[str, str]]]:
    def read(answer: Any) -> Iterable[tuple[str, str]]:
        made = getattr(answer, field)
        return ((made.id, made.namespace),)

    return read


_MODEL = model("namespace", "name")
_OF_MODEL = model("namespace", "model")
_OBJECT = things("object")
_IN_NAMESPACE = listing(optional(namespace("namespace")))
_NEW_ID = optional(things("id", "id"))

CALLS: Mapping[str, Rule] = {
    # -- the registry: whose removal is for good
    "RegistryService/CreateModel": _write(_MODEL, "model"),
    "RegistryService/GetModel": _read(_MODEL),
    "RegistryService/UpdateModel": _write(_MODEL),
    "RegistryService/DeleteModel": _admin(_MODEL),
    "RegistryService/ListModels": _IN_NAMESPACE,
    "RegistryService/ListNamespaces": anybody(),
    "RegistryService/PublishVersion": (
        _write(_OF_MODEL, "model") & _read(optional(things("run", "id"))) & _read(optional(things("checkpoint", "id")))
    ),
    "RegistryService/GetVersion": _read(refs("ref")),
    "RegistryService/UpdateVersion": _write(_OF_MODEL),
    "RegistryService/DeleteVersion": _admin(_OF_MODEL),
    "RegistryService/ListVersions": _read(_OF_MODEL),
    "RegistryService/Resolve": _read(refs("ref")),
    # Protected ones need more, which the registry knows in its own transaction.
    "RegistryService/MoveAlias": _write(_OF_MODEL),
    "RegistryService/RollbackAlias": _write(_OF_MODEL),
    "RegistryService/DeleteAlias": _write(_OF_MODEL),
    "RegistryService/ListAliases": _read(_OF_MODEL),
    "RegistryService/ListAliasMoves": _read(_OF_MODEL),
    # -- bytes: by version and path, or by artifact and path; never by digest
    "ArtifactService/BeginUpload": _upload(things("namespace")),
    "ArtifactService/Upload": _upload(things("upload_id", "id")),
    "ArtifactService/BeginDownload": _read(refs("ref")),
    "ArtifactService/Download": _read(optional(refs("ref"))) & _read(optional(things("artifact_id", "id"))),
    "ArtifactService/CreateArtifact": _write(things("parent"), "namespace"),
    "ArtifactService/GetArtifact": _read(things("artifact_id", "id")),
    "ArtifactService/ListArtifacts": _read(optional(things("parent"))) & _IN_NAMESPACE,
    "ArtifactService/DeleteArtifact": _admin(things("artifact_id", "id")),
    # -- the change feed: what is outside of the caller's scope is left out of it
    "WatchService/List": listing(optional(namespace("filter.namespace"))),
    "WatchService/Watch": listing(optional(namespace("filter.namespace"))),
    # -- the fleet
    "FleetService/Report": _read(each("reports", refs("ref"))),
    "FleetService/ListInstances": listing(optional(at("path"))),
    # -- tracking
    "TrackingService/CreateExperiment": _write(
        namespace("namespace"), "namespace", fresh=_NEW_ID, made=_made("experiment")
    ),
    "TrackingService/GetExperiment": _read(things("experiment", "path")),
    "TrackingService/UpdateExperiment": _write(things("experiment", "path")),
    "TrackingService/ListExperiments": _IN_NAMESPACE,
    "TrackingService/CreateRun": (
        _write(things("experiment", "path"), "object", fresh=_NEW_ID, made=_made("run"))
        & _write(optional(things("parent_id", "id")))
    ),
    "TrackingService/GetRun": _read(things("id", "id")),
    "TrackingService/UpdateRun": _write(things("id", "id")),
    "TrackingService/ListRuns": listing(optional(things("parent", "path"))),
    "TrackingService/CloneRun": _write(things("source_id", "id"), fresh=_NEW_ID, made=_made("run")),
    "TrackingService/CreateCheckpoint": _write(things("parent_id", "id"), fresh=_NEW_ID, made=_made("checkpoint")),
    "TrackingService/GetCheckpoint": _read(things("id", "id")),
    "TrackingService/ListCheckpoints": _read(things("parent_id", "id")),
    "TrackingService/DeleteObjects": _write(things("ids", "id")),
    "TrackingService/RestoreObjects": _write(things("ids", "id")),
    "TrackingService/Purge": _admin(at("namespace")),
    "TrackingService/SetAttributes": _write(_OBJECT),
    "TrackingService/GetAttributes": _read(optional(things("objects"))),
    "TrackingService/ListAttributeHistory": _read(_OBJECT),
    # Each operation by the row of its own call: see `modelbox.runtime.permissions.deliveries`.
    "TrackingService/Deliver": Rule(screened=True),
    # -- metrics
    "MetricService/LogMetrics": _write(each("columns", _OBJECT)),
    "MetricService/GetMetricSummaries": _read(optional(things("objects"))),
    "MetricService/ReadSeries": _read(_OBJECT),
    "MetricService/SampleSeries": _read(_OBJECT),
    # -- notes
    "NoteService/LogEvent": _write(_OBJECT, fresh=_NEW_ID, made=lambda event: ((event.id, event.namespace),)),
    "NoteService/ListEvents": listing(_OBJECT),
    "NoteService/AddComment": _write(_OBJECT, fresh=_NEW_ID),
    "NoteService/EditComment": _write(things("id", "id")),
    "NoteService/ListComments": _read(_OBJECT),
    "NoteService/SetReadme": _write(_OBJECT),
    "NoteService/GetReadme": _read(_OBJECT),
    # -- datasets
    "DatasetService/CreateDataset": _write(namespace("namespace"), "namespace", fresh=_NEW_ID),
    "DatasetService/GetDataset": _read(things("dataset", "path")),
    "DatasetService/ListDatasets": _IN_NAMESPACE,
    "DatasetService/CreateDatasetVersion": _write(namespace("namespace"), "namespace", fresh=_NEW_ID),
    "DatasetService/GetDatasetVersion": _read(things("version", "path")),
    "DatasetService/ListDatasetVersions": _read(things("dataset", "path")),
    # -- lineage: an edge is part of what was made from something
    "LineageService/AddEdges": _write(each("edges", things("target"))) & _read(each("edges", things("source"))),
    "LineageService/RemoveEdges": _write(each("edges", things("target"))) & _read(each("edges", things("source"))),
    "LineageService/GetLineage": _read(things("objects")),
    # -- finding
    "FindService/Find": listing(optional(things("within"))),
    # -- retention: which removes for good
    "RetentionService/SetPolicy": _admin(at("policy.scope")),
    "RetentionService/GetPolicy": _read(at("scope")),
    "RetentionService/ListPolicies": _IN_NAMESPACE,
    "RetentionService/DeletePolicy": _admin(at("scope")),
    "RetentionService/Plan": _read(at("scope")) & _read(optional(at("policy.scope"))),
    "RetentionService/RunRetention": _admin(at("scope")),
    "RetentionService/LockVersion": _promote(_OF_MODEL),
    "RetentionService/UnlockVersion": _promote(_OF_MODEL),
    "RetentionService/ListLocks": listing(optional(at("scope"))),
    # -- space: a namespace does not set its own quota
    "SpaceService/SetQuota": _admin(server()),
    "SpaceService/DeleteQuota": _admin(server()),
    "SpaceService/ListQuotas": _IN_NAMESPACE,
    "SpaceService/ListUsage": _IN_NAMESPACE,
    "SpaceService/GetSpaceTotals": _read(server()),
    "SpaceService/Collect": _admin(server()),
    "SpaceService/CheckSpace": _admin(server()),
    # -- rules: who asks for a move, and who approves it, is for the registry's transaction, too
    "RuleService/SetRule": _admin(at("rule.scope")),
    "RuleService/ListRules": listing(optional(at("scope"))),
    "RuleService/DeleteRule": _admin(at("scope")),
    "RuleService/CheckRules": _read(_OF_MODEL),
    "RuleService/ProtectAlias": _admin(at("scope")),
    "RuleService/ListProtections": listing(optional(at("scope"))),
    "RuleService/UnprotectAlias": _admin(at("scope")),
    "RuleService/ListAliasRequests": _read(_OF_MODEL),
    "RuleService/ApproveAliasRequest": _promote(_OF_MODEL),
    "RuleService/RejectAliasRequest": _write(_OF_MODEL),
    # -- access: the service goes by the caller's own roles
    "AccessService/WhoAmI": anybody(),
    "AccessService/CreateAccount": anybody(),
    "AccessService/ListAccounts": anybody(),
    "AccessService/UpdateAccount": anybody(),
    "AccessService/DeleteAccount": anybody(),
    "AccessService/GrantRole": anybody(),
    "AccessService/RevokeRole": anybody(),
    "AccessService/ListGrants": anybody(),
    "AccessService/CreateToken": anybody(),
    "AccessService/ListTokens": anybody(),
    "AccessService/RevokeToken": anybody(),
    # -- the audit log: the service goes by where the caller is an admin
    "AuditService/ListAudit": anybody(),
    # -- the server
    "ServerService/GetServerInfo": nobody(),
    "ServerService/ListMembers": _read(server()),
    "grpc.health.v1.Health/Check": nobody(),
    "grpc.health.v1.Health/Watch": nobody(),
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": nobody(),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": nobody(),
}

_PATH_MODEL = model("path.ns", "path.model")
_BODY_NEW_ID = optional(things("body.id", "id"))
_QUERY_NAMESPACE = listing(optional(namespace("query.namespace")))

ROUTES: Mapping[str, Rule] = {
    "GET /healthz": nobody(),
    "GET /readyz": nobody(),
    # Of the port for metrics: counts by method and by status, and no object's name.
    "GET /metrics": nobody(),
    "GET /api/v1/server": nobody(),
    "GET /api/v1/members": _read(server()),
    # -- bytes
    "POST /api/v1/uploads": _upload(things("body.namespace")),
    "GET /api/v1/uploads/{id}": _upload(things("path.id", "id")),
    "PATCH /api/v1/uploads/{id}": _upload(things("path.id", "id")),
    "POST /api/v1/uploads/{id}/urls": _upload(things("path.id", "id")),
    "GET /api/v1/models/{ns}/{model}/versions/{selector}": _read(_PATH_MODEL),
    "GET /api/v1/models/{ns}/{model}/versions/{selector}/files/{path}": _read(_PATH_MODEL),
    "GET /api/v1/artifacts/{id}/files/{path}": _read(things("path.id", "id")),
    # -- the change feed
    "GET /api/v1/changes": listing(optional(namespace("query.namespace"))),
    # -- tracking
    "GET /api/v1/experiments": _QUERY_NAMESPACE,
    "POST /api/v1/experiments": _write(namespace("body.namespace"), "namespace", fresh=_BODY_NEW_ID),
    "GET /api/v1/experiments/{experiment}": _read(things("path.experiment", "path")),
    "PATCH /api/v1/experiments/{experiment}": _write(things("path.experiment", "path")),
    "GET /api/v1/runs": listing(optional(things("query.parent", "path"))),
    "POST /api/v1/runs": (
        _write(things("body.experiment", "path"), "object", fresh=_BODY_NEW_ID)
        & _write(optional(things("body.parent_id", "id")))
    ),
    "GET /api/v1/runs/{run}": _read(things("path.run", "id")),
    "PATCH /api/v1/runs/{run}": _write(things("path.run", "id")),
    "POST /api/v1/runs/{run}/clone": _write(things("path.run", "id"), fresh=_BODY_NEW_ID),
    "GET /api/v1/checkpoints": _read(things("query.parent", "id")),
    "POST /api/v1/checkpoints": _write(things("body.parent_id", "id"), fresh=_BODY_NEW_ID),
    "GET /api/v1/checkpoints/{checkpoint}": _read(things("path.checkpoint", "id")),
    "POST /api/v1/objects/delete": _write(things("body.ids", "id")),
    "POST /api/v1/objects/restore": _write(things("body.ids", "id")),
    "GET /api/v1/attributes": _read(things("query.object")),
    "POST /api/v1/attributes": _write(things("body.object")),
    "GET /api/v1/attributes/history": _read(things("query.object")),
    # -- metrics
    "GET /api/v1/metrics": _read(things("query.object")),
    "POST /api/v1/metrics": _write(things("body.object")),
    "GET /api/v1/metrics/series": _read(things("query.object")),
    "GET /api/v1/metrics/sample": _read(things("query.object")),
    # -- finding
    "GET /api/v1/find": listing(optional(things("query.within"))),
    "POST /api/v1/find": listing(optional(things("body.within"))),
    # -- notes, datasets, lineage
    "GET /api/v1/events": listing(things("query.object")),
    "POST /api/v1/events": _write(things("body.object"), fresh=_BODY_NEW_ID),
    "GET /api/v1/comments": _read(things("query.object")),
    "POST /api/v1/comments": _write(things("body.object"), fresh=_BODY_NEW_ID),
    "PATCH /api/v1/comments/{comment}": _write(things("path.comment", "id")),
    "GET /api/v1/readme": _read(things("query.object")),
    "PUT /api/v1/readme": _write(things("body.object")),
    "GET /api/v1/datasets": _QUERY_NAMESPACE,
    "POST /api/v1/datasets": _write(namespace("body.namespace"), "namespace", fresh=_BODY_NEW_ID),
    "GET /api/v1/datasets/{dataset}": _read(things("path.dataset", "path")),
    "GET /api/v1/dataset-versions": _read(things("query.dataset", "path")),
    "POST /api/v1/dataset-versions": _write(namespace("body.namespace"), "namespace", fresh=_BODY_NEW_ID),
    "GET /api/v1/dataset-versions/{version}": _read(things("path.version", "path")),
    "GET /api/v1/lineage": _read(things("query.object")),
    "POST /api/v1/lineage": (
        _write(each("body.edges", things("target"))) & _read(each("body.edges", things("source")))
    ),
    "POST /api/v1/lineage/remove": (
        _write(each("body.edges", things("target"))) & _read(each("body.edges", things("source")))
    ),
    # -- retention, locks, space
    "GET /api/v1/retention": _QUERY_NAMESPACE,
    "PUT /api/v1/retention": _admin(at("body.scope")),
    "DELETE /api/v1/retention": _admin(at("query.scope")),
    "GET /api/v1/retention/plan": _read(at("query.scope")),
    "POST /api/v1/retention/run": _admin(at("query.scope")),
    "GET /api/v1/locks": listing(optional(at("query.scope"))),
    "PUT /api/v1/models/{ns}/{model}/versions/{version}/lock": _promote(_PATH_MODEL),
    "DELETE /api/v1/models/{ns}/{model}/versions/{version}/lock": _promote(_PATH_MODEL),
    "GET /api/v1/quotas": _QUERY_NAMESPACE,
    "PUT /api/v1/quotas/{namespace}": _admin(server()),
    "DELETE /api/v1/quotas/{namespace}": _admin(server()),
    "GET /api/v1/space": _QUERY_NAMESPACE,
    "GET /api/v1/space/totals": _read(server()),
    # -- the audit log: the service goes by where the caller is an admin
    "GET /api/v1/audit": anybody(),
    "GET /api/v1/audit/export": anybody(),
    # -- access: the service goes by the caller's own roles
    "GET /api/v1/whoami": anybody(),
    "GET /api/v1/accounts": anybody(),
    "POST /api/v1/accounts": anybody(),
    "PATCH /api/v1/accounts/{account}": anybody(),
    "DELETE /api/v1/accounts/{account}": anybody(),
    "GET /api/v1/roles": anybody(),
    "PUT /api/v1/roles": anybody(),
    "DELETE /api/v1/roles": anybody(),
    "GET /api/v1/tokens": anybody(),
    "POST /api/v1/tokens": anybody(),
    "DELETE /api/v1/tokens/{id}": anybody(),
    # -- rules
    "GET /api/v1/rules": listing(optional(at("query.scope"))),
    "PUT /api/v1/rules": _admin(at("body.scope")),
    "DELETE /api/v1/rules": _admin(at("query.scope")),
    "GET /api/v1/protections": listing(optional(at("query.scope"))),
    "PUT /api/v1/protections": _admin(at("body.scope")),
    "DELETE /api/v1/protections": _admin(at("query.scope")),
    "GET /api/v1/models/{ns}/{model}/rules/missing": _read(_PATH_MODEL),
    "GET /api/v1/models/{ns}/{model}/requests": _read(_PATH_MODEL),
    "POST /api/v1/models/{ns}/{model}/requests/{id}/approve": _promote(_PATH_MODEL),
    "POST /api/v1/models/{ns}/{model}/requests/{id}/reject": _write(_PATH_MODEL),
}


_UNLISTED = _admin(server())


def rule_of_call(path: str) -> Rule:
    """The row of a method, as ``/package.Service/Method``; what has none is for admins."""
    return CALLS.get(short_name(path), _UNLISTED)


def rule_of_route(route: str) -> Rule:
    """The row of a route, as ``METHOD /path/{part}``; what has none is for admins."""
    return ROUTES.get(_as_get(route), _UNLISTED)


def short_name(path: str) -> str:
    """The name of a method in `CALLS`."""
    return path.removeprefix("/").removeprefix(f"{PACKAGE}.")


def _as_get(route: str) -> str:
    return f"GET {route.removeprefix('HEAD ')}" if route.startswith("HEAD ") else route


def check_calls(paths: Collection[str]) -> None:
    """Sees to it that all these methods of gRPC have a row.

    Raises:
        ConfigError: One has none, so nobody knows who may call it.
    """
    _check("methods", [path.removeprefix("/") for path in paths if short_name(path) not in CALLS])


def check_routes(routes: Collection[str]) -> None:
    """Sees to it that all these routes of HTTP have a row.

    Raises:
        ConfigError: One has none, so nobody knows who may call it.
    """
    _check("routes", [route for route in routes if _as_get(route) not in ROUTES])


def _check(what: str, missing: Collection[str]) -> None:
    if missing:
        raise ConfigError(
            f"these {what} are not in the table of permissions, so that nobody knows who may call them: "
            f"{', '.join(sorted(missing))}; add them to modelbox/runtime/permissions/table.py"
        )
