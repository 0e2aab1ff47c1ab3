"""``tolpack study``: each experiment against a plain computation, and its tables and page."""

import json
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.cli import main
from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation import STUDY_PARTS
from tolpack.evaluation import study as study_module
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.experiment_runner import ExperimentOptions
from tolpack.evaluation.model_costs import model_costs
from tolpack.evaluation.recommend import recommend
from tolpack.evaluation.study import layer_ranges, run_study
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import increase_pct, score
from tolpack.report import study_page
from tolpack.report.report_subject import ReportSubject
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.ffn_table import FFNTable

CONFIG = models.make_config(vocab_size=3000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny MemoryLLM with a table of many pages: the file."""
    folder = tmp_path_factory.mktemp("model")
    return models.save_model(folder, vocab_size=3000)


@pytest.fixture(scope="module")
def study(model, token_ids):
    """A study of it, every part; the evaluator and the result."""
    evaluator = Evaluator(model, token_ids)
    return evaluator, run_study(evaluator, ExperimentOptions(CalibrationInputs(token_ids)))


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_layers_left_out_are_those_without_their_weights(study, model):
    """As a model whose down projections of these layers are zeros."""
    evaluator, found = study
    config, state = CONFIG, torch.load(model)["model"]
    assert {(run.first, run.last) for run in found.layers} == {
        (0, 0),
        (1, 1),
        (2, 2),
        (0, 1),
        (1, 2),
    }
    for one in found.layers:
        changed = dict(state)
        for layer in range(one.first, one.last + 1):
            name = next(n for n in state if f"layers.{layer}.memory_mlp.down_proj" in n)
            changed[name] = torch.zeros_like(state[name])
        path = model.parent / "zeroed.pt"
        torch.save({"model": changed, "config": config}, path)
        plain = score(Decoder(open_checkpoint(path)), evaluator.token_ids, evaluator.context)
        path.unlink()
        assert one.result.ppl == pytest.approx(plain.ppl, rel=1e-5)
        expected = increase_pct(plain, evaluator.base_score)
        assert (one.result.increase_pct, one.result.increase_se_pct) == pytest.approx(
            expected, rel=1e-4, abs=1e-4
        )
        assert one.result.tokens == evaluator.token_ids.size - 1


def test_layers_are_left_out_on_whole_windows(model, token_ids, monkeypatch):
    """Whatever the window's length, and however few layers there are."""
    monkeypatch.setattr(study_module, "LAYER_TOKENS", 100)
    found = run_study(Evaluator(model, token_ids, context=15), ExperimentOptions(), ["layers"])
    assert {run.result.tokens for run in found.layers} == {90}
    monkeypatch.setattr(study_module, "LAYER_TOKENS", 10)
    found = run_study(Evaluator(model, token_ids, context=15), ExperimentOptions(), ["layers"])
    assert {run.result.tokens for run in found.layers} == {15}


def test_packs_that_cannot_be_built_are_reported(memoryllm, token_ids):
    """A table of a few pages allows no ranks by loss in the bytes of uniform ones; the study goes
    on without them.
    """
    found = run_study(Evaluator(memoryllm, token_ids), ExperimentOptions(), ["ranks", "alpha"])
    assert len(found.ranks) + len(found.skipped) == 3
    assert any("--size is too small" in line for line in found.skipped)
    assert len(found.alphas) == 6


def test_alpha_scales_the_down_projections(study, model):
    """α = 0 is the model without any memory."""
    evaluator, found = study
    config, state = CONFIG, torch.load(model)["model"]
    by_alpha = {one.alpha: one.result for one in found.alphas}
    for alpha in (0.5, 0.0):
        scaled = {
            name: value * (alpha if ".memory_mlp.down_proj" in name else 1)
            for name, value in state.items()
        }
        path = model.parent / "scaled.pt"
        torch.save({"model": scaled, "config": config}, path)
        plain = score(Decoder(open_checkpoint(path)), evaluator.token_ids, evaluator.context)
        path.unlink()
        assert by_alpha[alpha].ppl == pytest.approx(plain.ppl, rel=1e-5)


def test_spectra_are_singular_values(study):
    """Of each layer's rows around their mean."""
    evaluator, found = study
    table = FFNTable(evaluator.subject.checkpoint)
    for one in found.spectra:
        rows = table.field_rows(one.layer)(np.arange(table.vocab_size)).astype(np.float64)
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        np.testing.assert_allclose(one.singular_values, values / values[0], atol=2e-4)
        energy = np.cumsum(values**2) / (values**2).sum()
        assert energy[one.rank_90 - 1] >= 0.9 > energy[one.rank_90 - 2]
        assert energy[one.rank_99 - 1] >= 0.99 > energy[one.rank_99 - 2]
        assert 1 <= one.effective_rank <= len(values)


def test_pairs_take_equal_bytes(study):
    """Ranks by loss never take more than the uniform ones; the gain is paired window by window."""
    _, found = study
    assert [pair.uniform.options for pair in found.ranks] == [
        PackOptions("75%"), PackOptions("50%"), PackOptions("25%"),
    ]  # fmt: skip
    for pair in found.ranks:
        assert pair.by_loss.score.bytes <= pair.uniform.score.bytes
        lower = 100 * (1 - pair.by_loss.score.ppl / pair.uniform.score.ppl)
        assert pair.gain_pct == pytest.approx(lower, abs=1e-6)
        assert pair.gain_se_pct > 0


def test_packs_are_all_that_were_built(study):
    """Precision, ranks and the entropy-coded ones, with their front."""
    _, found = study
    bits = [point.options.bits for point in found.packs]
    assert bits[:3] == [16, 8, 4]
    assert bits.count("auto") == 6
    assert any(point.on_front for point in found.packs)


def test_costs_count_the_weights(study):
    """All weights, each once; a table takes no operations."""
    evaluator, found = study
    costs = model_costs(evaluator.subject.checkpoint)
    assert costs == found.costs
    state = models.make_state(CONFIG)
    sizes = [costs.embedding_weights, costs.head_weights, costs.other_weights, costs.memory_weights]
    assert sum(sizes) == sum(value.numel() for value in state.values())
    assert costs.memory_macs == 3 * 3 * 24 * 20
    assert costs.other_macs == 3 * 4 * 24 * 24
    assert costs.head_macs == 3000 * 24


@pytest.mark.parametrize("count", [2, 5, 12, 13, 24])
def test_runs_of_layers(count):
    """Every run of few layers but all of them; of many, lengths that double."""
    runs = layer_ranges(count)
    assert len(set(runs)) == len(runs)
    assert all(0 <= first <= last < count for first, last in runs)
    lengths = {last - first + 1 for first, last in runs}
    if count <= 12:
        assert lengths == set(range(1, count))
    else:
        assert lengths == {length for length in (1, 2, 4, 8, 16, 32) if length < count}
    for length in lengths:
        assert sum(last - first + 1 == length for first, last in runs) == count - length + 1


def test_a_single_layer_is_a_run():
    """There is nothing else to leave out."""
    assert layer_ranges(1) == [(0, 0)]


def test_few_windows_choose_nothing(study):
    """Their standard errors mean little, and one window has none."""
    _, found = study
    assert recommend(found.packs, 9) == ()
    assert recommend(found.packs, 10) != ()


def test_choices_hold_their_limit(study):
    """With two standard errors; a smaller pack that holds it too is not passed over."""
    _, found = study
    for one in recommend(found.packs, 25):
        fitting = [
            point.score.bytes
            for point in found.packs
            if point.score.kl_mean_nats + 2 * point.score.kl_mean_se_nats <= one.limit_nats
        ]
        assert one.smallest.score.bytes == min(fitting)
        if one.without_basis is not None:
            assert one.without_basis.score.macs_per_token == 0
            assert one.without_basis.score.bytes >= one.smallest.score.bytes


# -- parts, inputs, the command --------------------------------------------------------------------


def test_some_parts_on_some_tokens(memoryllm, token_ids):
    """Only what was asked for is measured, on whole windows at the beginning and a rest."""
    evaluator = Evaluator(memoryllm, token_ids, tokens=100)
    found = run_study(evaluator, ExperimentOptions(), ["alpha", "size"])
    assert (found.packs, found.ranks, found.layers, found.spectra) == ((), (), (), ())
    assert {one.result.tokens for one in found.alphas} == {100}
    assert found.baseline.tokens == 100


def test_flex_models_can_be_studied(tmp_path, token_ids):
    """FFN-C counts among the other weights."""
    path = models.save_model(tmp_path, model_type="flex_memoryllm")
    found = run_study(
        Evaluator(path, token_ids), ExperimentOptions(), ["layers", "alpha", "spectra", "size"]
    )
    assert found.costs.other_macs == 3 * (4 * 24 * 24 + 3 * 24 * 28)
    assert len(found.spectra) == 3


def test_what_cannot_be_studied(tmp_path, memoryllm, token_ids):
    """A dense model; parts that do not exist."""
    dense = models.save_model(tmp_path, model_type="llama")
    with pytest.raises(CheckpointError, match="no memory"):
        run_study(Evaluator(dense, token_ids), ExperimentOptions())
    with pytest.raises(ConfigError, match="colour"):
        run_study(Evaluator(memoryllm, token_ids), ExperimentOptions(), ["colour"])


def test_a_picture_without_packs_is_not_drawn(memoryllm, token_ids, tmp_path):
    """A study of the model alone ends well, and says that the picture of its packs is missing."""
    picture = tmp_path / "p.png"
    done = run("study", memoryllm, "--text", token_ids, "--only", "size", "--plot", picture)
    assert done.exit_code == 0, done.output
    assert f"{picture} is not drawn: there are no packs to show" in done.stderr
    assert not picture.exists()


def test_the_command_prints_every_part(memoryllm, token_ids, tmp_path):
    """As text, JSON and page, with nothing on standard output beside them."""
    parts = ("--only", "precision,layers,alpha,spectra,size", "--report", tmp_path / "r.html")
    result = run("study", memoryllm, "--text", token_ids, *parts)
    assert result.exit_code == 0, result.stderr
    for title in (
        "Packs",
        "Which setting to ship",
        "Layers without",
        "times α",
        "Spectra",
        "Weights",
    ):
        assert title in result.stdout
    for column in ("90 %", "99 %", "effective rank", "of"):
        assert f"\n{column}: " in result.stdout
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "tolpack study" in page
    assert "Which layers matter" in page
    found = json.loads(run("study", memoryllm, "--text", token_ids, *parts, "--json").stdout)
    assert len(found["layers"]) == 5
    assert found["layers"][0]["tokens"] == 400
    assert found["choices"][0]["bytes"] in {one["bytes"] for one in found["packs"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "precision,colour"], "colour"),
        (["--report", "absent/r.html"], "absent"),
        (["--only", " ,"], "no part is named"),
    ],
)
def test_wrong_usage(options, words, memoryllm, token_ids):
    """One line that says what is wrong, before anything is measured."""
    result = run("study", memoryllm, "--text", token_ids, *options)
    assert result.exit_code in (1, 2)
    assert words in result.stderr


def test_a_page_has_a_section_for_each_part(study, tmp_path):
    """And none for parts that were not run."""
    evaluator, found = study
    subject = ReportSubject(
        tmp_path / "m.pt", (tmp_path / "t.npy",), "tolpack study m.pt --only size --text t.npy",
        "tolpack build m.pt --calibrate t.npy",
    )  # fmt: skip
    page = study_page.study_page(subject, found, recommend(found.packs, 25))
    titles = [section.title for section in page.sections]
    assert titles[:2] == ["Perplexity against size", "KL divergence against size"]
    assert {
        "Precision", "Uniform ranks or ranks by loss", "Which layers matter", "All packs",
        "Scaling the memory", "Spectra", "Weights and operations",
    } <= {*titles}  # fmt: skip
    commands = {section.title: section.command for section in page.sections}
    assert page.facts[-1] == ("command", subject.command)
    assert "--only and one of precision, ranks" in dict(page.facts)["one part alone"]
    assert [title for title, command in commands.items() if command] == ["Which setting to ship"]
    assert commands["Which setting to ship"].startswith("tolpack build m.pt --calibrate t.npy")
    assert len(STUDY_PARTS) == 7
    empty = run_study(evaluator, ExperimentOptions(), ["size"])
    titles = [section.title for section in study_page.study_page(subject, empty, ()).sections]
    assert titles == ["Weights and operations"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["size"], "How many weights and operations the memory takes."),
        (["spectra"], "How many components hold the energy of a layer's rows."),
        (["layers", "alpha"], "What the perplexity becomes when the memory of some layers is left "
         "out. What the perplexity becomes when all memory outputs are scaled."),
        (["precision"], "What each pack takes on disk, and what it changes in the model's "
         "predictions."),
    ],
)  # fmt: skip
def test_a_page_leads_with_what_it_shows(parts, words, study, tmp_path):
    """Packs are spoken of only where there are some."""
    subject = ReportSubject(tmp_path / "m.pt", (tmp_path / "t.npy",), "tolpack study", "")
    found = run_study(study[0], ExperimentOptions(), parts)
    page = study_page.study_page(subject, found, ())
    assert page.lead.partition("\n\n")[0] == words


def test_a_page_says_that_no_pack_could_be_built(study, tmp_path):
    """Where packs were all that was asked for."""
    subject = ReportSubject(tmp_path / "m.pt", (tmp_path / "t.npy",), "tolpack study", "")
    nothing = replace(study[1], packs=(), layers=(), alphas=(), spectra=(), costs=None, tasks=())
    assert study_page.study_page(subject, nothing, ()).lead.startswith("No pack could be built.")
