"""Files are checked as they arrive, however they are cut into chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import IntegrityError
from modelbox.loader.verify import FileVerifier
from modelbox.manifest import ManifestFile
from tests.faults.registry import fault
from tests.model_source import digest_of


def _file(data: bytes) -> ManifestFile:
    return ManifestFile(path="model.onnx", size_bytes=len(data), digest=digest_of(data))


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_split_of_the_right_bytes_is_accepted(chunks: list[bytes]) -> None:
    verifier = FileVerifier(_file(b"".join(chunks)))
    seen = 0
    for chunk in chunks:
        verifier.feed(chunk)
        seen += len(chunk)
        assert verifier.offset == seen
    assert verifier.missing == 0
    verifier.finish()


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_other_bytes_are_refused(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    bit = 1 << draw.draw(st.integers(0, 7))
    verifier = FileVerifier(_file(data))
    verifier.feed(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
    with pytest.raises(IntegrityError, match="has the digest") as caught:
        verifier.finish()
    assert caught.value.fields["expected"] == digest_of(data)


@fault(13)
@given(st.binary(max_size=100), st.binary(min_size=1, max_size=20))
def test_the_first_byte_too_many_is_refused_and_not_taken(data: bytes, more: bytes) -> None:
    verifier = FileVerifier(_file(data))
    verifier.feed(data)
    with pytest.raises(IntegrityError, match="longer than"):
        verifier.feed(more)
    assert verifier.offset == len(data)
    verifier.finish()


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_short_file_is_refused(data: bytes, draw: st.DataObject) -> None:
    verifier = FileVerifier(_file(data))
    verifier.feed(data[: draw.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(IntegrityError, match="its manifest declares"):
        verifier.finish()
