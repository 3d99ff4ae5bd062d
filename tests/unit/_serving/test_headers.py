from __future__ import annotations

from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from modelbox._serving.headers import HeaderDecoder, literal

Headers = list[tuple[str, str]]

NAMES = st.sampled_from([":path", "te", "mark", "grpc-timeout", "user-agent"])
VALUES = st.one_of(st.sampled_from(["", "a", "b", "trailers"]), st.text("xyz", min_size=20, max_size=60))
BLOCKS = st.lists(
    st.tuples(
        st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=5),
        st.sampled_from([None, None, None, 0, 64, 200, 4096]),  # a new size of the table
        st.booleans(),  # whether the block is looked at first, or comes from h2
    ),
    max_size=40,
)


def ours(headers: Headers) -> str | None:
    """What a list of headers means: all of it, where it has a mark."""
    return repr(headers) if any(name == "mark" for name, _ in headers) else None


@given(BLOCKS)
def test_every_block_means_what_a_plain_decoder_says(blocks: list[tuple[Headers, int | None, bool]]) -> None:
    encoder, plain, decoder = Encoder(), Decoder(), HeaderDecoder(ours, 1 << 16)
    for headers, size, looked in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = bytes(encoder.encode(headers))
        expected = [(str(name), str(value)) for name, value in plain.decode(block)]
        if looked:
            meaning = decoder.look(block)
            assert meaning == ours(expected)
            if meaning is not None:
                continue
        assert [(name.decode(), value.decode()) for name, value in decoder.decode(block, raw=True)] == expected


def test_a_block_that_was_seen_is_not_decoded_again() -> None:
    read: list[Headers] = []

    def meaning(headers: Headers) -> str:
        read.append(headers)
        return headers[0][1]

    decoder = HeaderDecoder(meaning, 1 << 16)
    block = literal("mark", "one")
    assert [decoder.look(block) for _ in range(3)] == ["one"] * 3
    assert len(read) == 1
    # Something that goes into the table may change what any block means.
    decoder.decode(Encoder().encode([("mark", "two")]), raw=True)
    assert decoder.look(block) == "one"
    assert len(read) == 2


def test_headers_that_are_no_text_mean_nothing() -> None:
    decoder = HeaderDecoder(ours, 1 << 16)
    block = b"\0\4mark\1\xff"
    assert decoder.look(block) is None
    assert [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)] == [(b"mark", b"\xff")]
