"""``tolpack eval --sweep``: grids, what is measured once, resuming, and the files it writes."""

import csv
import json
import math

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.cli import main
from tolpack.compress.build_session import BuildSession
from tolpack.errors import ConfigError
from tolpack.evaluation import experiment_runner
from tolpack.evaluation.evaluator import Evaluator, evaluate
from tolpack.evaluation.experiment_runner import ExperimentOptions
from tolpack.evaluation.sweep import mark_front, run_sweep
from tolpack.evaluation.sweep_grid import PackOptions, parse_grids
from tolpack.report.plot_labels import TradeOffPoint
from tolpack.report.plots import plot_trade_off

GRID = "rank=none,9,auto bits=4,8"


@pytest.fixture
def evaluator(memoryllm, token_ids):
    """The tiny model and its text."""
    return Evaluator(memoryllm, token_ids)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Measurements are kept, in a folder of the test's own."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def sweep(evaluator, settings, calibration=None, *, fresh=False):
    """Run a sweep; returns its results."""
    results, skipped = run_sweep(
        evaluator, settings, ExperimentOptions(calibration or CalibrationInputs(), fresh=fresh)
    )
    assert skipped == ()
    return results


# -- grids -----------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order():
    """Keys vary from the last to the first; a plus sign stands for a comma; settings occur once."""
    found, skipped = parse_grids(["rank=none,3+4+5 bits=8,auto;bits=8", "drop=0+2-3"])
    assert [(one.rank, one.bits, one.drop) for one in found] == [
        ("none", 8, "none"), ("none", "auto", "none"), ("3,4,5", 8, "none"),
        ("3,4,5", "auto", "none"), ("none", 4, "0,2-3"),
    ]  # fmt: skip
    assert skipped == ()


def test_combinations_that_cannot_be_built_are_reported_once():
    """Each reason with the settings that it hits; the others stay."""
    found, skipped = parse_grids(["bits=4,8,auto drop=auto:2"])
    assert found == (PackOptions(bits="auto", drop="auto:2"),)
    (line,) = skipped
    assert "bits 4, drop auto:2; rank none, bits 8" in line
    assert "--bits auto" in line


@pytest.mark.parametrize(
    "spec", ["", "bits", "bits=", "bits=5", "colour=red", "bits=4 bits=8", "bits=4,,8", "rank=x",
             "bits=8 drop=auto", "bits=8;", "bits=4 max-ppl-increase=1%"],
)  # fmt: skip
def test_grids_that_are_not_understood(spec):
    """A clear error, before anything is read."""
    with pytest.raises(ConfigError, match="--sweep"):
        parse_grids([spec])


def test_arguments_build_the_pack():
    """What a result names is what `tolpack build` takes; defaults are left out."""
    assert PackOptions().arguments == "--rank none --bits 4"
    options = PackOptions("auto", "auto", "1,3", max_ppl_increase="1%")
    assert options.arguments == "--rank auto --bits auto --drop 1,3 --max-ppl-increase 1%"
    result = run("build", "absent.pt", *options.arguments.split())
    assert result.exit_code == 1  # 2 would be wrong usage
    assert "absent.pt" in result.stderr


# -- measuring -------------------------------------------------------------------------------------


def test_scores_are_those_of_packs_built_alone(memoryllm, token_ids, evaluator, tmp_path):
    """Sharing the table and the calibration changes no result but in the last bits."""
    grids, _ = parse_grids([GRID, "rank=auto bits=auto size=90kB"])
    results = sweep(evaluator, grids, CalibrationInputs(token_ids))
    assert [result.options for result in results] == list(grids)
    for number, result in enumerate(results):
        one, path = result.options, tmp_path / f"{number}.tolpack"
        tolpack.build(
            memoryllm, path, rank=one.rank, bits=one.bits, size=one.size, calibrate=token_ids
        )
        (alone,) = evaluate(memoryllm, [path], token_ids).packs
        assert result.score.bytes == alone.bytes
        assert result.score.ppl == pytest.approx(alone.ppl, rel=1e-6)
        assert result.score.ppl_increase_se_pct == pytest.approx(
            alone.ppl_increase_se_pct, abs=1e-5
        )
        assert result.build_seconds > 0
        assert result.eval_seconds > 0


def test_work_is_shared(evaluator, token_ids, monkeypatch):
    """One computation of each layer, one calibration for each kind of setting; the model runs
    beside each pack and never alone.
    """
    counted = {"calibrate": 0, "layer": 0, "score": 0, "compare": 0}

    def counting(owner, name, key):
        truly = getattr(owner, name)

        def wrapped(*args, **kwargs):
            counted[key] += 1
            return truly(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    from tolpack.calibration import model_losses
    from tolpack.evaluation import evaluator as evaluator_module
    from tolpack.sources.ffn_table import FFNTable

    counting(model_losses, "measure_loss_metrics", "calibrate")
    counting(FFNTable, "field_rows", "layer")
    counting(evaluator_module, "score", "score")
    counting(evaluator_module, "compare", "compare")
    grids, _ = parse_grids([GRID])
    sweep(evaluator, grids, CalibrationInputs(token_ids))
    assert counted["calibrate"] == 1
    assert counted["layer"] == evaluator.subject.checkpoint.config.num_hidden_layers
    assert counted["compare"] == len(grids)
    assert counted["score"] == 0
    assert evaluator.baseline.tokens == 400
    assert counted["score"] == 0


def test_what_was_measured_is_not_measured_again(
    evaluator, memoryllm, token_ids, kept, monkeypatch
):
    """A sweep that was stopped goes on; another text, calibration or setting is measured."""
    grids, _ = parse_grids(["rank=none,9 bits=4,8"])
    made = []
    truly = BuildSession.build

    def make(self, settings, path, **kwargs):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(settings)
        return truly(self, settings, path, **kwargs)

    monkeypatch.setattr(BuildSession, "build", make)
    with pytest.raises(KeyboardInterrupt):
        sweep(evaluator, grids, CalibrationInputs())
    monkeypatch.setattr(BuildSession, "build", truly)
    first = sweep(evaluator, grids, CalibrationInputs())
    monkeypatch.setattr(BuildSession, "build", lambda *_, **__: pytest.fail("measured again"))
    assert sweep(Evaluator(memoryllm, token_ids), grids, CalibrationInputs()) == first
    for other in (
        lambda: sweep(evaluator, grids[:1], CalibrationInputs(frequencies=counts_file(kept))),
        lambda: sweep(evaluator, grids[:1], CalibrationInputs(), fresh=True),
        lambda: sweep(Evaluator(memoryllm, token_ids, context=8), grids[:1], CalibrationInputs()),
        lambda: sweep(evaluator, [PackOptions(bits=16)], CalibrationInputs()),
    ):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            other()


def counts_file(folder):
    """Write token counts for the tiny model."""
    np.save(folder / "counts.npy", np.arange(97))
    return folder / "counts.npy"


def test_damaged_measurements_are_measured_again(evaluator, kept):
    """A file that holds no JSON is as good as none."""
    (expected,) = sweep(evaluator, [PackOptions()], CalibrationInputs())
    for path in kept.glob("measured-*"):
        path.write_bytes(b"{")
    (found,) = sweep(evaluator, [PackOptions()], CalibrationInputs())
    assert found.score == expected.score


def test_options_a_checkpoint_does_not_allow_are_reported(memoryllm, token_ids):
    """And the others are measured."""
    call = ("eval", memoryllm, "--text", token_ids, "--sweep", "rank=99,9", "--json")
    found = json.loads(run(*call).stdout)
    assert [one["setting"]["rank"] for one in found["packs"]] == ["9"]
    (line,) = found["skipped"]
    assert "--rank 99 is outside 1" in line


def test_what_is_measured_is_what_was_given(evaluator, memoryllm, token_ids, kept, tmp_path):
    """Not what another checkpoint gave that differs in some rows, nor another calibration."""
    (first,) = sweep(evaluator, [PackOptions()])
    config = models.make_config(vocab_size=600)
    state = models.make_state(config)
    one = models.save_pt(tmp_path / "one.pt", state, config)
    (small,) = sweep(Evaluator(one, token_ids), [PackOptions()])
    name = next(name for name in state if "embed_tokens" in name)
    state[name] = state[name].clone()
    state[name][1::2] *= 3
    other = models.save_pt(tmp_path / "other.pt", state, config)
    (changed,) = sweep(Evaluator(other, token_ids), [PackOptions()])
    assert changed.score.ppl != small.score.ppl
    assert first.score.ppl != small.score.ppl


def test_dense_models_are_scored_alone(tmp_path, token_ids):
    """As before there were sweeps; a sweep of one is refused."""
    dense = models.save_model(tmp_path, model_type="llama")
    result = run("eval", dense, "--text", token_ids)
    assert result.exit_code == 0, result.stderr
    refused = run("eval", dense, "--text", token_ids, "--sweep", "bits=4")
    assert refused.exit_code == 1
    assert "dense" in refused.stderr


def test_inputs_are_not_overwritten(memoryllm, token_ids, tmp_path):
    """Whatever the option, and whatever the input."""
    pack = tolpack.build(memoryllm, tmp_path / "p.csv").path
    before = pack.read_bytes()
    call = ("eval", memoryllm, pack, "--text", token_ids, "--csv", pack)
    result = run(*call)
    assert result.exit_code == 1
    assert "one of the inputs" in result.stderr
    assert pack.read_bytes() == before


def test_nothing_is_built_twice_where_nothing_is_kept(evaluator, monkeypatch):
    """Within one run what was measured is known, also with --fresh or without a cache."""
    made = []
    truly = BuildSession.build
    monkeypatch.setattr(
        BuildSession, "build", lambda self, *args, **kw: made.append(1) or truly(self, *args, **kw)
    )
    with experiment_runner.open_runner(evaluator, ExperimentOptions(fresh=True)) as runner:
        result = runner.evaluate(PackOptions())
        windows = runner.window_scores(PackOptions())
    assert len(made) == 1
    assert windows.mean_nll_nats == pytest.approx(result.score.nll_nats)


def test_a_cache_that_cannot_be_written_is_reported(evaluator, monkeypatch):
    """Once: the run goes on, and can not be resumed."""
    monkeypatch.setenv("TOLPACK_CACHE", "/proc/nowhere")
    said = []
    monkeypatch.setattr(evaluator.reporter, "say", said.append)
    sweep(evaluator, parse_grids(["bits=4,8"])[0])
    assert sum("cannot be kept" in line for line in said) == 1


def test_packs_are_removed(evaluator, tmp_path, monkeypatch):
    """Also the one that was being judged when something went wrong."""
    monkeypatch.setattr(experiment_runner.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Evaluator, "pack_windows", lambda *_: pytest.fail("no"))
    with pytest.raises(pytest.fail.Exception):
        sweep(evaluator, [PackOptions()], CalibrationInputs())
    assert list(tmp_path.iterdir()) == []


def test_the_front_is_what_nothing_beats(evaluator):
    """A result is dominated by one that is no larger and no worse; equal ones stay."""
    results = sweep(evaluator, parse_grids(["bits=4,8,16;drop=1;rank=9"])[0], CalibrationInputs())
    for one in results:
        beaten = any(
            other.score.bytes <= one.score.bytes
            and other.score.kl_mean_nats <= one.score.kl_mean_nats
            and (other.score.bytes, other.score.kl_mean_nats)
            != (one.score.bytes, one.score.kl_mean_nats)
            for other in results
        )
        assert one.on_front != beaten
    assert 0 < sum(result.on_front for result in results) < len(results)
    assert [p.on_front for p in mark_front([results[0], results[0]])] == [True, True]


# -- the command -----------------------------------------------------------------------------------


def test_results_as_table_json_and_csv(memoryllm, token_ids, tmp_path):
    """Settings stand beside packs; the table names what was not built."""
    pack = tolpack.build(memoryllm, tmp_path / "p.tolpack").path
    call = ("eval", memoryllm, pack, "--text", token_ids, "--sweep", "bits=4,8 drop=none,auto")
    result = run(*call, "--csv", tmp_path / "r.csv")
    assert result.exit_code == 0, result.stderr
    assert "rank none, bits 8" in result.stdout
    assert "not built: rank none, bits 4, drop auto; rank none, bits 8, drop auto" in result.stdout
    found = json.loads(run(*call, "--json").stdout)
    assert [one["path"] for one in found["packs"]] == [str(pack), None, None]
    assert found["packs"][1]["setting"]["bits"] == 4
    assert found["packs"][1]["bytes"] == found["packs"][0]["bytes"]
    assert len(found["skipped"]) == 1
    lines = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [line["bits"] for line in lines] == ["", "4", "8"]
    assert set(found["packs"][1]["setting"]) <= set(lines[0])
    assert [int(line["bytes"]) for line in lines] == [one["bytes"] for one in found["packs"]]
    for name in ("kl_mean_nats", "kl_mean_se_nats", "kl_median_nats", "kl_p99_nats", "kl_max_nats",
                 "top1_agreement_pct", "top1_agreement_se_pct"):  # fmt: skip
        assert [float(line[name]) for line in lines] == [one[name] for one in found["packs"]]
    assert [line["text"] for line in lines] == ["", "", ""]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_pictures(suffix, memoryllm, token_ids, tmp_path):
    """Of the kind that the suffix says; an SVG holds the labels of the front as text."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    call = ("eval", memoryllm, "--text", token_ids, "--sweep", "bits=4,8", "--plot", path)
    result = run(*call)
    assert result.exit_code == 0, result.stderr
    data = path.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
    else:
        assert b">4 bits<" in data
        assert b"Pareto front" in data


@pytest.mark.parametrize("divergence", [0.0, math.inf])
def test_points_without_a_logarithm_are_counted(divergence, tmp_path):
    """A lossless pack has no divergence to draw: the chart says so, also if there is no other."""
    pytest.importorskip("matplotlib")
    lossless = TradeOffPoint(2.0, 0.0, 0.0, divergence, 0.0, "packs", "a", on_front=True)
    other = TradeOffPoint(1.0, 0.1, 0.01, 0.003, 1e-4, "packs", "b", on_front=True)
    for points in ([lossless, other], [lossless]):
        plot_trade_off(points, tmp_path / "p.svg", "title")
        text = (tmp_path / "p.svg").read_text("utf-8")
        assert "1 without a place on this axis" in text
        assert "mean KL divergence, nats" in text and "perplexity increase" in text
        assert ("Pareto front" in text) == (len(points) > 1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--sweep", "bits=5"], 2, "bits=5"),
        (["--sweep", "bits=8", "--plot", "x.gif"], 1, ".png or .svg"),
        (["--plot", "x.png"], 2, "name some"),
        (["--sweep", "bits=8", "--report", "page"], 1, ".html"),
        (["--calibrate", "x"], 2, "for --sweep"),
        (["--sweep", "bits=8", "--calibrate", "absent.txt"], 1, "absent.txt"),
        (["--sweep", "bits=8", "--csv", "absent/x.csv"], 1, "cannot write"),
    ],
)
def test_wrong_usage(options, code, words, memoryllm, token_ids):
    """One line that says what is wrong."""
    result = run("eval", memoryllm, "--text", token_ids, *options)
    assert result.exit_code == code
    assert words in result.stderr
