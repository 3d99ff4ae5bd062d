"""Memory of large answers: used again, but never while somebody looks at it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from modelbox._transport.sidecar_answers import AnswerMemory

SIZE = 640_000


def filled(memory: AnswerMemory, value: float, size: int = SIZE) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.ndarray((size // 4,), np.float32, memory.lend(size))
    array[:] = value
    return array


def test_is_used_again_once_its_array_is_gone() -> None:
    memory = AnswerMemory()
    array = filled(memory, 1.0)
    where = array.ctypes.data
    del array
    assert filled(memory, 2.0).ctypes.data == where


def test_is_not_used_again_while_there_is_an_array_a_view_or_a_buffer() -> None:
    memory = AnswerMemory()
    array = filled(memory, 1.0)
    view = filled(memory, 2.0)[10:]
    buffer = filled(memory, 3.0).data
    reshaped = filled(memory, 4.0).reshape(-1, 4).T
    for _ in range(8):
        filled(memory, 9.0)
        gc.collect()
    assert set(array) == {1.0}
    assert set(view) == {2.0}
    assert set(np.frombuffer(buffer, np.float32)) == {3.0}
    assert set(reshaped.ravel()) == {4.0}


def test_gives_what_is_large_enough() -> None:
    memory = AnswerMemory()
    small = filled(memory, 1.0, 70_000)
    del small
    large = memory.lend(1_000_000)
    assert len(large) >= 1_000_000
    assert len(memory.lend(65_536)) == 65_536


def test_keeps_a_bounded_amount() -> None:
    memory = AnswerMemory()
    held = [filled(memory, 1.0, 8 << 20) for _ in range(10)]
    held.clear()
    memory.lend(1)
    assert memory.free_bytes == 32 << 20


def test_outlives_its_owner() -> None:
    memory = AnswerMemory()
    array = filled(memory, 5.0)
    del memory
    gc.collect()
    assert set(array) == {5.0}
