"""Which data directories are for the server alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelbox.errors import ConfigError
from modelbox.runtime.data_dir import check_data_dir


def directory(path: Path, mode: int, *, empty: bool = False) -> Path:
    path.mkdir()
    if not empty:
        (path / "modelbox.db").touch()
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o704, 0o702, 0o701, 0o2775])
def test_one_that_others_can_look_into_is_refused(tmp_path: Path, mode: int) -> None:
    path = directory(tmp_path / "data", mode)
    with pytest.raises(ConfigError) as caught:
        check_data_dir(path)
    assert f"(mode {mode:o})" in str(caught.value)
    assert f"chmod o-rwx {path}" in str(caught.value)
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o770, 0o2770])
def test_one_for_the_server_or_its_group_is_taken(tmp_path: Path, mode: int) -> None:
    path = directory(tmp_path / "data", mode)
    check_data_dir(path)
    assert path.stat().st_mode & 0o7777 == mode


def test_an_empty_one_of_ours_is_closed(tmp_path: Path) -> None:
    path = directory(tmp_path / "data", 0o2775, empty=True)
    check_data_dir(path)
    assert path.stat().st_mode & 0o7777 == 0o2770


def test_one_that_is_not_there_or_is_none_is_left_to_who_opens_it(tmp_path: Path) -> None:
    check_data_dir(tmp_path / "absent")
    (tmp_path / "file").touch()
    check_data_dir(tmp_path / "file")
    check_data_dir(tmp_path / "file" / "below")
