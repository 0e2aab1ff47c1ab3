"""How many components of a basis pay, at a given step: rate against distortion, on a sample.

Keeping component ``i`` of a layer saves ``½ Σ_t p_t (c² - (c - q)²)`` nats per token (coordinates
in which the loss metric is the identity; ``p_t`` the token's share of the text) and takes the
entropy of its codes and a row of the basis. Both are weighed by one slope for all layers: what the
loss gains per byte when the step changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tolpack.building.frame_sample import FrameSample
from tolpack.codecs.lowrank import Doubles
from tolpack.codecs.values import Floats

# The slope is the difference quotient over this factor of the step.
_STEP_RATIO = 1.1
# Cutting a component takes the same direction from all tokens and positions, and costs far more
# than its quadratic form says, which holds for errors of the size of a step. Of 1, 10, 40, 200, and
# none cut, 200 gave the smallest pack at equal loss (docs/lab-notes.md).
_CUT_FACTOR = 200.0
_LARGEST = 2047
# Rows whose entropies are counted together: tokens of similar frequency, as a coder would.
_ENTROPY_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Component:
    """A layer's rank (its width without a basis), and how many of its values have codes of 16
    bits: the leading ones, without a basis all or none.
    """

    rank: int
    leading: int


def choose_components(
    codes: Mapping[int, Floats],
    sample: FrameSample,
    steps: Floats,
    row_bytes: int,
    *,
    fixed: bool,
    limit: float,
) -> dict[int, Component]:
    """Choose every layer's rank and leading components.

    Parameters
    ----------
    codes : mapping of int to ndarray
        By layer, float32 (n, components): codes of all components of sampled tokens.
    sample : FrameSample
        The tokens, and what they stand for.
    steps : ndarray
        float32 (n,): what a code is multiplied by.
    row_bytes : int
        Bytes of one row of a basis.
    fixed : bool
        Whether ranks stay what they are.
    limit : float
        Largest code that a component of 8-bit codes may have.
    """
    ranks = {layer: found.shape[1] for layer, found in codes.items()}
    if not fixed:
        square = 0.5 * sample.text * steps.astype(np.float64) ** 2
        now = {layer: _worth(found, square, sample.rows) for layer, found in codes.items()}
        coarse = (code_bytes(_coarser(found), sample.rows) for found in codes.values())
        saved = sum(float(size.sum()) for _, size in now.values())
        saved -= sum(float(size.sum()) for size in coarse)
        values = sum(found.shape[1] for found in codes.values())
        noise = float(square.sum()) * values / 12 * (_STEP_RATIO**2 - 1)
        slope = noise / max(saved, 1.0)
        ranks = {
            layer: _best_rank(gain - slope * (size + row_bytes))
            for layer, (gain, size) in now.items()
        }
    return {
        layer: Component(rank, _leading(codes[layer][:, :rank], limit))
        for layer, rank in ranks.items()
    }


def _worth(codes: Floats, square: Doubles, rows: Doubles) -> tuple[Doubles, Doubles]:
    """Nats per token that each component saves, and bytes that its codes take, float64 (n,)."""
    gain = _CUT_FACTOR * (square @ np.square(codes, dtype=np.float64))
    return gain, code_bytes(codes, rows)


def _coarser(codes: Floats) -> Floats:
    """Codes at a step that is `_STEP_RATIO` times as large, values taken as even within a step."""
    place = np.random.default_rng(0).random(codes.shape, np.float32) - np.float32(0.5)
    return np.rint((codes + place) / np.float32(_STEP_RATIO))


def code_bytes(codes: Floats, rows: Doubles) -> Doubles:
    """Bytes of an ideal coder that knows every component's distribution in every run of tokens.

    Parameters
    ----------
    codes : ndarray
        float32 (n, components), whole numbers, tokens in the order of their frequency.
    rows : ndarray
        float64 (n,): how many rows each one stands for.

    Returns
    -------
    ndarray
        float64 (components,): the entropy, and what an adaptive coder needs to learn it, half a
        ``log2`` of the number of rows for every code that occurs (Rissanen 1986).
    """
    total = np.zeros(codes.shape[1])
    for start in range(0, len(codes), _ENTROPY_ROWS):
        part = np.clip(codes[start : start + _ENTROPY_ROWS], -_LARGEST, _LARGEST).astype(np.int64)
        stands_for = float(rows[start : start + _ENTROPY_ROWS].sum())
        for n in range(part.shape[1]):
            counts = np.bincount(part[:, n] + _LARGEST)
            counts = counts[counts > 0]
            share = counts / len(part)
            bits = -stands_for * float((share * np.log2(share)).sum())
            total[n] += (bits + 0.5 * len(counts) * np.log2(max(stands_for, 2))) / 8
    return total


def _best_rank(worth: Doubles) -> int:
    """Return the rank at which the summed worth of the components kept is largest, at least 1."""
    return int(np.argmax(np.cumsum(worth))) + 1


def _leading(codes: Floats, limit: float) -> int:
    """Return how many leading components have codes beyond `limit`."""
    large = np.flatnonzero(np.abs(codes).max(axis=0) > limit)
    return int(large[-1]) + 1 if len(large) else 0
