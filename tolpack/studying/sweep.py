"""A row of settings, each built, judged and removed: ``tolpack eval --sweep``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.judging import Judge, PackScore
from tolpack.progress import Reporter
from tolpack.reference.perplexity import Score
from tolpack.sources.table import MemoryTable
from tolpack.studying.measured import Measured
from tolpack.studying.setting import Setting
from tolpack.workshop import Knowledge, Workshop


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One setting: its pack's score, and what it took to build and to judge."""

    setting: Setting
    score: PackScore
    build_seconds: float
    eval_seconds: float
    on_front: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON: those of the pack, which is no more, and the setting."""
        own = {"path": None, "setting": self.setting.to_json(), "options": self.setting.options}
        times = {"build_seconds": self.build_seconds, "eval_seconds": self.eval_seconds}
        return {**asdict(self.score), **own, **times, "on_front": self.on_front}


class Bench:
    """Where settings are measured: a workshop, a judge, and what is known already.

    Parameters
    ----------
    judge : Judge
        The checkpoint and the text.
    knowledge : Knowledge
        What packs are built with.
    scratch : Path
        A folder for a pack at a time.
    fresh : bool
        Whether to measure again what was measured before.
    reporter : Reporter
        Receives progress.
    """

    def __init__(
        self, judge: Judge, knowledge: Knowledge, scratch: Path, *, fresh: bool, reporter: Reporter
    ) -> None:
        self.judge = judge
        self.measured = Measured(judge, knowledge, fresh=fresh)
        self.workshop = Workshop(
            MemoryTable(judge.checkpoint), scratch, knowledge, share=True, reporter=reporter
        )
        self._path = scratch / "pack.tolpack"

    def point(self, setting: Setting) -> SweepPoint:
        """Build a pack, judge it and remove it; or tell what that gave before."""
        found = self.measured.get(setting, lambda: self._measure(setting))
        score = PackScore(**found["score"])
        return SweepPoint(setting, score, found["build_seconds"], found["eval_seconds"])

    def windows(self, setting: Setting) -> Score:
        """Return the score of a setting's pack window by window, to be paired with another's."""
        found = self.measured.get(setting, lambda: self._measure(setting))
        return Score(np.array(found["window_nll_nats"]), self.judge.window_tokens)

    def _measure(self, setting: Setting) -> dict[str, Any]:
        _ = self.judge.base_score  # not a part of the first setting's time
        try:
            begin = time.perf_counter()
            self.workshop.make(setting.parsed(), self._path)
            built = time.perf_counter()
            score, windows = self.judge.pack_windows(self._path)
            judged = time.perf_counter()
        finally:
            self._path.unlink(missing_ok=True)
        times = {"build_seconds": built - begin, "eval_seconds": judged - built}
        named = asdict(replace(score, path=setting.label))
        return {"score": named, "window_nll_nats": windows.nll_nats.tolist(), **times}


def run_sweep(
    judge: Judge,
    settings: Sequence[Setting],
    knowledge: Knowledge,
    *,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> tuple[SweepPoint, ...]:
    """Measure `settings`, in their order; those that were measured before are not built again.

    Raises
    ------
    ConfigError, CheckpointError, FileAccessError
        As `tolpack.build`.
    """
    reporter = reporter or Reporter()
    points: list[SweepPoint] = []
    with tempfile.TemporaryDirectory(prefix="tolpack-sweep-") as folder:
        bench = Bench(judge, knowledge, Path(folder), fresh=fresh, reporter=reporter)
        left = [setting for setting in settings if not bench.measured.knows(setting)]
        if len(left) < len(settings):
            before = len(settings) - len(left)
            reporter.say(f"{before} of {len(settings)} settings were measured before")
        with bench.workshop:
            for number, setting in enumerate(settings, 1):
                reporter.say(f"[{number}/{len(settings)}] {setting.label}")
                points.append(bench.point(setting))
                left = [other for other in left if other != setting]
                reporter.say(_progress(points, left))
    return front(points)


def front(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Mark the points that no other one beats in both bytes and perplexity."""

    def beaten(one: SweepPoint) -> bool:
        own = (one.score.bytes, one.score.ppl)
        others = ((other.score.bytes, other.score.ppl) for other in points)
        return any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in others)

    return tuple(replace(one, on_front=not beaten(one)) for one in points)


def _progress(done: Sequence[SweepPoint], left: Sequence[Setting]) -> str:
    """Tell what the last setting gave, and about how long the others will take."""
    last = done[-1].score
    text = (
        f"  {last.bytes / 1e6:.2f} MB, × {last.ratio_fp16:.2f}, "
        f"{last.ppl_increase_pct:+.3f} ± {last.ppl_increase_se_pct:.3f} %"
    )
    seconds = sum(_expected(setting, done) for setting in left)
    return f"{text}; about {seconds / 60:.0f} min left" if seconds > 30 else text


def _expected(setting: Setting, done: Sequence[SweepPoint]) -> float:
    """Seconds that a setting may take: the mean of those of its kind, else of all."""
    alike = [one for one in done if one.setting.needs_losses == setting.needs_losses] or done
    return sum(one.build_seconds + one.eval_seconds for one in alike) / len(alike)
