"""Bases and means tuned to the model's own predictions: nearer to it, and stored as they were."""

import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from test_build import Log

import tolpack
from tolpack.building.layer_basis import coded_basis, read_basis
from tolpack.building.step_search import search_tuned_loss
from tolpack.building.tuning import PackedLayer, tune, tuning_steps, tuning_tokens
from tolpack.building.weighing import CalibratedModel
from tolpack.demo import MODEL as MODEL_OF_DEMO
from tolpack.evaluate import evaluate
from tolpack.progress import Reporter
from tolpack.reference.decoder import Decoder
from tolpack.sources.checkpoint import open_checkpoint
from tolpack.sources.table import open_source

sys.path.insert(0, str(Path(__file__).parents[1] / "formats" / "v1"))
import decode

HIDDEN = 16


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of three layers with a text that is enough for steps of 64 tokens."""
    monkeypatch.setattr("tolpack.building.tuning._TOKENS_PER_STEP", 64)
    path = models.save_model(
        tmp_path, vocab_size=200, hidden_size=HIDDEN, num_hidden_layers=3,
        memory_intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    ids = models.zipf_ids(3000, 200)
    decoder = Decoder(open_checkpoint(path))
    return path, CalibratedModel(decoder, ids, ids, 32, np.bincount(ids, minlength=200), (), ())


def divergence(model, exact, packed):
    """Mean ``KL(exact ‖ packed)`` in nats over a stretch of the text, of rows by token."""
    ids = torch.from_numpy(model.token_ids[:640].reshape(20, 32))
    logs = []
    for rows in (exact, packed):
        table = torch.from_numpy(rows)
        decoder = model.decoder.with_memory(lambda layer, t, table=table: table[t, layer])
        logs.append(torch.log_softmax(decoder(ids), -1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2)])
def test_tuned_rows_predict_more_like_exact_ones(model, kept):
    """A coarse basis of few components comes nearer to the model; codes stay what they are."""
    path, calibrated = model
    source, tokens = open_source(path), tuning_tokens(calibrated)
    assert tuning_steps(calibrated) == len(calibrated.token_ids) // 64
    exact = np.stack([source.layer(n)(np.arange(200)) for n in range(3)], axis=1)
    random = np.random.default_rng(0)
    layers, packed = {}, np.zeros_like(exact)
    for layer in kept:
        basis = np.linalg.qr(random.standard_normal((HIDDEN, HIDDEN)))[0][:6].astype(np.float32)
        stored = np.rint(exact[:, layer] @ basis.T / 0.2).astype(np.float32) * np.float32(0.2)
        mean = np.zeros(HIDDEN, np.float32)
        layers[layer] = PackedLayer(stored[tokens], basis, mean)
        packed[:, layer] = stored @ basis + mean
    found = tune(calibrated, exact[tokens], layers, Reporter())
    assert sorted(found) == sorted(kept)
    tuned = np.zeros_like(exact)
    for layer, one in found.items():
        assert one.basis.shape == (6, HIDDEN)
        assert np.array_equal(one.basis, read_basis(coded_basis(one.rows), HIDDEN))
        tuned[tokens, layer] = layers[layer].stored @ one.basis + one.mean
    before, after = (divergence(calibrated, exact, rows) for rows in (packed, tuned))
    assert 0 < after < 0.97 * before


def test_a_text_that_is_too_short_is_not_tuned_on(model):
    """Fewer steps than are worth while are none."""
    _, calibrated = model
    short = CalibratedModel(
        calibrated.decoder, calibrated.token_ids[:1000], calibrated.token_ids, 32,
        calibrated.counts, (), (),
    )  # fmt: skip
    assert tuning_steps(short) == 0


@pytest.mark.parametrize("given", [{"max_ppl_increase": "6%"}, {"size": "12%"}])
def test_a_tuned_pack_costs_less_and_keeps_its_limit(tmp_path, monkeypatch, given):
    """What is written is what was tuned: readers agree, and held-out text costs what was said."""
    monkeypatch.setattr("tolpack.building.tuning._TOKENS_PER_STEP", 256)
    monkeypatch.setattr("tolpack.building.tuning._MAX_TOKENS", 32 * 256)
    log, path = Log(), tmp_path / "p.tolpack"
    tolpack.build(MODEL_OF_DEMO, path, rank="auto", bits="auto", reporter=log, **given)
    said = [line for line in log.said if "tuned" in line]
    numbers = [float(part.split()[0]) for part in " ".join(said).split("+")[1:]]
    if "size" in given:
        before, after = numbers
        assert 0 < after < before
    else:
        after = numbers[-1]
        assert 4.5 <= after <= 6
    decoder = decode.Pack(path.read_bytes())
    with tolpack.open(path) as pack:
        assert pack.verify() == []
        rows = pack.rows([0, 5, 77])
        theirs = np.stack([decoder.row(token) for token in (0, 5, 77)])
        assert np.abs(rows - theirs).max() <= 1e-5 * np.abs(rows).max()
    found = evaluate(MODEL_OF_DEMO, [path], MODEL_OF_DEMO / "heldout.txt").packs[0]
    assert 0 < found.ppl_increase_pct < 2 * after
    if "size" in given:  # neither threads nor memory change a byte
        again, few = tmp_path / "again.tolpack", {"threads": 1, "max_memory": "2GB"}
        tolpack.build(MODEL_OF_DEMO, again, rank="auto", bits="auto", **given, **few)
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("gain", "tunings"), [(0.86, 1), (0.5, 2), (0.97, 2), (1.4, 3)])
def test_the_search_ends_under_the_limit_whatever_tuning_does(gain, tunings):
    """A gain other than the expected one is made use of; tuning that harms is left out."""
    calls = []

    def tuned(found):
        calls.append(found)
        return {**found, "loss": found["loss"] * gain}

    found = search_tuned_loss(
        lambda step: {"step": step, "loss": step**1.6}, tuned,
        lambda made: (made["loss"], 0.0), 2.0, 0.3, Reporter(),
    )  # fmt: skip
    assert len(calls) == tunings
    assert found["loss"] <= 2.0
    assert found["loss"] >= 1.6
    assert (found in calls) == (gain > 1)
