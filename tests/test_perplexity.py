"""The perplexity protocol: windows, sums, standard errors and the paired increase."""

import math

import models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tolpack.errors import ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import Score, increase_pct, score
from tolpack.sources.checkpoint.checkpoint import open_checkpoint


class Bigram:
    """Stands for a decoder: logits depend on the current token alone; remembers what it was fed."""

    def __init__(self, table):
        self.table = torch.as_tensor(table, dtype=torch.float32)
        self.vocab_size = self.table.shape[1]
        self.fed = []

    def __call__(self, ids):
        """Return logits (batch, length, vocab)."""
        self.fed += [row.tolist() for row in ids]
        return self.table[ids]


def ids_of(*values):
    """Return int64 token ids."""
    return np.array(values, np.int64)


def test_hand_computed_example():
    """Five tokens in windows of two give the sums worked out by hand."""
    log = math.log
    table = [[log(0.5), log(0.25), log(0.25)], [log(0.1), log(0.1), log(0.8)], [0.0, 0.0, 0.0]]
    found = score(Bigram(table), ids_of(0, 1, 2, 0, 0), 2)
    # windows: 0→1 and 1→2; 2→0 and 0→0
    np.testing.assert_allclose(found.nll_nats, [-log(0.25) - log(0.8), log(3) - log(0.5)], 1e-6)
    assert found.tokens.tolist() == [2, 2]
    assert found.total_tokens == 4
    assert found.ppl == pytest.approx((1 / (0.25 * 0.8) * 3 * 2) ** 0.25)
    assert found.mean_nll_nats == pytest.approx(log(found.ppl))


@pytest.mark.parametrize(
    ("count", "context", "windows"),
    [
        (10, 3, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        (11, 3, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
        (12, 3, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]),
        (3, 8, [[0, 1]]),
        (9, 8, [list(range(8))]),
        (2, 1, [[0]]),
        (4, 1, [[0], [1], [2]]),
    ],
)
def test_windows_are_those_of_the_protocol(count, context, windows):
    """Window i feeds ids[i·N : i·N+N]; the last may be shorter if it scores a token."""
    model = Bigram(np.zeros((12, 12)))
    found = score(model, np.arange(count), context)
    assert model.fed == windows
    assert found.tokens.tolist() == [len(window) for window in windows]
    assert found.total_tokens == count - 1


@given(st.integers(2, 300), st.integers(1, 64), st.integers(0, 5))
def test_sums_equal_a_loop(count, context, seed):
    """For any length and context, window sums equal a loop over tokens in float64."""
    random = np.random.default_rng(seed)
    table, ids = random.standard_normal((7, 7)), random.integers(0, 7, count)
    done = []
    found = score(Bigram(table), ids, context, done.append)
    probabilities = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    losses = [-math.log(probabilities[a, b]) for a, b in zip(ids[:-1], ids[1:])]
    expected = [sum(losses[n : n + context]) for n in range(0, len(losses), context)]
    np.testing.assert_allclose(found.nll_nats, expected, rtol=1e-4, atol=1e-5)
    assert sum(done) == count - 1


def test_windows_carry_nothing_over(memoryllm):
    """A window's sum does not change with what stands before it."""
    decoder, ids = Decoder(open_checkpoint(memoryllm)), models.zipf_ids(33, 97)
    whole = score(decoder, ids, 8)
    for n in range(4):
        alone = score(decoder, ids[8 * n : 8 * n + 9], 8)
        np.testing.assert_allclose(alone.nll_nats, whole.nll_nats[n : n + 1], rtol=1e-5)


def test_model_score_equals_naive_loops(memoryllm):
    """A model's perplexity equals the one of the naive decoder, window by window."""
    config = models.make_config()
    naive = models.Naive(models.make_state(config), config)
    ids = models.zipf_ids(15, 97)
    found = score(Decoder(open_checkpoint(memoryllm)), ids, 6)
    expected = [naive.nll(ids[:7]), naive.nll(ids[6:13]), naive.nll(ids[12:])]
    np.testing.assert_allclose(found.nll_nats, expected, rtol=1e-5)


def test_standard_error_is_the_delta_method():
    """ppl_se follows the ratio estimator's formula, written out for unequal windows."""
    nll, tokens = np.array([20.0, 31.0, 25.0, 4.0]), np.array([8, 8, 8, 2])
    found = Score(nll, tokens)
    mean = nll.sum() / tokens.sum()
    variance = 4 / 3 * sum((x - mean * n) ** 2 for x, n in zip(nll, tokens)) / tokens.sum() ** 2
    assert found.ppl == pytest.approx(math.exp(mean))
    assert found.ppl_se == pytest.approx(math.exp(mean) * math.sqrt(variance))


def test_standard_error_agrees_with_the_bootstrap():
    """Resampling windows gives the same spread of the perplexity within 10 %."""
    random = np.random.default_rng(0)
    tokens = random.integers(4, 17, 400)
    nll = random.gamma(20, 0.2, 400) * tokens
    base = nll * random.normal(0.97, 0.02, 400)
    drawn = random.integers(0, 400, (4000, 400))
    ppl = np.exp(nll[drawn].sum(1) / tokens[drawn].sum(1))
    ratio = ppl / np.exp(base[drawn].sum(1) / tokens[drawn].sum(1))
    packed, baseline = Score(nll, tokens), Score(base, tokens)
    assert packed.ppl_se == pytest.approx(ppl.std(), rel=0.1)
    assert increase_pct(packed, baseline)[1] == pytest.approx(100 * ratio.std(), rel=0.1)


def test_one_window_has_no_standard_error():
    """A single window tells none, so there is none, rather than one of 0."""
    one = Score(np.array([9.0]), np.array([3]))
    assert one.ppl_se is None
    assert increase_pct(one, one) == (0, None)


def test_increase_is_paired():
    """A shift that is the same in every token has no standard error, however the text varies."""
    tokens = np.array([8, 8, 8, 3])
    base = Score(np.array([20.0, 61.0, 25.0, 4.0]), tokens)
    found, se = increase_pct(Score(base.nll_nats + 0.01 * tokens, tokens), base)
    assert found == pytest.approx(100 * (math.exp(0.01) - 1))
    assert se == pytest.approx(0, abs=1e-9)
    assert found == pytest.approx(100 * (math.exp(0.01) * base.ppl / base.ppl - 1))


def test_increase_needs_the_same_windows():
    """Scores of different windows cannot be paired and are refused."""
    with pytest.raises(ConfigError, match="different windows"):
        increase_pct(Score(np.ones(2), np.array([3, 3])), Score(np.ones(2), np.array([3, 2])))


def test_context_below_one_is_refused():
    """A window of no tokens is refused."""
    with pytest.raises(ConfigError, match="context is 0"):
        score(Bigram(np.zeros((2, 2))), ids_of(0, 1), 0)


def test_hopeless_score_is_infinite_not_an_exception():
    """A loss beyond what a float can hold as perplexity gives infinity."""
    hopeless = Score(np.array([1e6, 2e6]), np.array([10, 10]))
    assert hopeless.ppl == math.inf
    assert increase_pct(hopeless, Score(np.ones(2), np.array([10, 10])))[0] == math.inf
