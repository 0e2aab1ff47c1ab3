"""Several evaluation texts: each alone, all of them pooled, and the worst one."""

import csv
import json

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.errors import ConfigError
from tolpack.evaluation.evaluator import Evaluator, evaluate
from tolpack.evaluation.experiment_runner import ExperimentOptions
from tolpack.evaluation.recommend import recommend
from tolpack.evaluation.study import run_study
from tolpack.evaluation.sweep import run_sweep
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.model.divergence import compare
from tolpack.report.report_subject import ReportSubject, TradeOff, facts
from tolpack.report.setting_tables import settings_sections


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two texts of different lengths, of other words."""
    folder = tmp_path_factory.mktemp("texts")
    for name, count, seed in (("a", 161, 3), ("b", 230, 5)):
        np.save(folder / f"{name}.npy", models.zipf_ids(count, 97, seed))
    return [folder / "a.npy", folder / "b.npy"]


@pytest.fixture(scope="module")
def packs(memoryllm, tmp_path_factory):
    """A fine and a coarse pack."""
    folder = tmp_path_factory.mktemp("packs")
    return [
        tolpack.build(memoryllm, folder / "fine.tolpack", bits=8).path,
        tolpack.build(memoryllm, folder / "coarse.tolpack", rank=3).path,
    ]


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_each_text_is_scored_as_alone(memoryllm, texts, packs):
    """With every measure, in the order given."""
    found = evaluate(memoryllm, packs, texts).to_json()
    assert [one["text"] for one in found["texts"]] == [str(text) for text in texts]
    for text, own in zip(texts, found["texts"]):
        alone = evaluate(memoryllm, packs, text).to_json()
        del alone["warnings"]  # they stand beside the results of all texts
        assert {name: own[name] for name in alone} == alone


def test_totals_are_over_all_windows(memoryllm, texts, packs):
    """As if their windows stood in one text; no window reaches from one text into the next."""
    evaluator = Evaluator(memoryllm, texts)
    found = evaluate(memoryllm, packs, texts)
    with tolpack.open(packs[1]) as pack:
        model = evaluator.subject.with_pack(pack, packs[1])
        parts = [
            compare(evaluator.model, [model], np.load(text), evaluator.context)[1][0][1]
            for text in texts
        ]
    kl = np.concatenate([one.kl_nats for one in parts])
    coarse = found.packs[1]
    assert coarse.tokens == found.baseline.tokens == len(kl) == 160 + 229
    assert coarse.kl_mean_nats == pytest.approx(kl.mean())
    assert coarse.kl_median_nats == pytest.approx(np.median(kl))
    assert coarse.kl_max_nats == kl.max()
    agreed = sum(one.agreed.sum() for one in parts)
    assert coarse.top1_agreement_pct == pytest.approx(100 * agreed / len(kl))
    log_ppl = [np.log(one.ppl) * one.tokens for one in found.baseline.by_text]
    assert np.log(found.baseline.ppl) == pytest.approx(sum(log_ppl) / len(kl))
    assert evaluator.windows == 10
    assert evaluator.window_tokens.tolist() == [16] * 10 + [16] * 14 + [5]


def test_the_worst_text_is_named(memoryllm, texts, packs):
    """By divergence and by perplexity, for each pack; a single text has no such keys."""
    found = evaluate(memoryllm, packs, texts).to_json()
    for number, pack in enumerate(found["packs"]):
        own = {one["text"]: one["packs"][number] for one in found["texts"]}
        worst = max(own, key=lambda text: own[text]["kl_mean_nats"])
        assert pack["worst_kl_text"] == worst
        assert pack["worst_kl_mean_nats"] == own[worst]["kl_mean_nats"]
        assert pack["worst_kl_mean_se_nats"] == own[worst]["kl_mean_se_nats"]
        worst = max(own, key=lambda text: own[text]["ppl_increase_pct"])
        assert pack["worst_ppl_text"] == worst
        assert pack["worst_ppl_increase_pct"] == own[worst]["ppl_increase_pct"]
        assert pack["worst_ppl_increase_se_pct"] == own[worst]["ppl_increase_se_pct"]
    alone = evaluate(memoryllm, packs, texts[:1]).to_json()
    assert "texts" not in alone
    assert not any(key.startswith("worst") for key in alone["packs"][0])


def test_the_worst_text_counts_for_limits(memoryllm, texts):
    """A pack is recommended for the limits that it meets on every text."""
    evaluator = Evaluator(memoryllm, texts)
    grid = [PackOptions(), PackOptions(bits=8), PackOptions("12", 8)]
    results, _ = run_sweep(evaluator, grid, ExperimentOptions())
    recommended = recommend(results, evaluator.windows)
    assert recommended
    for one in recommended:
        fitting = [
            result.score.bytes
            for result in results
            if all(
                own.kl_mean_nats + 2 * own.kl_mean_se_nats <= one.limit_nats
                for own in result.score.by_text
            )
        ]
        assert one.smallest.score.bytes == min(fitting)


def test_cached_results_keep_their_texts(memoryllm, texts, tmp_path, monkeypatch):
    """A sweep that is run again gives the same; other texts, or another order, are measured."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path))
    options, grid = ExperimentOptions(), [PackOptions()]
    first = run_sweep(Evaluator(memoryllm, texts), grid, options)
    again = run_sweep(Evaluator(memoryllm, texts), grid, options)
    assert again == first
    assert len(list(tmp_path.glob("measured-*"))) == 1
    run_sweep(Evaluator(memoryllm, texts[::-1]), grid, options)
    run_sweep(Evaluator(memoryllm, texts[:1]), grid, options)
    assert len(list(tmp_path.glob("measured-*"))) == 3


def test_a_study_measures_every_text(memoryllm, texts):
    """Packs on each; ablations on the first whole windows of each."""
    found = run_study(Evaluator(memoryllm, texts, tokens=100), ExperimentOptions(),
                      ["precision", "layers"])  # fmt: skip
    value = found.to_json()
    assert [len(one["packs"]) for one in value["texts"]] == [3, 3]
    assert (
        value["texts"][1]["packs"][2]["kl_mean_nats"]
        == found.packs[2].score.by_text[1].kl_mean_nats
    )
    assert {one.result.tokens for one in found.layers} == {200}


def test_the_command_shows_every_text(memoryllm, texts, packs, tmp_path):
    """In tables, CSV, JSON and report; packs and settings alike."""
    call = ["eval", memoryllm, packs[0], "--sweep", "bits=4"]
    call += [word for text in texts for word in ("--text", text)]
    result = run(*call, "--csv", tmp_path / "r.csv", "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    for text, count in zip(texts, (160, 229)):
        assert f"{text}: {count} tokens" in result.stdout
    found = json.loads(run(*call, "--json").stdout)
    assert [len(one["packs"]) for one in found["texts"]] == [2, 2]
    assert found["packs"][1]["worst_kl_text"] in map(str, texts)
    lines = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [line["text"] for line in lines] == ["", *map(str, texts)] * 2
    assert float(lines[4]["kl_mean_nats"]) == found["texts"][0]["packs"][1]["kl_mean_nats"]
    assert "text by text" in (tmp_path / "r.html").read_text("utf-8")


def test_a_report_names_every_text(memoryllm, texts, packs):
    """Its facts have a line for each, its tables a row for each pack and text."""
    found = evaluate(memoryllm, packs, texts)
    subject = ReportSubject(memoryllm, tuple(texts), "tolpack eval", "tolpack build")
    names = [name for name, _ in facts(subject, found.context, found.baseline)]
    assert [f"text {text}" in names for text in texts] == [True, True]
    _, by_text = settings_sections(TradeOff(subject, found.baseline, found.packs, ()), ())
    named = [(getattr(row[0], "text", row[0]), row[1]) for row in by_text.table.rows]
    assert named == [
        (name, str(text)) for text in texts for name in ("the checkpoint", *(p.name for p in packs))
    ]


def test_texts_that_cannot_be_used(memoryllm, texts):
    """None at all, or one twice; an output that is one of them."""
    with pytest.raises(ConfigError, match="no text is given"):
        evaluate(memoryllm, [], [])
    with pytest.raises(ConfigError, match="is given twice"):
        evaluate(memoryllm, [], [texts[0], texts[0]])
    copy = texts[0].with_suffix(".csv")
    copy.write_bytes(texts[0].read_bytes())
    result = run("eval", memoryllm, "--text", texts[1], "--text", copy, "--sweep", "bits=4",
                 "--csv", copy)  # fmt: skip
    assert result.exit_code == 1
    assert "one of the inputs" in result.stderr
