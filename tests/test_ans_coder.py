"""Frame ``ans``: codes come back from their payloads, which follow the definition of the format."""

import numpy as np
import pytest
from coded_rows import decode_payload

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.codecs.ans.trellis import NEXT
from tolpack.codecs.encodings import Part
from tolpack.errors import ConfigError, FormatError


def some_models(count=6, largest=4, shifts=(0,), seed=0, sizes=(1, 2, 3, 4)):
    """Random models with symbols up to `largest`; some never occur, but the escape does. Those
    without a shift have groups of `sizes` in turn.
    """
    source = np.random.default_rng(seed)
    array = np.zeros((count, 2 * largest + 3), np.uint16)
    for n, row in enumerate(array):
        weights = source.exponential(size=len(row) - 2) ** 2 * (source.random(len(row) - 2) < 0.9)
        row[2:] = np.floor(weights / max(weights.sum(), 1e-9) * 16000)
        row[1] = 16384 - row[2:].sum()
        row[0] = shifts[n % len(shifts)] or 256 * (sizes[n % len(sizes)] - 1)
    return CodeModels.of(array, "models")


def some_codes(rows, values, spread=3.0, seed=1):
    """Heavy-tailed whole numbers of 16 bits."""
    source = np.random.default_rng(seed)
    codes = np.rint(source.standard_t(1.5, (rows, values)) * spread)
    return np.clip(codes, -32768, 32767).astype(np.int32)


def trellis_codes(codes, coder):
    """Move codes into the sets of their states, one after the other, by the definition."""
    found = codes.copy()
    for row in found:
        first = 0
        for count in coder.field_values:
            stretch = -(-count // coder.lanes)
            for start in range(first, first + count, stretch):
                state = 0
                for v in range(start, min(start + stretch, first + count)):
                    if row[v] and (row[v] + state) % 2:
                        row[v] -= np.sign(row[v])
                    level = (row[v] + state % 2 * np.sign(row[v])) // 2
                    state = NEXT[state, level % 2]
            first += count
    return found


def plain_decode(payload, rows, coder):
    """Decode one payload by the words of the format, a value at a time."""
    ends = np.cumsum(coder.field_values)
    fields = [part.tolist() for part in np.split(coder.classes, ends[:-1])]
    models = coder.models.array.astype(int).tolist()
    return np.array(decode_payload(payload, rows, fields, models, coder.lanes, coder.trellis))


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize(
    ("fields", "lanes", "rows_per_block"),
    [((7,), 1, 1), ((5, 3, 1), 4, 2), ((40, 40), 16, 3), ((2, 33), 3, 1)],
)
def test_codes_come_back(fields, lanes, rows_per_block, trellis):
    """Payloads decode to the codes, as they do by a decoder written from the format alone."""
    models = some_models(shifts=(0, 3, 1))
    classes = np.random.default_rng(2).integers(0, 5, sum(fields)).astype(np.uint8)
    coder = RowCoder(fields, classes, models, lanes, trellis)
    codes = some_codes(11, sum(fields))
    codes[0, 0], codes[1, -1] = 32766, -32768
    if trellis:
        codes = trellis_codes(codes, coder)
    payloads = coder.encode(codes, rows_per_block)
    rows = [min(rows_per_block, 11 - n) for n in range(0, 11, rows_per_block)]
    assert len(payloads) == len(rows)
    assert (coder.decode(payloads, rows) == codes).all()
    plain = [plain_decode(payload, n, coder) for payload, n in zip(payloads, rows)]
    assert (np.concatenate(plain) == codes).all()
    assert max(map(len, payloads)) <= coder.longest_payload(rows_per_block)


def test_records_come_back():
    """Parts of 8 and 16 bits stand in the order of a record, their values in that of fields."""
    fields = (
        (Part("step16", 3, step=0.5), Part("step8", 6, step=1.0)),
        (Part("step8", 9, step=2.0),),
    )
    models = some_models()
    coder = RecordCoder.of(fields, np.arange(18, dtype=np.uint8) % 5, models, 2, False)
    codes = np.clip(some_codes(9, 18), -128, 127)
    codes[:, :3] *= 200
    records = coder.records(codes)
    assert records.shape == (9, 21)
    assert (records[:, :6].copy().view("<i2") == codes[:, :3]).all()
    assert (records[:, 6:15].view(np.int8) == codes[:, 9:]).all()
    assert (records[:, 15:].view(np.int8) == codes[:, 3:9]).all()
    payloads = coder.encode_records(records, 4)
    assert (coder.decode_records(payloads, [4, 4, 1]) == records).all()


@pytest.mark.parametrize("trellis", [False, True])
def test_cost_is_what_payloads_take(trellis):
    """The bits of the models, and 16 to 32 for each lane, are the length of payloads."""
    coder = RowCoder((600, 500), np.arange(1100, dtype=np.uint8) % 5, some_models(), 4, trellis)
    codes = some_codes(7, 1100, spread=1.0)
    codes = trellis_codes(codes, coder) if trellis else codes
    lengths = np.array([8 * len(payload) for payload in coder.encode(codes, 1)])
    over = (lengths - coder.cost_bits(codes)) / coder.lanes
    assert ((over > 16 - 1) & (over < 32 + 3)).all()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda a: a[:, :-1], "shape"),
        (lambda a: a[:0], "shape"),
        (lambda a: np.zeros((1, 259), np.uint16), "shape"),
        (lambda a: a + np.eye(6, 11, dtype=np.uint16) * 9, "a shift of 9"),
        (lambda a: a + np.eye(6, 11, 2, dtype=np.uint16), "model 0 with a sum of 16385"),
    ],
)
def test_wrong_models_are_refused(change, found):
    """Shape, shifts and sums of models are checked."""
    array = change(some_models().array)
    with pytest.raises(FormatError, match=found) as caught:
        CodeModels.of(array, "section 3")
    assert caught.value.code == "code-models"


def test_wrong_classes_are_refused():
    """A class must have a model, and with a trellis the next one too."""
    classes = np.full(4, 5, np.uint8)
    RowCoder((4,), classes, some_models(), 1, False)
    for trellis, own in ((True, classes), (False, classes + 1), (False, classes[1:])):
        with pytest.raises(FormatError, match="class") as caught:
            RowCoder((4,), own, some_models(), 1, trellis)
        assert caught.value.code == "code-classes"


def test_codes_that_cannot_be_coded_are_refused():
    """A code outside its codec, its set, or its model is an error of the caller."""
    coder = RowCoder((4,), np.zeros(4, np.uint8), some_models(), 1, False, 8)
    with pytest.raises(ConfigError, match="8 or 16 bits"):
        coder.encode(np.array([[0, 0, 128, 0]]), 1)
    coder = RowCoder((4,), np.zeros(4, np.uint8), some_models(), 1, True)
    with pytest.raises(ConfigError, match="set of their state"):
        coder.encode(np.array([[1, 0, 0, 0]]), 1)
    array = some_models().array.copy()
    array[0, 6] += array[0, 1]
    array[0, 1] = 0
    coder = RowCoder((4,), np.zeros(4, np.uint8), CodeModels.of(array, "models"), 1, False)
    with pytest.raises(ConfigError, match="no escape either"):
        coder.encode(np.array([[0, 0, 99, 0]]), 1)
