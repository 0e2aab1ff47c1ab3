"""What errors of a model's table cost: loss metrics, measured on a text and kept for later builds.

The text is the calibration text, or one that is sampled from the model itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration import metrics_cache
from tolpack.calibration.loss_metrics import (
    SAMPLED_SEQUENCES,
    LossMetrics,
    measure_loss_metrics,
    metric_tokens,
    sample_text,
    sampled_length,
)
from tolpack.errors import CheckpointError
from tolpack.model.decoder import Decoder
from tolpack.runtime.scratch import SpilledArray
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.protocol import TableSource
from tolpack.workspace.workspace import Workspace

_MAX_CONTEXT = 512
# One part of so many is held out of a calibration text.
_HELD_OUT = 5
# Raised whenever the same inputs would be measured otherwise: kept metrics are then stale.
_CALIBRATION = 1


@dataclass(frozen=True, slots=True)
class CalibratedModel:
    """A model that can be run, the text it was measured on, and what was measured.

    ``metrics``, ``crossed``: see `tolpack.calibration.loss_metrics.LossMetrics`.
    ``validation_ids``: the text to try packs on; another one than ``token_ids`` where a part is
    held out.
    """

    decoder: Decoder
    token_ids: NDArray[np.int64]
    validation_ids: NDArray[np.int64]
    context: int
    counts: NDArray[np.int64]
    metrics: tuple[SpilledArray, ...]
    crossed: tuple[tuple[SpilledArray, ...], ...]


def measure_losses(
    source: TableSource,
    ids: NDArray[np.int64] | None,
    reach: int,
    workspace: Workspace,
) -> CalibratedModel | None:
    """Run the model of `source` on a text; ``None`` where there is none, or it cannot be run.

    Parameters
    ----------
    source : TableSource
        The table.
    ids : ndarray or None
        The calibration text, int64 (tokens,); ``None``: a text is sampled from the model.
    reach : int
        How many layers above each one are measured together with it; if any, a fifth of the text
        is held out.
    workspace : Workspace
        Memory, scratch space and progress.

    Raises
    ------
    CheckpointError
        There is a text, but the model cannot be run.
    """
    checkpoint, reporter = source.checkpoint, workspace.reporter
    if checkpoint is None:
        reporter.say("auto: the model of this table cannot be run, so every direction counts alike")
        return None
    try:
        check_decoder(checkpoint)
        fits = checkpoint.decoder_bytes() <= workspace.limits.decoder_bytes
        decoder = Decoder(checkpoint, resident=fits, compute=source.compute)
    except CheckpointError as error:
        if ids is not None:
            raise
        reporter.say(f"auto: the model cannot be run ({error}), so every direction counts alike")
        return None
    context = min(decoder.config.max_position_embeddings or _MAX_CONTEXT, _MAX_CONTEXT)
    if ids is None:
        reporter.say(
            "auto: no --calibrate text, so losses are measured on a text sampled from the model "
            "itself (seed 0)"
        )
        context = sampled_length(decoder, context)
        with reporter.phase("sampling", SAMPLED_SEQUENCES * (context - 1), "tok") as done:
            ids = sample_text(decoder, context, progress=done)
    measured = measured_part(ids, reach)
    held_out = ids[len(measured) :] if reach else ids
    found = _cached_metrics(checkpoint, decoder, measured, context, reach, workspace)
    return CalibratedModel(
        decoder, measured, held_out, context, found.counts, found.metrics, found.crossed
    )


def measured_part(ids: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return the part of a text that is measured: with `reach`, a fifth is held out at the end."""
    return ids[: len(ids) - len(ids) // _HELD_OUT] if reach else ids


def _cached_metrics(
    checkpoint: Checkpoint,
    decoder: Decoder,
    ids: NDArray[np.int64],
    context: int,
    reach: int,
    workspace: Workspace,
) -> LossMetrics:
    """Measure, or load the metrics that were measured before on this text and model."""
    scratch, reporter = workspace.scratch, workspace.reporter
    digest = hashlib.sha256(repr((_CALIBRATION, context, reach, decoder.compute)).encode())
    digest.update(repr(decoder.config).encode() + checkpoint.fingerprint())
    digest.update(ids.astype("<i8").tobytes())
    counts = np.bincount(ids, minlength=decoder.config.vocab_size)
    known = metrics_cache.load(digest.digest(), counts, scratch)
    if known is not None:
        reporter.say("calibration: taken from an earlier build with this model and text")
        return known
    total = metric_tokens(decoder, len(ids), context)
    with reporter.phase("calibration", total, "tok") as done:
        found = measure_loss_metrics(decoder, ids, context, done, scratch, reach)
    checkpoint.check_unchanged()  # what is kept belongs to the weights in its key
    kept = metrics_cache.keep(digest.digest(), found)
    if kept is not None:
        reporter.say(f"calibration: kept in {kept}")
    return found
