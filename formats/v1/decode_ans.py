"""Entropy-coded rows and bases (SPEC.md, section 8): a part of `decode.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice, product
from math import ceil, prod
from typing import Any

import numpy as np
from decode_values import ordered_parts

NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))


class Lanes:
    """The states of a payload's lanes, and the words that they share."""

    def __init__(self, payload: bytes, lanes: int) -> None:
        self.states: list[int] = list(struct.unpack_from(f"<{lanes}I", payload))
        rest = payload[4 * lanes :]
        self.words: Iterator[int] = iter(struct.unpack(f"<{len(rest) // 2}H", rest))

    def refill(self, lane: int) -> None:
        if self.states[lane] < 2**16:
            word = next(self.words, None)
            if word is not None or len(self.states) > 1:
                self.states[lane] = 2**16 * self.states[lane] + (word or 0)

    def bits(self, lane: int, n: int) -> int:
        v = self.states[lane] % (1 << n)
        self.states[lane] >>= n
        self.refill(lane)
        return v

    def symbol(self, lane: int, frequencies: list[int]) -> int:
        """The number of a symbol, from 0."""
        slot, b, number = self.states[lane] % 16384, 0, 0
        while slot >= b + frequencies[number]:
            b += frequencies[number]
            number += 1
        self.states[lane] = frequencies[number] * (self.states[lane] // 16384) + slot - b
        self.refill(lane)
        return number

    def level(self, lane: int, model: list[int]) -> int:
        shift, escape, *symbols = model[0] % 256, *model[1:]
        number = self.symbol(lane, [*symbols, escape])
        if number < len(symbols):
            symbol = number - len(symbols) // 2
            return (symbol << shift) + self.bits(lane, shift)
        k = self.bits(lane, 8)
        k += 256 * self.bits(lane, 8)
        return k - 65536 if k >= 32768 else k


def group_symbols(model: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Frequencies and levels of a model's groups, in the order of their slots."""
    size, largest = model[0] // 256 + 1, (len(model) - 3) // 2
    r = min(largest, {2: 15, 3: 4, 4: 2}[size])
    found = []
    for levels in product(range(-r, r + 1), repeat=size):
        frequency = prod(model[2 + largest + k] for k in levels)
        found.append(((frequency + 2 ** (14 * (size - 1) - 1)) >> 14 * (size - 1), levels))
    found.sort(key=lambda one: -one[0])
    return [one for one in found[:255] if one[0]]


def codes_of_row(lanes: Lanes, classes: list[int], models: list[list[int]]) -> list[int]:
    """The codes of the next row without a trellis, whose values have these classes."""
    codes, turn = [0] * len(classes), 0
    for c in sorted(set(classes)):
        values, size = iter(np.flatnonzero(np.equal(classes, c)).tolist()), models[c][0] // 256 + 1
        groups = group_symbols(models[c]) if size > 1 else []
        while own := list(islice(values, size)):
            if size > 1 and len(own) == size:
                frequencies = [frequency for frequency, _ in groups]
                number = lanes.symbol(turn, [*frequencies, 16384 - sum(frequencies)])
                if number < len(groups):
                    levels = list(groups[number][1])
                else:
                    levels = [lanes.level(turn, models[c]) for _ in own]
                turn = (turn + 1) % len(lanes.states)
            else:
                levels = []
                for _ in own:
                    levels.append(lanes.level(turn, models[c]))
                    turn = (turn + 1) % len(lanes.states)
            for value, level in zip(own, levels):
                codes[value] = level
    return codes


def codes_of_field(lanes: Lanes, classes: list[int], models: list[list[int]]) -> list[int]:
    """The codes of the next field with a trellis, whose values have these classes."""
    codes, count = [0] * len(classes), len(lanes.states)
    q, states = ceil(len(classes) / count), [0] * count
    for i in range(q):
        for lane in range(count):
            value, t = lane * q + i, states[lane]
            if value >= len(classes):
                continue
            k = lanes.level(lane, models[classes[value] + t % 2])
            codes[value] = 2 * k - t % 2 * ((k > 0) - (k < 0))
            states[lane] = NEXT[t][k % 2]
    return codes


def decoded_records(
    payload: bytes, rows: int, encoding: dict[str, Any], models: list[list[int]],
    classes: list[int], lanes: int, trellis: bool,
) -> bytes:  # fmt: skip
    """The records of a block."""
    state, records = Lanes(payload, lanes), b""
    fields = [[part["values"] for part in field["parts"]] for field in encoding["fields"]]
    ends = np.cumsum([sum(values) for values in fields]).tolist()
    for _ in range(rows):
        spans = list(zip([0, *ends], ends))
        if trellis:
            codes = [codes_of_field(state, classes[a:b], models) for a, b in spans]
        else:
            row = codes_of_row(state, classes, models)
            codes = [row[a:b] for a, b in spans]
        for field, part in ordered_parts(encoding):  # §6
            own, codes[field] = codes[field][: part["values"]], codes[field][part["values"] :]
            dtype = "<i2" if part["codec"] == "step16" else "i1"
            records += np.array(own).astype(dtype).tobytes()
    return records


def decoded_basis(
    data: bytes, shape: list[int], models: list[list[int]], classes: list[int], lanes: int
) -> bytes:
    """The rows of a basis as they are where they are not entropy-coded: scale and codes."""
    rank, width = shape
    of_values = [classes[row] for row in range(rank) for _ in range(width)]
    codes = codes_of_row(Lanes(data[2 * rank :], lanes), of_values, models)
    rows = b""
    for row in range(rank):
        own = np.array(codes[row * width : (row + 1) * width]).astype("i1")
        rows += data[2 * row : 2 * row + 2] + own.tobytes()
    return rows
