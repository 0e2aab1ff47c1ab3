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

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation import PARTS
from tolpack.evaluation.ablations import ScaledMemory, WithoutLayers
from tolpack.evaluation.evaluator import Baseline, Evaluator
from tolpack.evaluation.model_size import ModelCosts, model_costs
from tolpack.evaluation.spectra import LayerSpectrum, layer_spectra
from tolpack.evaluation.sweep import front
from tolpack.evaluation.sweep_progress import SweepProgress
from tolpack.evaluation.sweep_runner import Change, Inputs, SweepPoint, SweepRunner, workplace
from tolpack.evaluation.sweep_setting import SweepSetting
from tolpack.model.decoder import Memory
from tolpack.model.perplexity import increase_pct

ALPHAS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.0)
_UNIFORM = ("75%", "50%", "25%")
_INCREASES = ("0.25%", "1%", "3%")
# Tokens that each run of layers is left out on.
LAYER_TOKENS = 32_768
# With more layers, only runs of 1, 2, 4, 8, … of them.
_ALL_RUNS = 12


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


def run_study(evaluator: Evaluator, inputs: Inputs, parts: Sequence[str] = PARTS) -> Study:
    """Run `parts` of the study; what was measured before is taken from there.

    Raises
    ------
    CheckpointError, ConfigError
        The model is dense, or a part is not known.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"no part {unknown}: choose from {', '.join(PARTS)}")
    if evaluator.decoder.memory is None:
        raise CheckpointError("a dense model has no memory to study")
    with workplace(evaluator, inputs) as place:
        return _Run(place, evaluator.decoder.memory, parts).study()


class _Run:
    def __init__(self, place: SweepRunner, memory: Memory, parts: Sequence[str]) -> None:
        self._place, self._evaluator, self._memory = place, place.evaluator, memory
        self._parts = parts
        self._runs = layer_runs(len(self._evaluator.decoder.layers))
        self._packs: dict[SweepSetting, SweepPoint] = {}
        self._skipped: list[str] = []
        self._steps = SweepProgress(self._kinds(), self._evaluator.reporter)

    def study(self) -> Study:
        """Run the parts in the order of `PARTS`: the cheap packs come first."""
        evaluator, parts = self._evaluator, self._parts
        for setting in self._settings():
            self._pack(setting)
        ranks = self._ranks() if "ranks" in parts else ()
        layers = self._layers() if "layers" in parts else ()
        alphas = self._alphas() if "alpha" in parts else ()
        spectra: tuple[LayerSpectrum, ...] = ()
        if "spectra" in parts:
            spectra = layer_spectra(self._place.session.table, evaluator.reporter)
        costs = model_costs(evaluator.checkpoint) if "size" in parts else None
        packs = front(tuple(self._packs.values()))
        return Study(
            evaluator.context, evaluator.baseline, packs, tuple(self._skipped), ranks, layers,
            alphas, spectra, costs,
        )  # fmt: skip

    def _settings(self) -> list[SweepSetting]:
        """Settings that do not depend on what another one gave."""
        found = [SweepSetting(bits=bits) for bits in (16, 8, 4) if "precision" in self._parts]
        if "trade-off" in self._parts:
            for rank in ("none", "auto"):
                found += [SweepSetting(rank, "auto", max_ppl_increase=one) for one in _INCREASES]
        return found

    def _kinds(self) -> list[str]:
        """The steps to come; see `SweepProgress`."""
        kinds = [setting.kind for setting in self._settings()]
        if "ranks" in self._parts:
            kinds += [SweepSetting("50%").kind, SweepSetting("auto").kind] * len(_UNIFORM)
        kinds += ["some tokens"] * len(self._runs) if "layers" in self._parts else []
        return kinds + (["all tokens"] * len(ALPHAS) if "alpha" in self._parts else [])

    def _pack(self, setting: SweepSetting) -> SweepPoint | None:
        """Measure a pack; ``None`` if this checkpoint does not allow it."""
        self._steps.begin(setting.label)
        try:
            found = self._packs[setting] = self._place.point(setting)
        except ConfigError as error:
            self._skipped.append(f"{setting.label}: {error}")
            self._steps.end(f"not built: {error}")
            return None
        self._steps.end(found.summary)
        return found

    def _ranks(self) -> tuple[RankPair, ...]:
        pairs = []
        for rank in _UNIFORM:
            uniform = SweepSetting(rank)
            one = self._pack(uniform)
            by_loss = SweepSetting("auto", size=str(one.score.bytes) if one else "25%")
            other = self._pack(by_loss)
            if one is not None and other is not None:
                windows = self._place.windows
                change, change_se = increase_pct(windows(by_loss), windows(uniform))
                pairs.append(RankPair(one, other, -change, change_se))
        return tuple(pairs)

    def _layers(self) -> tuple[LayerRun, ...]:
        context, hidden = self._evaluator.context, self._evaluator.checkpoint.config.hidden_size
        tokens = max(1, LAYER_TOKENS // context) * context
        found = []
        for first, last in self._runs:
            memory = WithoutLayers(self._memory, first, last, hidden)
            name = f"without layer {first}" + (f" … {last}" if last > first else "")
            found.append(LayerRun(first, last, self._changed(memory, name, tokens)))
        return tuple(found)

    def _alphas(self) -> tuple[AlphaPoint, ...]:
        found = []
        for alpha in ALPHAS:
            memory = ScaledMemory(self._memory, alpha)
            found.append(AlphaPoint(alpha, self._changed(memory, f"α = {alpha}", None)))
        return tuple(found)

    def _changed(self, memory: Memory, name: str, tokens: int | None) -> Change:
        self._steps.begin(name)
        found = self._place.changed(memory, name, tokens)
        self._steps.end(found.summary)
        return found


def layer_runs(count: int) -> list[tuple[int, int]]:
    """(first, last) of the runs of layers to leave out: all, or of many layers some lengths."""
    lengths = range(1, count) if count <= _ALL_RUNS else [2**n for n in range(count.bit_length())]
    return [
        (first, first + length - 1)
        for length in lengths or [1]
        if length < max(count, 2)
        for first in range(count - length + 1)
    ]
