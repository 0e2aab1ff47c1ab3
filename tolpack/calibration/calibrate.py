"""Statistics of tokens and losses before a build: order, token weights, loss metrics.

Best first: a calibration text gives counts and metrics; ``--frequencies`` gives counts; a model
that can be run gives a sampled text; a bare table gives nothing. What was used is always said.

The basis is weighted by ``(count + 1)^0.7`` rather than by the count itself: frequent tokens
matter more, but a count from one text overstates how much (docs/lab-notes.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.model_losses import CalibratedModel, measure_losses, measured_part
from tolpack.calibration.token_order import TokenOrder, order_tokens
from tolpack.container.provenance import CalibrationText
from tolpack.model.plausibility import short_calibration_warning
from tolpack.model.text import find_tokenizer, read_token_ids, tokenizer_digest
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.runtime.array_types import Doubles
from tolpack.runtime.progress import Reporter
from tolpack.sources.arrays.npy import read_counts
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath
from tolpack.workspace.workspace import Workspace

COUNT_EXPONENT = 0.7
# Tokens whose rows are counted together.
_COUNTED_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True)
class CalibrationInputs:
    """Files that tell how frequent tokens are, and on what losses are measured.

    ``text``: UTF-8 text or ``.npy`` of token ids; ``frequencies``: ``.npy`` of token counts,
    (vocab_size,), or a folder with one for each table; ``tokenizer``: for the text.
    """

    text: Location | None = None
    frequencies: Location | None = None
    tokenizer: Location | RemotePath | None = None

    def beside(self, checkpoint: Location) -> CalibrationInputs:
        """Return them with the tokenizer beside `checkpoint`, if a text needs one."""
        if self.text is None:
            return self
        return replace(self, tokenizer=find_tokenizer(input_path(checkpoint), self.tokenizer))

    @property
    def gives_counts(self) -> bool:
        """Whether it is known how frequent tokens are."""
        return self.text is not None or self.frequencies is not None


@dataclass(frozen=True, slots=True)
class CalibrationStats:
    """Storage order, token counts and loss metrics.

    ``counts`` int64 (rows,) by token id, or ``None`` if nothing tells them; ``model`` is ``None``
    where no losses are needed or none can be measured (every direction then counts alike).
    ``fingerprint`` identifies what went in; ``text``, and the SHA-256 of ``tokenizer`` and
    ``frequencies`` in hex, say it of what was there.
    """

    order: TokenOrder
    counts: NDArray[np.int64] | None
    model: CalibratedModel | None
    fingerprint: bytes
    text: CalibrationText | None = None
    tokenizer: str | None = None
    frequencies: str | None = None

    @property
    def weights(self) -> Doubles:
        """How much each token's errors weigh, float64 (rows,), summing to 1; a new array."""
        return token_weights(self.counts, self.order.rows)


def calibrate(
    source: TableSource,
    inputs: CalibrationInputs,
    reach: int | None,
    workspace: Workspace,
) -> CalibrationStats:
    """Collect what is known of the tokens of a table, and of the losses that its errors cause.

    Parameters
    ----------
    source : TableSource
        The table; its model may also be run for metrics.
    inputs : CalibrationInputs
        Files.
    reach : int or None
        ``None``: no losses are needed. Else, how many layers above each one its gradients are held
        against; if any, a fifth of the text is held out for validation.
    workspace : Workspace
        Memory, scratch space and progress.

    Raises
    ------
    ConfigError, CheckpointError
        An input is unusable.
    """
    counts = given = tokenizer = None
    if inputs.frequencies is not None:
        counts = read_counts(inputs.frequencies, source.rows, source.name)
        given = hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()
    ids = check = None
    if inputs.text is not None:
        found = inputs.tokenizer
        model = source.checkpoint or source.transformers_model
        if model is not None:
            found = find_tokenizer(model.path, found)
        beside = None if model is None else model.path
        check = TokenizerCheck(beside, _vocabulary(source), workspace.reporter)
        ids = read_token_ids(inputs.text, _vocabulary(source), found, check)
        _warn_if_short(ids, workspace.reporter)
        if found is not None and input_path(inputs.text).suffix != ".npy":
            tokenizer = tokenizer_digest(found)
        if counts is None:
            counts = _rows_read(source, measured_part(ids, reach or 0))
    if counts is None:
        workspace.reporter.say("token order: by token id (no --frequencies or --calibrate given)")
    calibrated = None
    if reach is not None:
        calibrated = measure_losses(source, ids, reach, workspace, check)
    order = order_tokens(counts, source.rows)
    if counts is None and calibrated is not None and samples_counts(source):
        counts = _rows_read(source, calibrated.token_ids)
    digest = hashlib.sha256(b"counts" if counts is None else counts.astype("<i8").tobytes())
    digest.update(b"no text" if ids is None else ids.astype("<i8").tobytes())
    if calibrated is not None:  # all of it shapes the losses
        digest.update(calibrated.model.fingerprint() + repr(calibrated.context).encode())
    text = _calibration_text(ids, calibrated)
    return CalibrationStats(order, counts, calibrated, digest.digest(), text, tokenizer, given)


def _calibration_text(
    ids: NDArray[np.int64] | None, calibrated: CalibratedModel | None
) -> CalibrationText | None:
    """Say what losses and counts were measured on: a text, or one sampled from the model."""
    if ids is not None:
        return CalibrationText(ids.size, hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest())
    if calibrated is None:
        return None
    held_out = calibrated.validation_ids
    own = 0 if held_out is calibrated.token_ids else held_out.size
    return CalibrationText(calibrated.token_ids.size + own)


def _warn_if_short(ids: NDArray[np.int64], reporter: Reporter) -> None:
    warning = short_calibration_warning(ids.size)
    if warning is not None:
        reporter.warn(warning)


def samples_counts(source: TableSource) -> bool:
    """Whether a text sampled from the model tells how often rows are read: not for rows of n-grams,
    of which it reads too few.
    """
    runs = source.checkpoint is not None or source.transformers_model is not None
    return runs and source.ngrams is None


def _vocabulary(source: TableSource) -> int:
    """Return how many token ids there may be."""
    return source.rows if source.ngrams is None else source.ngrams.vocab_size


def _rows_read(source: TableSource, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often a text reads each row, int64 (rows,)."""
    if source.ngrams is None:  # Gemma 3n has token ids without a row
        return np.bincount(ids[ids < source.rows], minlength=source.rows)
    counts, stream = np.zeros(source.rows, np.int64), source.ngrams.stream()
    for start in range(0, len(ids), _COUNTED_TOKENS):  # every token has many rows
        rows, found = np.unique(
            stream.rows(ids[start : start + _COUNTED_TOKENS]), return_counts=True
        )
        counts[rows] += found
    return counts


def token_weights(counts: NDArray[np.int64] | None, vocab_size: int) -> Doubles:
    """Weights ``∝ (count + 1)^0.7``, float64 (vocab,), summing to 1; uniform without counts."""
    if counts is None:
        return np.full(vocab_size, 1 / vocab_size)
    weights = (counts.astype(np.float64) + 1) ** COUNT_EXPONENT
    return np.asarray(weights / weights.sum())
