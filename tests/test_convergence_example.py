"""The experiment on convergence under ``examples/``, with tiny models."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def convergence(monkeypatch):
    """The module; torch's random state is as before afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import convergence

    with torch.random.fork_rng():
        yield convergence


def run_of(losses, seed=0):
    """Return a run with validation losses every ten steps."""
    steps = [10.0 * (number + 1) for number in range(len(losses))]
    return {"seed": seed, "validation": {"step": steps, "validation_loss": losses}}


def test_all_kinds_are_trained_and_drawn(convergence, tmp_path, monkeypatch, capsys):
    """One command gives runs of every kind and seed, a second one the pictures and tables."""
    import convergence_plot

    monkeypatch.setattr(convergence, "heldout_loss", lambda folder, text: 5.0)
    monkeypatch.setattr(convergence.train, "plot_losses", lambda folder: None)
    text = tmp_path / "text"
    text.mkdir()
    for name in ("train", "validation", "heldout"):
        (text / f"{name}.txt").write_text(f"{name} one two three four " * 99)
    size = ["--hidden-size=16", "--heads=2", "--layers=1", "--context=8", "--batch=2",
            "--eval-every=20"]  # fmt: skip
    results = tmp_path / "found.json"
    command = [
        *("convergence.py", "--folder", str(tmp_path / "runs"), "--json", str(results)),
        *("--text", str(text), "--vocab-size", "280", "--steps", "40", "--rate-steps", "2"),
        *("--rates", "1e-3", "--seeds", "2", "--pack-seeds", "0", "--", *size),
    ]
    monkeypatch.setattr(sys, "argv", command)
    convergence.main()
    found = json.loads(results.read_text())
    assert [(run["kind"], run["seed"]) for run in found["runs"]] == [
        (kind, seed) for seed in range(2) for kind in convergence.KINDS
    ]
    parameters = {run["parameters"] for run in found["runs"]}
    assert max(parameters) - min(parameters) == 16  # the second norm of Flex
    assert found["summary"]["dense"]["over_dense"] == [0, 0]
    monkeypatch.setattr(sys, "argv", ["convergence_plot.py", str(results), str(tmp_path)])
    capsys.readouterr()
    convergence_plot.main()
    assert capsys.readouterr().out.count("| MemoryLLM |") == 3
    assert len(list(tmp_path.glob("training-*.png"))) == 2


def test_steps_to_a_loss_are_interpolated(convergence):
    """Between two validations the loss is taken to fall in a straight line."""
    assert convergence.steps_to(run_of([5.0, 4.0, 3.0]), 3.5) == pytest.approx(25)
    assert convergence.steps_to(run_of([5.0, 4.0, 3.0]), 4.0) == pytest.approx(20)
    assert convergence.steps_to(run_of([5.0, 4.0, 3.0]), 6.0) == pytest.approx(10)


def test_errors_are_over_seeds(convergence):
    """The standard error is that of a mean of independent seeds, and ratios are paired."""
    mean, error = convergence.mean_and_error([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3, rel=1e-4)
    assert error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3), rel=1e-4)
    dense = [run_of([5.0, 4.0, 3.0]), run_of([6.0, 4.0, 2.0], 1)]
    found = convergence.steps_over_dense(dense, dense, 4.0)
    assert found == {"steps": [20, 0], "of_dense": [1, 0]}


def test_the_search_closes_in_on_a_divergence(convergence):
    """Limits are interpolated between packs on both sides, and scaled until there are some."""
    tried = [{"kl": 0.002, "max_kld": 0.001}]
    assert convergence.next_limit(tried, 0.004) == pytest.approx(0.002)
    tried.append({"kl": 0.008, "max_kld": 0.002})
    limit = convergence.next_limit(tried, 0.004)
    assert limit == pytest.approx(math.sqrt(2) * 0.001)
