"""Entropy-coded rows and bases for test packs, and their decoder, written value by value.

`decode_payload` follows SPEC.md, section 8, with Python's integers and nothing of tolpack.
"""

from __future__ import annotations

import fractions
import itertools
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

    They have shifts of 0 to 3, groups of 2 to 4, symbols that never occur, and escapes that are
    rare or frequent.
    """
    array = np.zeros((MODELS, 15), np.uint16)
    for number, row in enumerate(array):
        symbols = np.arange(-6, 7)
        weights = np.exp(-((symbols / (0.6 + 0.4 * number)) ** 2))
        weights[3 + number % 3 :: 7] = 0
        row[2:] = np.floor(weights / weights.sum() * (16380 - 160 * number))
        row[0] = (0, 256, 1, 512, 2, 768, 3, 0)[number]
        row[1] = 16384 - row[2:].sum()
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
    """Yield lane and number of a field's values in the order in which a trellis codes them."""
    stretch = math.ceil(count / lanes)
    for step in range(stretch):
        for lane in range(lanes):
            if lane * stretch + step < count:
                yield lane, lane * stretch + step


def group_symbols(model: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the frequency and the levels of each group of a model, in the order of slots."""
    size, largest = model[0] // 256 + 1, (len(model) - 3) // 2
    reach = min(largest, [15, 4, 2][size - 2])
    groups = []
    for levels in itertools.product(range(-reach, reach + 1), repeat=size):
        share = fractions.Fraction(2**14)
        for level in levels:
            share *= fractions.Fraction(model[2 + largest + level], 2**14)
        groups.append((math.floor(share + fractions.Fraction(1, 2)), levels))
    return sorted((one for one in groups if one[0]), key=lambda one: (-one[0], one[1]))[:255]


def decode_payload(
    payload: bytes, rows: int, fields: list[list[int]], models: list[list[int]], lanes: int,
    trellis: bool,
) -> list[list[int]]:  # fmt: skip
    """Return the codes of each row; `fields`: the class of each value of each field."""
    words = list(struct.unpack(f"<{len(payload) // 2}H", payload))
    states = [words.pop(0) + (words.pop(0) << 16) for _ in range(lanes)]

    def refill(lane: int) -> None:
        if states[lane] < 2**16 and (words or lanes > 1):
            states[lane] = states[lane] * 2**16 + words.pop(0)

    def bits(lane: int, count: int) -> int:
        found = states[lane] % 2**count
        states[lane] >>= count
        refill(lane)
        return found

    def symbol(lane: int, frequencies: list[int]) -> int:
        slot, begin, number = states[lane] % 2**14, 0, 0
        while begin + frequencies[number] <= slot:
            begin, number = begin + frequencies[number], number + 1
        states[lane] = frequencies[number] * (states[lane] >> 14) + slot - begin
        refill(lane)
        return number

    def level(lane: int, model: list[int]) -> int:
        shift, frequencies = model[0] % 256, [*model[2:], model[1]]
        number = symbol(lane, frequencies)
        if number < len(frequencies) - 1:
            return (number - (len(model) - 3) // 2) * 2**shift + bits(lane, shift)
        low = bits(lane, 8)
        found = low + 256 * bits(lane, 8)
        return found - 2**16 if found >= 2**15 else found

    def group(lane: int, model: list[int]) -> list[int]:
        groups = group_symbols(model)
        frequencies = [frequency for frequency, _ in groups]
        number = symbol(lane, [*frequencies, 2**14 - sum(frequencies)])
        if number < len(groups):
            return list(groups[number][1])
        return [level(lane, model) for _ in range(model[0] // 256 + 1)]

    def row_by_class(classes: list[int]) -> list[int]:
        codes, turn = [0] * len(classes), 0
        for number, model in enumerate(models):
            values = [v for v, own in enumerate(classes) if own == number]
            size = model[0] // 256 + 1
            while values:
                if len(values) >= size > 1:
                    own, values = values[:size], values[size:]
                    levels = group(turn % lanes, model)
                else:
                    own, values = values[:1], values[1:]
                    levels = [level(turn % lanes, model)]
                turn += 1
                for value, code in zip(own, levels):
                    codes[value] = code
        return codes

    def field_of_trellis(classes: list[int]) -> list[int]:
        codes, trellises = [0] * len(classes), [0] * lanes
        for lane, value in coding_order(len(classes), lanes):
            state = trellises[lane]
            k = level(lane, models[classes[value] + state % 2])
            codes[value] = 2 * k - state % 2 * ((k > 0) - (k < 0))
            trellises[lane] = NEXT[state][k % 2]
        return codes

    out = []
    for _ in range(rows):
        if trellis:
            out.append([code for classes in fields for code in field_of_trellis(classes)])
        else:
            out.append(row_by_class([one for classes in fields for one in classes]))
    assert not words
    assert states == [1 if lanes == 1 else 2**16] * lanes
    return out
