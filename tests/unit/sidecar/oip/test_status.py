"""The table of statuses."""

from __future__ import annotations

import pytest

from modelbox import errors
from modelbox.errors import ModelBoxError
from modelbox.sidecar.oip.status import GrpcStatus, retry_after_s, statuses_of


def _all(cls: type[ModelBoxError] = ModelBoxError) -> list[type[ModelBoxError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]


@pytest.mark.parametrize("cls", _all(), ids=lambda cls: cls.__name__)
def test_callers_faults_and_ours(cls: type[ModelBoxError]) -> None:
    statuses = statuses_of(cls)
    assert 400 <= statuses.http < 600
    # What may be tried again is 503 with a time, and nothing else is.
    assert (statuses.http == 503) == (retry_after_s(cls("text")) is not None)
    if cls.retryable:
        assert statuses.http == 503
    assert (statuses.grpc is GrpcStatus.INVALID_ARGUMENT) == (statuses.http == 400)


def test_named_pause() -> None:
    assert retry_after_s(errors.ServerBusy("full", retry_after_s=0.25)) == 0.25
    assert retry_after_s(errors.ServerBusy("full")) == 1.0
