"""``tolpack study``: the paper's experiments (arXiv 2602.00398) on the checkpoint at hand.

========== ==========================================================================
precision  16, 8 and 4 bits without a basis (Table 7)
ranks      uniform ranks against ranks by loss at equal bytes (Table 8, its open question)
trade-off  entropy-coded packs, next to all of the above
layers     every layer, and every run of layers, left out (Figures 4 and 12)
alpha      the memory's contribution scaled by α (Table 1)
spectra    each layer's singular values (Figure 13)
size       weights and operations with FFNs, with the table, with packs
========== ==========================================================================

What takes a pack is measured on all tokens; what takes the model alone, on some of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tolpack.errors import CheckpointError, ConfigError
from tolpack.judging import Baseline, Judge
from tolpack.progress import Reporter
from tolpack.reference.decoder import Memory
from tolpack.reference.perplexity import Score, increase_pct
from tolpack.studying.memories import Scaled, Without
from tolpack.studying.model_size import ModelCosts, model_costs
from tolpack.studying.setting import Setting
from tolpack.studying.spectra import LayerSpectrum, layer_spectra
from tolpack.studying.sweep import Bench, SweepPoint, front
from tolpack.workshop import Knowledge

PARTS = ("precision", "ranks", "trade-off", "layers", "alpha", "spectra", "size")
ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0)
_UNIFORM = ("75%", "50%", "25%")
_INCREASES = ("0.25%", "1%", "3%")
# Tokens that each run of layers is left out on.
LAYER_TOKENS = 32_768
# With more layers, only runs of 1, 2, 4, 8, … of them.
_ALL_RUNS = 12


@dataclass(frozen=True, slots=True)
class Change:
    """Perplexity of a changed model, and its paired increase over the same tokens unchanged."""

    ppl: float
    ppl_se: float
    increase_pct: float
    increase_se_pct: float
    tokens: int


@dataclass(frozen=True, slots=True)
class AlphaPoint:
    """The memory's outputs times ``alpha``."""

    alpha: float
    change: Change


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Layers ``first … last`` without memory."""

    first: int
    last: int
    change: Change


@dataclass(frozen=True, slots=True)
class RankPair:
    """A uniform rank, and ranks by loss in no more bytes.

    ``gain_pct`` is how much lower the second one's perplexity is, paired window by window.
    """

    uniform: SweepPoint
    by_loss: SweepPoint
    gain_pct: float
    gain_se_pct: float


@dataclass(frozen=True, slots=True)
class Study:
    """All that was measured; parts that were not asked for are empty. ``skipped``: packs that
    could not be built, and why.
    """

    context: int
    baseline: Baseline
    packs: tuple[SweepPoint, ...]
    skipped: tuple[str, ...]
    ranks: tuple[RankPair, ...]
    layers: tuple[LayerRun, ...]
    alphas: tuple[AlphaPoint, ...]
    spectra: tuple[LayerSpectrum, ...]
    costs: ModelCosts | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        pairs = [
            {
                "uniform": pair.uniform.to_json(),
                "by_loss": pair.by_loss.to_json(),
                "gain_pct": pair.gain_pct,
                "gain_se_pct": pair.gain_se_pct,
            }
            for pair in self.ranks
        ]
        return {
            "context": self.context,
            "baseline": asdict(self.baseline),
            "packs": [point.to_json() for point in self.packs],
            "skipped": list(self.skipped),
            "ranks": pairs,
            "layers": [{"first": r.first, "last": r.last, **asdict(r.change)} for r in self.layers],
            "alpha": [{"alpha": a.alpha, **asdict(a.change)} for a in self.alphas],
            "spectra": [asdict(one) for one in self.spectra],
            "size": None if self.costs is None else asdict(self.costs),
        }


def run_study(
    judge: Judge,
    knowledge: Knowledge,
    parts: Sequence[str] = PARTS,
    *,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Study:
    """Run `parts` of the study; what was measured before is taken from there.

    Raises
    ------
    CheckpointError, ConfigError
        The model is dense, or a part is not known.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(
            f"no part {', '.join(unknown) or 'given'}: choose from {', '.join(PARTS)}"
        )
    if judge.decoder.memory is None:
        raise CheckpointError("a dense model has no memory to study")
    reporter = reporter or Reporter()
    with tempfile.TemporaryDirectory(prefix="tolpack-study-") as folder:
        bench = Bench(judge, knowledge, Path(folder), fresh=fresh, reporter=reporter)
        with bench.workshop:
            return _Run(bench, judge.decoder.memory, reporter).study(parts)


class _Run:
    def __init__(self, bench: Bench, memory: Memory, reporter: Reporter) -> None:
        self._bench, self._judge, self._memory = bench, bench.judge, memory
        self._reporter = reporter
        self._packs: dict[Setting, SweepPoint] = {}
        self._skipped: list[str] = []

    def study(self, parts: Sequence[str]) -> Study:
        """Run the parts in the order of `PARTS`: the cheap packs come first."""
        judge = self._judge
        if "precision" in parts:
            for bits in (16, 8, 4):
                self._pack(Setting(bits=bits))
        ranks = self._ranks() if "ranks" in parts else ()
        if "trade-off" in parts:
            for rank in ("none", "auto"):
                for increase in _INCREASES:
                    self._pack(Setting(rank, "auto", max_ppl_increase=increase))
        layers = self._layers() if "layers" in parts else ()
        alphas = self._alphas() if "alpha" in parts else ()
        spectra = self._spectra() if "spectra" in parts else ()
        costs = model_costs(judge.checkpoint) if "size" in parts else None
        packs = front(tuple(self._packs.values()))
        return Study(
            judge.context,
            judge.baseline,
            packs,
            tuple(self._skipped),
            ranks,
            layers,
            alphas,
            spectra,
            costs,
        )

    def _pack(self, setting: Setting) -> SweepPoint:
        self._reporter.say(f"pack: {setting.label}")
        found = self._packs[setting] = self._bench.point(setting)
        score = found.score
        self._reporter.say(
            f"  {score.bytes / 1e6:.2f} MB, {score.ppl_increase_pct:+.3f} "
            f"± {score.ppl_increase_se_pct:.3f} %"
        )
        return found

    def _skip(self, what: str) -> None:
        self._reporter.say(f"  not built: {what}")
        self._skipped.append(what)

    def _ranks(self) -> tuple[RankPair, ...]:
        pairs = []
        for rank in _UNIFORM:
            uniform = Setting(rank)
            one = self._pack(uniform)
            by_loss = Setting("auto", size=str(one.score.bytes))
            try:
                other = self._pack(by_loss)
            except ConfigError as error:  # a table of a few pages
                self._skip(f"{by_loss.label}: {error}")
                continue
            change, change_se = increase_pct(
                self._bench.windows(by_loss), self._bench.windows(uniform)
            )
            pairs.append(RankPair(one, other, -change, change_se))
        return tuple(pairs)

    def _layers(self) -> tuple[LayerRun, ...]:
        count, hidden = len(self._judge.decoder.layers), self._judge.checkpoint.config.hidden_size
        found = []
        for first, last in layer_runs(count):
            memory = Without(self._memory, first, last, hidden)
            name = f"without layer {first}" + (f" … {last}" if last > first else "")
            found.append(LayerRun(first, last, self._changed(memory, name, LAYER_TOKENS)))
        return tuple(found)

    def _alphas(self) -> tuple[AlphaPoint, ...]:
        return tuple(
            AlphaPoint(alpha, self._changed(Scaled(self._memory, alpha), f"α = {alpha}"))
            for alpha in ALPHAS
        )

    def _changed(self, memory: Memory, name: str, tokens: int | None = None) -> Change:
        def measure() -> dict[str, Any]:
            score = self._judge.score(memory, name, tokens)
            base = _first_windows(self._judge.base_score, score)
            increase, error = increase_pct(score, base)
            return asdict(Change(score.ppl, score.ppl_se, increase, error, score.total_tokens))

        return Change(**self._bench.measured.get((name, tokens), measure))

    def _spectra(self) -> tuple[LayerSpectrum, ...]:
        self._reporter.say("spectra")
        return layer_spectra(self._bench.workshop.table, self._reporter)


def layer_runs(count: int) -> list[tuple[int, int]]:
    """(first, last) of the runs of layers to leave out: all, or of many layers some lengths."""
    lengths = range(1, count) if count <= _ALL_RUNS else [2**n for n in range(count.bit_length())]
    return [
        (first, first + length - 1)
        for length in lengths
        if length < count
        for first in range(count - length + 1)
    ]


def _first_windows(base: Score, like: Score) -> Score:
    """The windows of `base` that `like` has: a last one that is cut short is measured whole."""
    count = len(like.tokens)
    if like.tokens[-1] != base.tokens[count - 1]:
        raise ConfigError("the tokens of a part of the study must be whole windows")
    return Score(base.nll_nats[:count], base.tokens[:count])
