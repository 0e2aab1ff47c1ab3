"""Searching codes along a trellis: what paths allow, how good they are, and that both ways to
compute them give the same.
"""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from tolpack.codecs.ans.trellis import NEXT, codes_of, in_set, levels_and_sets, levels_of
from tolpack.compress.entropy import trellis_search
from tolpack.compress.entropy.quantizers import (
    BasisQuantizer,
    DirectQuantizer,
    RoundingQuantizer,
    direct_quantizer,
)
from tolpack.compress.entropy.trellis_search import (
    STEP_RATIO,
    search_block,
    search_codes,
    subset_tops,
)


@pytest.fixture
def without_numba(monkeypatch):
    """Return a function that runs another without compiled loops."""

    def run(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(trellis_search, "_loops", lambda: None)
            return function(*arguments)

    return run


def values_of(count, rows, seed=0):
    """Return values of very different sizes, some beyond every limit, some zero."""
    source = np.random.default_rng(seed)
    found = source.standard_normal((count, rows)) * source.choice([0, 0.1, 1, 5, 300], (count, 1))
    return found.astype(np.float32)


def walk(codes, state=0):
    """Follow a run of codes and return the state behind it; each must be in its state's set."""
    for code in codes.astype(np.int64):
        assert in_set(code, np.int64(state))
        state = NEXT[state, levels_of(code, np.int64(state)) & 1]
    return int(state)


def allowed(count, largest, state=0):
    """Return every run of codes that the trellis allows from a state on."""
    if count == 0:
        return [()]
    found = []
    for level in range(-largest, largest + 1):
        code = int(codes_of(np.int64(level), np.int64(state)))
        found += [(code, *rest) for rest in allowed(count - 1, largest, NEXT[state, level & 1])]
    return found


@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_codes_obey_the_trellis(lanes):
    """Each run of a lane begins in state 0, and each code is in the set of its state and within
    its limit.
    """
    limits = np.where(np.arange(37) % 3, 127, 32767).astype(np.float32)
    codes = search_codes(values_of(37, 50), limits, lanes)
    assert (np.abs(codes) <= limits[:, None]).all()
    assert np.abs(codes[limits == 127]).max() > 123  # cut
    length = -(-37 // lanes)
    for row in codes.T:
        for start in range(0, 37, length):
            walk(row[start : start + length])


def test_no_allowed_codes_are_closer():
    """Of all runs of codes that the trellis allows, the search finds the closest."""
    values = (1.7 * np.random.default_rng(1).standard_normal((5, 40))).astype(np.float32)
    every = np.array(allowed(5, 4), np.float64)
    found = search_codes(values, np.full(5, 7, np.float32), 1)
    squares = np.square(found - values, dtype=np.float64).sum(axis=0)
    for row, square in zip(values.T.astype(np.float64), squares):
        assert square == pytest.approx(np.square(every - row).sum(axis=1).min(), rel=1e-5)


def test_compiled_codes_are_the_same(without_numba):
    """With numba and without, codes are the same to the bit."""
    pytest.importorskip("numba")
    assert trellis_search._loops() is not None
    values, limits = values_of(29, 101), np.full(29, 127, np.float32)
    found = search_codes(values, limits, 2)
    expected = without_numba(search_codes, values, limits, 2)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def block_arguments(count, rows, seed=0):
    source = np.random.default_rng(seed)
    half = source.standard_normal((count, 3 * count))
    factor = direct_quantizer(half @ half.T / count, 127).factor
    left = (3 * source.standard_normal((count, rows))).astype(np.float32)
    out = np.empty_like(left), np.empty_like(left)
    return left, factor, subset_tops(np.float32([127]))[0], np.arange(rows) % 8, *out


def test_compiled_blocks_are_the_same(without_numba):
    """Codes, errors and states of blocks whose values compensate are the same to the bit."""
    pytest.importorskip("numba")
    first, second = block_arguments(12, 77), block_arguments(12, 77)
    search_block(*first)
    without_numba(search_block, *second)
    for one, other in zip(first[3:], second[3:]):
        np.testing.assert_array_equal(one, other)


def survivors(left, factor, state, limit):
    """Return the codes of one row by the Viterbi algorithm, one path at a time: each with its own
    values to come.
    """
    paths = {state: (0.0, (), left.astype(np.float64))}
    for i, scale in enumerate(np.diag(factor)):
        ways = {}
        for now, (cost, codes, values) in paths.items():
            for level in range(-limit, limit + 1):
                code = int(codes_of(np.int64(level), np.int64(now)))
                error = (values[i] - code) / scale
                way = cost + error**2, (*codes, code), values - factor[i] * error
                after = int(NEXT[now, level & 1])
                if after not in ways or way[0] < ways[after][0]:
                    ways[after] = way
        paths = ways
    return min(paths.values(), key=lambda way: way[0])[1]


def test_blocks_follow_every_survivor():
    """An independent search that keeps each path's own values finds the same codes."""
    left, factor, tops, states, codes, errors = block_arguments(7, 24)
    begin = states.copy()
    search_block(left, factor, tops, states, codes, errors)
    for row in range(24):
        assert tuple(codes[:, row]) == survivors(left[:, row], factor, int(begin[row]), 9)
        assert walk(codes[:, row], int(begin[row])) == states[row]


def entropy(levels, sets):
    """Return bits of a level, given its set."""
    total = 0.0
    for number in (0, 1):
        counts = np.unique(levels[sets == number], return_counts=True)[1]
        total -= (counts * np.log2(counts / counts.sum())).sum()
    return total / levels.size


@pytest.mark.parametrize("size", [0.7, 1.5, 5.0])
def test_a_trellis_saves_a_tenth_of_a_bit(size):
    """At equal error, levels of a Gaussian take 0.08 bits less than codes of plain rounding."""
    rows = (size * np.random.default_rng(2).standard_normal((2000, 64))).astype(np.float32)
    quantizer = RoundingQuantizer(64, 127)
    plain, error = quantizer.quantize(rows, np.ones(2000, np.float32))
    steps = np.full(2000, np.float32(STEP_RATIO))
    stored, found = RoundingQuantizer(64, 127, 1).quantize(rows, steps)
    levels, sets = levels_and_sets(np.rint(stored / steps[:, None]).astype(np.int16), 64)
    gained = 0.5 * np.log2(np.square(error).mean() / np.square(found).mean())
    saved = entropy(plain, np.zeros(plain.shape)) - entropy(levels, sets)
    assert saved + gained > 0.08


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("kind", ["basis", "direct"])
def test_quantizers_give_whole_steps_along_a_trellis(kind, lanes):
    """Stored values are codes of the trellis times the step, and errors are those of the decoded
    rows.
    """
    source = np.random.default_rng(3)
    rows = (20 * source.standard_normal((30, 100))).astype(np.float32)
    half = source.standard_normal((100, 300))
    if kind == "direct":
        quantizer = direct_quantizer(half @ half.T / 300, 127)
        quantizer = DirectQuantizer(quantizer.factor, 1.0, 127, lanes)
        basis = np.eye(100, dtype=np.float32)
    else:
        basis = np.linalg.qr(half[:, :100])[0].astype(np.float32)
        limits = np.full(100, 127, np.float32)
        quantizer = BasisQuantizer(np.ascontiguousarray(basis.T), basis, limits, lanes)
    steps = source.choice([0.25, 0.5, 2], 30).astype(np.float32)
    stored, error = quantizer.quantize(rows.copy(), steps)
    np.testing.assert_allclose(stored @ basis, rows + error, atol=1e-3)
    codes = np.rint(stored / steps[:, None])
    assert np.abs(codes - stored / steps[:, None]).max() < 1e-3
    assert np.abs(codes).max() <= 127
    length = 100 // lanes
    for row, start in itertools.product(codes, range(0, 100, length)):
        walk(row[start : start + length])


def test_compensation_along_a_trellis_is_better_than_without():
    """Under a metric that couples values, errors cost less than those of values on their own, and
    less than plain compensation's at a step of as many bits.
    """
    source = np.random.default_rng(4)
    half = source.standard_normal((96, 160))
    metric = half @ half.T / 160
    rows = source.standard_normal((1500, 96)).astype(np.float32)
    made = direct_quantizer(metric, 127)
    costs, bits = [], []
    for lanes, step in ((0, 0.5), (1, 0.5 * STEP_RATIO)):
        quantizer = DirectQuantizer(made.factor, 1.0, 127, lanes)
        steps = np.full(1500, np.float32(step))
        stored, error = quantizer.quantize(rows, steps)
        costs.append(np.einsum("ti,ij,tj->t", error, metric, error).mean())
        codes = np.rint(stored / steps[:, None]).astype(np.int16)
        split = levels_and_sets(codes, 96) if lanes else (codes, np.zeros(codes.shape))
        bits.append(entropy(*split))
    assert 0.5 * np.log2(costs[0] / costs[1]) + bits[0] - bits[1] > 0.08
