"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is not a failure: no test asserts a time. The same examples at every run, so that a run says something
# about the change and not about its luck; MODELBOX_TEST_EXPLORE=1 looks for new ones.
settings.register_profile(
    "modelbox",
    deadline=None,
    derandomize="MODELBOX_TEST_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("modelbox")

pytest_plugins = ("tests.fixtures", "tests.servers.fixtures")

# Of the backends of Keras, the one that requirements/training.txt brings.
os.environ.setdefault("KERAS_BACKEND", "torch")

Backend = tuple[str, dict[str, Any]]


def _backend(name: str, backend: Backend, needs: str | None = None) -> Any:
    missing = needs is not None and importlib.util.find_spec(needs) is None
    marks = [pytest.mark.skip(reason=f"{needs} is not installed")] if missing else []
    return pytest.param(backend, id=name, marks=marks)


@pytest.fixture(
    scope="session",
    params=[
        _backend("asyncio", ("asyncio", {"use_uvloop": False})),
        _backend("uvloop", ("asyncio", {"use_uvloop": True}), needs="uvloop"),
        _backend("trio", ("trio", {}), needs="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Run each asynchronous test on every event loop that the library supports.

    Tests of code that is bound to asyncio override this fixture for their module:

        @pytest.fixture(scope="module")
        def anyio_backend() -> str:
            return "asyncio"
    """
    backend: Backend = request.param
    return backend


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip tests that need root where we are not."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs to run as root")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)
