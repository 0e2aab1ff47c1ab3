"""The rules of entropy-coded rows, by SPEC.md alone (section 8): a part of `validate.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import ceil
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
        need(min(self.states) >= 1 << 16, "states of 2^16 and more")
        rest = payload[4 * lanes :]
        self.words: Iterator[int] = iter(struct.unpack(f"<{len(rest) // 2}H", rest))

    def set(self, lane: int, state: int) -> None:
        if state < 1 << 16:
            word = next(self.words, None)
            need(word is not None, "a word where one is needed")
            state = (state << 16) + (word or 0)
        self.states[lane] = state

    def bits(self, lane: int, n: int) -> int:
        state = self.states[lane]
        self.set(lane, state >> n)
        return state & (1 << n) - 1

    def level(self, lane: int, model: list[int]) -> int:
        shift, escape, *symbols = model
        state, number, b = self.states[lane], 0, 0
        for number, f in enumerate([*symbols, escape]):  # noqa: B007 (the last one is looked at)
            if state & 4095 < b + f:
                break
            b += f
        self.set(lane, f * (state >> 12) + (state & 4095) - b)
        if number < len(symbols):
            return (number - len(symbols) // 2 << shift) + self.bits(lane, shift)
        low = self.bits(lane, 8)
        k = low + (self.bits(lane, 8) << 8)
        return k - (1 << 16) if k >> 15 else k

    def field(
        self, classes: list[int], limits: list[int], models: list[list[int]], trellis: bool
    ) -> None:
        """Read the next field; `classes` and `limits` are those of its values."""
        count = len(self.states)
        q, states = ceil(len(classes) / count), [0] * count
        for i in range(q):
            for lane, value in enumerate(range(i, q * count, q)):
                if value >= len(classes):
                    continue
                t = states[lane]
                k = self.level(lane, models[classes[value] + t % 2])
                code = k
                if trellis:
                    code = 2 * k - t % 2 * ((k > 0) - (k < 0))
                    states[lane] = NEXT[t][k % 2]
                need(-limits[value] <= code < limits[value], "a code that the codec has")

    def end(self) -> None:
        need(next(self.words, None) is None, "no words left over")
        need(set(self.states) == {1 << 16}, "states of 2^16 at the end")


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
        start = 0
        for own in limits:
            here = classes[start : start + len(own)]
            lanes.field(here, own, models, encoding.get("trellis") is not None)
            start += len(own)
    lanes.end()


def check_basis(
    payload: bytes, section: Entry, models: list[list[int]], classes: list[int]
) -> None:
    """Raise `BadPack` unless a payload is one of the codes of a basis."""
    rank, width = section["shape"]
    lanes = Lanes(payload, section["lanes"])
    for row in range(rank):
        lanes.field([classes[row]] * width, [128] * width, models, False)
    lanes.end()


def models_fit(models: Any) -> bool:
    """Whether all models, uint16 (models, numbers), are of this format."""
    sums = models[:, 1:].astype(int).sum(axis=1)
    return bool((models[:, 0] <= 8).all() and (sums == 4096).all())
