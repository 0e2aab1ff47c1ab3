"""KL divergence and top-1 agreement: against float64 loops, exact where they must be."""

import math

import models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_perplexity import Bigram

import tolpack
from tolpack.evaluation.evaluator import evaluate
from tolpack.model.divergence import Divergence, compare, kl_divergence
from tolpack.model.perplexity import row_blocks, score


def slow_kl(ours, theirs):
    """Return KL(softmax(ours) ‖ softmax(theirs)) of two rows of logits by its definition."""
    p, q = (np.exp(np.float64(row) - np.max(row)) for row in (ours, theirs))
    p, q = p / p.sum(), q / q.sum()
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


@given(st.integers(2, 40), st.floats(1e-3, 30), st.integers(0, 5))
def test_divergence_is_its_definition(vocab, spread, seed):
    """Close or far apart, it equals a loop in float64, and is never negative."""
    random = np.random.default_rng(seed)
    ours = np.float32(3 * random.standard_normal((4, vocab)))
    theirs = np.float32(ours + spread * random.standard_normal((4, vocab)))
    found = kl_divergence(torch.from_numpy(ours), torch.from_numpy(theirs))
    expected = [slow_kl(*rows) for rows in zip(ours, theirs)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-11)
    assert found.dtype == torch.float64
    assert (found >= 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_small_divergences_keep_their_digits(scale):
    """Where plain float32 sums would be rounding errors of either sign."""
    random = torch.Generator().manual_seed(0)
    ours = 3 * torch.randn(8, 5000, generator=random)
    theirs = ours + scale * torch.randn(8, 5000, generator=random)
    p, q = torch.log_softmax(ours.double(), -1), torch.log_softmax(theirs.double(), -1)
    torch.testing.assert_close(kl_divergence(ours, theirs), (p.exp() * (p - q)).sum(-1),
                               rtol=2e-2, atol=0)  # fmt: skip


def test_equal_logits_have_no_divergence():
    """Exactly zero, also for a vocabulary whose probabilities do not sum to one in float32."""
    logits = 5 * torch.randn(3, 50_000, generator=torch.Generator().manual_seed(1))
    assert kl_divergence(logits, logits.clone()).tolist() == [0, 0, 0]


def test_hopeless_predictions():
    """Probabilities past float32, of zero on both sides, and of zero on the other side alone."""
    inf = math.inf
    ours = torch.tensor([[200.0, 0.0, 0.0], [0.0, 1.0, -inf], [0.0, 1.0, 2.0]])
    theirs = torch.tensor([[0.0, 200.0, 0.0], [1.0, 0.0, -inf], [0.0, 1.0, -inf]])
    found = kl_divergence(ours, theirs)
    e = math.e
    expected = [200.0, (e - 1) / (e + 1), inf]
    assert found.tolist() == pytest.approx(expected)


def test_models_are_compared_position_by_position():
    """Every number equals the one of loops over positions, also those of a shorter last window."""
    random = np.random.default_rng(0)
    tables = [random.standard_normal((7, 7)) for _ in range(3)]
    ids = random.integers(0, 7, 24)
    done = []
    base, found = compare(*split(Bigram(t) for t in tables), ids, 5, done.append)
    assert sum(done) == 2 * 23
    np.testing.assert_array_equal(base.nll_nats, score(Bigram(tables[0]), ids, 5).nll_nats)
    for table, (own, divergence) in zip(tables[1:], found):
        np.testing.assert_array_equal(own.nll_nats, score(Bigram(table), ids, 5).nll_nats)
        kl = [slow_kl(tables[0][one], table[one]) for one in ids[:-1]]
        np.testing.assert_allclose(divergence.kl_nats, kl, rtol=1e-4)
        assert divergence.tokens.tolist() == [5, 5, 5, 5, 3]
        alike = tables[0].argmax(1) == table.argmax(1)
        sums = [alike[ids[:-1][n : n + 5]].sum() for n in range(0, 23, 5)]
        assert divergence.agreed.tolist() == sums
        assert divergence.kl_mean_nats == pytest.approx(np.mean(kl), rel=1e-4)
        assert divergence.kl_median_nats == pytest.approx(np.median(kl), rel=1e-4)
        assert divergence.kl_p99_nats == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
        assert divergence.kl_max_nats == pytest.approx(max(kl), rel=1e-4)
        assert divergence.top1_agreement_pct == pytest.approx(100 * alike[ids[:-1]].mean())


def split(made):
    """Return the first of some models, and a list of the others."""
    first, *others = made
    return first, others


def test_blocks_of_positions_change_nothing(monkeypatch):
    """Logits are worked on in blocks, whatever their number."""
    monkeypatch.setattr("tolpack.model.perplexity._LOGITS_PER_BLOCK", 21)
    assert [logits.start for logits in row_blocks(torch.zeros(7, 7))] == [0, 3, 6]
    test_models_are_compared_position_by_position()


def test_a_large_vocabulary_takes_fewer_windows_at_once(monkeypatch):
    """No more logits are asked for than the limit, but for a whole window."""
    monkeypatch.setattr("tolpack.model.perplexity.LOGITS_PER_BATCH", 7 * 10)
    sizes = []

    class Watched(Bigram):
        def __call__(self, ids):
            sizes.append(tuple(ids.shape))
            return super().__call__(ids)

    score(Watched(np.zeros((7, 7))), np.zeros(25, np.int64), 4)
    score(Watched(np.zeros((7, 7))), np.zeros(25, np.int64), 24)
    assert sizes == [(2, 4), (2, 4), (2, 4), (1, 24)]


def test_standard_errors_agree_with_the_bootstrap():
    """Resampling windows gives the same spread of the means within 10 %."""
    random = np.random.default_rng(0)
    tokens = random.integers(4, 17, 400)
    level = random.gamma(2, 0.01, 400)
    kl = [random.gamma(1, scale, n) for scale, n in zip(level, tokens)]
    agreed = random.binomial(tokens, random.beta(20, 1, 400))
    found = Divergence(np.concatenate(kl), agreed, tokens)
    drawn = random.integers(0, 400, (4000, 400))
    sums = np.array([one.sum() for one in kl])
    means = sums[drawn].sum(1) / tokens[drawn].sum(1)
    shares = agreed[drawn].sum(1) / tokens[drawn].sum(1)
    assert found.kl_mean_se_nats == pytest.approx(means.std(), rel=0.1)
    assert found.top1_agreement_se_pct == pytest.approx(100 * shares.std(), rel=0.1)


def test_one_window_has_no_standard_error():
    """It tells none, so there are none, rather than errors of 0."""
    one = Divergence(np.array([0.1, 0.2]), np.array([1]), np.array([2]))
    assert (one.kl_mean_se_nats, one.top1_agreement_se_pct) == (None, None)


def test_a_lossless_pack_changes_nothing(tmp_path, token_ids):
    """Divergence exactly 0 and agreement exactly 100 %; a coarse pack has neither."""
    path = models.save_model(tmp_path)
    packs = [
        tolpack.build(path, tmp_path / "a.tolpack", bits="lossless").path,
        tolpack.build(path, tmp_path / "b.tolpack", rank=2).path,
    ]
    same, coarse = evaluate(path, packs, token_ids).packs
    assert (same.kl_mean_nats, same.kl_mean_se_nats, same.kl_max_nats) == (0, 0, 0)
    assert (same.top1_agreement_pct, same.top1_agreement_se_pct) == (100, 0)
    assert same.ppl_increase_pct == 0
    assert 0 < coarse.kl_median_nats < coarse.kl_mean_nats < coarse.kl_p99_nats < coarse.kl_max_nats
    assert coarse.top1_agreement_pct < 100


def test_packs_scored_together_or_alone(memoryllm, tmp_path, token_ids):
    """Give the same numbers, to the last bit."""
    packs = [
        tolpack.build(memoryllm, tmp_path / f"{bits}.tolpack", bits=bits).path for bits in (4, 8)
    ]
    together = evaluate(memoryllm, packs, token_ids)
    assert together.packs == tuple(evaluate(memoryllm, [p], token_ids).packs[0] for p in packs)
    assert together.baseline == evaluate(memoryllm, [], token_ids).baseline
