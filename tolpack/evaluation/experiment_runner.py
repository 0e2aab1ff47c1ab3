"""Measurements for sweeps and studies: packs of given options, and ablations of the memory.

A pack is built in a folder of the runner, evaluated and removed. Results are cached
(`tolpack.evaluation.result_cache`), so that nothing is measured twice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.compress.build_session import BuildSession
from tolpack.errors import CheckpointError, FileAccessError
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.result_cache import ResultCache
from tolpack.evaluation.scores import PackScore
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.evaluation.task_accuracy import TaskAccuracy, TaskSettings
from tolpack.model.language_model import LanguageModel, Memory
from tolpack.model.perplexity import Score, increase_pct
from tolpack.pack import Pack
from tolpack.runtime.progress import PhaseTimes
from tolpack.runtime.sizes import plus_minus
from tolpack.workspace.resources import Resources

# Phases of a build that are not repeated for the next one.
_CALIBRATING = ("sampling", "calibration")


@dataclass(frozen=True, slots=True)
class ExperimentOptions:
    """Inputs and resources of all builds.

    ``scratch``: parent of the folder for packs; default: the system's. ``fresh``: do not use the
    results that earlier runs cached. ``tasks``: tasks of lm-eval, run on the packs too.
    """

    calibration: CalibrationInputs = field(default_factory=CalibrationInputs)
    resources: Resources = field(default_factory=Resources)
    scratch: Path | None = None
    fresh: bool = False
    tasks: TaskSettings | None = None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The score of the pack that `options` build, and the seconds to build and to evaluate it.

    ``on_front``: whether it is on the Pareto front of its sweep.
    """

    options: PackOptions
    score: PackScore
    build_seconds: float
    eval_seconds: float
    on_front: bool = False

    @property
    def summary(self) -> str:
        """Size, divergence and increase of perplexity, in a line."""
        score = self.score
        return (
            f"{score.bytes / 1e6:.2f} MB, × {score.ratio_fp16:.2f}, KL {score.kl_mean_nats:.3g} "
            f"nats, {plus_minus(score.ppl_increase_pct, score.ppl_increase_se_pct, '+.3f')} %"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; ``path`` is null, because the pack was removed."""
        options = {"setting": self.options.to_json(), "options": self.options.arguments}
        times = {"build_seconds": self.build_seconds, "eval_seconds": self.eval_seconds}
        pack = {**self.score.to_json(), "path": None}
        return {**pack, **options, **times, "on_front": self.on_front}


def results_on_text(results: Sequence[SweepResult], number: int) -> list[dict[str, Any]]:
    """Return plain values for JSON of results on one of several texts."""
    return [replace(one, score=one.score.by_text[number]).to_json() for one in results]


@dataclass(frozen=True, slots=True)
class AblationResult:
    """Perplexity with a changed memory, and its increase, paired window by window."""

    ppl: float
    ppl_se: float | None
    increase_pct: float
    increase_se_pct: float | None
    tokens: int

    @property
    def summary(self) -> str:
        """Perplexity and increase, in a line."""
        return f"{self.ppl:.3f}, {plus_minus(self.increase_pct, self.increase_se_pct, '+.3f')} %"


class ExperimentRunner:
    """See the module; made by `open_runner`."""

    def __init__(self, evaluator: Evaluator, options: ExperimentOptions, folder: Path) -> None:
        self.evaluator = evaluator
        self.results = ResultCache(
            evaluator,
            options.calibration,
            options.resources,
            fresh=options.fresh,
            reporter=evaluator.reporter,
        )
        if evaluator.subject.table is None:
            raise CheckpointError("a dense model has no memory, so it has no packs")
        self._times = PhaseTimes(evaluator.reporter)
        self.session = BuildSession(
            evaluator.subject.table, folder, options.calibration, options.resources, self._times
        )  # fmt: skip
        self._path = folder / "pack.tolpack"
        self.tasks: TaskAccuracy | None = None
        if options.tasks is not None:
            self.tasks = TaskAccuracy(evaluator, options.tasks, folder)

    def calibration_seconds(self) -> float:
        """Return how long calibrations took since the last call: later packs need not wait."""
        seconds = sum(seconds for name, seconds in self._times.seconds if name in _CALIBRATING)
        self._times.seconds.clear()
        return seconds

    def evaluate(self, options: PackOptions) -> SweepResult:
        """Return the score of the pack that `options` build."""
        result = self._result(options)
        for warning in result.get("warnings", ()):  # of the run that measured it
            self.evaluator.reporter.warn(warning)
        score = PackScore.from_cache(result["score"])
        return SweepResult(options, score, result["build_seconds"], result["eval_seconds"])

    def window_scores(self, options: PackOptions) -> Score:
        """Return the score of the same pack window by window, to be paired with another's."""
        nll_nats = np.array(self._result(options)["window_nll_nats"])
        return Score(nll_nats, self.evaluator.window_tokens)

    def ablate(self, memory: Memory, name: str, tokens: int | None = None) -> AblationResult:
        """Score the model with a changed memory.

        Parameters
        ----------
        memory : callable
            See `tolpack.model.language_model`.
        name : str
            Names the memory in the cache and for the reporter.
        tokens : int, optional
            Only so many tokens of each text, the first ones; a multiple of the window. Default:
            all.
        """

        def measure() -> dict[str, Any]:
            score, own = self.evaluator.score(memory, name, tokens)
            change = increase_pct(score, own)
            return asdict(AblationResult(score.ppl, score.ppl_se, *change, score.total_tokens))

        keys = [one.name for one in fields(AblationResult)]
        return AblationResult(**self.results.get((name, tokens), keys, measure))

    def pack_tasks(self, options: PackOptions) -> list[dict[str, Any]]:
        """Return the tasks' scores of the same pack; there must be ``tasks``."""
        return list(self._result(options)["tasks"])

    def memory_tasks(self, memory: Memory | None, name: str) -> list[dict[str, Any]]:
        """Return the tasks' scores with a changed memory, or with the model's own for ``None``."""

        def measure() -> dict[str, Any]:
            model = self.evaluator.model
            return self._run_tasks(model if memory is None else model.with_memory(memory), name)

        identity = self.tasks and self.tasks.identity
        return list(self.results.get((name, identity), ("tasks",), measure)["tasks"])

    def _run_pack_tasks(self, label: str) -> dict[str, Any]:
        with Pack(self._path) as pack:
            return self._run_tasks(self.evaluator.subject.with_pack(pack, label), label)

    def _run_tasks(self, model: LanguageModel, name: str) -> dict[str, Any]:
        return {"tasks": self.tasks.run(model, name)} if self.tasks else {}

    def _result(self, options: PackOptions) -> dict[str, Any]:
        keys = ["score", "window_nll_nats", "build_seconds", "eval_seconds"]
        measure = partial(self._measure, options)
        if self.tasks is None:
            return self.results.get(options, keys, measure)
        return self.results.get((options, self.tasks.identity), [*keys, "tasks"], measure)

    def _measure(self, options: PackOptions) -> dict[str, Any]:
        try:
            begin = time.perf_counter()
            self._build(options)
            built = time.perf_counter()
            score, windows = self.evaluator.pack_windows(self._path)
            evaluated = time.perf_counter()
            tasks = {} if self.tasks is None else self._run_pack_tasks(options.label)
        finally:
            self._path.unlink(missing_ok=True)
        times = {"build_seconds": built - begin, "eval_seconds": evaluated - built}
        named = asdict(replace(score, path=options.label))
        kept = {"window_nll_nats": windows.nll_nats.tolist(), "warnings": self.evaluator.warnings}
        return {"score": named, **kept, **times, **tasks}

    def _build(self, options: PackOptions) -> None:
        try:
            self.session.build(options.build_settings(), self._path)
        except FileAccessError as error:
            folder = self._path.parent.parent
            raise FileAccessError(
                f"{error} (packs are built in {folder}, one at a time: --scratch names "
                "another folder)"
            ) from error


@contextmanager
def open_runner(evaluator: Evaluator, options: ExperimentOptions) -> Iterator[ExperimentRunner]:
    """Yield a runner with a folder of its own, which is removed at the end.

    Raises
    ------
    FileAccessError
        The folder cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="tolpack-", dir=options.scratch)
    except OSError as error:
        raise FileAccessError(
            f"cannot make a folder in {options.scratch or tempfile.gettempdir()}: "
            f"{error.strerror or error}; give another with --scratch"
        ) from error
    with folder:
        runner = ExperimentRunner(evaluator, options, Path(folder.name))
        with runner.session:
            yield runner
