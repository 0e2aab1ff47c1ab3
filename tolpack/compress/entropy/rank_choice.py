"""How many components of a basis pay, at a given step: rate against distortion, on a sample.

Keeping component ``i`` of a layer saves ``½ Σ_t p_t (c² - (c - q)²)`` nats per token (coordinates
in which the loss metric is the identity; ``p_t`` the token's share of the text) and takes the
entropy of its codes and a row of the basis. Both are compared by one slope for all layers: what the
loss gains per byte when the step changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tolpack.codecs.code_entropy import code_bytes, gaussian_bytes
from tolpack.compress.entropy.slot_sample import SlotSample
from tolpack.runtime.array_types import Doubles, Floats

# The slope is the difference quotient over this factor of the step.
_STEP_RATIO = 1.1
# Cutting a component takes the same direction from all tokens and positions, and costs far more
# than its quadratic form says, which holds for errors of the size of a step. Of 0.4, 4, 16, 80, and
# none cut, 80 gave the smallest pack at equal loss (docs/lab-notes.md).
_CUT_FACTOR = 80.0


@dataclass(frozen=True, slots=True)
class Component:
    """How a layer's values are stored.

    ``rank``: how many there are (the width without a basis); ``leading``: how many of the first
    ones have codes of 16 bits, without a basis all or none; ``scales``: of the rows of the basis,
    float32 (rank,), ``None`` for the finest.
    """

    rank: int
    leading: int
    scales: Floats | None = field(default=None, compare=False)


def choose_components(
    codes: Mapping[int, Floats],
    sample: SlotSample,
    steps: Floats,
    basis_bytes: Mapping[int, Doubles],
    *,
    fixed: bool,
    limit: float,
) -> dict[int, Component]:
    """Choose every layer's rank and leading components.

    Parameters
    ----------
    codes : mapping of int to ndarray
        By layer, float32 (n, components): codes of all components of sampled tokens.
    sample : SlotSample
        The tokens, and what they stand for.
    steps : ndarray
        float32 (n,): what a code is multiplied by.
    basis_bytes : mapping of int to ndarray
        By layer, float64 (components,): what each row of the basis takes.
    fixed : bool
        Whether ranks stay what they are.
    limit : float
        Largest code that a component of 8-bit codes may have.
    """
    ranks = {layer: found.shape[1] for layer, found in codes.items()}
    if not fixed:
        square = 0.5 * sample.text * steps.astype(np.float64) ** 2
        now = {layer: _gain_and_bytes(found, square, sample.rows) for layer, found in codes.items()}
        saved = sum(_saved_by_coarser(found, sample.rows) for found in codes.values())
        values = sum(found.shape[1] for found in codes.values())
        noise = float(square.sum()) * values / 12 * (_STEP_RATIO**2 - 1)
        slope = noise / max(saved, 1e-9)
        ranks = {
            layer: int(np.argmax(np.cumsum(gain - slope * (size + basis_bytes[layer])))) + 1
            for layer, (gain, size) in now.items()
        }
    return {
        layer: Component(rank, _leading(codes[layer][:, :rank], limit))
        for layer, rank in ranks.items()
    }


def _gain_and_bytes(codes: Floats, square: Doubles, rows: Doubles) -> tuple[Doubles, Doubles]:
    """Nats per token that each component saves, and bytes that its codes take, float64 (n,)."""
    gain = _CUT_FACTOR * (square @ np.square(codes, dtype=np.float64))
    return gain, code_bytes(codes, rows)


def _saved_by_coarser(codes: Floats, rows: Doubles) -> float:
    """Bytes that a step `_STEP_RATIO` times as large saves, for Gaussian components: entropies of
    few codes move by chance as much as by the step.
    """
    coarser = codes / np.float32(_STEP_RATIO)
    return float((gaussian_bytes(codes, rows) - gaussian_bytes(coarser, rows)).sum())


def _leading(codes: Floats, limit: float) -> int:
    """Return how many leading components have codes beyond `limit`."""
    large = np.flatnonzero(np.abs(codes).max(axis=0) > limit)
    return int(large[-1]) + 1 if len(large) else 0
