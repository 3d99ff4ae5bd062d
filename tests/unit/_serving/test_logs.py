from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import logging, sys
from modelbox._serving.logs import set_up_logging
set_up_logging("debug")
logging.getLogger(sys.argv[1] + ".core").debug("SELECT the whole of %s", "it")
logging.getLogger("modelbox.runtime").debug("ours")
"""


@pytest.mark.parametrize("library", ["aiosqlite", "botocore", "aiobotocore", "aiohttp", "grpclib", "hpack"])
def test_what_libraries_tell_of_each_statement_and_request_is_not_logged_at_debug(library: str) -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM, library], capture_output=True, text=True, check=True)
    assert "ours" in run.stderr
    assert "SELECT" not in run.stderr
