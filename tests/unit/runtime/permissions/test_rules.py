"""Names are found in messages of both codecs and in requests, and read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from modelbox._proto.modelbox import v1 as pb
from modelbox._serving.messages import GoogleMessages
from modelbox.errors import InvalidError
from modelbox.runtime.permissions.rules import Asked, Finder, at, each, model, namespace, optional, refs, things
from modelbox.runtime.permissions.table import CALLS, ROUTES, rule_of_call, rule_of_route
from modelbox.runtime.permissions.targets import SERVER, Place, Target

GOOGLE = GoogleMessages("modelbox.v1")
RUN = "run_" + "0" * 24
OTHER = "run_" + "1" * 24


def _asked(path: Mapping[str, str] | None = None, body: Mapping[str, object] | None = None, **query: str) -> Asked:
    return Asked(path or {}, lambda name: [query[name]] if name in query else [], body or {})


def _places(finder: Finder, source: Any) -> list[Place | None]:
    return [target.place for target in finder.find(source)]


@pytest.mark.parametrize("messages", [pb, GOOGLE])
def test_messages_of_both_codecs(messages: Any) -> None:
    edges = [messages.LineageEdge(source=RUN, target="ns/m@3"), messages.LineageEdge(source="ns", target=OTHER)]
    request = messages.AddEdgesRequest(edges=edges)
    assert _places(each("edges", things("source")), request) == [None, Place("ns")]
    assert _places(each("edges", things("target")), request) == [Place("ns", "m"), None]
    one = messages.LogMetricsRequest(columns=[messages.MetricColumns(object=RUN, keys=["a", "b"])])
    assert each("columns", things("object")).find(one) == (Target("object", RUN, None),)
    many = messages.GetAttributesRequest(objects=[RUN, "ns/m"])
    assert _places(things("objects"), many) == [None, Place("ns", "m")]
    policy = messages.SetPolicyRequest(policy=messages.RetentionPolicy(scope="ns/m"))
    assert _places(at("policy.scope"), policy) == [Place("ns", "m")]
    assert _places(at("policy.scope"), messages.SetPolicyRequest()) == [SERVER]
    assert _places(model("namespace", "name"), messages.GetModelRequest(namespace="ns", name="m")) == [Place("ns", "m")]


def test_requests() -> None:
    request = _asked({"ns": "ns", "model": "m"}, {"ids": [RUN], "edges": [{"source": RUN}]}, object="ns/m@prod")
    assert _places(model("path.ns", "path.model"), request) == [Place("ns", "m")]
    assert _places(things("query.object"), request) == [Place("ns", "m")]
    assert things("body.ids", "id").find(request) == (Target("object", RUN, None),)
    assert _places(each("body.edges", things("source")), request) == [None]


@pytest.mark.parametrize(
    ("finder", "source"),
    [
        (namespace("namespace"), pb.ListModelsRequest(namespace="../etc")),
        (namespace("namespace"), pb.ListModelsRequest()),
        (model("namespace", "name"), pb.GetModelRequest(namespace="ns/m@1", name="m")),
        (refs("ref"), pb.ResolveRequest(ref="ns")),
        (things("object"), pb.GetReadmeRequest(object="")),
        (things("object"), pb.GetReadmeRequest(object="a/b/c")),
        (things("objects"), pb.GetAttributesRequest()),
        (things("experiment", "path"), pb.GetExperimentRequest(experiment="ns/../x")),
        (things("id", "id"), pb.GetRunRequest(id="r" * 300)),
        (things("body.object"), _asked(body={"object": 7})),
        (things("body.object"), _asked(body={"object": {"a": "b"}})),
        (things("body.object"), _asked(body={"object": None})),
        (things("body.ids", "id"), _asked(body={"ids": [1]})),
        (each("body.edges", things("source")), _asked(body={"edges": ["source"]})),
        (each("body.edges", things("source")), _asked(body={"edges": "source"})),
        (each("body.edges", things("source")), _asked(body={"edges": [{}]})),
        (namespace("body.namespace"), _asked(body={"namespace": ["a", "b"]})),
    ],
)
def test_what_names_nothing_is_invalid(finder: Finder, source: Any) -> None:
    with pytest.raises(InvalidError):
        finder.find(source)


def test_what_may_be_left_out() -> None:
    finder = optional(namespace("query.namespace"))
    assert finder.find(_asked()) == ()
    assert finder.find(_asked(namespace="")) == ()
    assert _places(finder, _asked(namespace="ns")) == [Place("ns")]


def test_bodies_are_read_where_they_are_asked_about() -> None:
    assert ROUTES["POST /api/v1/runs"].reads_body
    assert ROUTES["POST /api/v1/runs/{run}/clone"].reads_body
    assert not ROUTES["PATCH /api/v1/uploads/{id}"].reads_body
    assert not ROUTES["PATCH /api/v1/runs/{run}"].reads_body


def test_rows_are_found_by_what_transports_call_them() -> None:
    assert rule_of_call("/modelbox.v1.TrackingService/GetRun") is CALLS["TrackingService/GetRun"]
    assert rule_of_route("HEAD /api/v1/runs/{run}") is ROUTES["GET /api/v1/runs/{run}"]


def test_what_has_no_row_is_for_admins() -> None:
    for rule in (rule_of_call("/modelbox.v1.NewService/Do"), rule_of_route("POST /api/v1/new")):
        (need,) = rule.needs
        assert rule.token
        assert (need.permission, _places(need.on, _asked())) == ("admin", [SERVER])


def test_every_row_that_needs_something_names_it() -> None:
    for name, rule in {**CALLS, **ROUTES}.items():
        assert rule.token or not rule.needs, name
        assert rule.made is None or rule.fresh is not None, name
