"""Numbers that mislead are warned of, in words that say what is seen and what to do."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.compress.entropy.loss_measure import DIVERGENCE, PERPLEXITY, Loss
from tolpack.compress.entropy.step_search import search_loss
from tolpack.compress.measured_loss import MeasuredLoss
from tolpack.errors import ConfigError
from tolpack.evaluation.evaluator import Evaluator
from tolpack.model.plausibility import (
    chance_warning,
    fall_warning,
    short_calibration_warning,
    short_text_warning,
)
from tolpack.report import evaluation_tables
from tolpack.runtime.progress import KeptWarnings, Reporter

MODEL = Path(tolpack.__file__).parent / "demo" / "model"


def run(*args):
    """Run the command line."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def word_tokenizer(path, count, first=0):
    """Write a ``tokenizer.json`` of the words w0, w1, …, with ids from `first` on; returns it."""
    vocab = {f"w{n}": (n + first) % count for n in range(count)}
    value = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "unk_token": "w0", "vocab": vocab},
    }  # fmt: skip
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny random model ``model.pt``, its tokenizer of 97 words, and a text."""
    folder = tmp_path_factory.mktemp("tiny")
    models.save_model(folder)
    word_tokenizer(folder / "tokenizer.json", 97)
    words = " ".join(f"w{n}" for n in models.zipf_ids(1000, 97))
    (folder / "text.txt").write_text(words, encoding="utf-8")
    return folder


class Lines(Reporter):
    """Keeps what is said and warned."""

    def __init__(self):
        self.said, self.warned = [], []

    def say(self, text):
        """See `Reporter`."""
        self.said.append(text)

    def warn(self, text):
        """See `Reporter`."""
        self.warned.append(text)


# -- tokenizers ----------------------------------------------------------------------------------


def test_the_tokenizer_is_said_once(tiny, tmp_path):
    """`build`, `plan`, `eval` and `keys` say which one is used, with its path and its size."""
    line = f"tokenizer: {tiny / 'tokenizer.json'} (97 tokens)"
    text = tiny / "text.txt"
    out = tmp_path / "p.tolpack"
    for call in (
        ["build", tiny / "model.pt", "-o", out, "--calibrate", text],
        ["plan", tiny / "model.pt", "--calibrate", text],
        ["eval", tiny / "model.pt", "--text", text],
        ["eval", tiny / "model.pt", "--text", text, "--sweep", "bits=4,8", "--calibrate", text],
        ["keys", tiny / "model.pt", "--clusters", 2],
    ):
        result = run(*call)
        assert result.exit_code == 0, result.stderr
        assert result.stderr.splitlines().count(line) == 1, call


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tiny, tmp_path):
    """In `build`, `eval` and `keys`, though the text has none of them; some added ones may be."""
    large = word_tokenizer(tmp_path / "large.json", 120)
    expected = (
        f"Error: tokenizer {large} has 120 tokens, but the model has 97: use the tokenizer that "
        "the model was trained with"
    )
    given = ["--tokenizer", large]
    for call in (
        ["build", tiny / "model.pt", "-o", tmp_path / "p", "--calibrate", tiny / "text.txt"],
        ["eval", tiny / "model.pt", "--text", tiny / "text.txt"],
        ["keys", tiny / "model.pt"],
    ):
        result = run(*call, *given)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, expected)
    padded = word_tokenizer(tmp_path / "padded.json", 113)
    found = run("eval", tiny / "model.pt", "--text", tiny / "text.txt", "--tokenizer", padded)
    assert found.exit_code == 0, found.stderr


def test_a_tokenizer_of_far_fewer_tokens_is_warned_of(tmp_path):
    """It is probably another model's; at perplexities beyond chance a build is refused."""
    small, text = word_tokenizer(tmp_path / "small.json", 300), tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n % 300}" for n in range(0, 7 * 600, 7)), encoding="utf-8")
    result = run("eval", MODEL, "--text", text, "--tokenizer", small, "--json")
    assert result.exit_code == 0, result.stderr
    first = (
        f"tokenizer {small} has 300 tokens, but the model has 4,096: it is probably another model's"
    )
    warnings = json.loads(result.stdout)["warnings"]
    assert warnings[0] == first
    assert f"Warning: {first}" in result.stderr
    ppl = json.loads(result.stdout)["baseline"]["ppl"]
    assert ppl > 4096
    assert warnings[-1] == (
        f"the model predicts text.txt no better than chance: perplexity {ppl:,.0f} with a "
        "vocabulary of 4,096; its token ids are probably of another tokenizer, or the model is not "
        "trained"
    )
    out = tmp_path / "p.tolpack"
    refused = run("build", MODEL, "-o", out, "--bits", "auto", "--tokenizer", small,
                  "--calibrate", text)  # fmt: skip
    assert refused.exit_code == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: the model predicts the calibration text worse than chance: ")
    assert last.endswith("use the tokenizer that the model was trained with")
    assert not out.exists()


def test_another_tokenizer_than_the_checkpoints_own_is_warned_of(tiny, tmp_path):
    """If it encodes the text to other ids; not if only its file differs."""
    other = word_tokenizer(tmp_path / "other.json", 97, first=1)
    own, text = tiny / "tokenizer.json", tiny / "text.txt"
    found = run("eval", tiny / "model.pt", "--text", text, "--tokenizer", other)
    assert (
        f"Warning: tokenizer {other} encodes text differently from the one beside the checkpoint, "
        f"{own}: leave --tokenizer out unless the model was trained with it"
    ) in found.stderr.splitlines()
    spaced = tmp_path / "spaced.json"
    spaced.write_text(json.dumps(json.loads(own.read_text()), indent=2), encoding="utf-8")
    found = run("eval", tiny / "model.pt", "--text", text, "--tokenizer", spaced)
    assert "encodes text differently" not in found.stderr


def test_an_untrained_model_is_built_with_a_warning(tiny, tmp_path):
    """Random weights predict nothing: that is said in the result, and the pack is there."""
    result = tolpack.build(
        tiny / "model.pt", tmp_path / "p.tolpack", bits="auto", calibrate=tiny / "text.txt"
    )
    assert result.path.exists()
    assert any("better than chance: perplexity" in one for one in result.warnings)
    assert result.to_json()["warnings"] == result.warnings


def test_chance_is_told_from_half_the_vocabulary_on():
    """Below that nothing is said; between half and the whole it is hardly better than chance."""
    assert chance_warning(49.0, 100, "a.txt") is None
    assert chance_warning(60.0, 100, "a.txt").startswith(
        "the model predicts a.txt hardly better than chance: perplexity 60 with a vocabulary of 100"
    )
    assert "no better than chance" in chance_warning(100.0, 100, "a.txt")


# -- texts that are short, windows that are few --------------------------------------------------


def test_short_texts_are_warned_of():
    """Both kinds, with what the documentation asks for; enough has no warning."""
    assert short_text_warning(206, 1, 256) == (
        "the evaluation has 206 tokens in 1 window of 256, so its numbers are provisional: give "
        "10,000 tokens or more, in 10 windows at least"
    )
    assert short_text_warning(20_000, 9, 2048) is not None
    assert short_text_warning(10_000, 10, 1000) is None
    assert short_calibration_warning(1000) == (
        "the calibration text has 1,000 tokens: give 100,000 or more, of text like the model's "
        "training text"
    )
    assert short_calibration_warning(100_000) is None


def test_the_documentation_asks_for_as_many_tokens():
    """The numbers of the warnings are those of docs/choosing-settings.md."""
    text = (Path(__file__).parents[1] / "docs" / "choosing-settings.md").read_text("utf-8")
    assert "It should have 100,000 tokens or more" in text
    assert "the evaluation text has fewer than 10,000 tokens or ten windows" in text


def test_errors_of_one_window_are_not_available(tiny, tmp_path):
    """``n/a`` in tables, null in JSON, empty in a .csv, and pages and plots are made without."""
    ids, packs = tmp_path / "ids.npy", [tmp_path / "a.tolpack", tmp_path / "b.tolpack"]
    np.save(ids, models.zipf_ids(12, 97))
    for bits, pack in zip((4, 16), packs):
        tolpack.build(tiny / "model.pt", pack, bits=bits)
    files = ["--csv", tmp_path / "a.csv", "--report", tmp_path / "a.html", "--plot",
             tmp_path / "a.svg"]  # fmt: skip
    shown = run("eval", tiny / "model.pt", *packs, "--text", ids, *files)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("± n/a") == 9
    assert "± 0.0" not in shown.stdout
    assert "Warning: the evaluation has 11 tokens in 1 window of 16" in shown.stdout
    found = json.loads(run("eval", tiny / "model.pt", *packs, "--text", ids, "--json").stdout)
    assert found["baseline"]["ppl_se"] is None
    errors = [value for name, value in found["packs"][0].items() if "_se" in name]
    assert errors == [None] * 4
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        row, _ = csv.DictReader(file)
    assert [v for name, v in row.items() if f"{name}_".find("_se_") >= 0] == [""] * 4
    assert (tmp_path / "a.html").exists()
    assert (tmp_path / "a.svg").exists()


def test_a_right_input_has_no_warning(tmp_path):
    """A model on text of its own domain, in its own tokens, that is long enough."""
    text = (MODEL / "heldout.txt").read_text("utf-8")[:38_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    evaluator = Evaluator(MODEL, tmp_path / "text.txt")
    assert evaluator.baseline.ppl < 100
    assert evaluator.warnings == ()


# -- windows longer than the model's -------------------------------------------------------------


def test_windows_longer_than_the_models_positions_are_refused(tiny):
    """`eval` and `study` say the limit; a model that has none takes any."""
    expected = (
        "Error: --context 17 is longer than the 16 positions of the model "
        "(max_position_embeddings): give 16 or less"
    )
    for command in ("eval", "study"):
        call = [command, tiny / "model.pt", "--text", tiny / "text.txt", "--context"]
        result = run(*call, 17)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, expected)
    assert (
        run("eval", tiny / "model.pt", "--text", tiny / "text.txt", "--context", 16).exit_code == 0
    )


# -- perplexities that fall ----------------------------------------------------------------------


def test_a_perplexity_that_falls_is_warned_of():
    """By more than one percent and three standard errors; the lowest pack is named."""
    unlike = "this text is unlike the model's training text, or its tokenizer is another one"
    assert fall_warning([("a", -0.9, 0.01), ("b", -4.0, 1.5), ("c", 3.0, 0.1)]) is None
    assert fall_warning([("a", -2.805, 0.391), ("b", 0.1, 0.1)]) == (
        "perplexity falls with a, though its rows are worse than the checkpoint's "
        f"(-2.805 ± 0.391 %): {unlike}; judge by the KL divergence"
    )
    several = fall_warning([("a", -2.0, None), ("b", -9.5, 0.5)])
    assert several.startswith("perplexity falls with 2 packs, most with b, though its rows")


def test_an_evaluation_warns_of_its_worst_text(tiny):
    """A pack whose perplexity falls on one of several texts alone is named."""
    reporter = KeptWarnings()
    evaluator = Evaluator(tiny / "model.pt", tiny / "text.txt", reporter=reporter)
    (score,) = evaluator.packs([tolpack.build(tiny / "model.pt", bits=16, force=True).path])
    fallen = replace(score, ppl_increase_pct=-5.0, ppl_increase_se_pct=0.5)
    evaluator.warn_of_falls([("good", score)])
    assert not any("perplexity falls" in one for one in evaluator.warnings)
    evaluator.warn_of_falls([("good", score), ("bad", replace(score, by_text=(score, fallen)))])
    assert evaluator.warnings[-1].startswith("perplexity falls with bad, though its rows are worse")
    assert reporter.warnings == list(evaluator.warnings)


def test_the_search_warns_of_a_perplexity_that_falls():
    """The step and the fall are named; by KL divergence there is none."""
    lines = Lines()
    search_loss(lambda s: s, lambda s: Loss(s**2 - 24 * s, 0.1), 1.0, 0.5, lines)
    (warning,) = lines.warned
    assert warning.startswith("at step ")
    assert warning.endswith(
        "though rows are worse: this text is unlike the model's training text, or its tokenizer "
        "is another one; limit the KL divergence instead, with --max-kld"
    )
    lines = Lines()
    search_loss(lambda s: s, lambda s: Loss(s**2, 0.1), 1.0, 0.5, lines)
    assert lines.warned == []


# -- the search for a limit ----------------------------------------------------------------------


@pytest.mark.parametrize("measure", [DIVERGENCE, PERPLEXITY])
def test_no_step_is_tried_twice(measure):
    """A loss that jumps at the limit ends the search where steps would be told alike, below it."""
    lines = Lines()
    jump = 0.00876

    def losses(step):
        return Loss(0.0015 if step < jump else 0.0025, 1e-9)

    found, loss = search_loss(lambda s: s, losses, 0.002, 0.005, lines, measure)
    tried = [line.split()[2] for line in lines.said if line.startswith("auto: step ")]
    assert len(tried) == len(set(tried)) <= 12
    assert found < jump
    assert loss.value == 0.0015


def test_the_search_ends_within_the_error_of_a_difference():
    """Where two trials differ by chance more than by their steps, no further step is tried."""
    noise = np.random.default_rng(0).standard_normal((2000, 50))

    def trials(scale):
        lines = Lines()

        def losses(step):
            windows = 0.5 * step**1.6 * (1 + scale * noise[int(step * 1e6) % 2000])
            return Loss(float(windows.mean()), float(windows.std()) / math.sqrt(50), windows)

        _, loss = search_loss(lambda s: s, losses, 0.002, 0.05, lines, DIVERGENCE)
        assert loss.value <= 0.002
        return len([line for line in lines.said if line.startswith("auto: step ")])

    assert trials(0.5) <= trials(0.0) + 2


def test_the_search_says_what_a_step_is_and_what_it_chose():
    """The first line explains the word, and the last one names step, cost and limit."""
    lines = Lines()
    found, loss = search_loss(
        lambda s: s, lambda s: Loss(26 * s**2, 2e-5), 0.002, 0.004, lines, DIVERGENCE
    )
    assert lines.said[0] == (
        "auto: the step is the distance between neighbouring quantized values; a larger one makes "
        "a smaller pack, which costs more"
    )
    assert lines.said[-1] == (
        f"auto: chose step {found:.3g}, which costs {loss.value:.3g} ± 2e-05 nats of KL divergence "
        "(limit 0.002)"
    )


# -- what a pack costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"bits": "auto", "size": "20%"}, "auto: chose step "),
        ({"bits": "auto", "max_relative_error": "20%"}, "auto: chose step "),
        ({"bits": 8, "rank": "auto", "size": "60KB"}, "rank auto: these ranks cost "),
        ({"bits": 8, "rank": "auto"}, "rank auto: these ranks cost "),
    ],
)
def test_a_pack_of_a_given_size_says_its_cost(tiny, tmp_path, settings, line):
    """It is said, and kept in the pack."""
    lines = Lines()
    found = tolpack.build(
        tiny / "model.pt", tmp_path / "p.tolpack", calibrate=tiny / "text.txt", reporter=lines,
        **settings,
    )  # fmt: skip
    (said,) = [one for one in lines.said if one.startswith(line)]
    cost = found.provenance.measured["kl_mean_nats"]
    assert cost > 0
    assert f"{cost:.3g} ±" in said
    assert found.provenance.measured["tokens"] > 0


def test_what_is_measured_is_rounded():
    """Three digits are kept, and of two losses the one that was measured."""
    loss = MeasuredLoss(16384, 0.00876123, kl_mean_nats=0.00193456, kl_mean_se_nats=2.3456e-5)
    assert loss.to_json() == {
        "tokens": 16384, "step": 0.00876, "kl_mean_nats": 0.00193, "kl_mean_se_nats": 2.35e-05,
    }  # fmt: skip
    one = MeasuredLoss(10, None, ppl_increase_pct=0.34567)
    assert one.to_json() == {
        "tokens": 10, "step": None, "ppl_increase_pct": 0.346, "ppl_increase_se_pct": None,
    }  # fmt: skip


# -- where warnings go ---------------------------------------------------------------------------


def test_warnings_reach_the_results_of_a_study(tiny, tmp_path):
    """Its text ends with them, and its JSON has them, as those of its builds."""
    call = ["study", tiny / "model.pt", "--text", tiny / "text.txt", "--calibrate",
            tiny / "text.txt", "--only", "precision", "--scratch", tmp_path]  # fmt: skip
    shown = run(*call)
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(run(*call, "--json").stdout)["warnings"]
    assert [one.split(":")[0] for one in found[:3]] == [
        "the evaluation has 999 tokens in 63 windows of 16, so its numbers are provisional",
        "the calibration text has 1,000 tokens",
        "the model predicts text.txt no better than chance",
    ]
    assert shown.stdout.rstrip().endswith(f"Warning: {found[-1]}")
    assert all(f"Warning: {one}" in shown.stderr for one in found)


def test_a_build_ends_with_its_warnings(tiny, tmp_path):
    """Below the size, and before that on stderr."""
    call = ["build", tiny / "model.pt", "--calibrate", tiny / "text.txt", "--force", "-o"]
    shown = run(*call, tmp_path / "p.tolpack")
    warning = f"Warning: {short_calibration_warning(1000)}"
    assert warning in shown.stderr
    assert shown.stdout.rstrip().endswith(warning)


def test_tables_write_errors_that_are_there(tiny):
    """With several windows nothing is ``n/a``."""
    evaluator = Evaluator(tiny / "model.pt", tiny / "text.txt")
    (score,) = evaluator.packs([tolpack.build(tiny / "model.pt", force=True).path])
    assert "n/a" not in evaluation_tables.pack_increase(score)
    assert evaluation_tables.pack_divergence(replace(score, kl_mean_se_nats=None)).endswith("n/a")


def test_a_limit_beyond_reach_still_names_itself():
    """A search that finds nothing raises as before, with what the finest step costs."""
    with pytest.raises(ConfigError, match="--max-kld 0.002 nats is not met by any step"):
        search_loss(lambda s: s, lambda _: Loss(0.5, 0.01), 0.002, 1.0, Reporter(), DIVERGENCE)
