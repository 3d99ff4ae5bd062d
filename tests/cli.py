"""The command line, run in the test's own process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelbox.cli import main


class Cli:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str, code: int = 0) -> str:
        assert main(argv) == code, self._capsys.readouterr()
        captured = self._capsys.readouterr()
        return captured.out if code == 0 else captured.err

    def shown(self, *argv: str, code: int) -> str:
        """What a command that exits with ``code`` prints on stdout."""
        assert main(argv) == code, self._capsys.readouterr()
        return self._capsys.readouterr().out

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self(*argv, "--output", "json", code=code))
