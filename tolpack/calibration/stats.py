"""What is known about tokens and losses before a build: order, token weights, loss metrics.

Best first: a calibration text gives counts and metrics; ``--frequencies`` gives counts; a model
that can be run gives a sampled text; a bare table gives nothing. What was used is always said.

The basis is weighted by ``(count + 1)^0.7`` rather than by the count itself: frequent tokens
matter more, but a count from one text overstates how much (docs/lab-notes.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

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
from tolpack.calibration.token_order import TokenOrder, order_tokens
from tolpack.errors import CheckpointError
from tolpack.model.decoder import Decoder
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.runtime.array_types import Doubles
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.arrays import ArrayTable
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.npy import read_counts

COUNT_EXPONENT = 0.7
_MAX_CONTEXT = 512
# One part of so many is held out of a calibration text.
_HELD_OUT = 5
# Raised whenever the same inputs would be measured otherwise: kept calibrations are then stale.
_CALIBRATION = 1


@dataclass(frozen=True, slots=True)
class CalibrationInputs:
    """Files that tell how frequent tokens are, and on what losses are measured.

    ``text``: UTF-8 text or ``.npy`` of token ids; ``frequencies``: ``.npy`` of token counts,
    (vocab_size,); ``tokenizer``: for the text.
    """

    text: str | Path | None = None
    frequencies: str | Path | None = None
    tokenizer: str | Path | None = None


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


@dataclass(frozen=True, slots=True)
class CalibrationStats:
    """Storage order, token weights and loss metrics.

    ``weights`` float64 (vocab,), summing to 1; ``model`` is ``None`` where no losses are needed
    or none can be measured (every direction then counts alike). ``fingerprint`` identifies what
    went in.
    """

    order: TokenOrder
    weights: Doubles
    model: CalibratedModel | None
    fingerprint: bytes


def calibrate(
    source: FFNTable | ArrayTable,
    inputs: CalibrationInputs,
    reach: int | None,
    *,
    decoder_bytes: int,
    scratch: Scratch,
    reporter: Reporter,
) -> CalibrationStats:
    """Collect what is known of the tokens of a table, and of the losses that its errors cause.

    Parameters
    ----------
    source : FFNTable or ArrayTable
        The table; a checkpoint can also be run for metrics.
    inputs : CalibrationInputs
        Files.
    reach : int or None
        ``None``: no losses are needed. Else, how many layers above each one its gradients are held
        against; if any, a fifth of the text is held out for validation.
    decoder_bytes : int
        What a decoder may take before it has to be streamed.
    scratch : Scratch
        Where metrics are kept.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError, CheckpointError
        An input is unusable.
    """
    counts = None
    if inputs.frequencies is not None:
        counts = read_counts(inputs.frequencies, source.vocab_size)
    ids = None
    if inputs.text is not None:
        found = inputs.tokenizer
        if isinstance(source, FFNTable):
            found = find_tokenizer(source.checkpoint.path, found)
        ids = read_token_ids(inputs.text, source.vocab_size, found)
        if counts is None:
            counts = np.bincount(measured_part(ids, reach or 0), minlength=source.vocab_size)
    if counts is None:
        reporter.say(
            "token order: by token id, all records raw (no --frequencies or --calibrate given)"
        )
    model = None
    if reach is not None:
        model = _calibrate(source, ids, reach, decoder_bytes, scratch, reporter)
    order = order_tokens(counts, source.vocab_size)
    if counts is None and model is not None:
        counts = model.counts
    digest = hashlib.sha256(b"counts" if counts is None else counts.astype("<i8").tobytes())
    digest.update(b"no text" if ids is None else ids.astype("<i8").tobytes())
    if model is not None and isinstance(source, FFNTable):  # all of it shapes the losses
        digest.update(source.checkpoint.fingerprint())
        digest.update(repr((source.checkpoint.config, model.context)).encode())
    return CalibrationStats(order, token_weights(counts, source.vocab_size), model, digest.digest())


def _cached_calibration(
    source: FFNTable,
    decoder: Decoder,
    ids: NDArray[np.int64],
    context: int,
    reach: int,
    scratch: Scratch,
    reporter: Reporter,
) -> LossMetrics:
    """Measure, or take what was measured on the same text with the same model before."""
    digest = hashlib.sha256(repr((_CALIBRATION, context, reach, source.compute)).encode())
    digest.update(repr(decoder.config).encode() + source.checkpoint.fingerprint())
    digest.update(ids.astype("<i8").tobytes())
    counts = np.bincount(ids, minlength=source.vocab_size)
    known = metrics_cache.load(digest.digest(), counts, scratch)
    if known is not None:
        reporter.say("calibration: taken from an earlier build with this model and text")
        return known
    total = metric_tokens(decoder, len(ids), context)
    with reporter.phase("calibration", total, "tok") as done:
        found = measure_loss_metrics(decoder, ids, context, done, scratch, reach)
    source.check_unchanged()  # what is kept belongs to the weights in its key
    kept = metrics_cache.keep(digest.digest(), found)
    if kept is not None:
        reporter.say(f"calibration: kept in {kept}")
    return found


def measured_part(ids: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return the part of a text that is measured: with `reach`, a fifth is held out at the end."""
    return ids[: len(ids) - len(ids) // _HELD_OUT] if reach else ids


def token_weights(counts: NDArray[np.int64] | None, vocab_size: int) -> Doubles:
    """Weights ``∝ (count + 1)^0.7``, float64 (vocab,), summing to 1; uniform without counts."""
    if counts is None:
        return np.full(vocab_size, 1 / vocab_size)
    weights = (counts.astype(np.float64) + 1) ** COUNT_EXPONENT
    return np.asarray(weights / weights.sum())


def _calibrate(
    source: FFNTable | ArrayTable,
    ids: NDArray[np.int64] | None,
    reach: int,
    decoder_bytes: int,
    scratch: Scratch,
    reporter: Reporter,
) -> CalibratedModel | None:
    if not isinstance(source, FFNTable):
        reporter.say("auto: a bare table cannot be run, so every direction counts alike")
        return None
    try:
        check_decoder(source.checkpoint)
        fits = source.checkpoint.decoder_bytes() <= decoder_bytes
        decoder = Decoder(source.checkpoint, resident=fits, compute=source.compute)
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
    trial = ids[len(measured) :] if reach else ids
    found = _cached_calibration(source, decoder, measured, context, reach, scratch, reporter)
    return CalibratedModel(
        decoder, measured, trial, context, found.counts, found.metrics, found.crossed
    )
