"""Safetensors: what the reader takes, what it refuses, and a version of it in service."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import FormatRefused, LoadError, ModelInvalid
from modelbox.loader.prepare import find_entrypoint, find_tensor_files
from modelbox.loader.safetensors import open_safetensors, read_header
from modelbox.loader.settings import LoadOptions
from modelbox.loader.tensor_files import TensorFiles
from modelbox.manifest import Manifest
from modelbox.refs import ModelRef
from tests.feed_source import FeedSource
from tests.loading import loading
from tests.model_source import manifest_of

REF = ModelRef.parse("ns/model@prod")


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensors_of(**arrays: Any) -> bytes:
    """A file with these arrays of float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, values in arrays.items():
        array = np.asarray(values, np.float32)
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    return file_of(header, data)


def opened(path: Path, data: bytes) -> Mapping[str, Any]:
    path.write_bytes(data)
    return open_safetensors(path)


def test_tensors_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.safetensors", tensors_of(a=[[1, 2], [3, 4]], b=5.0, empty=np.zeros((0, 3))))
    assert set(found) == {"a", "b", "empty"}
    np.testing.assert_array_equal(found["a"], [[1, 2], [3, 4]])
    assert (found["b"].shape, float(found["b"])) == ((), 5.0)
    assert found["empty"].shape == (0, 3)
    for array in found.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        if array.size:
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True


def test_every_type_is_read(tmp_path: Path) -> None:
    types = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
    types |= {"BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16}
    types |= {"U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64}
    types |= {"F64": np.float64, "C64": np.complex64}
    for name, dtype in types.items():
        array = np.array([0, 1], dtype)
        header = {"t": {"dtype": name, "shape": [2], "data_offsets": [0, array.nbytes]}}
        found = opened(tmp_path / name, file_of(header, array.tobytes()))["t"]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def entry(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        file_of(b"[]"),
        file_of(b"{"),
        file_of(b'{"a":NaN}'),
        file_of(b"[" * 100_000),
        file_of(b'{"a":' * 5_000),
        file_of({}, b"x"),
        file_of(entry(), b"123"),
        file_of(entry(), b"12345"),
        file_of(entry(dtype="F32"), b"1234"),
        file_of(entry(dtype="PICKLE"), b"1234"),
        file_of(entry(shape=[-4]), b"1234"),
        file_of(entry(shape=[True, 4]), b"1234"),
        file_of(entry(shape=[1 << 60, 1 << 60]), b"1234"),
        file_of(entry(shape="4"), b"1234"),
        file_of(entry(shape=[1] * 1000 + [4]), b"1234"),
        file_of(entry(data_offsets=[1, 5]), b"12345"),
        file_of(entry(data_offsets=[4, 0]), b"1234"),
        file_of(entry(data_offsets=[0]), b"1234"),
        file_of(entry(more=1), b"1234"),
        file_of({"t": None}),
        file_of({**entry(), "u": entry()["t"]}, b"1234"),
        file_of(b'{"t":' + json.dumps(entry()["t"]).encode() + b',"t":' + json.dumps(entry()["t"]).encode() + b"}"),
        file_of({"__metadata__": {"a": 1}}),
        file_of({"__metadata__": []}),
    ],
)
def test_what_is_broken_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelInvalid):
        opened(tmp_path / "broken", data)


def test_a_file_that_is_not_there_is_an_error_of_loading(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="No such file"):
        open_safetensors(tmp_path / "none")


@given(data=st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for whole in (data, file_of(data), file_of(entry(), b"1234")[: len(data)]):
        with contextlib.suppress(ModelInvalid):
            read_header(whole, len(whole))


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    header=st.dictionaries(
        st.text(max_size=4),
        values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["U8", "F32", "BOOL"]) | values,
                "shape": st.lists(st.integers(-1, 4), max_size=3) | values,
                "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | values,
            }
        ),
        max_size=3,
    ),
    data=st.binary(max_size=24),
)
def test_what_passes_lies_within_the_file_and_overlaps_nowhere(header: Any, data: bytes) -> None:
    whole = file_of(header, data)
    try:
        tensors, _ = read_header(whole, len(whole))
    except ModelInvalid:
        return
    places = [place for tensor in tensors for place in range(tensor.begin, tensor.end)]
    assert places == list(range(len(whole) - len(data), len(whole)))


# -- in service ----------------------------------------------------------------------------------------------------


def of_tensors(source: FeedSource, number: int, files: Mapping[str, bytes]) -> None:
    """Adds a version of safetensors."""
    import dataclasses

    added = source.add(files, version=number)
    manifest = dataclasses.replace(added.manifest, framework="safetensors")
    source.versions[str(added.ref)] = dataclasses.replace(added, manifest=manifest, digest=manifest.digest)


async def test_a_version_of_tensors_is_served_and_replaced(tmp_path: Path) -> None:
    source = FeedSource()
    of_tensors(source, 1, {"a.safetensors": tensors_of(a=[1, 2]), "b/b.safetensors": tensors_of(b=3), "note.txt": b""})
    of_tensors(source, 2, {"a.safetensors": tensors_of(a=[[7]])})
    of_tensors(source, 3, {"a.safetensors": b"broken"})
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, tmp_path) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        with reloader.runner.lease() as lease:
            before = lease.session
            assert sorted(before) == ["a", "b"]
            source.move("prod", source.versions["ns/model@2"])
            await log.served(2)
            np.testing.assert_array_equal(before["a"], [1, 2])
        held = before["a"]
        source.move("prod", source.versions["ns/model@3"])
        assert (await log.failed(3)).code == "load.invalid"
        with reloader.runner.lease() as lease:
            np.testing.assert_array_equal(lease.session["a"], [[7]])
        with pytest.raises(FormatRefused, match="no graph"):
            await reloader.runner.predict({})
        np.testing.assert_array_equal(held, [1, 2])


async def test_who_only_runs_models_refuses_tensors(tmp_path: Path) -> None:
    source = FeedSource()
    of_tensors(source, 1, {"a.safetensors": tensors_of(a=1)})
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, tmp_path) as (loader, _):
        with pytest.raises(FormatRefused, match="nothing to run"):
            await loader.load(REF, LoadOptions(tensors=False))
    assert source.opens == []


async def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(tensors_of(t=1))
    with pytest.raises(ModelInvalid, match="in two"):
        await anyio.to_thread.run_sync(TensorFiles.open_files, [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("framework", ["pytorch", "pickle", "keras", "joblib", "prompt", "zip"])
def test_everything_else_is_stored_and_never_opened(framework: str) -> None:
    manifest = Manifest(files=manifest_of({"model.onnx": b"1", "m.safetensors": b"2"}).files, framework=framework)
    with pytest.raises(FormatRefused, match="never runs it"):
        find_entrypoint(manifest)


def test_tensors_are_found_by_the_ends_of_names() -> None:
    files = manifest_of({"a.safetensors": b"1", "b.safetensors": b"2", "model.bin": b"3"}).files
    assert find_tensor_files(Manifest(files=files, framework="safetensors")) == ["a.safetensors", "b.safetensors"]
    one = Manifest(files=files, framework="safetensors", entrypoint="b.safetensors")
    assert find_tensor_files(one) == ["b.safetensors"]
    for manifest in (
        Manifest(files=files, framework="safetensors", entrypoint="model.bin"),
        Manifest(files=manifest_of({"model.pt": b"1"}).files, framework="safetensors"),
    ):
        with pytest.raises(FormatRefused, match="safetensors"):
            find_tensor_files(manifest)
