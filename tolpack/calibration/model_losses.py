"""What errors of a model's table cost: loss metrics, measured on a text and kept for later builds.

The text is the calibration text, or one that is sampled from the model itself.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration import metrics_cache
from tolpack.calibration.loss_metrics import (
    SAMPLED_SEQUENCES,
    LossMetrics,
    loss_windows,
    measure_loss_metrics,
    metric_tokens,
    sample_text,
    sampled_length,
)
from tolpack.calibration.metric_sums import REVISION
from tolpack.calibration.open_model import TRANSFORMERS, open_model
from tolpack.calibration.spread_metrics import spread_loss_metrics
from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.language_model import LanguageModel
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.runtime.scratch import SpilledArray
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import local_input
from tolpack.workspace.workspace import Workspace

_MAX_CONTEXT, _MIN_CONTEXT = 512, 32
# Sampled sequences of models that transformers runs: a step of them takes tens of milliseconds.
_SAMPLED_CONTEXT = 128
# One part of so many is held out of a calibration text.
_HELD_OUT = 5
# Tokens by which a model is judged before its gradients are measured: enough to tell a perplexity
# of 140 from one of 16,330, and 2 % of the operations of the gradients at 1B.
_GLANCED_TOKENS, _MOST_NATS = 2048, 700.0
# A window feeds one token at least and scores the next.
_LEAST_TOKENS = 2


@dataclass(frozen=True, slots=True)
class CalibratedModel:
    """A model that can be run, the text it was measured on, and what was measured.

    ``metrics``, ``crossed``, ``count_slope``: see `tolpack.calibration.loss_metrics.LossMetrics`.
    ``validation_ids``: the text to try packs on; another one than ``token_ids`` where a part is
    held out.
    """

    model: LanguageModel
    token_ids: NDArray[np.int64]
    validation_ids: NDArray[np.int64]
    context: int
    metrics: tuple[SpilledArray, ...]
    crossed: tuple[tuple[SpilledArray, ...], ...]
    count_slope: float


def measure_losses(
    source: TableSource,
    ids: NDArray[np.int64] | None,
    reach: int,
    workspace: Workspace,
    check: TokenizerCheck | None = None,
) -> CalibratedModel | None:
    """Run the model of `source` on a text; ``None`` where there is none, or it cannot be run, or it
    ignores the table.

    Parameters
    ----------
    source : TableSource
        The table.
    ids : ndarray or None
        The calibration text, int64 (tokens,); ``None``: a text is sampled from the model.
    reach : int
        How many layers above each one are measured together with it, where they can make up for
        its errors; if any, a fifth of the text is held out.
    workspace : Workspace
        Memory, scratch space and progress.
    check : TokenizerCheck, optional
        Judges how well the model predicts the calibration text.

    Raises
    ------
    CheckpointError
        There is a text, but the reference decoder cannot run the model.
    ConfigError
        There is a text, and only a library is missing.
    """
    reporter = workspace.reporter
    if source.checkpoint is None and source.transformers_model is not None:
        local_input(source.transformers_model.path, TRANSFORMERS)  # no other pack than of a copy
    try:
        model = open_model(source, workspace.limits)
    except (CheckpointError, ConfigError) as error:
        # A text also counts the rows of tables that are read, which needs no model.
        needed = source.checkpoint is not None or isinstance(error, ConfigError)
        if ids is not None and needed:
            raise
        reporter.say(f"auto: the model cannot be run ({error}), so every direction counts alike")
        return None
    context = min(model.max_position_embeddings or _MAX_CONTEXT, _MAX_CONTEXT)
    if source.checkpoint is None:
        most = workspace.limits.activation_bytes // model.activation_bytes
        context = min(context, max(most, _MIN_CONTEXT))
    if ids is None:
        reporter.say(
            "auto: no --calibrate text, so losses are measured on a text sampled from the model "
            "itself (seed 0)"
        )
        longest = context if source.checkpoint is not None else _SAMPLED_CONTEXT
        context = sampled_length(model, min(context, longest))
        try:
            with reporter.phase("sampling", SAMPLED_SEQUENCES * (context - 1), "tok") as done:
                ids = sample_text(model, context, progress=done)
        except CheckpointError as error:
            reporter.say(f"auto: no text can be sampled ({error}), so every direction counts alike")
            return None
    measured = measured_part(ids, reach)
    held_out = ids[len(measured) :] if reach else ids
    if min(len(measured), len(held_out)) < _LEAST_TOKENS:
        raise ConfigError(
            f"the calibration text has {len(ids)} tokens, of which {len(held_out)} are for trying "
            f"packs, expected {_LEAST_TOKENS} at least: give a longer text"
        )
    if check is not None:
        check.judge(_perplexity(model, held_out, context), "the calibration text", refuse=True)
    together = reach if source.fields_compensate else 0
    found = _cached_metrics(source, model, measured, context, together, workspace)
    unread = [n for n, metric in enumerate(found.metrics) if not np.trace(metric.load()) > 0]
    if unread:
        reporter.say(
            f"auto: the model's losses do not depend on field {unread[0]} of the table, so every "
            "direction counts alike"
        )
        return None
    return CalibratedModel(
        model, measured, held_out, context, found.metrics, found.crossed, found.count_slope
    )


def _perplexity(model: LanguageModel, ids: NDArray[np.int64], context: int) -> float:
    """Return the perplexity of a few windows spread over a text: a glance before the gradients."""
    windows = loss_windows(model, ids, context)
    count = min(len(windows), max(1, _GLANCED_TOKENS // (windows.shape[1] - 1)))
    windows = windows[np.arange(count) * len(windows) // count]
    with torch.inference_mode():
        nats = [float(model.nll(window[None]).double().mean()) for window in windows]
    return math.exp(min(sum(nats) / len(nats), _MOST_NATS))


def measured_part(ids: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return the part of a text that is measured: with `reach`, a fifth is held out at the end."""
    return ids[: len(ids) - len(ids) // _HELD_OUT] if reach else ids


def _cached_metrics(
    source: TableSource,
    model: LanguageModel,
    ids: NDArray[np.int64],
    context: int,
    reach: int,
    workspace: Workspace,
) -> LossMetrics:
    """Measure, or load the metrics that were measured before on this text and model."""
    scratch, reporter = workspace.scratch, workspace.reporter
    digest = hashlib.sha256(repr((REVISION, context, reach)).encode())
    digest.update(model.fingerprint())
    digest.update(ids.astype("<i8").tobytes())
    known = metrics_cache.load(digest.digest(), scratch)
    if known is not None:
        reporter.say("calibration: taken from an earlier build with this model and text")
        return known
    total = metric_tokens(model, len(ids), context)
    with reporter.phase("calibration", total, "tok") as done:
        if workspace.workers is None:
            found = measure_loss_metrics(model, ids, context, done, scratch, reach)
        else:
            found = spread_loss_metrics(source, model, ids, context, reach, workspace, done)
    model.check_unchanged()  # what is kept belongs to the weights in its key
    kept = metrics_cache.keep(digest.digest(), found)
    if kept is not None:
        reporter.say(f"calibration: kept in {kept}")
    return found
