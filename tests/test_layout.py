"""Order of tokens, chunks, encodings and predicted bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolpack.calibration.token_order import order_tokens
from tolpack.codecs.encodings import Encoding, Part, field_bytes
from tolpack.compress.chunks import HOT_SHARE, doubling_chunks
from tolpack.compress.fixed.encoding_choice import (
    field_encoding,
    frame_encoding,
    group_size,
    raw_chunk_bytes,
    raw_encoding,
    smooth_field_bytes,
)
from tolpack.compress.header_size import estimate_header_room


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_tokens_are_ordered_by_count_then_id(counts):
    """Slots hold tokens by falling count, ties by id, and the map is the inverse."""
    counts = np.array(counts, np.int64)
    order = order_tokens(counts, len(counts))
    expected = sorted(range(len(counts)), key=lambda token: (-counts[token], token))
    assert order.tokens(0, len(counts)).tolist() == expected
    assert order.counts.tolist() == [counts[token] for token in expected]
    assert order.identity == (expected == list(range(len(counts))))
    assert order.token_map()[order.tokens(0, len(counts))].tolist() == list(range(len(counts)))


def test_without_counts_the_order_is_the_identity():
    """Unknown frequencies leave tokens by id, and no chunk is cold."""
    order = order_tokens(None, 3000)
    assert order.identity
    assert order.counts is None
    assert order.tokens(0, 3000).tolist() == list(range(3000))
    assert all(plan.hot for plan in doubling_chunks(order))


@given(st.integers(1, 200_000))
def test_chunks_tile_the_slots(vocab_size):
    """Chunks follow one another without hole, double in size and are capped at 16,384 rows."""
    plans = doubling_chunks(order_tokens(None, vocab_size))
    assert [plan.first_slot for plan in plans] == [
        sum(plan.rows for plan in plans[:n]) for n in range(len(plans))
    ]
    assert sum(plan.rows for plan in plans) == vocab_size
    sizes = [1024, 1024, 2048, 4096, 8192] + [16384] * 20
    assert [plan.rows for plan in plans[:-1]] == sizes[: len(plans) - 1]
    assert 0 < plans[-1].rows <= sizes[len(plans) - 1]


def test_hot_chunks_cover_most_of_the_text():
    """A chunk is cold if the tokens before it already make up 95 % of the text."""
    counts = np.zeros(10_000, np.int64)
    counts[:1500] = 1000
    counts[1500:] = 1
    plans = doubling_chunks(order_tokens(counts, 10_000))
    covered = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    assert [plan.hot for plan in plans] == [covered[plan.first_slot] < HOT_SHARE for plan in plans]
    assert [plan.hot for plan in plans] == [True, True, False, False, False]


def test_counts_of_nothing_make_everything_hot():
    """Counts that are all zero say nothing about which tokens are rare."""
    assert all(plan.hot for plan in doubling_chunks(order_tokens(np.zeros(5000, np.int64), 5000)))


@pytest.mark.parametrize(
    ("values", "bits", "leading", "parts"),
    [
        (24, 16, 0, (Part("f16", 24),)),
        (24, 8, 0, (Part("int8", 24, 24),)),
        (256, 4, 0, (Part("int4", 256, 64),)),
        (100, 4, 0, (Part("int4", 100, 50),)),
        (100, 4, 8, (Part("int8", 8, 8), Part("int4", 92, 92))),
        (8, 4, 64, (Part("int8", 8, 8),)),
        (100, 8, 8, (Part("int8", 100, 50),)),
        (100, 16, 8, (Part("f16", 100),)),
    ],
)
def test_field_encoding(values, bits, leading, parts):
    """Bits choose the codec; leading values have 8 bits only beside 4-bit ones."""
    assert field_encoding(values, bits, "f16", leading) == parts
    assert sum(part.values for part in parts) == values


@given(st.integers(1, 5000))
def test_groups_are_equal_even_and_near_64(values):
    """Scales are spread evenly: groups differ from one another by the last one's few values."""
    size = group_size(values)
    groups = -(-values // size)
    assert size % 2 == 0
    assert groups * size - values < 2 * groups or groups == 1
    assert values < 96 or 43 <= size <= 96


@given(st.integers(1, 300), st.sampled_from([4, 8, 16]), st.integers(0, 64))
def test_smooth_bytes_are_near_the_real_ones(values, bits, leading):
    """The smooth size of a field differs from the real one by a few scales and odd codes."""
    leading = min(leading, values)
    real = field_bytes(field_encoding(values, bits, "f16", leading))
    assert abs(smooth_field_bytes(values, bits, leading if bits == 4 else 0) - real) <= 4


@given(st.integers(1, 300), st.sampled_from([4, 8, 16]), st.integers(1, 30))
def test_raw_blocks_waste_little(values, bits, layers):
    """Raw blocks waste at most 2 % on padding and checksum, unless 64 rows cannot do better."""
    fields = (field_encoding(values, bits, "f16"),) * layers
    encoding = raw_encoding(fields)
    record = sum(map(field_bytes, fields))
    rows = encoding.rows_per_block
    assert 1 <= rows <= 64
    block = raw_chunk_bytes(encoding, rows)
    assert block % 64 == 0
    assert rows == 64 or block <= 1.02 * record * rows
    assert raw_chunk_bytes(encoding, rows + 1) == 2 * block


def test_zstd_frames_hold_enough_for_the_coder():
    """Frames hold rows up to 8 KiB, or 64 rows of narrow records, or one row of wide ones."""
    narrow, wide = field_encoding(8, 4, "f16"), field_encoding(20_000, 8, "f16")
    assert frame_encoding("zstd", (narrow,)) == Encoding("zstd", 64, (narrow,))
    assert frame_encoding("zstd", (wide,)) == Encoding("zstd", 1, (wide,))
    middle = field_encoding(1000, 8, "f16")
    assert 8192 <= frame_encoding("zstd", (middle,)).rows_per_block * field_bytes(middle) < 2 * 8192


@given(st.integers(1, 200), st.integers(1, 300), st.booleans())
def test_header_room_fills_whole_pages(layers, chunks, has_basis):
    """The room kept for the header ends at a page together with the preamble."""
    room = estimate_header_room(layers, layers, chunks, has_basis=has_basis)
    assert (64 + room) % 4096 == 0
