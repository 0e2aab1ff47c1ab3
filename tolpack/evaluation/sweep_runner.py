"""Build the pack of a setting, evaluate it and remove it; or return what was measured before."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.calibration.stats import CalibrationInputs
from tolpack.compress.session import BuildSession
from tolpack.errors import FileAccessError
from tolpack.evaluation.evaluator import Evaluator, PackScore
from tolpack.evaluation.result_cache import ResultCache
from tolpack.evaluation.sweep_setting import SweepSetting
from tolpack.model.decoder import Memory
from tolpack.model.perplexity import Score, increase_pct
from tolpack.sources.ffn_table import FFNTable
from tolpack.workspace.resources import Resources


@dataclass(frozen=True, slots=True)
class Inputs:
    """What packs are built with, where, and whether what was measured before counts."""

    calibration: CalibrationInputs = field(default_factory=CalibrationInputs)
    resources: Resources = field(default_factory=Resources)
    scratch: Path | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One setting: its pack's score, and the seconds to build and to evaluate it."""

    setting: SweepSetting
    score: PackScore
    build_seconds: float
    eval_seconds: float
    on_front: bool = False

    @property
    def summary(self) -> str:
        """Size and increase, in a line."""
        score = self.score
        return (
            f"{score.bytes / 1e6:.2f} MB, × {score.ratio_fp16:.2f}, "
            f"{score.ppl_increase_pct:+.3f} ± {score.ppl_increase_se_pct:.3f} %"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON: those of the pack, which is no more, and the setting."""
        own = {"path": None, "setting": self.setting.to_json(), "options": self.setting.options}
        times = {"build_seconds": self.build_seconds, "eval_seconds": self.eval_seconds}
        return {**asdict(self.score), **own, **times, "on_front": self.on_front}


@dataclass(frozen=True, slots=True)
class Change:
    """Perplexity of a changed model, and its paired increase over the same tokens unchanged."""

    ppl: float
    ppl_se: float
    increase_pct: float
    increase_se_pct: float
    tokens: int

    @property
    def summary(self) -> str:
        """Perplexity and increase, in a line."""
        return f"{self.ppl:.3f}, {self.increase_pct:+.3f} ± {self.increase_se_pct:.3f} %"


class SweepRunner:
    """See the module; made by `workplace`."""

    def __init__(self, evaluator: Evaluator, inputs: Inputs, folder: Path) -> None:
        self.evaluator = evaluator
        self.results = ResultCache(
            evaluator,
            inputs.calibration,
            inputs.resources,
            fresh=inputs.fresh,
            reporter=evaluator.reporter,
        )
        self.session = BuildSession(
            FFNTable(evaluator.checkpoint), folder, inputs.calibration, inputs.resources,
            evaluator.reporter,
        )  # fmt: skip
        self._path = folder / "pack.tolpack"

    def point(self, setting: SweepSetting) -> SweepPoint:
        """Build a pack, evaluate it and remove it; or return what was measured before."""
        found = self._found(setting)
        score = PackScore(**found["score"])
        return SweepPoint(setting, score, found["build_seconds"], found["eval_seconds"])

    def windows(self, setting: SweepSetting) -> Score:
        """Return the score of a setting's pack window by window, to be paired with another's."""
        return Score(
            np.array(self._found(setting)["window_nll_nats"]), self.evaluator.window_tokens
        )

    def changed(self, memory: Memory, name: str, tokens: int | None = None) -> Change:
        """Score the model with another memory, on the first `tokens` tokens: whole windows."""

        def measure() -> dict[str, Any]:
            score, base = self.evaluator.score(memory, name, tokens), self.evaluator.base_score
            count = len(score.tokens)
            part = Score(base.nll_nats[:count], base.tokens[:count])
            increase, error = increase_pct(score, part)
            return asdict(Change(score.ppl, score.ppl_se, increase, error, score.total_tokens))

        keys = [one.name for one in fields(Change)]
        return Change(**self.results.get((name, tokens), keys, measure))

    def _found(self, setting: SweepSetting) -> dict[str, Any]:
        keys = ("score", "window_nll_nats", "build_seconds", "eval_seconds")
        return self.results.get(setting, keys, lambda: self._measure(setting))

    def _measure(self, setting: SweepSetting) -> dict[str, Any]:
        _ = self.evaluator.base_score  # not a part of the first setting's time
        try:
            begin = time.perf_counter()
            try:
                self.session.build(setting.parsed(), self._path)
            except FileAccessError as error:
                folder = self._path.parent.parent
                raise FileAccessError(
                    f"{error} (packs are built in {folder}, one at a time: --scratch names "
                    "another folder)"
                ) from error
            built = time.perf_counter()
            score, windows = self.evaluator.pack_windows(self._path)
            judged = time.perf_counter()
        finally:
            self._path.unlink(missing_ok=True)
        times = {"build_seconds": built - begin, "eval_seconds": judged - built}
        named = asdict(replace(score, path=setting.label))
        return {"score": named, "window_nll_nats": windows.nll_nats.tolist(), **times}


@contextmanager
def workplace(evaluator: Evaluator, inputs: Inputs) -> Iterator[SweepRunner]:
    """Yield a workplace with a folder of its own, which is removed at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="tolpack-", dir=inputs.scratch)
    except OSError as error:
        raise FileAccessError(
            f"cannot make a folder in {inputs.scratch or tempfile.gettempdir()}: "
            f"{error.strerror or error}; give another with --scratch"
        ) from error
    with folder:
        place = SweepRunner(evaluator, inputs, Path(folder.name))
        with place.session:
            yield place
