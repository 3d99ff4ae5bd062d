"""The services of events, comments, datasets and lineage over SQLite: what they refuse, and how they page."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelbox.errors import InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.objects import ArtifactFile, JsonValue, NewArtifact, NewModel
from modelbox.runtime.services.datasets import MAX_COMPONENTS, DatasetService
from modelbox.runtime.services.lineage import MAX_EDGES, LineageService
from modelbox.runtime.services.notes import MAX_COMMENT_CHARS, MAX_README_CHARS, NoteService
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.tracking import (
    DatasetComponent,
    NewComment,
    NewDataset,
    NewDatasetVersion,
    NewEdge,
    NewEdges,
    NewEvent,
    ObjectKind,
    ReadmeEdit,
    new_id,
)

from .server_core import Core, digest_of, open_core

AT = datetime(2026, 5, 3, 12, tzinfo=UTC)
BAD_OBJECTS = [
    "",
    "..",
    "a/b/c",
    "a\0",
    "A",
    "ns/m@prod",
    "ns/m@sha256:" + "0" * 64,
    "ns/m@0",
    "x" * 300,
    "ａ",
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    core: Core
    notes: NoteService
    datasets: DatasetService
    lineage: LineageService


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Services]:
    async with open_core(tmp_path / "data") as core:
        await core.registry.create_model(NewModel(namespace="ns", name="m"), actor="ann")
        yield Services(
            core=core,
            notes=NoteService(SqlNoteStore(core.database), clock=core.clock),
            datasets=DatasetService(SqlDatasetStore(core.database), clock=core.clock),
            lineage=LineageService(SqlLineageStore(core.database), clock=core.clock),
        )


@pytest.mark.parametrize("text", BAD_OBJECTS)
async def test_what_names_no_object_is_refused_everywhere(box: Services, text: str) -> None:
    edge, back = NewEdge(source=text, target="ns/m", type="used"), NewEdge(source="ns/m", target=text, type="used")
    file = ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a"), uri="s3://bucket/a")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: box.notes.log_event(NewEvent(object=text, name="a", at=AT), actor=""),
        lambda: box.notes.list_events(text),
        lambda: box.notes.add_comment(NewComment(object=text, text="a"), actor=""),
        lambda: box.notes.list_comments(text),
        lambda: box.notes.set_readme(ReadmeEdit(object=text, text="a"), actor=""),
        lambda: box.notes.get_readme(text),
        lambda: box.lineage.add_edges(NewEdges(edges=(edge,)), actor=""),
        lambda: box.lineage.remove_edges([back], actor=""),
        lambda: box.lineage.get_lineage([text]),
        lambda: box.core.artifacts.create_artifact(NewArtifact(parent=text, name="a", files=(file,)), actor=""),
        lambda: box.core.artifacts.list_artifacts(parent=text or "..", namespace=""),
    ]
    for call in calls:
        with pytest.raises((InvalidError, LimitError)):
            await call()


def nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"id": "evt_1"}, InvalidError),
        ({"id": new_id(ObjectKind.RUN)}, InvalidError),
        ({"name": ""}, InvalidError),
        ({"name": "a\nb"}, InvalidError),
        ({"name": "a" * 256}, LimitError),
        ({"name": 5}, InvalidError),
        ({"source": "a\0"}, InvalidError),
        ({"at": datetime(2026, 5, 3)}, InvalidError),
        ({"at": datetime(1969, 12, 31, tzinfo=UTC)}, InvalidError),
        ({"metadata": {"a": float("nan")}}, InvalidError),
        ({"metadata": {"a": nested(10_000)}}, LimitError),
        ({"metadata": {"a": "x" * 70_000}}, LimitError),
        ({"metadata": {"": 1}}, InvalidError),
    ],
)
async def test_events_that_are_refused(box: Services, change: dict[str, Any], error: type[ModelBoxError]) -> None:
    good = NewEvent(object="ns/m", name="a", at=AT)
    with pytest.raises(error):
        await box.notes.log_event(dataclasses.replace(good, **change), actor="ann")
    assert (await box.notes.list_events("ns/m")).items == ()
    assert not (await box.notes.log_event(good, actor="ann")).existed


async def test_texts_have_limits(box: Services) -> None:
    for text, error in (("", InvalidError), (" \n", InvalidError), ("a\0", InvalidError), ("\ud800", InvalidError)):
        with pytest.raises(error):
            await box.notes.add_comment(NewComment(object="ns/m", text=text), actor="")
    with pytest.raises(LimitError):
        await box.notes.add_comment(NewComment(object="ns/m", text="a" * (MAX_COMMENT_CHARS + 1)), actor="")
    comment = await box.notes.add_comment(NewComment(object="ns/m", text="é" * MAX_COMMENT_CHARS), actor="")
    with pytest.raises(InvalidError):
        await box.notes.edit_comment(comment.id, "", actor="")
    with pytest.raises(InvalidError):
        await box.notes.edit_comment("cmt_1", "a", actor="")
    with pytest.raises(LimitError):
        await box.notes.set_readme(ReadmeEdit(object="ns/m", text="a" * (MAX_README_CHARS + 1)), actor="")
    with pytest.raises(LimitError):
        await box.notes.add_comment(NewComment(object="ns/m", text="a"), actor="a" * 257)


async def test_events_in_pages_whose_tokens_belong_to_their_list(box: Services) -> None:
    for minute in range(5):
        new = NewEvent(object="ns/m", name="a", at=AT + timedelta(minutes=minute))
        await box.notes.log_event(new, actor="")
    since = AT + timedelta(minutes=1)
    first = await box.notes.list_events("ns", since=since, page_size=3)
    assert [event.at.minute for event in first.items] == [4, 3, 2]
    rest = await box.notes.list_events("ns", since=since, page_size=3, page_token=first.next_token)
    assert ([event.at.minute for event in rest.items], rest.next_token) == ([1], "")
    for other in (
        box.notes.list_events("ns", page_token=first.next_token),
        box.notes.list_events("ns/m", since=since, page_token=first.next_token),
        box.notes.list_comments("ns", page_token=first.next_token),
    ):
        with pytest.raises(InvalidError, match="page token"):
            await other
    with pytest.raises(InvalidError, match="time zone"):
        await box.notes.list_events("ns", since=datetime(2026, 5, 3))


GOOD = DatasetComponent(type="s3", location="s3://bucket/digits/", digest="etag-1", size_bytes=10, rows=3)


@pytest.mark.parametrize(
    ("components", "error"),
    [
        ((), InvalidError),
        ((dataclasses.replace(GOOD, type="ftp"),), InvalidError),
        ((dataclasses.replace(GOOD, location=""),), InvalidError),
        ((dataclasses.replace(GOOD, location="bucket/digits"),), InvalidError),
        ((dataclasses.replace(GOOD, location="s3:///digits"),), InvalidError),
        ((dataclasses.replace(GOOD, size_bytes=-1),), InvalidError),
        ((dataclasses.replace(GOOD, size_bytes=2**63),), InvalidError),
        ((dataclasses.replace(GOOD, rows=True),), InvalidError),
        ((dataclasses.replace(GOOD, digest="a" * 256),), LimitError),
        ((GOOD, dataclasses.replace(GOOD, size_bytes=11)), InvalidError),
        ((DatasetComponent(type="query", location="select 1", source="postgres://ann:pw@db/x"),), InvalidError),
        ((DatasetComponent(type="path", location="https://ann:pw@example.com/x"),), InvalidError),
        ((DatasetComponent(type="query", location="x" * 65_537),), LimitError),
        (tuple(DatasetComponent(type="path", location=f"/{i}") for i in range(MAX_COMPONENTS + 1)), LimitError),
        (tuple(DatasetComponent(type="path", location=f"/{i}" + "x" * 4000) for i in range(300)), LimitError),
    ],
)
async def test_components_that_are_refused(
    box: Services, components: tuple[DatasetComponent, ...], error: type[ModelBoxError]
) -> None:
    with pytest.raises(error):
        await box.datasets.create_version(
            NewDatasetVersion(namespace="ns", dataset="digits", components=components), actor=""
        )
    with pytest.raises(NotFoundError):
        await box.datasets.get_dataset("ns/digits")


async def test_all_types_of_components_come_back(box: Services) -> None:
    components = (
        GOOD,
        DatasetComponent(type="path", location="/data/digits", digest="sha256:" + "0" * 64, size_bytes=0),
        DatasetComponent(type="query", location="select * from digits\nwhere x > 1", source="postgres://db/x", rows=9),
    )
    new = NewDatasetVersion(namespace="ns", dataset="digits", components=components, description="all")
    made = await box.datasets.create_version(new, actor="ann")
    read = await box.datasets.get_version("ns/digits@1")
    assert read == made.item
    assert (read.components, read.description, read.created_by) == (components, "all", "ann")


@pytest.mark.parametrize("text", ["", "ns", "ns/", "ns/D", "ns/d@", "ns/d@0", "ns/d@x", "ns/d@1@2", "run_" + "0" * 24])
async def test_what_names_no_dataset_version(box: Services, text: str) -> None:
    with pytest.raises(InvalidError):
        await box.datasets.get_version(text)


async def test_datasets_by_name_in_pages(box: Services) -> None:
    for name in "abc":
        await box.datasets.create_dataset(NewDataset(namespace="ns", name=name), actor="")
    first = await box.datasets.list_datasets(namespace="ns", page_size=2)
    rest = await box.datasets.list_datasets(namespace="ns", page_size=2, page_token=first.next_token)
    assert [dataset.name for dataset in first.items + rest.items] == ["a", "b", "c"]
    with pytest.raises(InvalidError, match="page token"):
        await box.datasets.list_datasets(page_token=first.next_token)
    with pytest.raises(NotFoundError) as caught:
        await box.datasets.list_versions("ns/d")
    assert caught.value.fields["exists"] == ["ns/a", "ns/b", "ns/c"]


async def test_edges_that_are_refused(box: Services) -> None:
    def edges(*types: str) -> NewEdges:
        return NewEdges(edges=tuple(NewEdge(source="ns", target="ns/m", type=type) for type in types))

    for bad in ("", "Used", "a b", "a->b", "a:b", "-a"):
        with pytest.raises(InvalidError):
            await box.lineage.add_edges(edges(bad), actor="")
    with pytest.raises(LimitError):
        await box.lineage.add_edges(edges("a" * 65), actor="")
    with pytest.raises(LimitError):
        await box.lineage.add_edges(edges(*["used"] * (MAX_EDGES + 1)), actor="")
    with pytest.raises(InvalidError):
        await box.lineage.add_edges(edges(), actor="")
    with pytest.raises(InvalidError, match="itself"):
        await box.lineage.add_edges(NewEdges(edges=(NewEdge(source="ns", target="ns", type="used"),)), actor="")
    assert await box.lineage.add_edges(edges(*["used"] * MAX_EDGES), actor="") == 1
    with pytest.raises(InvalidError, match="direction"):
        await box.lineage.get_lineage(["ns"], direction="sideways")
    for asked, depth in (([], 0), (["ns"] * 101, 0), (["ns"], -1), (["ns"], 2**31)):
        with pytest.raises((InvalidError, LimitError)):
            await box.lineage.get_lineage(asked, max_depth=depth)
    both = await box.lineage.get_lineage(["ns", "ns/m"], direction="both")
    assert [node.depth for node in both.nodes] == [0, 0]
    assert len(both.edges) == 1
