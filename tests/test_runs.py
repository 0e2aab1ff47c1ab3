"""Runs of zeros cut short: what goes in comes out, nothing longer is made, junk is refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import memory_limit

from tolpack.codecs.block_split import block_bounds
from tolpack.codecs.frames import compress, compress_runs, decompress, decompress_runs
from tolpack.codecs.zero_runs import decode_runs, encode_runs, longest_content
from tolpack.errors import FormatError


def content(symbols, literals=()):
    """Frame content of `symbols`, pairs of high and low four bits, and literals."""
    codes = bytes(high << 4 | low for high, low in symbols)
    return len(codes).to_bytes(4, "little") + codes + bytes(literals)


def encoded(data):
    """Content that stands for `data`."""
    return encode_runs(np.frombuffer(data, np.uint8))


def refused(data, size):
    with memory_limit(8), pytest.raises(FormatError) as caught:
        decode_runs(data, size, "here")
    assert caught.value.code == "frame"
    assert caught.value.place == "here"


# Long runs, small numbers, literals: each kind often enough to meet the others.
pieces = st.one_of(
    st.integers(0, 3000).map(bytes),
    st.binary(max_size=40),
    st.lists(st.sampled_from([0, 0, 1, 7, 8, 248, 249, 255]), max_size=40).map(bytes),
)
records = st.lists(pieces, max_size=12).map(b"".join)


@settings(max_examples=200)
@given(data=records)
def test_records_come_back(data):
    """Content stands for the records it was made of, and is no longer than a frame's may be."""
    found = encoded(data)
    assert decode_runs(found, len(data), "here").tobytes() == data
    assert len(found) <= longest_content(len(data))


@settings(max_examples=60)
@given(data=records, rows=st.integers(1, 20))
def test_frames_come_back(data, rows):
    """Records of any length, some at a time."""
    data = (data * rows)[: len(data) // rows * rows] or bytes(rows)
    frame = compress_runs(len(data) // rows, data)
    found = decompress_runs(frame, rows, len(data) // rows, "here")
    assert found.shape == (rows, len(data) // rows)
    assert found.tobytes() == data


def test_bytes_go_column_by_column():
    """Equal places of neighbouring records stand together."""
    frame = compress_runs(3, bytes([1, 0, 5, 2, 0, 6]))
    content = zstandard.ZstdDecompressor().decompress(frame)
    assert content == encoded(bytes([1, 2, 0, 0, 5, 6]))


def test_the_longest_content_and_the_longest_run_come_back():
    """Nothing but literals; zeros for more than the longest run."""
    literals = bytes([200]) * 1000
    assert len(encoded(literals)) == 4 + 2000
    for data in (literals, bytes(2**21 + 5) + b"\1", b"\xff" + bytes(2**20)):
        assert decode_runs(encoded(data), len(data), "here").tobytes() == data


def test_encoding_takes_memory_in_proportion_to_its_input():
    """A long run ahead of many literals is no reason to hold many symbols for each of them."""
    data = bytes(16) + bytes(range(8, 248)) * 4000
    with memory_limit(120):
        assert decode_runs(encoded(data), len(data), "here").tobytes() == data


def test_each_symbol_gives_what_the_specification_says():
    """Symbols, literals in order, zeros at the end (SPEC §8)."""
    data = content([(0, 1), (2, 7), (15, 9), (0, 15), (1, 8), (0, 0), (3, 0), (0, 8)], [77, 0])
    expected = [1, 0, 0, 7, *[0] * 15, 249, 255, 0, 77, *[0] * 16, *[0] * 128, 0]
    assert list(decode_runs(data, 200, "here")) == expected + [0] * (200 - len(expected))
    assert decode_runs(data, len(expected), "here").tobytes() == bytes(expected)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 5),
        (b"\1\0\0", 5),
        ((5).to_bytes(4, "little") + b"\1\1\1\1", 5),
        (b"\xff\xff\xff\xff" + bytes(100), 5),
        (content([(0, 1)] * 6), 5),
        (content([(5, 1)]), 5),
        (content([(0, 0)]), 15),
        (content([(15, 0)] * 1000), 16 << 15),
        (content([(0, 8)]), 5),
        (content([(0, 1)], [3]), 5),
        (content([(0, 8)], [3, 4]), 5),
        (content([], [3]), 5),
    ],
    ids=[
        "no content", "no count", "fewer symbols than said", "many more symbols said",
        "too many bytes", "a run and a byte too far", "a run too far", "a bomb", "no literal",
        "a literal over", "two literals for one", "a literal for none",
    ],
)  # fmt: skip
def test_content_that_does_not_fit_is_refused(data, size):
    """Symbols beyond the content, bytes beyond the records, literals over or lacking."""
    refused(data, size)
    with memory_limit(8), pytest.raises(FormatError) as caught:
        decompress_runs(compress(data), 1, size, "here")
    assert caught.value.code == "frame"


def test_content_of_an_impossible_length_is_refused_before_it_is_decompressed():
    """A frame may declare no more than any records could take."""
    frame = compress(bytes(1 << 26))
    with memory_limit(8), pytest.raises(FormatError) as caught:
        decompress_runs(frame, 10, 100, "here")
    assert caught.value.code == "frame"


def test_small_codes_take_fewer_bytes_than_without():
    """What the frame is for: codes of which four of five are zero."""
    codes = np.random.default_rng(0).normal(0, 0.45, (16, 2048)).round().astype(np.int8).tobytes()
    assert len(compress_runs(2048, codes)) < 0.95 * len(compress(codes))
    assert decompress(compress(codes), len(codes), "here") == codes


def test_a_block_ends_where_other_symbols_begin():
    """Two kinds of bytes: one cut, at the boundary of sixteen segments next to where they meet."""
    rng = np.random.default_rng(0)
    mixed = np.concatenate([rng.integers(0, 4, 6000), rng.integers(100, 200, 10000)])
    assert list(block_bounds(mixed.astype(np.uint8))) == [0, 6000, 16000]
    assert list(block_bounds(mixed[:6000].astype(np.uint8))) == [0, 6000]


@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17])
def test_hardly_any_bytes_are_not_cut(size):
    """Fewer bytes than segments."""
    assert list(block_bounds(np.arange(size, dtype=np.uint8))) == sorted({0, size})


def test_records_of_unlike_columns_take_fewer_bytes_in_several_blocks():
    """Large codes first, as writers order them, against one Huffman table for all."""
    spread = np.repeat([3.0, 0.4], 2048)
    codes = np.random.default_rng(0).normal(0, spread, (16, 4096)).round().astype(np.int8)
    together = compress(encode_runs(codes.T.ravel().view(np.uint8)))
    assert len(compress_runs(4096, codes.tobytes())) < 0.96 * len(together)


@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 16])
def test_pieces_of_any_size_give_the_same_bytes(piece, monkeypatch):
    """Without compiled loops symbols are expanded piece by piece, errors and all."""
    source = np.random.default_rng(8)
    data = source.integers(0, 256, 3000).astype(np.uint8)
    data[source.random(3000) < 0.8] = 0
    content = encode_runs(data)
    monkeypatch.setattr("tolpack.codecs.zero_runs._PIECE", piece)
    assert np.array_equal(decode_runs(content, len(data), "here"), data)
    with pytest.raises(FormatError, match="literals"):
        decode_runs(content + b"\1", len(data), "here")
    with pytest.raises(FormatError, match="literals"):
        decode_runs(content[:-1], len(data), "here")
    with pytest.raises(FormatError, match="at most"):
        decode_runs(content, len(data) // 2, "here")
