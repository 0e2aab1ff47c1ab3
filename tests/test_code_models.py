"""Classes and models of frame ``ans``, fitted to samples of codes."""

import numpy as np
import pytest

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.codecs.ans.trellis import NEXT
from tolpack.compress.entropy.code_histograms import BIN_STARTS, BIN_WIDTHS, SampledCodes
from tolpack.compress.entropy.code_models import fit_models


def laplace(rows, values, seed=0, smallest=0.02, largest=20.0):
    """Codes int16 (rows, values) of scales from small to large."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(size=(rows, values)) * np.geomspace(largest, smallest, values))


def coder(models, found, chunk, trellis=False):
    classes = found.classes[found.class_rows[chunk]]
    return RowCoder((len(classes),), classes, CodeModels.of(models, "models"), 1, trellis)


def entropy_bits(codes):
    """Return the sum over columns of the entropy of their own distributions."""
    total = 0.0
    for column in codes.T:
        counts = np.unique(column, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


@pytest.mark.parametrize("largest", [1.0, 20.0, 2000.0])
def test_fitted_models_cost_little_more_than_the_entropy(largest):
    """Few models for all values cost within 2 % of a distribution of each value's own."""
    codes = laplace(4000, 60, largest=largest).clip(-32768, 32767).astype(np.int16)
    models, (found,) = fit_models(SampledCodes([codes], [1.0]))
    learnt = 0.5 * sum(len(np.unique(column)) for column in codes.T) * np.log2(len(codes))
    assert found.bits[0] <= 1.02 * (entropy_bits(codes) + learnt)
    assert len(models) <= 40


def test_the_predicted_cost_is_that_of_the_coder():
    """The cost of a chunk is what its coder says, times the rows that a sampled one stands for;
    payloads are longer by 2 bytes or so.
    """
    chunks = [laplace(n, 40, seed=n).astype(np.int16) for n in (300, 500)]
    models, (found,) = fit_models(SampledCodes(chunks, [1.0, 2.5]))
    for number, (codes, rows) in enumerate(zip(chunks, (1.0, 2.5))):
        own = coder(models, found, number)
        cost = float(own.cost_bits(codes).sum())
        assert found.bits[number] == pytest.approx(rows * cost, rel=1e-9)
        stored = sum(map(len, own.encode(codes, 1)))
        assert 1.5 < (stored - cost / 8) / len(codes) < 2.5


def test_groups_cost_little():
    """Models get groups where those cost at most half a percent by the model, and few levels are
    coded on their own; the codes themselves confirm the cost.
    """
    codes = laplace(2000, 64, smallest=0.1, largest=1.0).astype(np.int16)
    models, (found,) = fit_models(SampledCodes([codes], [1.0]))
    own = coder(models, found, 0)
    assert len(own.order.sizes) < 0.6 * own.values
    alone = models.copy()
    alone[:, 0] %= 256
    single = coder(alone, found, 0)
    assert len(single.order.sizes) == own.values
    assert own.cost_bits(codes).sum() < 1.006 * single.cost_bits(codes).sum()


def test_any_code_can_be_coded():
    """Codes that no sample had are coded all the same, and come back."""
    models, (found,) = fit_models(SampledCodes([laplace(50, 9).astype(np.int16)], [1.0]))
    codes = np.random.default_rng(1).integers(-32768, 32768, (20, 9)).astype(np.int16)
    codes[0] = -32768
    own = coder(models, found, 0)
    assert (own.decode(own.encode(codes, 4), [4] * 5) == codes).all()


def test_kinds_of_codes_have_models_of_their_own():
    """The classes of two kinds never name one model."""
    models, found = fit_models(*(
        SampledCodes([laplace(200, 12, seed=n).astype(np.int16)], [1.0]) for n in range(2)
    ))  # fmt: skip
    first, second = (set(one.classes.ravel().tolist()) for one in found)
    assert not first & second
    assert max(first | second) < len(models)


def test_chunks_share_classes_where_their_codes_are_alike():
    """Chunks of one distribution have one row of classes, those of another have their own."""
    rng = np.random.default_rng(0)
    alike = [laplace(400, 50, seed=n).astype(np.int16) for n in range(2)]
    other = alike[0][:, rng.permutation(50)]
    _, (found,) = fit_models(SampledCodes([*alike, other], [1.0] * 3))
    assert found.class_rows == (0, 0, 1)


def test_models_of_a_trellis_are_fitted_by_set():
    """With a trellis a class has two models, and the cost is that of the trellis' coder."""
    rng = np.random.default_rng(0)
    levels = np.rint(rng.laplace(size=(500, 20)) * np.geomspace(8, 0.3, 20)).astype(np.int16)
    codes, sets = np.empty_like(levels), np.empty(levels.shape, np.uint8)
    state = np.zeros(len(levels), np.int64)
    for n in range(20):
        sets[:, n] = state & 1
        codes[:, n] = 2 * levels[:, n] - sets[:, n] * np.sign(levels[:, n])
        state = NEXT[state, levels[:, n] & 1]
    models, (found,) = fit_models(SampledCodes([levels], [1.0], [sets]))
    assert not (found.classes % 2).any()
    own = coder(models, found, 0, trellis=True)
    assert found.bits[0] == pytest.approx(float(own.cost_bits(codes).sum()), rel=1e-9)
    assert (own.decode(own.encode(codes, 1), [1] * 500) == codes).all()


def test_bins_cover_all_codes():
    """Every code of 16 bits is in one bin."""
    assert BIN_STARTS[0] == -32768
    assert (np.diff(BIN_STARTS) == BIN_WIDTHS[:-1]).all()
    assert BIN_STARTS[-1] + BIN_WIDTHS[-1] == 32768
