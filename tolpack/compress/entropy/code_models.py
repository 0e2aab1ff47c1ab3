"""Fitting classes and models of frame ``ans`` to sampled codes.

A value's class in a chunk says which model codes it. Classes begin as scales, `_PER_OCTAVE` to an
octave. Those whose models cost more than they save are merged; then values go to the class whose
model codes them in the fewest bits, and models are counted again, in turns (Lloyd 1982). Chunks
share a row of classes where that costs less than a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import LARGEST_IN_GROUP, SLOT_BITS, SLOTS, group_symbols
from tolpack.codecs.ans.models import ESCAPE_BITS, LARGEST_SHIFT, CodeModels
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.compress.entropy.code_histograms import (
    BIN_WIDTHS,
    BINS,
    CODES,
    LEAST,
    Histograms,
    SampledCodes,
)
from tolpack.runtime.array_types import Doubles, Ints

# Codes of a chunk that are looked at for what groups cost.
_RATIO_CODES = 1 << 18
# Groups are as large as may be without costing a larger share of bits.
_MOST_LOST = 0.005
_PER_OCTAVE, _MOST_CLASSES = 6, 40
_TURNS = 3
# What a model is assumed to take while classes are merged, in bits.
_MODEL_BITS = 8 * 70
# Largest symbols that are tried: all models have the same.
_LARGEST_SYMBOLS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 90, 127)
# A symbol that is rarer takes less as an escape: as a symbol it has one slot, which the others
# lack, 1.44 / 16384 bits of each; an escape costs 16 bits.
_RAREST = 1.44 / SLOTS / ESCAPE_BITS


@dataclass(frozen=True, slots=True)
class FittedClasses:
    """The classes of values by chunk.

    ``classes``: uint8 (rows, V); ``class_rows``: the row of each chunk; ``bits``: what the codes of
    each chunk cost, for all of its rows.
    """

    classes: NDArray[np.uint8]
    class_rows: tuple[int, ...]
    bits: tuple[float, ...]


def fit_models(*codes: SampledCodes) -> tuple[NDArray[np.uint16], tuple[FittedClasses, ...]]:
    """Fit models to sampled codes of one kind or several, each with models of its own.

    Returns
    -------
    models, classes
        uint16 (M, W), as of `tolpack.codecs.ans.models.CodeModels`, and the classes of each kind.
        Any code can be coded by any of the models, as each of them has an escape.
    """
    grouped = [_classes(one) for one in codes]
    counts = [_class_counts(one, classes, rows) for one, (classes, rows) in zip(codes, grouped)]
    models = _models(np.concatenate(counts))
    costs, first, found = costs_in_bits(models), 0, []
    for one, (classes, rows), own in zip(codes, grouped, counts):
        span = slice(first, first + len(own))
        bits = [
            float(
                (one.class_counts(n, classes[row], len(own) // one.set_count) * costs[span]).sum()
            )
            for n, row in enumerate(rows)
        ]
        if one.set_count == 1:
            _add_groups(models[span])
            ratios = _group_ratios(one.levels, classes, rows, models[span])
            bits = [ratio * cost for ratio, cost in zip(ratios, bits)]
        numbers = (first + classes * one.set_count).astype(np.uint8)
        found.append(FittedClasses(numbers, rows, tuple(bits)))
        first += len(own)
    return models, tuple(found)


def _classes(codes: SampledCodes) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Return classes from 0 on, uint8 (rows, V), and the row of each chunk."""
    histograms = codes.histograms()
    chunks = len(codes.levels)
    classes, count = _by_scale(histograms)
    counts = _merged(histograms.by_class(classes, count))
    rows = tuple(range(chunks))
    for turn in range(_TURNS):
        costs = _costs_of(counts)
        bits = [histograms.bits(chunk, costs) for chunk in range(chunks)]
        if not turn:
            rows = _shared_rows(bits)
        classes = _cheapest(bits, rows)
        used, numbers = np.unique(classes, return_inverse=True)
        classes = numbers.reshape(classes.shape)
        counts = histograms.by_class(classes[list(rows)], len(used))
    return classes.astype(np.uint8), rows


def costs_in_bits(models: NDArray[np.uint16], least: int = LEAST, stop: int = -LEAST) -> Doubles:
    """Return what the codes ``least … stop-1`` cost by models uint16 (M, W): float64 (M, codes)."""
    largest = (models.shape[1] - 3) // 2
    levels = np.arange(least, stop)
    found = np.empty((len(models), len(levels)))
    for number, model in enumerate(models):
        shift = int(model[0] % 256)
        frequencies = np.append(model[2:], 0).astype(np.float64)
        symbols = (levels >> shift) + largest
        symbols[(symbols < 0) | (symbols > 2 * largest)] = 2 * largest + 1
        slots = frequencies[symbols]
        escape = SLOT_BITS + ESCAPE_BITS - np.log2(float(model[1]))
        found[number] = np.where(
            slots > 0, SLOT_BITS + shift - np.log2(np.maximum(slots, 1)), escape
        )
    return found


def _by_scale(histograms: Histograms) -> tuple[Ints, int]:
    """Return classes by the mean size of codes, int64 (chunks, V), and their number."""
    scales = np.rint(_PER_OCTAVE * np.log2(histograms.mean_sizes() + 0.01)).astype(np.int64)
    used, numbers = np.unique(scales, return_inverse=True)
    return numbers.reshape(scales.shape), len(used)


def _costs_of(counts: Doubles) -> Doubles:
    """Return what a code of each bin costs by models of these histograms (models, sets × bins)."""
    by_set = counts.reshape(len(counts), -1, BINS)
    shares = by_set / np.maximum(by_set.sum(axis=2, keepdims=True), 1e-9) / BIN_WIDTHS
    costs: Doubles = -np.log2(np.maximum(shares, 0.5**SLOT_BITS * 0.5**ESCAPE_BITS))
    return costs.reshape(counts.shape)


def _own_bits(counts: Doubles) -> Doubles:
    """Return what histograms cost by their own models, float64 (…,); `counts` (…, sets × bins)."""
    flat = counts.reshape(-1, counts.shape[-1])
    found: Doubles = (flat * _costs_of(flat)).sum(axis=1).reshape(counts.shape[:-1])
    return found


def _merged(counts: Doubles) -> Doubles:
    """Merge the models of two classes as long as that pays, or there are too many."""
    own = _own_bits(counts)
    lost = _own_bits(counts[:, None] + counts) - own[:, None] - own
    np.fill_diagonal(lost, np.inf)
    while len(counts) > 1:
        first, second = sorted(divmod(int(np.argmin(lost)), len(counts)))
        if lost[first, second] > _MODEL_BITS and len(counts) <= _MOST_CLASSES:
            break
        counts[first] += counts[second]
        counts = np.delete(counts, second, axis=0)
        lost = np.delete(np.delete(lost, second, axis=0), second, axis=1)
        own = _own_bits(counts)
        changed = _own_bits(counts + counts[first]) - own - own[first]
        lost[first], lost[:, first] = changed, changed
        lost[first, first] = np.inf
    return counts


def _shared_rows(bits: Sequence[Doubles]) -> tuple[int, ...]:
    """Return each chunk's row of classes; neighbours share one where that pays.

    `bits`: by chunk, float64 (V, models).
    """
    rows, together = [0], bits[0]
    for own in bits[1:]:
        apart = together.min(axis=1).sum() + own.min(axis=1).sum() + 8 * len(own)
        shared = together + own
        joined = shared.min(axis=1).sum() <= apart
        rows.append(rows[-1] if joined else rows[-1] + 1)
        together = shared if joined else own
    return tuple(rows)


def _cheapest(bits: Sequence[Doubles], rows: Sequence[int]) -> Ints:
    """Return the class that codes each value in the fewest bits: int64 (class rows, V)."""
    found = []
    for row in range(rows[-1] + 1):
        own = [one for one, number in zip(bits, rows) if number == row]
        found.append(np.sum(own, axis=0).argmin(axis=1))
    return np.stack(found)


def _class_counts(
    codes: SampledCodes, classes: NDArray[np.uint8], rows: tuple[int, ...]
) -> Doubles:
    """Return how often codes occur in each class: float64 (classes × sets, 65,536)."""
    count = int(classes.max()) + 1
    found = np.zeros((count * codes.set_count, CODES))
    for chunk, row in enumerate(rows):
        found += codes.class_counts(chunk, classes[row], count)
    return found


def _models(counts: Doubles) -> NDArray[np.uint16]:
    """Return models of histograms (M, 65,536): of the width that is cheapest, itself included."""
    best: tuple[float, NDArray[np.uint16]] | None = None
    for largest in _LARGEST_SYMBOLS:
        found = [_model(one, largest) for one in counts]
        models = np.stack([model for model, _ in found])
        bits = sum(cost for _, cost in found) + 8 * models.nbytes
        if best is None or bits < best[0]:
            best = bits, models
        elif bits > 1.02 * best[0]:
            break
    assert best is not None
    return best[1]


def _model(counts: Doubles, largest: int) -> tuple[NDArray[np.uint16], float]:
    """Return the model of symbols ``-largest … largest``, uint16 (W,), with the shift that is
    cheapest, and what the codes cost by it in bits.
    """
    occurring = np.flatnonzero(counts) + LEAST
    occurrences = counts[occurring - LEAST]
    widest = int(np.abs(occurring).max(initial=0))
    best: tuple[NDArray[np.uint16], float] | None = None
    for shift in range(LARGEST_SHIFT + 1):
        symbols = (occurring >> shift) + largest
        escaped = (symbols < 0) | (symbols > 2 * largest)
        own: Doubles = np.bincount(
            symbols[~escaped], occurrences[~escaped], 2 * largest + 1
        ).astype(np.float64)
        frequencies, bits = _frequencies(own, float(occurrences[escaped].sum()))
        bits += shift * float(own.sum())
        if best is None or bits < best[1]:
            model = np.concatenate([[shift], frequencies[-1:], frequencies[:-1]])
            best = model.astype(np.uint16), bits
        if widest >> shift <= largest // 2:
            break
    assert best is not None
    return best


def _frequencies(counts: Doubles, escaped: float) -> tuple[Ints, float]:
    """Return the slots of symbols and, last, of the escape, int64 (symbols + 1,), and what the
    codes cost by them in bits, without shifts. Rare symbols have none: they are escaped.
    """
    total = max(float(counts.sum()) + escaped, 1e-9)
    rare = counts < _RAREST * total
    escaped += float(counts[rare].sum())
    own = np.append(np.where(rare, 0, counts), escaped)
    present = own > 0
    present[-1] = True
    slots = np.where(present, np.maximum(1, np.rint(own / total * SLOTS)), 0).astype(np.int64)
    while (excess := int(slots.sum()) - SLOTS) != 0:
        if excess > 0:
            loss = own * np.log2(np.maximum(slots, 2) / np.maximum(slots - 1, 1))
            loss[slots < 2] = np.inf
            slots[np.argmin(loss)] -= 1
        else:
            gain = np.where(present, own * np.log2((slots + 1) / np.maximum(slots, 1)), -1.0)
            slots[np.argmax(gain)] += 1
    bits = own[present] @ (SLOT_BITS - np.log2(slots[present])) + ESCAPE_BITS * escaped
    return slots, float(bits)


def _add_groups(models: NDArray[np.uint16]) -> None:
    """Give models, uint16 (M, W), groups as large as cost at most `_MOST_LOST` more bits."""
    for model in models:
        for size in sorted(LARGEST_IN_GROUP, reverse=True) if not model[0] else ():
            if group_loss(model, size) <= _MOST_LOST:
                model[0] = 256 * (size - 1)
                break


def _group_ratios(
    levels: Sequence[NDArray[np.int16]],
    classes: NDArray[np.uint8],
    rows: tuple[int, ...],
    models: NDArray[np.uint16],
) -> list[float]:
    """Return how many times as many bits each chunk takes with groups, by some of its rows."""
    checked, found = CodeModels.of(models, "models"), []
    without = models.copy()
    without[:, 0] %= 256
    alone = CodeModels.of(without, "models")
    for own, row in zip(levels, rows):
        some = own[:: max(1, own.size // _RATIO_CODES)]
        of_row = classes[row].astype(np.uint8)
        grouped, single = (
            RowCoder((len(of_row),), of_row, one, 1, False).cost_bits(some).sum()
            for one in (checked, alone)
        )
        found.append(float(grouped / single) if single else 1.0)
    return found


def group_loss(model: NDArray[np.uint16], size: int) -> float:
    """Return the share of bits that groups of so many levels cost more than single ones, by a
    model, uint16 (W,); infinite if it cannot have groups.
    """
    frequencies = np.roll(model[1:], -1).astype(np.int64)
    shares = frequencies / SLOTS
    bits = -np.log2(np.where(shares > 0, shares, 1.0))
    single = size * float(shares @ bits) + ESCAPE_BITS * size * float(shares[-1])
    levels, slots = group_symbols(frequencies, size)
    if slots[-1] < 1 or single == 0:
        return np.inf
    numbers = levels + (len(frequencies) - 2) // 2
    own, alone = shares[numbers].prod(axis=1), bits[numbers].sum(axis=1)
    rest = 1 - float(own.sum())
    grouped = float(own @ (SLOT_BITS - np.log2(slots[:-1])))
    grouped += rest * float(SLOT_BITS - np.log2(slots[-1])) + single - float(own @ alone)
    return grouped / single - 1
