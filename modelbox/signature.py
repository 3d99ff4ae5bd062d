"""What a model takes and gives: tensor names, dtypes and shapes, and when a new version may replace an old one.

Pure. Reading a signature out of a model file is the loader's work; checking arrays against it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelbox.errors import InvalidError
from modelbox.refs import shown

__all__ = ("DTYPES", "Compatibility", "Dim", "Signature", "TensorSpec", "find_incompatibilities")

Dim = int | str
"""A fixed length (0 or more), the name of a free dimension ("batch"), or -1 for a free one without a name."""

DTYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "string",
    ]
)
"""Element types as numpy names them, and ``string`` (variable-length text, numpy ``object`` or ``str_``)."""


class Compatibility(StrEnum):
    """Which interface a new version must have to replace the running one."""

    WIDENING = "widening"
    EXACT = "exact"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: As in the graph.
        dtype: One of `DTYPES`, or the runtime's own text for a value that is no tensor, such as
            ``seq(map(int64,tensor(float)))``; then ``shape`` is empty.
        shape: Row-major dimensions; empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 1024 or "\0" in self.name:
            raise InvalidError(f"{shown(self.name)} is not a tensor name: expected 1 to 1024 characters without NUL")
        if self.dtype not in DTYPES and not self.dtype.startswith(("seq(", "map(", "optional(", "sparse_tensor(")):
            raise InvalidError(
                f"tensor {shown(self.name)} has dtype {shown(self.dtype)}: expected one of {', '.join(sorted(DTYPES))}"
            )
        for dim in self.shape:
            if isinstance(dim, bool) or not isinstance(dim, int | str) or (isinstance(dim, int) and dim < -1):
                raise InvalidError(
                    f"tensor {shown(self.name)} has the dimension {shown(dim)}: expected a length, a name, or -1"
                )

    def __str__(self) -> str:
        dims = ", ".join("?" if d == -1 else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Inputs and outputs, in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            for name in names:
                if names.count(name) > 1:
                    raise InvalidError(f"the signature names the {side} {shown(name)} twice")


def find_incompatibilities(old: Signature, new: Signature, rule: Compatibility = Compatibility.WIDENING) -> list[str]:
    """Why ``new`` may not replace ``old`` under the running callers; empty when it may.

    `Compatibility.WIDENING` asks for the same input names, the same dtype and rank, dimensions at least as permissive
    (a fixed one may become free, never the other way round), and at least the old outputs, each as before or narrower.
    """
    if rule is Compatibility.ANY or old == new:
        return []
    if rule is Compatibility.EXACT:
        return [f"the interface must stay exactly ({_text(old)}), got ({_text(new)})"]
    problems: list[str] = []
    before = {spec.name: spec for spec in old.inputs}
    after = {spec.name: spec for spec in new.inputs}
    problems += [f"input {shown(name)} is gone" for name in before if name not in after]
    problems += [f"input {shown(name)} is new, and no caller sends it" for name in after if name not in before]
    problems += [
        text for name, spec in before.items() if name in after and (text := _narrowed("input", spec, after[name]))
    ]
    given = {spec.name: spec for spec in new.outputs}
    problems += [f"output {shown(spec.name)} is gone" for spec in old.outputs if spec.name not in given]
    # An output promises the other way round: what was fixed must stay fixed.
    problems += [
        text
        for spec in old.outputs
        if spec.name in given and (text := _narrowed("output", given[spec.name], spec, was=spec))
    ]
    return problems


def _narrowed(side: str, narrow: TensorSpec, wide: TensorSpec, *, was: TensorSpec | None = None) -> str | None:
    """Why a value of shape ``narrow`` does not always fit ``wide``."""
    old, new = (narrow, wide) if was is None else (wide, narrow)
    fits = (
        narrow.dtype == wide.dtype
        and len(narrow.shape) == len(wide.shape)
        and all(isinstance(w, str) or w in (-1, n) for n, w in zip(narrow.shape, wide.shape, strict=True))
    )
    return None if fits else f"{side} was ({old}), would become ({new})"


def _text(signature: Signature) -> str:
    inputs = ", ".join(str(spec) for spec in signature.inputs)
    return f"{inputs} -> {', '.join(str(spec) for spec in signature.outputs)}"
