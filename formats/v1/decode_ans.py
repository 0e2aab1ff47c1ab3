"""Entropy-coded rows and bases (SPEC.md, section 8): a part of `decode.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import ceil
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
            self.states[lane] = 2**16 * self.states[lane] + next(self.words)

    def bits(self, lane: int, n: int) -> int:
        v = self.states[lane] % (1 << n)
        self.states[lane] >>= n
        self.refill(lane)
        return v

    def symbol(self, lane: int, frequencies: list[int]) -> int:
        """The number of a symbol, from 0."""
        slot, b, number = self.states[lane] % 4096, 0, 0
        while slot >= b + frequencies[number]:
            b += frequencies[number]
            number += 1
        self.states[lane] = frequencies[number] * (self.states[lane] // 4096) + slot - b
        self.refill(lane)
        return number

    def level(self, lane: int, model: list[int]) -> int:
        shift, escape, *symbols = model
        number = self.symbol(lane, [*symbols, escape])
        if number < len(symbols):
            symbol = number - len(symbols) // 2
            return (symbol << shift) + self.bits(lane, shift)
        k = self.bits(lane, 8)
        k += 256 * self.bits(lane, 8)
        return k - 65536 if k >= 32768 else k


def codes_of_field(
    lanes: Lanes, classes: list[int], models: list[list[int]], trellis: bool
) -> list[int]:
    """The codes of the next field, whose values have these classes."""
    codes, count = [0] * len(classes), len(lanes.states)
    q, states = ceil(len(classes) / count), [0] * count
    for i in range(q):
        for lane in range(count):
            value = lane * q + i
            if value >= len(classes):
                continue
            t = states[lane] if trellis else 0
            k = lanes.level(lane, models[classes[value] + t % 2])
            codes[value] = k
            if trellis:
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
        codes = [
            codes_of_field(state, classes[a:b], models, trellis) for a, b in zip([0, *ends], ends)
        ]
        for field, part in ordered_parts(encoding):  # §6
            own, codes[field] = codes[field][: part["values"]], codes[field][part["values"] :]
            dtype = "<i2" if part["codec"] == "step16" else "i1"
            records += np.array(own).astype(dtype).tobytes()
    return records


def decoded_basis(
    data: bytes, shape: list[int], models: list[list[int]], classes: list[int], lanes: int,
    trellis: bool,
) -> bytes:  # fmt: skip
    """The rows of a basis as they are where they are not entropy-coded: scale and codes."""
    rank, width = shape
    state, rows = Lanes(data[2 * rank :], lanes), b""
    for row in range(rank):
        codes = codes_of_field(state, [classes[row]] * width, models, trellis)
        rows += data[2 * row : 2 * row + 2] + np.array(codes).astype("i1").tobytes()
    return rows
