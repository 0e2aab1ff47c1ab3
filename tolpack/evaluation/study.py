"""``tolpack study``: the paper's experiments (arXiv 2602.00398) on the checkpoint at hand.

========== ==========================================================================
precision  16, 8 and 4 bits without a basis (Table 7)
ranks      uniform ranks against ranks by loss at equal bytes (Table 8, its open question)
trade-off  entropy-coded packs, next to all of the above
layers     every layer, and every range of layers, left out (Figures 4 and 12)
alpha      the memory's contribution scaled by α (Table 1)
spectra    each layer's singular values (Figure 13)
size       weights and operations with FFNs, with the table, with packs
========== ==========================================================================

Packs and α are evaluated on all tokens, layers left out on the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation import STUDY_PARTS
from tolpack.evaluation.ablations import MemoryWithoutLayers, ScaledMemory
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.experiment_runner import (
    AblationResult,
    ExperimentOptions,
    ExperimentRunner,
    SweepResult,
    open_runner,
    results_on_text,
)
from tolpack.evaluation.model_costs import ModelCosts, model_costs
from tolpack.evaluation.scores import Baseline
from tolpack.evaluation.spectra import LayerSpectrum, layer_spectra
from tolpack.evaluation.step_costs import ablation_step, pack_steps
from tolpack.evaluation.step_progress import Step, StepProgress
from tolpack.evaluation.sweep import mark_front
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.lm_eval.task_scores import ModelScores, compared
from tolpack.model.language_model import Memory
from tolpack.model.perplexity import increase_pct

ALPHAS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.0)
_UNIFORM_RANKS = ("75%", "50%", "25%")
_DIVERGENCES = ("0.002", "0.008", "0.03")
# Layers are left out on so many tokens, in whole windows.
LAYER_TOKENS = 32_768
# With more layers, only ranges of 1, 2, 4, 8, … of them.
_ALL_RANGES = 12


@dataclass(frozen=True, slots=True)
class AlphaAblation:
    """The memory's outputs times ``alpha``."""

    alpha: float
    result: AblationResult


@dataclass(frozen=True, slots=True)
class LayerAblation:
    """Layers ``first … last`` without memory."""

    first: int
    last: int
    result: AblationResult


@dataclass(frozen=True, slots=True)
class RankComparison:
    """A uniform rank, and ranks by loss in no more bytes.

    ``gain_pct`` is how much lower the second one's perplexity is, paired window by window.
    """

    uniform: SweepResult
    by_loss: SweepResult
    gain_pct: float
    gain_se_pct: float | None


@dataclass(frozen=True, slots=True)
class Study:
    """All results; a part that was not asked for is empty.

    ``skipped``: a line for each pack that this checkpoint does not allow. ``tasks``: scores of the
    checkpoint, of each pack and of each α; empty unless tasks were asked for. ``warnings``: what
    makes its figures doubtful.
    """

    context: int
    baseline: Baseline
    packs: tuple[SweepResult, ...]
    skipped: tuple[str, ...]
    ranks: tuple[RankComparison, ...]
    layers: tuple[LayerAblation, ...]
    alphas: tuple[AlphaAblation, ...]
    spectra: tuple[LayerSpectrum, ...]
    costs: ModelCosts | None
    tasks: tuple[ModelScores, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ranks = [
            {
                "uniform": one.uniform.to_json(),
                "by_loss": one.by_loss.to_json(),
                "gain_pct": one.gain_pct,
                "gain_se_pct": one.gain_se_pct,
            }
            for one in self.ranks
        ]
        texts = [
            {"text": base.text, "baseline": base.to_json(),
             "packs": results_on_text(self.packs, number)}
            for number, base in enumerate(self.baseline.by_text)
        ]  # fmt: skip
        return {
            "context": self.context,
            "baseline": self.baseline.to_json(),
            "packs": [one.to_json() for one in self.packs],
            "skipped": list(self.skipped),
            "ranks": ranks,
            "layers": [{"first": n.first, "last": n.last, **asdict(n.result)} for n in self.layers],
            "alpha": [{"alpha": one.alpha, **asdict(one.result)} for one in self.alphas],
            "spectra": [asdict(one) for one in self.spectra],
            "size": None if self.costs is None else asdict(self.costs),
            "tasks": [one.to_json() for one in self.tasks],
            "warnings": list(self.warnings),
            **({"texts": texts} if texts else {}),
        }


def run_study(
    evaluator: Evaluator, options: ExperimentOptions, parts: Sequence[str] = STUDY_PARTS
) -> Study:
    """Run `parts` of the study; results that are cached are not measured again.

    Raises
    ------
    CheckpointError, ConfigError
        The model is dense, or a part is not known.
    """
    unknown = [part for part in parts if part not in STUDY_PARTS]
    if unknown or not parts:
        raise ConfigError(f"no part {unknown}: choose from {', '.join(STUDY_PARTS)}")
    memory = evaluator.model.memory
    if memory is None:
        raise CheckpointError("a dense model has no memory to study")
    with open_runner(evaluator, options) as runner:
        return _StudyRun(runner, memory, parts).study()


class _StudyRun:
    def __init__(self, runner: ExperimentRunner, memory: Memory, parts: Sequence[str]) -> None:
        self._runner, self._evaluator, self._memory = runner, runner.evaluator, memory
        self._parts = parts
        self._ranges = layer_ranges(len(self._evaluator.model.widths))
        self._packs: dict[PackOptions, SweepResult] = {}
        self._skipped: list[str] = []
        self._progress = StepProgress(self._steps(), self._evaluator.reporter)

    def study(self) -> Study:
        """Run the parts in the order of `STUDY_PARTS`: the cheap packs come first."""
        evaluator, parts = self._evaluator, self._parts
        for options in self._independent_packs():
            self._evaluate(options)
        ranks = self._ranks() if "ranks" in parts else ()
        layers = self._layers() if "layers" in parts else ()
        alphas = self._alphas() if "alpha" in parts else ()
        spectra: tuple[LayerSpectrum, ...] = ()
        if "spectra" in parts:
            spectra = layer_spectra(self._runner.session.table, evaluator.reporter)
        checkpoint = evaluator.subject.checkpoint
        costs = model_costs(checkpoint) if "size" in parts and checkpoint is not None else None
        packs = mark_front(tuple(self._packs.values()))
        evaluator.warn_of_falls([(one.options.label, one.score) for one in packs])
        baseline, tasks = evaluator.baseline, self._tasks()
        return Study(
            evaluator.context, baseline, packs, tuple(self._skipped), ranks, layers,
            alphas, spectra, costs, tasks, evaluator.warnings,
        )  # fmt: skip

    def _tasks(self) -> tuple[ModelScores, ...]:
        """Return the tasks' scores, if there are tasks: the checkpoint's, of packs, and of α."""
        runner = self._runner
        if runner.tasks is None:
            return ()
        named = [("checkpoint", runner.memory_tasks(None, "checkpoint"))]
        named += [(one.label, runner.pack_tasks(one)) for one in self._packs]
        for alpha in ALPHAS if "alpha" in self._parts else ():
            memory = ScaledMemory(self._memory, alpha)
            named.append((alpha_name(alpha), runner.memory_tasks(memory, alpha_name(alpha))))
        return compared(named)

    def _independent_packs(self) -> list[PackOptions]:
        """Return the options that do not depend on the result of other ones."""
        packs = [PackOptions(bits=bits) for bits in (16, 8, 4) if "precision" in self._parts]
        if "trade-off" in self._parts:
            for rank in ("none", "auto"):
                packs += [PackOptions(rank, "auto", max_kld=one) for one in _DIVERGENCES]
        return packs

    def _steps(self) -> list[Step]:
        """Return the steps to come, in their order."""
        evaluator, packs = self._evaluator, self._independent_packs()
        if "ranks" in self._parts:
            packs += [PackOptions(rank) for one in _UNIFORM_RANKS for rank in (one, "auto")]
        steps = pack_steps(packs, evaluator)
        if "layers" in self._parts:
            steps += [ablation_step(evaluator, self._layer_tokens)] * len(self._ranges)
        if "alpha" in self._parts:
            steps += [ablation_step(evaluator)] * len(ALPHAS)
        return steps

    @property
    def _layer_tokens(self) -> int:
        """Tokens of each text on which layers are left out: whole windows."""
        context = self._evaluator.context
        return max(1, LAYER_TOKENS // len(self._evaluator.texts) // context) * context

    def _evaluate(self, options: PackOptions) -> SweepResult | None:
        """Evaluate a pack; ``None`` if this checkpoint does not allow it."""
        self._progress.begin(options.label)
        try:
            result = self._packs[options] = self._runner.evaluate(options)
        except ConfigError as error:
            self._skipped.append(f"{options.label}: {error}")
            self._progress.end(f"not built: {error}", self._runner.calibration_seconds())
            return None
        self._progress.end(result.summary, self._runner.calibration_seconds())
        return result

    def _ranks(self) -> tuple[RankComparison, ...]:
        comparisons = []
        for rank in _UNIFORM_RANKS:
            uniform = PackOptions(rank)
            one = self._evaluate(uniform)
            by_loss = PackOptions("auto", size=str(one.score.bytes) if one else "25%")
            other = self._evaluate(by_loss)
            if one is not None and other is not None:
                windows = self._runner.window_scores
                change, change_se = increase_pct(windows(by_loss), windows(uniform))
                comparisons.append(RankComparison(one, other, -change, change_se))
        return tuple(comparisons)

    def _layers(self) -> tuple[LayerAblation, ...]:
        widths, ablations = self._evaluator.model.widths, []
        for first, last in self._ranges:
            memory = MemoryWithoutLayers(self._memory, first, last, widths)
            name = f"without layer {first}" + (f" … {last}" if last > first else "")
            ablations.append(
                LayerAblation(first, last, self._ablate(memory, name, self._layer_tokens))
            )
        return tuple(ablations)

    def _alphas(self) -> tuple[AlphaAblation, ...]:
        ablations = []
        for alpha in ALPHAS:
            memory = ScaledMemory(self._memory, alpha)
            ablations.append(AlphaAblation(alpha, self._ablate(memory, alpha_name(alpha), None)))
        return tuple(ablations)

    def _ablate(self, memory: Memory, name: str, tokens: int | None) -> AblationResult:
        self._progress.begin(name)
        result = self._runner.ablate(memory, name, tokens)
        self._progress.end(result.summary)
        return result


def alpha_name(alpha: float) -> str:
    """Name the memory's outputs times `alpha`."""
    return f"α = {alpha}"


def layer_ranges(count: int) -> list[tuple[int, int]]:
    """Return (first, last) of the ranges to leave out of `count` layers.

    All of them; of many layers only those of 1, 2, 4, 8, … layers.
    """
    lengths = range(1, count) if count <= _ALL_RANGES else [2**n for n in range(count.bit_length())]
    return [
        (first, first + length - 1)
        for length in lengths or [1]
        if length < max(count, 2)
        for first in range(count - length + 1)
    ]
