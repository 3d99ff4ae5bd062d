"""A version of safetensors in service: tensors by name, in the place of a session.

Holds no graph, so there is nothing to run and no interface to keep: a new version may have other tensors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy.typing as npt

from modelbox.errors import FormatRefused, LeaseReleased, ModelInvalid
from modelbox.loader.safetensors import open_safetensors
from modelbox.loader.session import Session, SessionOptions, WarmReport
from modelbox.refs import shown
from modelbox.signature import Signature

__all__ = ("TensorFiles",)


class TensorFiles(Session):
    """Tensors of one file or several, mapped into memory; made by `open_files`.

    Concurrency: as `Session`.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self._options = SessionOptions()
        self._tensors: Mapping[str, npt.NDArray[Any]] | None = tensors
        self.signature = Signature(inputs=(), outputs=())
        self.run_s: float | None = None
        self.clock_ns = time.perf_counter_ns

    @classmethod
    def open_files(cls, paths: list[Path]) -> TensorFiles:
        """Opens files that belong together.

        Raises:
            ModelInvalid: One is broken, or two have a tensor of the same name.
            ConfigError: There are tensors of a type that numpy lacks, and ``ml_dtypes`` is not installed.
        """
        tensors: dict[str, npt.NDArray[Any]] = {}
        for path in paths:
            found = open_safetensors(path)
            if twice := sorted(tensors.keys() & found.keys()):
                raise ModelInvalid(f"tensor {shown(twice[0])} is in two of the version's files", path=str(path))
            tensors.update(found)
        return cls(MappingProxyType(tensors))

    @property
    def raw(self) -> Mapping[str, npt.NDArray[Any]]:
        """The tensors by name, read-only; whoever holds one of them keeps its file in memory.

        Raises:
            LeaseReleased: They were replaced and given back.
        """
        if self._tensors is None:
            raise LeaseReleased("the tensors were replaced by those of a newer version")
        return self._tensors

    def run(self, feed: Mapping[str, Any]) -> NoReturn:
        """Refuses: there is no graph."""
        raise FormatRefused("this version holds tensors and no graph: read `model.tensors`, there is nothing to run")

    def run_here(self, feed: Mapping[str, Any]) -> NoReturn:
        """Refuses as `run`."""
        self.run(feed)

    def run_within(self, feed: Mapping[str, Any], run_options: Any) -> NoReturn:
        """Refuses as `run`."""
        self.run(feed)

    def warm(self, deadline_s: float, golden: Path | None = None) -> WarmReport:
        """Does nothing: nothing runs."""
        return WarmReport(rows_independent=False, run_s=None, ran=False, golden=False, finite=True)

    def terminate(self) -> None:
        """Does nothing: nothing runs."""

    def close(self) -> None:
        """Lets go of the tensors; idempotent."""
        self._tensors = None
