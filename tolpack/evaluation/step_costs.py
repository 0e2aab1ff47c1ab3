"""Predicted costs of the steps of sweeps and studies, for `tolpack.evaluation.step_progress`.

The unit is a token that passes through the model once. The constants were fitted to steps of the
bundled model and of one with 8,192 tokens; what they lack in a model is learned as steps are timed.
"""

from __future__ import annotations

from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.step_progress import Step
from tolpack.evaluation.sweep_grid import PackOptions

# Passes of a text: checkpoint and pack side by side; a changed memory alone.
_COMPARED, _SCORED = 2, 1
# For each row of the table: what it takes to compute and store it, with a basis, and to plan and
# code it by loss, with the tries of a search.
_STORED, _BASIS, _BY_LOSS, _SEARCHED, _TRELLIS = 1, 3, 40, 80, 160
# Tokens of the calibration text on which each of some five tries is measured, two passes each.
_TRIED = 5 * 2 * 4096
# For each row, what the loss metrics take: measured once for searches, and once for ranks alone.
_CALIBRATION = 80


def pack_steps(options: list[PackOptions], evaluator: Evaluator) -> list[Step]:
    """Return the steps that build and evaluate packs; the first by loss also calibrate."""
    steps, calibrated = [], set()
    for one in options:
        once = 0.0
        if "auto" in (one.rank, one.bits) and (one.bits == "auto") not in calibrated:
            calibrated.add(one.bits == "auto")
            once = float(_CALIBRATION * evaluator.model.vocab_size)
        steps.append(Step(_kind(one), _pack_cost(one, evaluator), once))
    return steps


def ablation_step(evaluator: Evaluator, tokens: int | None = None) -> Step:
    """Return the step that scores a changed memory on `tokens` tokens of each text, or on all."""
    sizes = [ids.size - 1 for ids in evaluator.text_ids]
    cost = _SCORED * sum(size if tokens is None else min(size, tokens) for size in sizes)
    return Step("ablation", float(cost))


def _pack_cost(options: PackOptions, evaluator: Evaluator) -> float:
    rows = _STORED
    if options.bits == "auto":
        rows += _TRELLIS if options.trellis else _SEARCHED
    elif options.rank == "auto":
        rows += _BY_LOSS
    elif options.rank != "none":
        rows += _BASIS
    tried = _TRIED if options.bits == "auto" else 0
    scored = _COMPARED * sum(ids.size - 1 for ids in evaluator.text_ids)
    return float(scored + tried + rows * evaluator.model.vocab_size)


def _kind(options: PackOptions) -> str:
    """Return what packs have in common whose costs are alike."""
    if options.bits == "auto":
        return "searched with a trellis" if options.trellis else "searched"
    return "ranks by loss" if options.rank == "auto" else "stored"
