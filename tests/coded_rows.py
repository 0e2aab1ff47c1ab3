"""Entropy-coded rows and bases for test packs, and their decoder, written value by value.

`decode_payload` follows SPEC.md, section 8, with Python's integers and nothing of tolpack.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from tolpack.codecs.ans.basis_coder import BasisCoder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import CoderSettings, Encoding
from tolpack.codecs.part_values import encode_values
from tolpack.container.writer import PackWriter

NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))
MODELS = 8


def code_models() -> np.ndarray:
    """Models of symbols -6 … 6, each wider than the one before: uint16 (8, 15).

    They have shifts of 0 to 3, symbols that never occur, and escapes that are rare or frequent.
    """
    array = np.zeros((MODELS, 15), np.uint16)
    for number, row in enumerate(array):
        symbols = np.arange(-6, 7)
        weights = np.exp(-((symbols / (0.6 + 0.4 * number)) ** 2))
        weights[3 + number % 3 :: 7] = 0
        row[2:] = np.floor(weights / weights.sum() * (4095 - 40 * number))
        row[0], row[1] = (0, 0, 1, 0, 2, 1, 3, 0)[number], 4096 - row[2:].sum()
    return array


def add_models(writer: PackWriter) -> int:
    """Add the models to a pack, once, and return their section's number."""
    kinds = [section.kind for section in writer.sections]
    if "code_models" in kinds:
        return kinds.index("code_models")
    return writer.add_array("code_models", code_models)[0]


def add_classes(writer: PackWriter, rows: int, values: int, seed: int) -> tuple[int, np.ndarray]:
    """Add random classes, uint8 (rows, values): such that each has a model behind it."""
    rng = np.random.default_rng(seed + 1000)
    classes = rng.integers(0, MODELS - 1, (rows, values), np.uint8)
    return writer.add_array("code_classes", lambda: classes)


def record_coder(encoding: Encoding, classes: np.ndarray) -> RecordCoder:
    """Return the coder of an encoding of test models."""
    models, coder = CodeModels.of(code_models(), "models"), encoding.coder
    return RecordCoder.of(
        encoding.fields, classes[coder.class_row], models, coder.lanes, coder.trellis
    )


def in_trellis(coder: RecordCoder, records: np.ndarray) -> np.ndarray:
    """Move the codes of records into the sets of their states, one after the other."""
    codes = coder.codes(records).astype(int)
    for row in codes:
        first = 0
        for count in coder.rows.field_values:
            states = [0] * coder.rows.lanes
            for lane, value in coding_order(count, coder.rows.lanes):
                code, state = int(row[first + value]), states[lane]
                if code and (code + state) % 2:
                    code -= 1 if code > 0 else -1
                level = (code + state % 2 * int(np.sign(code))) // 2
                row[first + value], states[lane] = code, NEXT[state][level % 2]
            first += count
    return coder.records(codes)


def add_coded_basis(
    writer: PackWriter, basis: np.ndarray, part, classes: tuple[int, np.ndarray, int], lanes: int
) -> int:
    """Add a basis (rank, width) of codec int8; `classes`: section, array and row of it."""
    models, shape = add_models(writer), basis.shape
    number, array, row = classes
    rows = np.concatenate(encode_values(basis.astype(np.float32), part), axis=1)
    coder = BasisCoder.of(shape, array[row], CodeModels.of(code_models(), "models"), lanes)
    settings = CoderSettings(models, number, row, lanes)
    return writer.add_entropy_coded_basis(lambda: coder.encode(rows), shape, settings)


# ---- decoding -----------------------------------------------------------------------------------


def coding_order(count: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Yield lane and number of a field's values in the order in which they are coded."""
    stretch = math.ceil(count / lanes)
    for step in range(stretch):
        for lane in range(lanes):
            if lane * stretch + step < count:
                yield lane, lane * stretch + step


def decode_payload(
    payload: bytes, rows: int, fields: list[list[int]], models: list[list[int]], lanes: int,
    trellis: bool,
) -> list[list[int]]:  # fmt: skip
    """Return the codes of each row; `fields`: the class of each value of each field."""
    words = list(struct.unpack(f"<{len(payload) // 2}H", payload))
    states = [words.pop(0) + (words.pop(0) << 16) for _ in range(lanes)]

    def refill(lane: int) -> None:
        if states[lane] < 2**16:
            states[lane] = states[lane] * 2**16 + words.pop(0)

    def bits(lane: int, count: int) -> int:
        found = states[lane] % 2**count
        states[lane] >>= count
        refill(lane)
        return found

    def level(lane: int, model: list[int]) -> int:
        shift, frequencies = model[0], [*model[2:], model[1]]
        slot, begin, number = states[lane] % 4096, 0, 0
        while begin + frequencies[number] <= slot:
            begin, number = begin + frequencies[number], number + 1
        states[lane] = frequencies[number] * (states[lane] >> 12) + slot - begin
        refill(lane)
        if number < len(frequencies) - 1:
            return (number - (len(model) - 3) // 2) * 2**shift + bits(lane, shift)
        low = bits(lane, 8)
        found = low + 256 * bits(lane, 8)
        return found - 2**16 if found >= 2**15 else found

    out = []
    for _ in range(rows):
        row = []
        for classes in fields:
            codes, trellises = [0] * len(classes), [0] * lanes
            for lane, value in coding_order(len(classes), lanes):
                state = trellises[lane] if trellis else 0
                k = level(lane, models[classes[value] + state % 2])
                codes[value] = k
                if trellis:
                    codes[value] = 2 * k - state % 2 * ((k > 0) - (k < 0))
                    trellises[lane] = NEXT[state][k % 2]
            row += codes
        out.append(row)
    assert not words
    assert states == [2**16] * lanes
    return out
