"""``--max-kld``: what is understood, what is measured, and that packs stay within the limit."""

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tolpack
from tolpack.calibration.loss_metrics import loss_windows
from tolpack.calibration.model_losses import CalibratedModel
from tolpack.cli import main
from tolpack.compress.entropy import held_out_validation
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.entropy.loss_measure import (
    DIVERGENCE,
    PERPLEXITY,
    Loss,
    loss_limit,
    measure_for,
)
from tolpack.compress.settings import DEFAULT_KLD, BuildSettings, parse_kld
from tolpack.errors import ConfigError
from tolpack.evaluation.sweep_grid import PackOptions, parse_grids
from tolpack.model.decoder import Decoder
from tolpack.model.divergence import compare
from tolpack.model.perplexity import increase_pct
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

CONTEXT = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A calibration text of the tiny model: file and ids."""
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    ids = models.zipf_ids(2001, 97)
    np.save(path, ids)
    return path, ids


def settings(**limits):
    """Return settings of bits auto with given limits."""
    given = {"size": None, "max_ppl_increase": None, **limits}
    return BuildSettings.parse("none", "auto", "none", **given)


def validation(checkpoint, ids, measure):
    """Return a validation on `ids`."""
    model = Decoder(open_checkpoint(checkpoint))
    calibrated = CalibratedModel(model, ids, ids, CONTEXT, (), (), 0.0)
    return model, HeldOutValidation(calibrated, measure, Reporter())


@pytest.mark.parametrize("limit", [0.03, 0.003])
def test_a_pack_stays_within_its_limit(memoryllm, tmp_path, text, limit):
    """On the held-out fifth, by the pack's own rows; and it comes near the limit."""
    path, ids = text
    pack = tolpack.build(
        memoryllm, tmp_path / "p.tolpack", bits="auto", max_kld=limit, calibrate=path
    ).path
    held_out = ids[len(ids) - len(ids) // 5 :]
    whole = held_out[: (len(held_out) - 1) // CONTEXT * CONTEXT + 1]
    decoder = Decoder(open_checkpoint(memoryllm))
    with tolpack.open(pack) as opened:
        packed = decoder.with_memory(ToLMemory(opened))
        ((_, found),) = compare(decoder, [packed], whole, CONTEXT)[1]
    assert 0.85 * limit <= found.kl_mean_nats <= limit * (1 + 1e-3)


def test_losses_are_those_of_an_evaluation(memoryllm, tmp_path):
    """Both measures give what `compare` and `score` give for the same rows and windows."""
    ids = models.zipf_ids(20 * CONTEXT + 1, 97, seed=4)
    pack = tolpack.build(memoryllm, tmp_path / "p.tolpack").path
    with tolpack.open(pack) as opened:
        for measure in (DIVERGENCE, PERPLEXITY):
            model, tried = validation(memoryllm, ids, measure)
            packed = model.with_memory(ToLMemory(opened))
            found = tried.loss(opened.rows(tried.token_ids))
            base, ((own, divergence),) = compare(model, [packed], ids, CONTEXT)
            if measure is DIVERGENCE:
                expected = divergence.kl_mean_nats, divergence.kl_mean_se_nats
            else:
                value, error = increase_pct(own, base)
                expected = value, error * np.sqrt(19 / 20)  # it divides by n there, by n - 1 here
            assert (found.value, found.error) == pytest.approx(expected, rel=1e-3)
            assert measure.nats(found.value) == pytest.approx(
                found.value
                if measure is DIVERGENCE
                else (own.nll_nats - base.nll_nats).mean() / CONTEXT,
                rel=1e-3,
            )


def test_own_rows_have_no_divergence(memoryllm):
    """The table's own rows give exactly 0."""
    ids = models.zipf_ids(65, 97)
    model, tried = validation(memoryllm, ids, DIVERGENCE)
    known = torch.from_numpy(tried.token_ids)
    rows = torch.stack([model.memory(layer, known) for layer in range(3)], 1)
    found = tried.loss(rows.numpy())
    assert (found.value, found.error) == (0, 0)


def test_a_divergence_is_measured_on_fewer_tokens(memoryllm, monkeypatch):
    """Windows spread over all of those of a perplexity, batch by batch."""
    monkeypatch.setattr(held_out_validation, "_DIVERGENCE_TOKENS", 4 * CONTEXT + 3)
    monkeypatch.setattr(held_out_validation, "_LOGITS_PER_BATCH", 3 * CONTEXT * 97)
    ids = models.zipf_ids(20 * CONTEXT + 1, 97)
    model, tried = validation(memoryllm, ids, DIVERGENCE)
    windows = loss_windows(model, ids, CONTEXT)[[0, 5, 10, 15], :-1]
    assert tried.token_ids.tolist() == windows.unique().tolist()
    assert tried.weights.sum() == pytest.approx(1)
    whole = validation(memoryllm, ids, PERPLEXITY)[1]
    assert len(whole.token_ids) > len(tried.token_ids)
    rows = np.random.default_rng(0).standard_normal((len(tried.token_ids), 3, 24))
    found = tried.loss(rows.astype(np.float32))
    assert 0 < found.error < found.value


def test_what_bits_auto_keeps_to():
    """A divergence, unless an increase of perplexity is the limit."""
    assert measure_for(settings()) is measure_for(settings(size="10%")) is DIVERGENCE
    assert loss_limit(settings()) == DEFAULT_KLD
    assert loss_limit(settings(max_kld="0.01")) == 0.01
    assert measure_for(settings(max_ppl_increase="1%")) is PERPLEXITY
    assert loss_limit(settings(max_ppl_increase="1%")) == 1


@pytest.mark.parametrize(
    ("given", "nats"), [("0.002", 0.002), (0.002, 0.002), ("2e-3", 0.002), (".5 nats", 0.5), (1, 1)]
)
def test_limits_that_are_understood(given, nats):
    """Numbers of nats, with or without the unit."""
    assert parse_kld(given) == nats


@pytest.mark.parametrize("given", ["", "1%", "nan", "inf", "-0.1", "0", "11", "0.002 bits"])
def test_limits_that_are_not(given):
    """Percents, and what no divergence can be, are refused by the option's name."""
    with pytest.raises(ConfigError, match="--max-kld"):
        settings(max_kld=given)


@pytest.mark.parametrize(
    ("bits", "limits", "words"),
    [
        (4, {"max_kld": 0.1}, "--max-kld chooses the bits, so it needs --bits auto"),
        ("auto", {"max_kld": 0.1, "size": "10%"}, "--max-kld and --size each decide.* give one"),
        ("auto", {"max_kld": 0.1, "max_ppl_increase": "1%"}, "--max-kld and --max-ppl-increase"),
        ("auto", {"max_kld": 0.1, "max_relative_error": "1%"}, "--max-kld and --max-relative"),
    ],
)
def test_limits_that_do_not_go_together(bits, limits, words, memoryllm):
    """They are named, and nothing is read."""
    with pytest.raises(ConfigError, match=words):
        tolpack.build("absent.pt", bits=bits, **limits)


def test_a_plain_table_has_no_divergence(tmp_path):
    """There is no model to run: the error says what can be limited instead."""
    np.save(tmp_path / "t.npy", np.random.default_rng(0).standard_normal((50, 2, 16), np.float32))
    with pytest.raises(ConfigError, match="--max-kld is measured.*--max-relative-error"):
        tolpack.build(tmp_path / "t.npy", bits="auto", max_kld=0.01)


def test_a_limit_that_no_step_meets_is_an_error(memoryllm, tmp_path, text, monkeypatch):
    """It names the limit in nats and what was reached."""
    monkeypatch.setattr(HeldOutValidation, "loss", lambda *_: Loss(0.5, 0.01))
    with pytest.raises(ConfigError, match=r"--max-kld 0.002 nats is not met .* costs 0.5 nats"):
        tolpack.build(memoryllm, tmp_path / "p.tolpack", bits="auto", calibrate=text[0])


def test_the_command_and_grids_take_it(memoryllm, tmp_path, text):
    """`build --max-kld` says what each step costs; `max-kld` is a key of sweeps."""
    call = ["build", memoryllm, "-o", tmp_path / "p.tolpack", "--bits", "auto", "--max-kld", "0.02",
            "--calibrate", text[0]]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, call)))
    assert result.exit_code == 0, result.stderr
    assert "nats of KL divergence" in result.stderr
    ((one,), _) = parse_grids(["bits=auto max-kld=0.02"])
    assert one == PackOptions(bits="auto", max_kld="0.02")
    assert one.arguments == "--bits auto --max-kld 0.02"
    assert one.build_settings().max_kld == 0.02
    assert one.label == "rank none, bits auto, KL 0.02"
    refused = CliRunner().invoke(main, ["build", "x.pt", "--bits", "auto", "--max-kld", "1%"])
    assert refused.exit_code == 2
    assert "--max-kld" in refused.stderr
