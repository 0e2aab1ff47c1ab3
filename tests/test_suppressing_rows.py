"""Rows that suppress next tokens, held against derivatives that torch takes."""

import numpy as np
import pytest
import torch

from tolpack.edits.row_changes import zero_rows
from tolpack.edits.suppressing_rows import nats_for_fall, suppress_in_steps, suppressing_rows
from tolpack.errors import ConfigError
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

TARGETS = np.array([4, 30, 61])


@pytest.fixture(scope="module")
def decoder(memoryllm):
    """The tiny MemoryLLM."""
    return Decoder(open_checkpoint(memoryllm))


@pytest.fixture(scope="module")
def windows(token_ids):
    """A text of the tiny model in 25 windows of 16."""
    return torch.from_numpy(np.load(token_ids)[:400].reshape(25, 16))


def distance(decoder, windows, token, delta, nats):
    """Mean KL divergence after `token`, with `delta` on its last row, from the predictions that
    are wanted: the targets `nats` less likely, all others as they are.
    """
    memory = decoder.memory

    def changed(field, ids):
        rows = memory(field, ids)
        return rows + (ids == token)[..., None] * delta if field == 2 else rows

    wanted = decoder(windows)[windows == token]
    wanted[:, TARGETS] -= nats
    wanted = torch.log_softmax(wanted.double(), -1)
    found = torch.log_softmax(decoder(windows, None, changed)[windows == token].double(), -1)
    return float((wanted.exp() * (wanted - found)).sum(1).mean())


def test_predictions_come_nearest_to_those_wanted(decoder, windows):
    """Predictions are nearer to those that are wanted than without the change, and than with any
    other change that was tried.
    """
    found = suppressing_rows(decoder, windows, TARGETS, 5, shared_positions=0)
    random, nats = torch.Generator().manual_seed(0), 0.02
    for token, row in zip(found.token_ids, torch.from_numpy(found.added)):
        best = distance(decoder, windows, int(token), nats * row, nats)
        assert best < 0.9 * distance(decoder, windows, int(token), 0 * row, nats)
        for _ in range(10):
            noise = torch.randn(24, generator=random) * (nats * row).norm() / 5
            assert distance(decoder, windows, int(token), nats * row + noise, nats) > 0.99 * best


def test_equations_against_a_hessian(decoder, windows):
    """With one shared solution, the change solves the equations of torch's own Hessian of the KL
    divergence, up to the change of the norm's scale, which is left out.
    """
    found = suppressing_rows(decoder, windows, TARGETS, 1, shared_positions=0)
    token = int(found.token_ids[0])
    with torch.no_grad():
        x = decoder.states(windows)[windows == token].double()
    scale = (x.square().mean(1, keepdim=True) + decoder.norm.eps).rsqrt()
    head = next(iter(decoder.head.blocks()))[1].double()
    base = torch.log_softmax((x * scale * decoder.norm.weight) @ head.T, -1)
    wanted = torch.zeros(97, dtype=torch.float64)
    wanted[TARGETS] = -1

    def logits(delta):
        return base + (delta * scale * decoder.norm.weight) @ head.T

    def divergence(delta):
        return (base.exp() * (base - torch.log_softmax(logits(delta), -1))).sum()

    def aim(delta):  # its gradient is F·wanted, since that of log Z is p
        p = base.exp()
        moved = (delta * scale * decoder.norm.weight) @ head.T
        return ((p * wanted) * moved).sum() - ((p * wanted).sum(1) * (p * moved).sum(1)).sum()

    zero = torch.zeros(24, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(divergence, zero)
    right = torch.autograd.functional.jacobian(aim, zero)
    ridge = 1e-4 * hessian.diagonal().mean() * torch.eye(24)
    expected = torch.linalg.solve(hessian + ridge, right)
    assert np.allclose(found.added[0], expected.numpy(), rtol=1e-2, atol=1e-3 * expected.norm())


def test_predictions_after_other_tokens_keep_their_bits(decoder, windows):
    """A change of the last layer's rows moves the predictions right after their tokens alone."""
    found = suppressing_rows(decoder, windows, TARGETS, 6)
    rows = [decoder.memory(layer, torch.arange(97)) for layer in range(3)]
    rows[2][found.token_ids] += 3 * torch.from_numpy(found.added)
    edited = torch.isin(windows, torch.from_numpy(found.token_ids))
    new = decoder(windows, None, lambda layer, ids: rows[layer][ids])
    same = (new == decoder(windows)).all(-1)
    assert torch.equal(same, ~edited)


def test_changes_are_of_the_last_layer_and_scale(decoder, windows):
    """Twice the nats is twice the change; rows of other layers stay as they are."""
    found = suppressing_rows(decoder, windows, TARGETS, 7)
    assert len(found.token_ids) == 7 and (np.diff(found.token_ids) > 0).all()
    rows = np.ones((2, 24), np.float32)
    ids = found.token_ids[[1, 4]]
    assert np.array_equal(found.times(2.0).change(1, ids, rows), rows)
    once, twice = (found.times(nats).change(2, ids, rows) - rows for nats in (1.0, 2.0))
    assert np.allclose(twice, 2 * once, atol=1e-6)
    assert zero_rows()(0, ids, once).sum() == 0


def test_nats_make_the_mean_probability_fall_as_asked(decoder, windows):
    """With the nats found, the targets that come are as much less probable as was asked."""
    found = suppressing_rows(decoder, windows, TARGETS, 97)
    nats = nats_for_fall(decoder, windows, TARGETS, found, 1.5)
    memory, every = decoder.memory, np.arange(97)

    def changed(field, ids):
        rows = memory(field, torch.arange(97)).clone()
        rows[found.token_ids] = torch.from_numpy(
            found.times(nats).change(field, found.token_ids, rows.numpy()[found.token_ids])
        )
        return rows[ids]

    hit = torch.isin(windows[:, 1:], torch.from_numpy(TARGETS))
    before, after = (
        torch.exp(-one.nll(windows))[hit].mean() for one in (decoder, decoder.with_memory(changed))
    )
    assert float(before / after) == pytest.approx(1.5, rel=1e-2)
    none = np.setdiff1d(every, windows.numpy())[:1]
    with pytest.raises(ConfigError, match="no target comes"):
        nats_for_fall(decoder, windows, none, found, 2.0)


def test_steps_reach_the_fall(decoder, windows):
    """Each step lowers the targets by the same factor, for the same tokens; the first one is what
    one step of that fall would be.
    """
    several = list(suppress_in_steps(decoder, windows, windows, TARGETS, 97, fall=8.0, steps=3))
    (once,) = suppress_in_steps(decoder, windows, windows, TARGETS, 97, fall=2.0, steps=1)
    assert np.allclose(once.added, several[0].added, rtol=1e-5)
    memory, hit = decoder.memory, torch.isin(windows[:, 1:], torch.from_numpy(TARGETS))

    def probability(added):
        model = decoder.with_memory(
            lambda field, ids: memory(field, ids) + (added[ids] if field == 2 else 0)
        )
        return float(torch.exp(-model.nll(windows))[hit].mean())

    before = probability(torch.zeros(97, 24))
    for n, rows in enumerate(several, 1):
        assert np.array_equal(rows.token_ids, several[0].token_ids)
        assert before / probability(rows.table(97)) == pytest.approx(2.0**n, rel=0.02)


def test_only_tokens_of_the_text_are_chosen(decoder, windows):
    """No more tokens are changed than the windows hold."""
    found = suppressing_rows(decoder, windows[:1], TARGETS, 97)
    assert set(found.token_ids.tolist()) == set(windows[0].tolist())


def test_other_norms_are_refused(tmp_path, windows):
    """A final LayerNorm is refused."""
    import models

    path = models.save_model(tmp_path, norm="layernorm")
    with pytest.raises(ConfigError, match="RMSNorm"):
        suppressing_rows(Decoder(open_checkpoint(path)), windows, TARGETS, 3)
