"""``--drop auto``: which layers are worth less than their bytes.

A pack is made for all layers first. At its step, loss and size trade at a known slope: the curves
of size against loss are near ``loss ∝ size^(-LOSS_POWER)`` (docs/lab-notes.md). A layer goes if its
loss, measured with its rows folded into its neighbours, is less than its bytes are worth at that
slope; the layers most likely to go are found by the quadratic form. The packs with and without the
layers found are held against each other, and the better one is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tolpack.compress.entropy.encoder import EntropyCodedAssembly
from tolpack.compress.entropy.error_compensation import around, carry_into, remaining
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.settings import Drop
from tolpack.errors import ConfigError
from tolpack.runtime.progress import Reporter

LOSS_POWER = 3.0
# Layers that are tried, of those that may go next.
_TRIED = 4

Make = Callable[[tuple[int, ...]], EntropyCodedAssembly]


def best_assembly(make: Make, drop: Drop, reporter: Reporter) -> EntropyCodedAssembly:
    """Return the assembly that drops what the slope says.

    Parameters
    ----------
    make : callable
        Gives the assembly that drops given layers.
    drop : Drop
        ``auto``, or a number of layers.
    reporter : Reporter
        Is told what is tried.

    Raises
    ------
    ConfigError
        The table cannot be run, so nothing is known of losses.
    """
    whole = make(())
    if whole.trial is None:
        raise ConfigError("--drop auto measures losses, but the model cannot be run: name layers")
    if drop.most is not None and drop.most >= whole.source.num_layers:
        raise ConfigError(f"--drop auto:{drop.most} leaves no layer: keep at least one")
    dropped = _cheapest(whole, whole.trial, make, drop, reporter)
    reporter.say(f"auto: dropping {', '.join(map(str, dropped)) or 'no layer'}")
    if not dropped:
        return whole
    without = make(dropped)
    if drop.most is not None or _is_better(without, whole, reporter):
        return without
    return whole


def _cheapest(
    whole: EntropyCodedAssembly,
    trial: HeldOutValidation,
    make: Make,
    drop: Drop,
    reporter: Reporter,
) -> tuple[int, ...]:
    """Choose layers one by one, as long as each is worth less than its bytes."""
    sizes = whole.layer_bytes(whole.chosen)
    predicted = {layer: _predicted_loss(whole, trial, layer) for layer in whole.kept}
    slope = LOSS_POWER * _loss(whole) / whole.predicted_bytes(whole.chosen)
    dropped: tuple[int, ...] = ()
    cost = 0.0
    while len(dropped) + 1 < len(whole.kept):
        if drop.most is not None and len(dropped) == drop.most:
            break
        found = []
        left = (layer for layer in whole.kept if layer not in dropped)
        likely = sorted(left, key=lambda layer: predicted[layer] - slope * sizes[layer])
        for layer in likely[:_TRIED]:
            increase, error = _folding_cost(make((*dropped, layer)), trial)
            reporter.say(f"auto: without layer {layer}: {increase:+.3f} ± {error:.3f} % perplexity")
            loss = math.log1p(increase / 100)
            found.append((slope * sizes[layer] - (loss - cost), loss, layer))
        gain, loss, layer = max(found)
        if gain <= 0 and drop.most is None:
            break
        dropped, cost = tuple(sorted((*dropped, layer))), loss
    return dropped


def _folding_cost(assembly: EntropyCodedAssembly, trial: HeldOutValidation) -> tuple[float, float]:
    """Perplexity increase in percent, and its standard error, of the dropped layers alone."""
    source, ids = assembly.source, trial.token_ids
    rows = np.zeros((len(ids), source.num_layers, source.hidden_size), np.float32)
    for layer in assembly.kept:
        rows[:, layer] = assembly.rounder.table.layer(layer)(ids)
    return trial.increase_pct(rows)


def _predicted_loss(assembly: EntropyCodedAssembly, trial: HeldOutValidation, layer: int) -> float:
    """Nats per token that dropping a layer costs by the quadratic form."""
    model = assembly.weighing.model
    if model is None:
        raise ValueError("a table that cannot be run has no losses")
    rows = assembly.source.layer(layer)(trial.token_ids).astype(np.float64)
    others = around(layer, assembly.kept)
    carry = carry_into(model, layer, others, assembly.rounder.floor)
    metric = remaining(model, layer, others, assembly.rounder.floor, carry)
    return 0.5 * float(trial.weights @ np.sum((rows @ metric) * rows, axis=1))


def _loss(assembly: EntropyCodedAssembly) -> float:
    """Nats per token that the chosen pack costs, at least a hundredth of a percent."""
    increase, _ = assembly.measured_increase(assembly.chosen)
    return max(math.log1p(increase / 100), 1e-4)


def _is_better(one: EntropyCodedAssembly, other: EntropyCodedAssembly, reporter: Reporter) -> bool:
    """Compare sizes brought to equal loss along the slope."""
    merits = []
    for assembly in (one, other):
        size, loss = assembly.predicted_bytes(assembly.chosen), _loss(assembly)
        merits.append(math.log(size) + math.log(loss) / LOSS_POWER)
    change = float(np.expm1(merits[0] - merits[1]))
    reporter.say(f"auto: dropping changes the size at equal loss by {change:+.1%}")
    return change < 0
