"""Looks into an ONNX file before anything opens it: what it refers to, what it needs, what it takes and gives.

Reads the wire format itself, so it needs neither onnx nor onnxruntime and never loads weights. Refuses:

* external data that is not a range of a file of the same version (`onnx_external`), wherever the tensor hides:
  attributes, subgraphs, functions, sparse tensors, training graphs;
* a tensor that declares more than the file holds, and a constant that grows beyond a limit when it is filled or folded;
* operators of unknown domains, graphs nested too deep, garbage, truncation.

It is one wall of several, not a proof that a model is harmless: the limits of the process stand behind it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelbox.errors import InvalidError, ModelInvalid, UnsupportedOperator
from modelbox.loader.onnx_external import ExternalData
from modelbox.loader.onnx_types import STRING, element_bits, message, read_value
from modelbox.loader.protobuf_wire import VARINT, Buffer, Field, broken, fields, signed, text, varints
from modelbox.manifest import Manifest
from modelbox.refs import shown
from modelbox.signature import Signature, TensorSpec

__all__ = ("KNOWN_DOMAINS", "OnnxSummary", "ScanLimits", "scan")

RULES = 1
"""Grows with every change of what `scan` refuses, so that nothing passes on the strength of an older verdict."""

KNOWN_DOMAINS = frozenset(
    [
        "",
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.pytorch.aten",
    ]
)
"""Operator domains that onnxruntime ships; others need a library of custom operators."""

_EXTERNAL = 1
_MAX_DIMS = 64
# What one byte of a file may stand for: eight, where a 64-bit zero is packed as one byte.
_MOST_BYTES_PER_BYTE = 8
# Operators whose output has the shape that an input names: the input's place.
_SHAPED_BY_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
_SHAPED_BY_ATTRIBUTE = frozenset(["RandomNormal", "RandomUniform"])
_MAX_METADATA = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanLimits:
    """How much a model may ask for.

    Attributes:
        max_depth: Graphs inside graphs.
        max_constant_bytes: What one constant may grow to when it is filled or folded.
        max_nodes: Operators in all graphs together.
    """

    max_depth: int = 32
    max_constant_bytes: int = 256 << 20
    max_nodes: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSummary:
    """What an ONNX file says of itself.

    Attributes:
        ir_version: Version of the file format.
        opsets: Version of each operator set that it imports, by domain ("" is ONNX's own).
        operators: Every (domain, operator) that a node uses, functions of the model included.
        nodes: How many nodes there are, subgraphs and functions included.
        external_files: Where external data is, as paths of the manifest (without one: from the file's directory on).
        signature: Inputs and outputs; None where the file leaves a type open or uses one that has no name here.
        metadata: The file's own ``metadata_props``.
    """

    ir_version: int
    opsets: Mapping[str, int]
    operators: frozenset[tuple[str, str]]
    nodes: int
    external_files: tuple[str, ...]
    signature: Signature | None
    metadata: Mapping[str, str]


def scan(
    path: Path,
    manifest: Manifest | None = None,
    *,
    entry: str | None = None,
    limits: ScanLimits | None = None,
    domains: frozenset[str] = KNOWN_DOMAINS,
) -> OnnxSummary:
    """Checks an ONNX file and returns what it says of itself. Blocking; the weights are not read.

    Args:
        path: The file. Nobody may truncate it meanwhile: it is mapped into memory.
        manifest: What the version is made of; without one, external data must lie below the file's directory.
        entry: The manifest's path of the file; by default the longest one that ``path`` ends with.
        limits: How much it may ask for.
        domains: Operator domains that the runtime has.

    Raises:
        ModelInvalid: It is broken, asks for too much, or refers to anything but files of its own version.
        UnsupportedOperator: An operator of another domain that is no function of the model.
    """
    with _mapped(path) as data:
        return _Scan(Buffer(data), ExternalData(path, manifest, entry), limits or ScanLimits()).run(domains)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        raise ModelInvalid(f"{path} cannot be opened: {exc.strerror}", stage="verify", path=str(path)) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            what = "is empty" if stat.S_ISREG(status.st_mode) else "is not a regular file"
            raise ModelInvalid(f"{path} {what}: expected an ONNX model", stage="verify", path=str(path))
        data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)
    with data:
        yield data


class _Scan:
    """One walk over one file."""

    def __init__(self, data: Buffer, external: ExternalData, limits: ScanLimits) -> None:
        self._data = data
        self._external = external
        self._limits = limits
        self._nodes = 0
        self._operators: set[tuple[str, str]] = set()
        self._functions: set[tuple[str, str]] = set()
        # Small constant integer vectors by name, and the operators that take one as a shape. A name may stand for
        # several in several graphs: each of them counts.
        self._shapes: dict[str, list[list[int]]] = {}
        self._fillers: list[tuple[str, str, int]] = []

    def run(self, domains: frozenset[str]) -> OnnxSummary:
        ir_version = 0
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        signature: Signature | None = None
        graphs = 0
        for part in fields(self._data, 0, len(self._data.bytes)):
            if part.number == 1 and part.wire == VARINT:
                ir_version = signed(part.value)
            elif part.number == 7:
                graphs += 1
                signature = self._graph(part, 0)
            elif part.number == 8:
                domain, number = self._opset(part)
                opsets[domain] = number
            elif part.number == 14:
                key, value = self._entry(part, limit=1 << 20)
                if len(metadata) < _MAX_METADATA:
                    metadata[key] = value
            elif part.number == 20:
                for graph in fields(self._data, *message(part)):
                    if graph.number in (1, 2):
                        self._graph(graph, 1)
            elif part.number == 25:
                self._function(part)
        if graphs != 1 or ir_version < 1:
            raise ModelInvalid(
                f"this is not an ONNX model: {graphs} graphs and format version {ir_version}, expected one graph and a "
                "version from 1 up",
                stage="verify",
            )
        self._check_fillers()
        self._check_domains(domains)
        return OnnxSummary(
            ir_version=ir_version,
            opsets=opsets,
            operators=frozenset(self._operators),
            nodes=self._nodes,
            external_files=tuple(sorted(self._external.files)),
            signature=signature,
            metadata=metadata,
        )

    # -- the parts of a model --------------------------------------------------------------------------------------

    def _graph(self, graph: Field, depth: int) -> Signature | None:
        if depth > self._limits.max_depth:
            raise ModelInvalid(f"graphs are nested deeper than {self._limits.max_depth} levels", stage="verify")
        inputs: list[tuple[str, TensorSpec | None]] = []
        outputs: list[tuple[str, TensorSpec | None]] = []
        given: set[str] = set()
        for part in fields(self._data, *message(graph)):
            if part.number == 1:
                self._node(part, depth)
            elif part.number == 5:
                given.add(self._tensor(part))
            elif part.number == 11:
                inputs.append(read_value(self._data, part))
            elif part.number == 12:
                outputs.append(read_value(self._data, part))
            elif part.number == 15:
                given.add(self._sparse_tensor(part))
        # Inputs with a value are optional overrides, which the runtime does not list either.
        specs_in = [spec for name, spec in inputs if name not in given]
        specs_out = [spec for _, spec in outputs]
        if None in specs_in or None in specs_out:
            return None
        try:
            return Signature(
                inputs=tuple(spec for spec in specs_in if spec is not None),
                outputs=tuple(spec for spec in specs_out if spec is not None),
            )
        except InvalidError as exc:
            raise ModelInvalid(f"the graph's interface makes no sense: {exc}", stage="verify") from exc

    def _function(self, function: Field) -> None:
        name = domain = ""
        for part in fields(self._data, *message(function)):
            if part.number == 1:
                name = text(self._data, part)
            elif part.number == 7:
                self._node(part, 1)
            elif part.number == 10:
                domain = text(self._data, part)
            elif part.number == 11:
                self._attribute(part, 1)
        self._functions.add((_domain(domain), name))

    def _node(self, node: Field, depth: int) -> None:
        self._nodes += 1
        if self._nodes > self._limits.max_nodes:
            raise ModelInvalid(f"the model has more than {self._limits.max_nodes} operators", stage="verify")
        operator = domain = ""
        inputs: list[Field] = []
        outputs: list[Field] = []
        attributes: list[Field] = []
        for part in fields(self._data, *message(node)):
            if part.number == 1:
                inputs.append(part)
            elif part.number == 2:
                outputs.append(part)
            elif part.number == 4:
                operator = text(self._data, part)
            elif part.number == 5:
                attributes.append(part)
            elif part.number == 7:
                domain = text(self._data, part)
        self._operators.add((_domain(domain), operator))
        constant = text(self._data, outputs[0]) if operator == "Constant" and outputs else ""
        bits = 32
        for attribute in attributes:
            name, vector, bits_here = self._attribute(attribute, depth)
            bits = bits_here or bits
            if vector is not None and constant:
                self._shapes.setdefault(constant, []).append(vector)
            elif vector is not None and operator in _SHAPED_BY_ATTRIBUTE and name == "shape":
                self._check_size(operator, vector, bits)
        place = _SHAPED_BY_INPUT.get(operator)
        if place is not None and place < len(inputs):
            self._fillers.append((operator, text(self._data, inputs[place]), bits))

    def _attribute(self, attribute: Field, depth: int) -> tuple[str, list[int] | None, int]:
        """Name, its integers if it is a short vector of them, and the bits of its tensor's elements."""
        name = ""
        vector: list[int] | None = None
        bits = 0
        for part in fields(self._data, *message(attribute)):
            if part.number == 1:
                name = text(self._data, part)
            elif part.number in (5, 10):
                tensor = _Tensor(self._data, part)
                self._check_tensor(tensor)
                vector = tensor.vector(self._data)
                bits = element_bits(tensor.data_type) or 0
            elif part.number in (6, 11):
                self._graph(part, depth + 1)
            elif part.number in (3, 8) and (vector is None or len(vector) < _MAX_DIMS):
                if part.size <= _MAX_DIMS * 10:
                    vector = [*(vector or ()), *varints(self._data, part, _MAX_DIMS * 10)]
            elif part.number in (22, 23):
                self._sparse_tensor(part)
        return name, vector, bits

    def _tensor(self, field: Field) -> str:
        tensor = _Tensor(self._data, field)
        self._check_tensor(tensor)
        vector = tensor.vector(self._data)
        if vector is not None:
            self._shapes.setdefault(tensor.name, []).append(vector)
        return tensor.name

    def _sparse_tensor(self, field: Field) -> str:
        name = ""
        dims: list[int] = []
        bits = 0
        for part in fields(self._data, *message(field)):
            if part.number in (1, 2):
                tensor = _Tensor(self._data, part)
                self._check_tensor(tensor)
                if part.number == 1:
                    name, bits = tensor.name, element_bits(tensor.data_type) or 0
            elif part.number == 3:
                dims += varints(self._data, part, _MAX_DIMS)
        self._check_size(f"the sparse tensor {shown(name)}", dims, bits)
        return name

    # -- the rules ------------------------------------------------------------------------------------------------

    def _check_tensor(self, tensor: _Tensor) -> None:
        expected = tensor.expected_bytes()
        if tensor.external or tensor.location == _EXTERNAL:
            if tensor.data_type == STRING:
                raise ModelInvalid(f"tensor {shown(tensor.name)} is text and cannot be external data", stage="verify")
            pairs = [self._entry(part, limit=4096) for part in tensor.external]
            self._external.check(tensor.name, pairs, expected)
            if tensor.location == _EXTERNAL:
                return
        if expected is None:
            return
        if tensor.raw_bytes is not None and tensor.data_type != STRING:
            wrong = tensor.raw_bytes != expected
        elif tensor.data_type == STRING:
            wrong = expected > tensor.texts
        else:
            wrong = expected > tensor.typed_bytes * _MOST_BYTES_PER_BYTE
        if wrong:
            held = tensor.raw_bytes if tensor.raw_bytes is not None else tensor.typed_bytes
            raise ModelInvalid(
                f"tensor {shown(tensor.name)} declares {expected} bytes with its shape {shown(tensor.dims)}, and the "
                f"file holds {held} for it",
                stage="verify",
            )

    def _check_fillers(self) -> None:
        for operator, name, bits in self._fillers:
            for vector in self._shapes.get(name, ()):
                self._check_size(operator, vector, bits)

    def _check_size(self, what: str, dims: list[int], bits: int) -> None:
        # A dimension of -1 or 0 is something that only the run knows.
        size = math.prod(max(1, dim) for dim in dims) * bits // 8
        if size > self._limits.max_constant_bytes:
            raise ModelInvalid(
                f"{what} makes a constant of {size} bytes out of the shape {shown(dims)}, more than the "
                f"{self._limits.max_constant_bytes} allowed",
                stage="verify",
            )

    def _check_domains(self, domains: frozenset[str]) -> None:
        for domain, operator in sorted(self._operators):
            if domain not in domains and (domain, operator) not in self._functions:
                raise UnsupportedOperator(
                    f"the model needs the operator {shown(f'{domain}:{operator}')}, which is not one of onnxruntime's "
                    "own: it would need a library of custom operators",
                    domain=domain,
                    operator=operator,
                    stage="verify",
                )

    # -- small messages -------------------------------------------------------------------------------------------

    def _opset(self, field: Field) -> tuple[str, int]:
        domain, number = "", 0
        for part in fields(self._data, *message(field)):
            if part.number == 1:
                domain = text(self._data, part)
            elif part.number == 2 and part.wire == VARINT:
                number = signed(part.value)
        return _domain(domain), number

    def _entry(self, field: Field, *, limit: int) -> tuple[str, str]:
        found: dict[int, str] = {}
        for part in fields(self._data, *message(field)):
            if part.number in (1, 2):
                if part.number in found:
                    raise broken(part.start, "a key or value given twice")
                found[part.number] = text(self._data, part, limit)
        return found.get(1, ""), found.get(2, "")


class _Tensor:
    """What a ``TensorProto`` declares, and how many bytes are there for it."""

    __slots__ = (
        "data_type",
        "dims",
        "external",
        "location",
        "name",
        "raw",
        "raw_bytes",
        "small",
        "texts",
        "typed_bytes",
    )

    def __init__(self, data: Buffer, field: Field) -> None:
        self.name = ""
        self.dims: list[int] = []
        self.data_type = 0
        self.location = 0
        self.external: list[Field] = []
        self.raw: Field | None = None
        self.raw_bytes: int | None = None
        self.small: list[Field] = []
        self.texts = 0
        self.typed_bytes = 0
        for part in fields(data, *message(field)):
            if part.number == 1:
                self.dims += varints(data, part, _MAX_DIMS)
                if len(self.dims) > _MAX_DIMS:
                    raise broken(part.start, f"a tensor of more than {_MAX_DIMS} dimensions")
            elif part.number == 2 and part.wire == VARINT:
                self.data_type = part.value
            elif part.number in (4, 5, 7, 10, 11):
                # A number that is not packed has its tag before it, so it never counts for less than it is.
                self.typed_bytes += part.size
                if part.number == 7 and len(self.small) <= _MAX_DIMS:
                    self.small.append(part)
            elif part.number == 6:
                self.texts += 1
            elif part.number == 8:
                self.name = text(data, part)
            elif part.number == 9:
                self.raw, self.raw_bytes = part, part.size
            elif part.number == 13:
                self.external.append(part)
            elif part.number == 14 and part.wire == VARINT:
                self.location = part.value
        if any(dim < 0 for dim in self.dims):
            raise ModelInvalid(
                f"tensor {shown(self.name)} has the shape {shown(self.dims)}: lengths are 0 or more", stage="verify"
            )

    def expected_bytes(self) -> int | None:
        """What type and dimensions ask for (for text: how many); None for an unknown type."""
        bits = element_bits(self.data_type)
        if bits is None:
            return None
        count = math.prod(self.dims)
        return count if self.data_type == STRING else (count * bits + 7) // 8

    def vector(self, data: Buffer) -> list[int] | None:
        """Its numbers, if it is a short vector of 64-bit integers."""
        if self.data_type != 7 or math.prod(self.dims) > _MAX_DIMS or self.location == _EXTERNAL:
            return None
        if self.raw is not None:
            raw = data.bytes[self.raw.start : self.raw.end]
            return [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
        return [number for part in self.small for number in varints(data, part, _MAX_DIMS)]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
