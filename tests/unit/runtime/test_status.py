"""Every error has its statuses, and the documentation says which."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpclib.const import Status

from modelbox import errors
from modelbox.runtime import status

ROOT = Path(__file__).parents[3]


def _all(cls: type[errors.ModelBoxError]) -> list[type[errors.ModelBoxError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]


OWN = [cls for cls in _all(errors.ModelBoxError) if cls.__module__ == "modelbox.errors"]


@pytest.mark.parametrize("cls", OWN)
def test_every_error_class_has_a_row_of_its_own(cls: type[errors.ModelBoxError]) -> None:
    assert f"`{cls.__name__}`" in status.errors_table()
    assert 400 <= status.statuses_of(cls).http <= 599


def test_the_numbers_are_those_of_grpc() -> None:
    assert {s.name: s.value for s in status.GrpcStatus} == {s.name: Status[s.name].value for s in status.GrpcStatus}


def test_retryable_errors_have_a_status_that_clients_try_again() -> None:
    for cls in OWN:
        if cls.retryable:
            statuses = status.statuses_of(cls)
            assert statuses.http in (429, 503)
            assert statuses.grpc in (status.GrpcStatus.UNAVAILABLE, status.GrpcStatus.RESOURCE_EXHAUSTED)


def test_an_error_class_from_elsewhere_goes_by_its_base() -> None:
    class Odd(errors.InUseError):
        code = "conflict.in_use.odd"

    assert status.statuses_of(Odd("held")) == status.statuses_of(errors.InUseError)


def test_the_documented_table_is_the_real_one() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    assert status.errors_table() in text, "write the output of modelbox.runtime.status.errors_table() there"
