"""The record: where the parts of all layers lie, and decoding some or all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import encode_records, reference_record

from tolpack.codecs.encodings import Encoding, Part
from tolpack.codecs.part_values import encode_values
from tolpack.codecs.record import record_layout
from tolpack.container.header import Table

PARTS = st.one_of(
    st.builds(Part, st.sampled_from(["f32", "f16", "bf16"]), st.integers(1, 9)),
    st.builds(Part, st.just("f8e4m3-step"), st.integers(1, 9), step=st.just(0.5)),
    st.builds(
        Part,
        st.sampled_from(["int8", "int4", "q8_0", "q4_0", "f8e4m3", "f8e4m3-e8m0"]),
        st.integers(1, 19),
        st.sampled_from([2, 4, 6, 8, 32]),
    ),
)
FIELDS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)


def specs(fields):
    return [
        {
            "parts": [
                {
                    "codec": p.codec,
                    "values": p.values,
                    "group_size": p.group_size,
                    "step": p.step,
                }
                for p in parts
            ]
        }
        for parts in fields
    ]


def random_records(fields, rows=4, seed=3):
    rng = np.random.default_rng(seed)
    counts = [sum(part.values for part in parts) for parts in fields]
    values = [rng.normal(size=(rows, n)).astype(np.float32) for n in counts]
    return values, encode_records(Encoding("raw", 1, tuple(fields)), values)


def test_offsets_of_one_layout_by_hand():
    """First parts of all layers, then second parts; all scales, then all codes in that order."""
    fields = (
        (Part("int8", 3, 2), Part("int4", 5, 4)),  # scales 4 + 4, codes 3 + 3
        (Part("int8", 3, 2), Part("f16", 5)),  # scales 4, codes 3 + 10
        (Part("f32", 8),),  # codes 32
    )
    layout = record_layout(fields)
    found = [
        (r.first, r.count, r.value_offset, r.scale_offset_bytes, r.code_offset_bytes)
        for r in layout.runs
    ]
    assert found == [
        (0, 2, 0, 0, 12),  # both int8 parts decode together
        (2, 1, 0, 8, 18),
        (0, 1, 3, 8, 50),
        (1, 1, 3, 12, 53),
    ]
    assert layout.record_bytes == 63
    assert layout.stored_values == (8, 8, 8)


def test_equal_neighbours_form_one_run():
    """Layers that are stored alike are one run, so that they decode in one step."""
    layout = record_layout(((Part("int4", 8, 4),),) * 5)
    assert [(run.first, run.count) for run in layout.runs] == [(0, 5)]
    assert layout.record_bytes == 5 * (4 + 4)


@settings(max_examples=80)
@given(fields=FIELDS)
def test_decoding_what_was_encoded_gives_each_parts_values(fields):
    """Every part comes back as its codec alone would give it, wherever it lies in the record."""
    _, records = random_records(fields)
    found = record_layout(tuple(fields)).decode(records, range(len(fields)))
    for number in range(len(fields)):
        slow = [reference_record(specs(fields), row.tobytes())[number] for row in records]
        assert found[number].tolist() == slow


@settings(max_examples=80)
@given(fields=FIELDS, data=st.data())
def test_decoding_some_layers_equals_a_cut_of_decoding_all(fields, data):
    """A subset of layers has the same values as in a decoding of all, bit by bit."""
    wanted = data.draw(st.sets(st.integers(0, len(fields) - 1)))
    _, records = random_records(fields)
    layout = record_layout(tuple(fields))
    everything = layout.decode(records, range(len(fields)))
    some = layout.decode(records, wanted)
    assert set(some) == wanted
    assert all(some[n].tobytes() == everything[n].tobytes() for n in wanted)


@settings(max_examples=80)
@given(fields=FIELDS)
def test_the_container_and_the_codecs_agree_on_the_record_size(fields):
    """`Table.record_bytes`, which guards allocations, equals the layout's size."""
    table = Table("t", 1, (), ())
    encoding = Encoding("raw", 1, tuple(fields))
    assert table.record_bytes(encoding) == record_layout(tuple(fields)).record_bytes


@settings(max_examples=40)
@given(fields=FIELDS)
def test_no_byte_of_a_record_is_left_out(fields):
    """Scales and codes of all runs tile the record exactly."""
    layout = record_layout(tuple(fields))
    spans = []
    for run in layout.runs:
        for offset, size in (
            (run.scale_offset_bytes, run.part.scale_bytes),
            (run.code_offset_bytes, run.part.code_bytes),
        ):
            spans += [(offset + n * size, offset + (n + 1) * size) for n in range(run.count)]
    spans = sorted(span for span in spans if span[0] < span[1])
    assert spans[0][0] == 0
    assert spans[-1][1] == layout.record_bytes
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))


@pytest.mark.parametrize("rows", [1, 5])
def test_any_number_of_rows_decodes(rows):
    """One row and several give arrays of that many rows."""
    fields = ((Part("int4", 5, 4), Part("f16", 2)), (Part("int4", 5, 4),))
    layout = record_layout(fields)
    records = np.zeros((rows, layout.record_bytes), np.uint8)
    assert [v.shape for v in layout.decode(records, [0, 1]).values()] == [(rows, 7), (rows, 5)]


@settings(max_examples=60)
@given(fields=FIELDS, data=st.data())
def test_codes_that_are_placed_are_those_that_are_taken(fields, data):
    """Scales and codes of each field, put into records, are the bytes that encoding gives."""
    _, records = random_records(fields)
    layout, found = record_layout(tuple(fields)), np.zeros_like(records)
    for kept in data.draw(st.permutations(range(len(fields)))):
        scales, codes = layout.take(records, kept)
        assert scales.shape[1] == sum(part.scale_bytes for part in fields[kept])
        assert codes.shape[1] == sum(part.code_bytes for part in fields[kept])
        layout.place(found, kept, scales, codes)
    assert found.tobytes() == records.tobytes()


def test_what_is_taken_is_what_its_codec_wrote():
    """Of a field of two parts: the scales of both, then the codes of both."""
    parts = (Part("q8_0", 6, 4), Part("int4", 5, 4))
    values = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    _, records = random_records((parts, parts), rows=3)
    layout = record_layout((parts, parts))
    layout.encode(records, 1, values)
    whole = [encode_values(values[:, :6], parts[0]), encode_values(values[:, 6:], parts[1])]
    for found, expected in zip(layout.take(records, 1), zip(*whole)):
        assert found.tobytes() == np.concatenate(expected, axis=1).tobytes()
