"""Our definition of the protocol, beside those that its clients ship: same numbers, same types, same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

from modelbox._proto import inference as pb
from modelbox.sidecar.oip.messages import ModelInferRequest, ModelInferResponse

# kserve's definition cannot be loaded beside tritonclient's: both are called `inference`.
_KSERVE = """
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
proto = FileDescriptorProto()
pb2.DESCRIPTOR.CopyToProto(proto)
print(proto.SerializeToString().hex())
"""
_DIFFERENT_IN_KSERVE = {
    # It knows neither repositories nor parameters of loading, and answers differently.
    "RepositoryModelLoadRequest",
    "RepositoryModelLoadResponse",
    "RepositoryModelUnloadRequest",
    "RepositoryModelUnloadResponse",
}


def ours() -> Any:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files("modelbox._proto").joinpath("descriptors.binpb").read_bytes()).file:
        if file.package == "inference":
            pool.Add(file)
    return pool


def fields_of(descriptor: Any) -> dict[int, tuple[str, int, bool, str]]:
    """By number: name, type, whether repeated, what message or enum it is."""
    found = {}
    for field in descriptor.fields:
        inner = field.message_type or field.enum_type
        found[field.number] = (field.name, field.type, field.is_repeated, inner.full_name if inner else "")
    return found


def messages_of(descriptors: Any) -> dict[str, Any]:
    found = {}
    for descriptor in descriptors:
        found[descriptor.full_name] = descriptor
        found |= messages_of(descriptor.nested_types)
    return found


def test_every_message_and_method_of_tritonclient_is_here_with_its_numbers() -> None:
    pool = ours()
    theirs = messages_of(service_pb2.DESCRIPTOR.message_types_by_name.values())
    assert len(theirs) > 60
    for name, descriptor in theirs.items():
        assert fields_of(pool.FindMessageTypeByName(name)) == fields_of(descriptor), name

    methods = {
        (method.name, method.input_type.full_name, method.output_type.full_name, method.server_streaming)
        for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert methods == {
        (method.name, method.input_type.full_name, method.output_type.full_name, method.server_streaming)
        for method in service.methods
    }


def test_the_model_configuration_is_a_part_of_theirs() -> None:
    pool = ours()
    file = pool.FindFileByName("inference/model_config.proto")
    [theirs] = [file for file in service_pb2.DESCRIPTOR.dependencies if file.name == "model_config.proto"]
    here, there = (messages_of(found.message_types_by_name.values()) for found in (file, theirs))
    for name, descriptor in here.items():
        assert fields_of(descriptor).items() <= fields_of(there[name]).items(), name
    for name, enum in file.enum_types_by_name.items():
        assert enum.values_by_name.keys() == theirs.enum_types_by_name[name].values_by_name.keys()
        for value in enum.values:
            assert theirs.enum_types_by_name[name].values_by_name[value.name].number == value.number


def test_messages_of_kserve_have_our_numbers() -> None:
    done = subprocess.run([sys.executable, "-c", _KSERVE], capture_output=True, text=True, timeout=110, check=True)
    pool, their_pool = ours(), DescriptorPool()
    file = FileDescriptorProto.FromString(bytes.fromhex(done.stdout.strip().splitlines()[-1]))
    their_pool.Add(file)
    theirs = messages_of(their_pool.FindFileByName(file.name).message_types_by_name.values())
    checked = 0
    for name, descriptor in theirs.items():
        if name.removeprefix("inference.") in _DIFFERENT_IN_KSERVE:
            continue
        checked += 1
        assert fields_of(descriptor).items() <= fields_of(pool.FindMessageTypeByName(name)).items(), name
    assert checked > 15


def test_an_inference_request_of_tritonclient_reads_the_same_here_in_both_codecs() -> None:
    sent = service_pb2.ModelInferRequest(model_name="acme/tiny", model_version="3", id="7")
    sent.parameters["priority"].uint64_param = 2
    sent.parameters["ratio"].double_param = 0.5
    sent.parameters["on"].bool_param = True
    sent.inputs.add(name="x", datatype="INT64", shape=[2, 2]).contents.int64_contents.extend([1, -2, 3, 2**62])
    sent.inputs.add(name="t", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"\xff"])
    sent.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    sent.raw_input_contents.append(b"\x00\x01")
    wire = sent.SerializeToString(deterministic=True)

    fast = ModelInferRequest.FromString(wire)
    assert fast.SerializeToString(deterministic=True) == wire
    plain = pb.ModelInferRequest.parse(wire)
    assert plain.inputs[0].contents is not None
    assert plain.inputs[0].contents.int64_contents == [1, -2, 3, 2**62]
    assert service_pb2.ModelInferRequest.FromString(bytes(plain)) == sent


def test_an_answer_of_ours_reads_the_same_in_tritonclient() -> None:
    answer = ModelInferResponse(model_name="acme/tiny", model_version="3", id="7")
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 2]).parameters["a"].int64_param = -1
    answer.raw_output_contents.append(b"\x00\x01\x02\x03" * 2)
    read = service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    assert read.SerializeToString(deterministic=True) == answer.SerializeToString(deterministic=True)
    assert read.outputs[0].parameters["a"].int64_param == -1


@pytest.mark.parametrize("name", ["ModelMetadataResponse", "ModelStatisticsResponse", "RepositoryIndexResponse"])
def test_generated_answers_read_the_same_in_tritonclient(name: str) -> None:
    """Every field of the message is set to something of its type, three levels deep."""
    message = GetMessageClass(ours().FindMessageTypeByName(f"inference.{name}"))()
    fill(message, 3)
    wire = message.SerializeToString(deterministic=True)
    assert bytes(getattr(pb, name).parse(wire))
    theirs = getattr(service_pb2, name).FromString(bytes(getattr(pb, name).parse(wire)))
    assert theirs.SerializeToString(deterministic=True) == wire


def fill(message: Any, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if depth:
                fill(getattr(message, field.name)["key"], depth - 1)
        elif field.type == FieldDescriptorProto.TYPE_MESSAGE:
            if depth:
                inner = getattr(message, field.name)
                fill(inner.add() if field.is_repeated else inner, depth - 1)
        else:
            value: Any = "text" if field.type == FieldDescriptorProto.TYPE_STRING else 7
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def test_the_configuration_reaches_tritonclient() -> None:
    config = pb.ModelConfig.from_dict(
        json.loads(
            '{"name": "acme/tiny", "platform": "onnxruntime_onnx", "max_batch_size": 8, "backend": "onnxruntime",'
            '"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}],'
            '"version_policy": {"specific": {"versions": [3]}},'
            '"dynamic_batching": {"max_queue_delay_microseconds": 100},'
            '"parameters": {"digest": {"string_value": "sha256:00"}}}'
        )
    )
    read = service_pb2.ModelConfigResponse.FromString(bytes(pb.ModelConfigResponse(config=config))).config
    assert read.input[0].data_type == 11
    assert list(read.input[0].dims) == [-1, 4]
    assert read.dynamic_batching.max_queue_delay_microseconds == 100
    assert read.parameters["digest"].string_value == "sha256:00"
    assert list(read.version_policy.specific.versions) == [3]
