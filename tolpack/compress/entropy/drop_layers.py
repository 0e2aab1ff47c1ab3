"""``--drop auto``: layers whose loss is less than what their bytes would buy elsewhere.

A pack is made for all layers first. At its step, loss and size trade at a known slope: the curves
of size against loss are near ``loss ∝ size^(-LOSS_POWER)`` (docs/lab-notes.md). A layer goes if its
loss, measured while its neighbours compensate for it, is less than its bytes save at that
slope; the layers most likely to go are found by the quadratic form. The packs with and without the
layers found are compared, and the better one is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tolpack.compress.entropy.compensated_table import CompensatedTable, dropped_terms
from tolpack.compress.entropy.compensation_matrices import (
    compensation_matrix,
    neighbours,
    remaining_metric,
)
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.entropy.loss_measure import Loss
from tolpack.compress.entropy.planner import EntropyCodedPlanner
from tolpack.compress.entropy.table_quantizer import damping
from tolpack.compress.plan import PlanInputs
from tolpack.compress.settings import Drop
from tolpack.errors import ConfigError
from tolpack.runtime.progress import Reporter

LOSS_POWER = 3.0
# Layers that are tried, of those that may go next.
_TRIED = 4

# Gives the inputs of a plan that drops given layers.
InputsWithout = Callable[[tuple[int, ...]], PlanInputs]


def best_planner(
    inputs_without: InputsWithout, drop: Drop, reporter: Reporter
) -> EntropyCodedPlanner:
    """Return the planner of the pack that drops the layers that cost least.

    Parameters
    ----------
    inputs_without : callable
        Gives the inputs of a plan that drops given layers.
    drop : Drop
        ``auto``, or a number of layers.
    reporter : Reporter
        Receives a line for each layer that is tried.

    Raises
    ------
    ConfigError
        The table cannot be run, so nothing is known of losses.
    """
    inputs = inputs_without(())
    if inputs.stats.model is None:
        raise ConfigError("--drop auto measures losses, but the model cannot be run: name layers")
    if drop.most is not None and drop.most >= len(inputs.source.fields):
        raise ConfigError(f"--drop auto:{drop.most} leaves no layer: keep at least one")
    whole = _searched(inputs)
    dropped = _cheapest(whole, inputs_without, drop, reporter)
    reporter.say(f"auto: dropping {', '.join(map(str, dropped)) or 'no layer'}")
    if not dropped:
        return whole
    without = _searched(inputs_without(dropped))
    if drop.most is not None or _is_better(without, whole, reporter):
        return without
    return whole


def _searched(inputs: PlanInputs) -> EntropyCodedPlanner:
    """Return a planner whose candidate for the settings was searched."""
    planner = EntropyCodedPlanner.of(inputs)
    return replace(planner, known=planner.choice())


def _cheapest(
    whole: EntropyCodedPlanner, inputs_without: InputsWithout, drop: Drop, reporter: Reporter
) -> tuple[int, ...]:
    """Choose layers one by one, as long as each costs less loss than its bytes save."""
    kept, candidate, validation = whole.inputs.kept, whole.chosen, whole.measured_on
    measure, sizes = validation.measure, whole.layer_bytes(candidate)
    predicted = {layer: _predicted_loss(whole, layer) for layer in kept}
    slope = LOSS_POWER * _loss(whole) / whole.predicted_bytes(candidate)
    dropped: tuple[int, ...] = ()
    cost = 0.0
    while len(dropped) + 1 < len(kept):
        if drop.most is not None and len(dropped) == drop.most:
            break
        found = []
        left = (layer for layer in kept if layer not in dropped)
        likely = sorted(left, key=lambda layer: predicted[layer] - slope * sizes[layer])
        for layer in likely[:_TRIED]:
            found_loss = _dropping_cost(inputs_without((*dropped, layer)), validation)
            reporter.say(f"auto: without layer {layer}: {measure.with_error(found_loss)}")
            loss = measure.nats(found_loss.value)
            found.append((slope * sizes[layer] - (loss - cost), loss, layer))
        gain, loss, layer = max(found)
        if gain <= 0 and drop.most is None:
            break
        dropped, cost = tuple(sorted((*dropped, layer))), loss
    return dropped


def _dropping_cost(inputs: PlanInputs, validation: HeldOutValidation) -> Loss:
    """Loss of the dropped layers alone, in the unit of its measure."""
    source, ids = inputs.source, validation.token_ids
    terms = dropped_terms(
        inputs.stats.model, inputs.kept, len(source.fields), damping(inputs),
        inputs.workspace.scratch,
    )  # fmt: skip
    table = CompensatedTable(source, terms)
    rows = np.zeros((len(ids), len(source.fields), inputs.width), np.float32)
    for layer in inputs.kept:
        rows[:, layer] = table.field_rows(layer)(ids)
    return validation.loss(rows)


def _predicted_loss(planner: EntropyCodedPlanner, layer: int) -> float:
    """Nats per token that dropping a layer costs by the quadratic form."""
    inputs, validation = planner.inputs, planner.measured_on
    model = inputs.stats.model
    if model is None:
        raise ValueError("a table that cannot be run has no losses")
    rows = inputs.source.field_rows(layer)(validation.token_ids).astype(np.float64)
    others = neighbours(layer, inputs.kept)
    matrix = compensation_matrix(model, layer, others, damping(inputs))
    metric = remaining_metric(model, layer, others, damping(inputs), matrix)
    return 0.5 * float(validation.weights @ np.sum((rows @ metric) * rows, axis=1))


def _loss(planner: EntropyCodedPlanner) -> float:
    """Nats per token that the chosen pack costs, and no less than can be told."""
    choice, measure = planner.choice(), planner.measured_on.measure
    loss = choice.loss or planner.measured_loss(choice.candidate)
    return max(measure.nats(loss.value), measure.least_nats)


def _is_better(one: EntropyCodedPlanner, other: EntropyCodedPlanner, reporter: Reporter) -> bool:
    """Compare sizes brought to equal loss along the slope."""
    merits = []
    for planner in (one, other):
        size, loss = planner.predicted_bytes(planner.chosen), _loss(planner)
        merits.append(math.log(size) + math.log(loss) / LOSS_POWER)
    change = float(np.expm1(merits[0] - merits[1]))
    reporter.say(f"auto: dropping changes the size at equal loss by {change:+.1%}")
    return change < 0
