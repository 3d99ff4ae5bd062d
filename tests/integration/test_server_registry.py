"""The registry over gRPC, on a real server process, by the generated stubs."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import anyio
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.events import RecvTrailingMetadata, listen
from grpclib.exceptions import GRPCError

from modelbox import _wire as wire
from modelbox import errors
from modelbox._proto.modelbox import v1 as pb
from tests.faults.registry import fault
from tests.server import ServerProcess
from tests.stubs import Stubs, connect, error_of, publish


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


_CARDINALITY = {
    "Upload": Cardinality.STREAM_UNARY,
    "Watch": Cardinality.UNARY_STREAM,
    **dict.fromkeys(["CreateModel", "Resolve", "PublishVersion", "Check"], Cardinality.UNARY_UNARY),
}


class _Trailers:
    """The error trailer of the last call of a channel."""

    def __init__(self, channel: Channel) -> None:
        self.last: bytes | None = None
        listen(channel, RecvTrailingMetadata, self._receive)

    async def _receive(self, event: RecvTrailingMetadata) -> None:
        value = event.metadata.get(wire.ERROR_KEY)
        self.last = value if isinstance(value, bytes) else None


async def _refused(stubs: Stubs, call: Any) -> tuple[Status, errors.ModelBoxError]:
    trailers = _Trailers(stubs.channel)
    with pytest.raises(GRPCError) as caught:
        await call
    return caught.value.status, error_of(caught.value, trailers.last)


async def test_publish_resolve_and_move(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address, actor="ana") as stubs:
        created = await stubs.registry.create_model(
            pb.CreateModelRequest(namespace="langtech", name="wav2vec", owner="ana", metadata_json={"card": '{"a":1}'})
        )
        assert not created.existed
        again = await stubs.registry.create_model(pb.CreateModelRequest(namespace="langtech", name="wav2vec"))
        assert again.existed
        assert again.model == created.model

        first = await publish(stubs, "langtech", "wav2vec", {"model.onnx": b"one"}, aliases=("prod",))
        second = await publish(stubs, "langtech", "wav2vec", {"model.onnx": b"two"})
        same = await publish(stubs, "langtech", "wav2vec", {"model.onnx": b"two"})
        assert first.version is not None
        assert second.version is not None
        assert (first.version.version, second.version.version) == (1, 2)
        assert (second.existed, same.existed) == (False, True)
        assert first.version.created_by == "ana"

        prod = wire.unpack_resolved(await stubs.registry.resolve(pb.ResolveRequest(ref="langtech/wav2vec@prod")))
        assert prod.version.version == 1
        assert prod.alias is not None
        latest = wire.unpack_resolved(await stubs.registry.resolve(pb.ResolveRequest(ref="langtech/wav2vec")))
        assert latest.version.version == 2

        moved = await stubs.registry.move_alias(
            pb.MoveAliasRequest(
                namespace="langtech",
                model="wav2vec",
                alias="prod",
                version=2,
                expected_mod_rev=prod.alias.mod_rev,
                reason="better",
            )
        )
        assert (moved.version, moved.moved_by, moved.reason) == (2, "ana", "better")
        back = await stubs.registry.rollback_alias(
            pb.RollbackAliasRequest(namespace="langtech", model="wav2vec", alias="prod")
        )
        assert back.version == 1
        moves = await stubs.registry.list_alias_moves(
            pb.ListAliasMovesRequest(namespace="langtech", model="wav2vec", alias="prod")
        )
        assert [(m.from_version, m.to_version) for m in moves.moves] == [(2, 1), (1, 2), (None, 1)]


async def test_a_missing_model_is_not_found_and_says_what_exists(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        await stubs.registry.create_model(pb.CreateModelRequest(namespace="missing", name="here"))
        status, error = await _refused(stubs, stubs.registry.resolve(pb.ResolveRequest(ref="missing/there")))
        assert status is Status.NOT_FOUND
        assert type(error) is errors.NotFoundError
        assert "here" in str(error.fields["exists"])


async def test_a_lost_compare_and_set_is_a_conflict_with_the_current_state(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        await publish(stubs, "cas", "m", {"m.onnx": b"x"}, aliases=("prod",))
        status, error = await _refused(
            stubs,
            stubs.registry.move_alias(
                pb.MoveAliasRequest(namespace="cas", model="m", alias="prod", version=1, expected_mod_rev=0)
            ),
        )
        assert status is Status.ABORTED
        assert type(error) is errors.ConflictError
        assert error.fields["current"]


async def test_what_an_alias_points_to_cannot_be_deleted(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        await publish(stubs, "held", "m", {"m.onnx": b"x"}, aliases=("prod",))
        status, error = await _refused(
            stubs, stubs.registry.delete_version(pb.DeleteVersionRequest(namespace="held", model="m", version=1))
        )
        assert status is Status.FAILED_PRECONDITION
        assert type(error) is errors.InUseError


@fault(60)
@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "A", "", "a" * 10_000, "\u202emodel", "a\0b", "%2e%2e"])
async def test_a_bad_name_is_invalid_everywhere(shared_server: ServerProcess, name: str) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        calls = [
            stubs.registry.create_model(pb.CreateModelRequest(namespace="ok", name=name)),
            stubs.registry.create_model(pb.CreateModelRequest(namespace=name, name="ok")),
            stubs.registry.get_model(pb.GetModelRequest(namespace="ok", name=name)),
            stubs.registry.delete_model(pb.DeleteModelRequest(namespace="ok", name=name)),
            stubs.registry.list_versions(pb.ListVersionsRequest(namespace="ok", model=name)),
            stubs.registry.resolve(pb.ResolveRequest(ref=f"ok/{name}")),
            stubs.artifacts.begin_upload(pb.BeginUploadRequest(namespace=name, digest="sha256:" + "0" * 64)),
            stubs.artifacts.begin_download(pb.BeginDownloadRequest(ref=f"ok/{name}@1")),
            stubs.fleet.list_instances(pb.ListInstancesRequest(path=f"ok/{name}")),
        ]
        for call in calls:
            status, error = await _refused(stubs, call)
            assert status is Status.INVALID_ARGUMENT, error
            assert isinstance(error, errors.InvalidError)
    assert "Traceback" not in shared_server.output


@fault(64)
@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/modelbox.v1.RegistryService/CreateModel", b"\x0a\x02\xff\xfe"),
        ("/modelbox.v1.RegistryService/Resolve", b"\x0a"),
        ("/modelbox.v1.RegistryService/PublishVersion", b"\xff" * 50),
        ("/modelbox.v1.WatchService/Watch", b"\x0a" + b"\x7f" + b"\x0a\x05" * 40),
        ("/modelbox.v1.ArtifactService/Upload", b"\x0a\x01\xff"),
        ("/grpc.health.v1.Health/Check", b"\x0a\x05\xff"),
    ],
)
async def test_malformed_bytes_are_an_invalid_argument(shared_server: ServerProcess, path: str, data: bytes) -> None:
    class Raw(bytes):
        def SerializeToString(self) -> bytes:
            return bytes(self)

        @classmethod
        def FromString(cls, raw: bytes) -> Raw:
            return cls(raw)

    async with connect(shared_server.grpc_address) as stubs:
        with pytest.raises(GRPCError) as caught:
            async with stubs.channel.request(path, _CARDINALITY[path.rpartition("/")[2]], Raw, Raw) as stream:
                await stream.send_message(Raw(data), end=True)
                await stream.recv_message()
                await stream.recv_trailing_metadata()
        assert caught.value.status is Status.INVALID_ARGUMENT
    assert "Traceback" not in shared_server.output


async def test_reports_make_the_fleet(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        report = pb.InstanceReport(
            instance_id="i1", host="h", pid=7, ref="fleet/m@prod", state="active", version=3, mod_rev=9
        )
        answer = await stubs.fleet.report(pb.ReportRequest(reports=[report]))
        assert answer.heartbeat_ms == 30_000
        listed = await stubs.fleet.list_instances(pb.ListInstancesRequest(path="fleet/m"))
        [instance] = [wire.unpack_instance(item) for item in listed.instances]
        assert instance.alive
        assert (instance.report.instance_id, instance.report.version) == ("i1", 3)


async def test_pages_hold_everything_once(shared_server: ServerProcess) -> None:
    names = [f"m{i}" for i in range(7)]
    async with connect(shared_server.grpc_address) as stubs:
        for name in names:
            await stubs.registry.create_model(pb.CreateModelRequest(namespace="pages", name=name))
        seen: list[str] = []
        token = ""
        while True:
            page = await stubs.registry.list_models(
                pb.ListModelsRequest(namespace="pages", page_size=3, page_token=token)
            )
            seen += [model.name for model in page.models]
            token = page.next_page_token
            if not token:
                break
        assert seen == names
        status, _ = await _refused(
            stubs, stubs.registry.list_models(pb.ListModelsRequest(namespace="pages", page_token="!"))
        )
        assert status is Status.INVALID_ARGUMENT


async def test_a_call_that_is_cancelled_by_its_deadline_leaves_the_server_well(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        for _ in range(20):
            with anyio.move_on_after(0.002):
                await stubs.registry.list_namespaces(pb.ListNamespacesRequest())
        assert (await stubs.registry.list_namespaces(pb.ListNamespacesRequest())) is not None
    assert "Traceback" not in shared_server.output


async def test_the_error_of_http_is_the_error_of_grpc(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs, aiohttp.ClientSession() as http:
        _, over_grpc = await _refused(stubs, stubs.registry.get_version(pb.GetVersionRequest(ref="nobody/home@3")))
        async with http.get(f"{shared_server.url}/api/v1/models/nobody/home/versions/3") as response:
            assert response.status == 404
            over_http = errors.error_from_dict(json.loads(await response.text()))
        assert over_http.to_dict() == over_grpc.to_dict()
