"""When one interface may take the place of another: every kind of change, in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.signature import Compatibility, Dim, Signature, TensorSpec, find_incompatibilities
from tests.faults.registry import fault


def spec(name: str = "x", dtype: str = "float32", *shape: Dim) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None) -> Signature:
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs if outputs is not None else [spec("y")]))


X = spec("x", "float32", "batch", 16)
SAME = signature([X], [spec("y", "float32", "batch", 4)])

# What changes, the new interface, and whether running callers can go on.
CHANGES = {
    "nothing": (SAME, True),
    "a free dimension is renamed": (signature([spec("x", "float32", "n", 16)], list(SAME.outputs)), True),
    "a free dimension loses its name": (signature([spec("x", "float32", -1, 16)], list(SAME.outputs)), True),
    "a fixed input dimension becomes free": (signature([spec("x", "float32", "batch", -1)], list(SAME.outputs)), True),
    "a fixed input dimension becomes named": (signature([spec("x", "float32", "b", "t")], list(SAME.outputs)), True),
    "a free input dimension becomes fixed": (signature([spec("x", "float32", 1, 16)], list(SAME.outputs)), False),
    "a fixed input dimension changes": (signature([spec("x", "float32", "batch", 17)], list(SAME.outputs)), False),
    "an input gains a dimension": (signature([spec("x", "float32", "b", 16, 1)], list(SAME.outputs)), False),
    "an input loses a dimension": (signature([spec("x", "float32", 16)], list(SAME.outputs)), False),
    "an input has another dtype": (signature([spec("x", "float64", "batch", 16)], list(SAME.outputs)), False),
    "an input is renamed": (signature([spec("z", "float32", "batch", 16)], list(SAME.outputs)), False),
    "an input is gone": (signature([], list(SAME.outputs)), False),
    "an input is new": (signature([X, spec("extra")], list(SAME.outputs)), False),
    "an output is new": (signature([X], [*SAME.outputs, spec("extra")]), True),
    "an output is gone": (signature([X], []), False),
    "an output is renamed": (signature([X], [spec("z", "float32", "batch", 4)]), False),
    "an output has another dtype": (signature([X], [spec("y", "float16", "batch", 4)]), False),
    "a free output dimension becomes fixed": (signature([X], [spec("y", "float32", 1, 4)]), True),
    "a fixed output dimension becomes free": (signature([X], [spec("y", "float32", "batch", -1)]), False),
    "a fixed output dimension changes": (signature([X], [spec("y", "float32", "batch", 5)]), False),
    "an output has another rank": (signature([X], [spec("y", "float32", "batch")]), False),
}


@fault(49)
@pytest.mark.parametrize(("new", "fits"), CHANGES.values(), ids=CHANGES.keys())
def test_widening(new: Signature, fits: bool) -> None:
    problems = find_incompatibilities(SAME, new)
    assert (problems == []) == fits, problems
    for problem in problems:
        assert "input" in problem or "output" in problem


@pytest.mark.parametrize("new", [new for new, _ in CHANGES.values()], ids=CHANGES.keys())
def test_exact_takes_nothing_else_and_any_takes_everything(new: Signature) -> None:
    assert (find_incompatibilities(SAME, new, Compatibility.EXACT) == []) == (new == SAME)
    assert find_incompatibilities(SAME, new, Compatibility.ANY) == []


def test_order_does_not_matter_and_every_problem_is_told() -> None:
    old, new = signature([spec("a"), spec("b")]), signature([spec("b"), spec("a")])
    assert find_incompatibilities(old, new) == []
    problems = find_incompatibilities(SAME, signature([spec("z", "int64")], [spec("w")]))
    assert len(problems) == 3


def test_messages_name_both_sides() -> None:
    (problem,) = find_incompatibilities(SAME, signature([spec("x", "float64", -1, 16)], list(SAME.outputs)))
    assert "x: float32[batch, 16]" in problem
    assert "x: float64[?, 16]" in problem


dims: st.SearchStrategy[Dim] = st.one_of(st.integers(0, 3), st.just(-1), st.sampled_from(["n", "m"]))
specs = st.builds(
    lambda name, dtype, shape: TensorSpec(name=name, dtype=dtype, shape=tuple(shape)),
    st.sampled_from("abc"),
    st.sampled_from(["float32", "int64"]),
    st.lists(dims, max_size=2),
)
sides = st.lists(specs, max_size=3, unique_by=lambda s: s.name).map(tuple)
signatures = st.builds(Signature, inputs=sides, outputs=sides)


@given(signatures)
def test_every_interface_can_follow_itself(one: Signature) -> None:
    assert find_incompatibilities(one, one) == []


@given(signatures, signatures, signatures)
def test_widening_twice_is_widening(a: Signature, b: Signature, c: Signature) -> None:
    if not find_incompatibilities(a, b) and not find_incompatibilities(b, c):
        assert not find_incompatibilities(a, c)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\0b"},
        {"name": "x" * 1025},
        {"name": 7},
        {"dtype": "float"},
        {"dtype": "object"},
        {"shape": (-2,)},
        {"shape": (True,)},
        {"shape": (1.5,)},
        {"shape": (None,)},
    ],
)
def test_what_is_no_tensor_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        TensorSpec(**{"name": "x", "dtype": "float32", "shape": (), **wrong})  # type: ignore[arg-type]


def test_names_are_unique_on_each_side() -> None:
    with pytest.raises(InvalidError, match="twice"):
        signature([spec("x"), spec("x")])
    with pytest.raises(InvalidError, match="output 'y' twice"):
        signature([], [spec("y"), spec("y")])
    signature([spec("x")], [spec("x")])
