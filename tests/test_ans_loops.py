"""The compiled loops of frame ``ans`` give the bits of numpy, and refuse what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ans_coder import some_codes, some_models, trellis_codes

from tolpack.codecs import kernels
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.codecs.encodings import Part
from tolpack.errors import FormatError

pytest.importorskip("numba")


def both(call):
    """Return what `call` gives with numpy, and with the compiled loops."""
    found = []
    for off in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if off:
                patch.setattr(kernels, "_loaded", [None])
            else:
                patch.setattr(kernels, "_loaded", [kernels._compile()])
            try:
                found.append(call())
            except FormatError as error:
                found.append(error.code)
    return found


@st.composite
def coders(draw):
    """Any small coder of records: fields of one or two parts, with shifts and escapes."""
    fields = []
    for _ in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(1, 21), min_size=1, max_size=2))
        codecs = st.sampled_from(["step8", "step16"])
        fields.append(tuple(Part(draw(codecs), count, step=1.0) for count in counts))
    values = sum(part.values for field in fields for part in field)
    shifts = draw(st.sampled_from([(0,), (0, 1), (8, 3, 0)]))
    models = some_models(7, draw(st.sampled_from([1, 2, 127])), shifts, draw(st.integers(0, 9)))
    classes = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 6, values)
    lanes, trellis = draw(st.sampled_from([1, 2, 3, 4, 16, 32])), draw(st.booleans())
    return RecordCoder.of(tuple(fields), classes.astype(np.uint8), models, lanes, trellis)


@st.composite
def cases(draw):
    """A coder, rows of a block, and records."""
    coder = draw(coders())
    rows = draw(st.integers(1, 5))
    spread = draw(st.sampled_from([0.1, 3.0, 100.0, 30000.0]))
    codes = some_codes(rows, coder.rows.values, spread, draw(st.integers(0, 99)))
    limit = 1 << (coder.rows.code_bits - 1)
    codes = np.clip(codes, -limit, limit - 1)
    codes = trellis_codes(codes, coder.rows) if coder.rows.trellis else codes
    return coder, draw(st.integers(1, 3)), coder.records(codes)


def rows_of(count, rows_per_block):
    """Rows of each block."""
    return [min(rows_per_block, count - n) for n in range(0, count, rows_per_block)]


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_loops_give_the_bits_of_numpy(case):
    """Payloads are the same, and records come back, through both, one way or the other."""
    coder, rows_per_block, records = case
    plain, compiled = both(lambda: coder.encode_records(records, rows_per_block))
    assert plain == compiled
    rows = rows_of(len(records), rows_per_block)
    for found in both(lambda: coder.decode_records(plain, rows)):
        assert found.tobytes() == records.tobytes()
    for found in both(lambda: coder.rows.decode(plain, rows)):
        assert (found == coder.codes(records)).all()


@settings(max_examples=60, deadline=None)
@given(case=cases(), data=st.data())
def test_damaged_payloads_are_judged_alike(case, data):
    """A flipped bit, a shorter or a longer payload is refused by both, or gives both the same."""
    coder, rows_per_block, records = case
    payloads = both(lambda: coder.encode_records(records, rows_per_block))[1]
    number = data.draw(st.integers(0, len(payloads) - 1))
    payload = bytearray(payloads[number])
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "noise"]))
    if kind == "flip":
        bit = data.draw(st.integers(0, 8 * len(payload) - 1))
        payload[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))]
    elif kind == "extend":
        payload += data.draw(st.binary(min_size=1, max_size=6))
    else:
        payload = data.draw(st.binary(max_size=200))
    payloads[number] = bytes(payload)
    rows = rows_of(len(records), rows_per_block)
    plain, compiled = both(lambda: coder.decode_records(payloads, rows))
    if kind == "extend" or isinstance(plain, str):
        assert plain == compiled == "frame"
    else:
        assert plain.tobytes() == compiled.tobytes()
        assert plain.shape == records.shape


def test_flipped_bits_are_noticed_unless_they_stand_as_they_are():
    """States at the end check symbols: a flip goes unseen in bits of escapes and shifts alone."""
    array = np.array([[0, 0, 100, 900, 2100, 900, 96]], np.uint16)
    array[0, 1] = 16384 - array[0, 2:].sum()
    models = CodeModels.of(array, "models")
    coder = RowCoder((64, 64), np.zeros(128, np.uint8), models, 2, False)
    codes = np.clip(some_codes(1, 128, 0.5), -2, 2)
    payload = coder.encode(codes, 1)[0]
    unseen = 0
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            coder.decode([bytes(changed)], [1])
        except FormatError as error:
            assert error.code == "frame"
        else:
            unseen += 1
    assert unseen == 0


def test_a_basis_has_a_class_for_each_row():
    """Rows of a basis are fields of one row, each with the class of its own."""
    models, classes = some_models(), np.array([3, 0, 4, 1, 9], np.uint8)
    coder = RowCoder.for_basis(4, 10, classes, models, 2)
    assert (coder.classes.reshape(4, 10) == classes[:4, None]).all()
    codes = np.clip(some_codes(4, 10), -127, 127).reshape(1, 40)
    for payloads in both(lambda: coder.encode(codes, 1)):
        assert (coder.decode(payloads, [1]) == codes).all()


def test_codes_of_more_than_16_bits_are_refused():
    """A level of 16 bits may stand for a code of 17 with a trellis, which no codec has."""
    models, classes = some_models(), np.zeros(1, np.uint8)
    (payload,) = RowCoder((1,), classes, models, 1, False).encode(np.array([[30000]]), 1)
    fields = ((Part("step16", 1, step=1.0),),)
    coder = RecordCoder.of(fields, classes, models, 1, True)
    assert both(lambda: coder.decode_records([payload], [1])) == ["frame", "frame"]
