"""Finding the step of ``--bits auto``: the finest that a size allows, or the coarsest that a loss
or an error of the rows allows.

Size falls, and loss rises, smoothly with the step, nearly as powers of it. So both searches take
secants of logarithms, kept within the bracket that is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from tolpack.compress.entropy.loss_measure import PERPLEXITY, Loss, LossMeasure
from tolpack.container.preamble import SMALL_SECTION_ALIGNMENT
from tolpack.errors import ConfigError
from tolpack.model.plausibility import UNLIKE_TEXT, falls
from tolpack.runtime.progress import Reporter

# A size may end this much below its limit, and what a section fills up, and is aimed at the middle;
# for small files this much in all.
_SIZE_ROOM, _MOST_SIZE_ROOM = 0.003, 0.012
# A relative error, which is measured without noise, may end this much below its limit.
_ERROR_ROOM = 0.01
_MAX_TRIALS = 12
_FARTHEST = 10.0
# A loss rises about with this power of the step.
_LOSS_RISE = -1.6
_WHAT_A_STEP_IS = (
    "auto: the step is the distance between neighbouring quantized values; a larger one makes a "
    "smaller pack, which costs more"
)
_Made = TypeVar("_Made")


def search_size(
    make: Callable[[float], _Made],
    measure: Callable[[_Made], int],
    limit: int,
    start: float,
    reporter: Reporter,
) -> _Made:
    """Return what `make` gives at the smallest step whose predicted size stays under `limit`.

    Parameters
    ----------
    make : callable
        Gives a candidate for a step.
    measure : callable
        Gives its size in bytes.
    limit : int
        Bytes; the result has 0.997 to 1.000 of it, less up to 64 bytes but 0.988 at least,
        unless no step comes so near.
    start : float
        First step to try.
    reporter : Reporter
        Is told what was chosen.

    Raises
    ------
    ConfigError
        Even the coarsest step takes more.
    """

    def found(step: float) -> tuple[_Made, float]:
        made = make(step)
        return made, -math.log(measure(made))

    room = min(_SIZE_ROOM + SMALL_SECTION_ALIGNMENT / limit, _MOST_SIZE_ROOM)
    best, value = _search(found, -math.log(limit), room, start, rising=0.5)
    size = round(math.exp(-value))
    if best is None:
        raise ConfigError(
            f"--size of {limit:,} bytes is too small: the coarsest pack takes {size:,} bytes; give "
            "more, or leave layers out with --drop"
        )
    reporter.say(f"auto: a file of {size:,} bytes is predicted, {size / limit:.3f} of its limit")
    return best


def search_error(
    make: Callable[[float], _Made],
    measure: Callable[[_Made], float],
    limit_pct: float,
    start: float,
    reporter: Reporter,
) -> _Made:
    """Return what `make` gives at the largest step whose relative error stays under a limit.

    As `search_loss`; `measure` gives a candidate's relative error in percent.
    """
    trials: list[tuple[float, float]] = []

    def tried(step: float) -> tuple[_Made, float]:
        made = make(step)
        found = measure(made)
        trials.append((step, found))
        reporter.say(f"auto: step {step:.3g} has a relative error of {found:.3f} %")
        return made, found

    def settled(following: float, _: float) -> bool:
        return _is_listed(following, trials)

    reporter.say(_WHAT_A_STEP_IS)
    best, found = _search_below(tried, limit_pct, _ERROR_ROOM, start, -1.0, settled)
    if best is None:
        raise ConfigError(
            f"--max-relative-error {limit_pct:g}% is not met by any step: the finest one tried has "
            f"{found:.3f} %; allow more, or use --bits 16 or lossless"
        )
    return best


def search_loss(
    make: Callable[[float], _Made],
    losses: Callable[[_Made], Loss],
    limit: float,
    start: float,
    reporter: Reporter,
    measure: LossMeasure = PERPLEXITY,
) -> tuple[_Made, Loss]:
    """Return what `make` gives at the largest step whose loss stays under a limit, and that loss.

    The search also ends where the next step's loss would differ from the best one's by less than
    the measure's room and the standard error of a difference between two trials, or where the step
    would be told by the same three digits.

    Parameters
    ----------
    make : callable
        Gives a candidate for a step.
    losses : callable
        Gives its loss, in the measure's unit.
    limit : float
        In the same unit; the result comes nearer than the measure's room, unless no step does.
    start : float
        First step to try.
    reporter : Reporter
        Is told every trial.
    measure : LossMeasure
        What the loss is measured in.

    Raises
    ------
    ConfigError
        Even the finest step costs more.
    """
    trials: list[tuple[float, Loss]] = []

    def tried(step: float) -> tuple[tuple[_Made, float, Loss], float]:
        made = make(step)
        loss = losses(made)
        trials.append((step, loss))
        reporter.say(f"auto: step {step:.3g} costs {measure.with_error(loss)}")
        return (made, step, loss), loss.value

    def settled(following: float, best: float) -> bool:
        if _is_listed(following, trials):
            return True
        near = sorted(trials, key=lambda one: abs(math.log(one[0] / following)))[:2]
        error = near[0][1].error_of_difference(near[-1][1])
        gain = abs(_LOSS_RISE * math.log(following / best))  # as a share of the limit
        return gain < measure.room and gain * limit < error

    reporter.say(_WHAT_A_STEP_IS)
    best, found = _search_below(tried, limit, measure.room, start, _LOSS_RISE, settled)
    _warn_of_falls(trials, measure, reporter)
    if best is None:
        raise ConfigError(
            f"{measure.option} {limit:g}{measure.unit} is not met by any step: the finest one "
            f"tried costs {measure.with_unit(found)}; allow more, or use --bits 8 or 16"
        )
    made, step, loss = best
    reporter.say(
        f"auto: chose step {step:.3g}, which costs {measure.with_error(loss)} "
        f"(limit {limit:g}{' %' * (measure is PERPLEXITY)})"
    )
    return made, loss


def _is_listed(step: float, trials: Sequence[tuple[float, object]]) -> bool:
    """Whether a step is told by the same digits as one that was tried."""
    return f"{step:.3g}" in {f"{tried:.3g}" for tried, _ in trials}


def _warn_of_falls(
    trials: Sequence[tuple[float, Loss]], measure: LossMeasure, reporter: Reporter
) -> None:
    """Warn if perplexity fell at a step by more than chance."""
    step, loss = min(trials, key=lambda one: one[1].value)
    if measure is PERPLEXITY and falls(loss.value, loss.error):
        reporter.warn(
            f"at step {step:.3g} perplexity falls by {-loss.value:.1f} %, though rows are worse: "
            f"{UNLIKE_TEXT}; limit the KL divergence instead, with --max-kld"
        )


def _search_below(
    measure: Callable[[float], tuple[_Made, float]],
    limit: float,
    room: float,
    start: float,
    rising: float,
    settled: Callable[[float, float], bool],
) -> tuple[_Made | None, float]:
    """As `_search`, for a measured value that stays under a limit; returns the value."""

    def found(step: float) -> tuple[_Made, float]:
        made, value = measure(step)
        return made, -math.log(max(value, 1e-3 * limit))

    best, value = _search(found, -math.log(limit), room, start, rising, settled)
    return best, math.exp(-value)


def _search(
    measure: Callable[[float], tuple[_Made, float]],
    limit: float,
    room: float,
    start: float,
    rising: float,
    settled: Callable[[float, float], bool] | None = None,
) -> tuple[_Made | None, float]:
    """Find a step where the value, a logarithm, is in ``limit … limit + room``.

    `rising` is the value's expected slope over the step's logarithm; its sign decides on which side
    of the goal values are large; `settled` says whether trying a step can tell no more, given the
    best one. Returns the best that was found with a value of `limit` at least,
    or ``None`` and the last value.
    """
    best: _Made | None = None
    best_value = last = best_at = math.inf
    good = bad = None  # (logarithm of the step, value) on either side of the limit
    at = first = math.log(start)
    for _ in range(_MAX_TRIALS):
        made, last = measure(math.exp(at))
        if last >= limit:
            good = (at, last)
            if last < best_value:
                best, best_value, best_at = made, last, at
            if last <= limit + room:
                break
        else:
            bad = (at, last)
        if good and bad and good[0] != bad[0]:
            slope = (good[1] - bad[1]) / (good[0] - bad[0])
            near = good if abs(good[1] - limit) < abs(bad[1] - limit) else bad
            at = near[0] + (limit + room / 2 - near[1]) / slope
            low, high = sorted((good[0], bad[0]))
            if (high - low) * abs(rising) < room / 4:  # what is left between them is noise
                break
            margin = 0.1 * (high - low)
            at = min(max(at, low + margin), high - margin)
        else:
            at += max(-1.5, min(1.5, (limit + room / 2 - last) / rising))
        if abs(at - first) > _FARTHEST:
            break
        if best is not None and settled and settled(math.exp(at), math.exp(best_at)):
            break
    return best, best_value if best is not None else last
