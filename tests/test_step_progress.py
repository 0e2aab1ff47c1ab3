"""The time that is left of a study: estimates against what the steps then take."""

from types import SimpleNamespace

import numpy as np
import pytest

from tolpack.errors import ConfigError
from tolpack.evaluation import step_progress
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.experiment_runner import ExperimentOptions, ExperimentRunner
from tolpack.evaluation.step_costs import ablation_step, pack_steps
from tolpack.evaluation.step_progress import Step, StepProgress, format_left
from tolpack.evaluation.study import run_study
from tolpack.evaluation.sweep import run_sweep
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.runtime.progress import Reporter

PACKS = [
    *(PackOptions(bits=bits) for bits in (16, 8, 4)),
    *(PackOptions(rank, "auto", max_kld=kl) for rank in ("none", "auto") for kl in ("1", "2", "3")),
    *(PackOptions(rank) for one in ("75%", "50%", "25%") for rank in (one, "auto")),
]
# Like those of a study on a busy machine: seconds of its 56 steps, and which of them calibrate.
SECONDS = [6, 6, 6, 840, 240, 200, 180, 150, 64, 10, 420, 9, 55, 9, 50, *[3] * 41]
CALIBRATING = {3: 600, 10: 360}


class Lines(Reporter):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        """See `Reporter`."""
        self.lines.append(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; a test moves it."""
    now = [0.0]
    monkeypatch.setattr(step_progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def evaluator(memoryllm, token_ids):
    """The tiny model and its text."""
    return Evaluator(memoryllm, token_ids)


@pytest.fixture
def steps():
    """The steps of a study of a model with 8,192 tokens, on as many tokens of text."""
    model = SimpleNamespace(vocab_size=8192)
    evaluator = SimpleNamespace(text_ids=[np.zeros(8193)], model=model)
    return [*pack_steps(PACKS, evaluator), *[ablation_step(evaluator)] * 41]


def estimates(steps, seconds, once, clock):
    """Return (seconds told, seconds that then passed) after each step with an estimate."""
    progress, found = StepProgress(steps, Reporter()), []
    for number, (own, part) in enumerate(zip(seconds, once)):
        progress.begin("step")
        clock[0] += own
        progress.end("result", part)
        if progress.seconds_left is not None:
            found.append((progress.seconds_left, sum(seconds[number + 1 :])))
    return found


def test_a_study(steps, clock):
    """From the fourth step of 56 on within a factor of two: packs by loss, which take minutes, do
    not count for ablations, which take seconds. The mean of all steps told thirteen times too much.
    """
    once = [CALIBRATING.get(number, 0) for number in range(len(SECONDS))]
    found = estimates(steps, SECONDS, once, clock)
    assert len(found) >= len(SECONDS) - 4
    for told, truth in found[:-1]:
        assert truth / 2 < told < 2 * truth


@pytest.mark.parametrize("seed", range(20))
def test_simulated_studies(steps, seed, clock):
    """Steps of a kind take up to twice the time that was predicted, or half, and each ± 20 %: from
    a tenth of the time on estimates are within a factor of two and a half.
    """
    source = np.random.default_rng(seed)
    factors = {kind: 2 ** source.uniform(-1, 1) for kind in sorted({one.kind for one in steps})}
    noise = source.uniform(0.8, 1.2, len(steps))
    own = [one.cost * factors[one.kind] * f / 1000 for one, f in zip(steps, noise)]
    once = [one.once / 1000 for one in steps]
    seconds = [a + b for a, b in zip(own, once)]
    whole = sum(seconds)
    late = [
        (told, truth) for told, truth in estimates(steps, seconds, once, clock)
        if 0 < truth < 0.9 * whole
    ]  # fmt: skip
    assert len(late) > 40
    assert all(truth / 2.5 < told < 2.5 * truth for told, truth in late)


def test_cached_steps_teach_nothing(clock):
    """Their time says nothing of steps that are measured."""
    progress = StepProgress([Step("a", 1.0)] * 4, Reporter())
    for seconds in (0.01, 10.0):
        progress.begin("step")
        clock[0] += seconds
        progress.end("result")
    assert progress.seconds_left == pytest.approx(20.0)


def test_no_step_takes_less_than_no_time(clock):
    """What is taken once is at most what the step took: no time is told that is less than zero."""
    progress = StepProgress([Step("a", 1.0, once=1.0)] * 4, Reporter())
    for seconds, once in ((10.0, 30.0), (10.0, 0.0)):
        progress.begin("step")
        clock[0] += seconds
        progress.end("result", once)
        assert progress.seconds_left >= 0
    assert [own for _, own, _ in progress._timed] == [0.0, 10.0]


@pytest.mark.parametrize("kind", ["sweep", "study"])
def test_a_calibration_counts_for_the_step_that_took_it(kind, evaluator, monkeypatch):
    """Also where its pack could not be built then: the next step does not get it."""
    told = []

    def refuse(self, options):
        if not told:
            self._times.seconds.append(("calibration", 60.0))
        raise ConfigError("not this one")

    monkeypatch.setattr(ExperimentRunner, "evaluate", refuse)
    monkeypatch.setattr(StepProgress, "end", lambda self, text, once=0.0: told.append(once))
    if kind == "sweep":
        run_sweep(evaluator, [PackOptions(), PackOptions(bits=8)], ExperimentOptions())
    else:
        run_study(evaluator, ExperimentOptions(), ["precision"])
    assert told == [60.0, 0.0, 0.0][: len(told)]
    assert len(told) > 1


def test_nothing_is_told_before_a_tenth(clock):
    """The first step alone, of a kind that costs next to nothing, says little."""
    reporter = Lines()
    progress = StepProgress([Step("a", 1.0), Step("b", 99.0), Step("b", 99.0)], reporter)
    for seconds in (1.0, 200.0, 1.0):
        progress.begin("step")
        clock[0] += seconds
        progress.end("result")
    assert reporter.lines == [
        "[1/3] step", "    result", "[2/3] step", "    result; about 3 min left", "[3/3] step",
        "    result",
    ]  # fmt: skip


def test_costs_follow_from_tokens_and_rows(memoryllm, token_ids):
    """A pack by loss costs a multiple of one of 4 bits, and only the first calibrates."""
    evaluator = Evaluator(memoryllm, token_ids)
    four, first, second, trellis = pack_steps(
        [PackOptions(), PackOptions(bits="auto"), PackOptions("auto", "auto"),
         PackOptions(bits="auto", trellis=True)], evaluator,
    )  # fmt: skip
    assert four.cost == 2 * 400 + 97
    assert first.cost > 10 * four.cost
    assert trellis.cost > first.cost
    assert (four.once, second.once) == (0, 0)
    assert first.once > 0
    assert ablation_step(evaluator).cost == 400
    assert ablation_step(evaluator, 150).cost == 150


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(4, "10 s"), (44, "40 s"), (119, "120 s"), (150, "2 min"), (7000, "117 min")],
)
def test_times_are_told_in_few_digits(seconds, told):
    """In steps of ten seconds, beyond two minutes in minutes."""
    assert format_left(seconds) == told
