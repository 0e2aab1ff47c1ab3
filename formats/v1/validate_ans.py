"""The rules of entropy-coded rows, by SPEC.md alone (section 8): a part of `validate.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from math import ceil, prod
from typing import Any

from validate_header import BadPack, Entry

NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))
LIMITS = {"step8": 1 << 7, "step16": 1 << 15}


class Lanes:
    """The states of a payload's lanes, and the words that they share."""

    def __init__(self, payload: bytes, lanes: int) -> None:
        need(len(payload) >= 4 * lanes, "a state for each lane")
        need(len(payload) % 2 == 0, "an even length")
        self.states: list[int] = list(struct.unpack_from(f"<{lanes}I", payload))
        rest = payload[4 * lanes :]
        small = min(self.states) < 1 << 16 and (lanes > 1 or len(rest) > 0)
        need(not small, "states of 2^16 and more")
        self.words: Iterator[int] = iter(struct.unpack(f"<{len(rest) // 2}H", rest))

    def set(self, lane: int, state: int) -> None:
        if state < 1 << 16:
            word = next(self.words, None)
            need(word is not None or len(self.states) == 1, "a word where one is needed")
            state = state if word is None else (state << 16) + word
        self.states[lane] = state

    def bits(self, lane: int, n: int) -> int:
        state = self.states[lane]
        self.set(lane, state >> n)
        return state & (1 << n) - 1

    def symbol(self, lane: int, frequencies: list[int]) -> int:
        state, number, b = self.states[lane], 0, 0
        for number, f in enumerate(frequencies):  # noqa: B007 (the last one is looked at)
            if state & 16383 < b + f:
                break
            b += f
        self.set(lane, f * (state >> 14) + (state & 16383) - b)
        return number

    def level(self, lane: int, model: list[int]) -> int:
        shift, escape, *symbols = model[0] & 255, *model[1:]
        number = self.symbol(lane, [*symbols, escape])
        if number < len(symbols):
            return (number - len(symbols) // 2 << shift) + self.bits(lane, shift)
        low = self.bits(lane, 8)
        k = low + (self.bits(lane, 8) << 8)
        return k - (1 << 16) if k >> 15 else k

    def row(self, classes: list[int], limits: list[int], models: list[list[int]]) -> None:
        """Read the next row without a trellis; `classes` and `limits` are those of its values."""
        turn = 0
        for number in range(len(models)):
            values = [value for value, own in enumerate(classes) if own == number]
            size = 1 + (models[number][0] >> 8)
            groups = groups_of(models[number]) if size > 1 and len(values) >= size else []
            rest = 16384 - sum(f for f, _ in groups)
            while values:
                count = size if len(values) >= size else 1
                own, values, lane = values[:count], values[count:], turn % len(self.states)
                turn += 1
                levels = None
                if count > 1:
                    found = self.symbol(lane, [*(f for f, _ in groups), rest])
                    levels = groups[found][1] if found < len(groups) else None
                if levels is None:
                    levels = tuple(self.level(lane, models[number]) for _ in own)
                for value, code in zip(own, levels):
                    need(-limits[value] <= code < limits[value], "a code that the codec has")

    def field(self, classes: list[int], limits: list[int], models: list[list[int]]) -> None:
        """Read the next field with a trellis; `classes` and `limits` are those of its values."""
        count = len(self.states)
        q, states = ceil(len(classes) / count), [0] * count
        for i in range(q):
            for lane, value in enumerate(range(i, q * count, q)):
                if value >= len(classes):
                    continue
                t = states[lane]
                k = self.level(lane, models[classes[value] + t % 2])
                code = 2 * k - t % 2 * ((k > 0) - (k < 0))
                states[lane] = NEXT[t][k % 2]
                need(-limits[value] <= code < limits[value], "a code that the codec has")

    def end(self) -> None:
        need(next(self.words, None) is None, "no words left over")
        last = 1 if len(self.states) == 1 else 1 << 16
        need(set(self.states) == {last}, "states of 2^16 at the end, of one lane 1")


def groups_of(model: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """The frequency and the levels of each group symbol, in the order of slots."""
    size, middle = 1 + (model[0] >> 8), len(model) // 2 + 1
    r, bits = min(middle - 2, (15, 4, 2)[size - 2]), 14 * (size - 1)
    groups = (
        (prod(model[middle + k] for k in levels) + (1 << bits - 1) >> bits, levels)
        for levels in product(range(-r, r + 1), repeat=size)
    )
    return sorted((one for one in groups if one[0]), key=lambda one: (-one[0], one[1]))[:255]


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise BadPack("frame", f"§8: {rule}")


def check_payload(
    payload: bytes, rows: int, encoding: Entry, models: list[list[int]], classes: list[int]
) -> None:
    """Raise `BadPack` unless a payload is one of so many rows."""
    lanes, limits = Lanes(payload, encoding["lanes"]), []
    for field in encoding["fields"]:
        parts = field["parts"]
        limits.append([LIMITS[part["codec"]] for part in parts for _ in range(part["values"])])
    for _ in range(rows):
        if encoding.get("trellis") is None:
            row = [limit for own in limits for limit in own]
            lanes.row(classes[: len(row)], row, models)
            continue
        start = 0
        for own in limits:
            lanes.field(classes[start : start + len(own)], own, models)
            start += len(own)
    lanes.end()


def check_basis(
    payload: bytes, section: Entry, models: list[list[int]], classes: list[int]
) -> None:
    """Raise `BadPack` unless a payload is one of the codes of a basis."""
    rank, width = section["shape"]
    lanes = Lanes(payload, section["lanes"])
    of_values = [classes[row] for row in range(rank) for _ in range(width)]
    lanes.row(of_values, [128] * len(of_values), models)
    lanes.end()


def models_fit(models: Any) -> bool:
    """Whether all models, uint16 (models, numbers), are of this format."""
    sums = models[:, 1:].astype(int).sum(axis=1)
    shifts, sizes = models[:, 0] & 255, models[:, 0] >> 8
    if not ((shifts <= 8) & (sizes <= 3) & ((shifts == 0) | (sizes == 0)) & (sums == 16384)).all():
        return False
    grouped = [groups_of(model) for model in models.astype(int).tolist() if model[0] >> 8]
    return all(sum(f for f, _ in groups) < 16384 for groups in grouped)
