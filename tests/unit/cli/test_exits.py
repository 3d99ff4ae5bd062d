"""Every error has an exit code, and every exit code a meaning."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from modelbox import errors
from modelbox.cli.exits import MEANINGS, Exit, exit_code
from modelbox.config import ClientConfig


def _all(cls: type[errors.ModelBoxError]) -> list[type[errors.ModelBoxError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]


def test_every_exit_code_is_explained() -> None:
    assert set(MEANINGS) == set(Exit)


@pytest.mark.parametrize("cls", [c for c in _all(errors.ModelBoxError)[1:] if c.__module__ == "modelbox.errors"])
def test_an_error_never_ends_as_a_success(cls: type[errors.ModelBoxError]) -> None:
    assert exit_code(cls("text")) not in (Exit.OK, Exit.INTERRUPTED)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFoundError("x"), 3),
        (errors.InUseError("x"), 4),
        (errors.DeadlineExceeded("x"), 5),
        (errors.Unavailable("x"), 5),
        (errors.ServerBusy("x"), 5),
        (errors.IntegrityError("x"), 6),
        (errors.RefError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.LimitError("x"), 7),
        (errors.SignatureChanged("x"), 8),
        (errors.ProtocolError("x"), 1),
        (errors.ModelBoxError("x"), 1),
    ],
)
def test_scripts_can_tell_errors_apart(error: errors.ModelBoxError, code: int) -> None:
    assert exit_code(error) == code


def test_the_documentation_has_the_same_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    table = [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    assert "\n".join(table) in text


def test_the_documentation_names_every_setting() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for setting in fields(ClientConfig):
        assert f"| `{setting.name}` | `MODELBOX_{setting.name.upper()}` |" in text
