"""How long payloads of frame ``ans`` can be, as far as a header tells (SPEC §8)."""

from __future__ import annotations

MOST_LANES = 32
# A lane's state, and a word.
STATE_BYTES, WORD_BYTES = 4, 2
# Bits of a code at most: half of 14 of an escaped group, 14 of an escape, 16 as they are, and less
# than one for rounding.
_MOST_BITS = 38


def shortest_payload(lanes: int) -> int:
    """Bytes of a payload without words: the states of its lanes."""
    return STATE_BYTES * lanes


def longest_payload(lanes: int, values: int) -> int:
    """Bytes of the longest payload of `values` codes."""
    return STATE_BYTES * lanes + WORD_BYTES * most_words(values)


def most_words(values: int) -> int:
    """Words that `values` codes take at most."""
    return -(-_MOST_BITS * values // (8 * WORD_BYTES))
