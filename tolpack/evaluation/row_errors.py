"""Errors of rows, summed up block by block: by layer, by chunk, by token, and in all.

Errors are squared and summed in float64. A relative error is always √(Σ‖a − b‖² / Σ‖b‖²), where b
is the reference: of a layer, of a chunk, of a token over all layers, or of all tokens, each counted
as often as it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tolpack.pack import Pack
from tolpack.runtime.array_types import Doubles, Floats, Ints
from tolpack.storage.inputs import InputPath

Texts = Callable[[Sequence[int]], Sequence[str | None]]


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """One layer: its error, and the row of the largest error, if any row has one.

    ``dropped``: ``"A"``, ``"B"`` or ``"both"`` if the layer is not stored there; it reads as zeros.
    """

    layer: int
    dropped: str | None
    relative_error: float | None
    worst_row_error: float | None
    worst_token: int | None
    worst_text: str | None


@dataclass(frozen=True, slots=True)
class ChunkDiff:
    """One chunk of A: its tokens, which are of similar frequency, and their error.

    ``bytes`` as stored; ``share`` of all counts, 0 … 1.
    """

    tokens: int
    encoding: str
    bytes: int
    share: float | None
    relative_error: float | None


@dataclass(frozen=True, slots=True)
class TokenDiff:
    """One token: its error over all layers, and the worst of the layers that both sides store."""

    token_id: int
    chunk: int
    relative_error: float
    layer: int | None
    layer_error: float | None
    count: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TableDiff:
    """Differences between the tables `a` and `b`, by `tolpack.evaluation.diff.diff_tables`.

    Errors are fractions, not percentages, and ``None`` where the reference is zeros and the pack is
    not. ``equal``: every value is equal. ``differing_tokens``: tokens of which a value differs;
    ``zero_tokens``: those of them whose reference is zeros. ``weighted_error``: each token counted
    as often as it occurs; ``None`` without counts. ``warnings``: what makes it doubtful.
    """

    a: str
    b: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    equal: bool
    differing_tokens: int
    zero_tokens: int
    relative_error: float | None
    weighted_error: float | None
    layers: tuple[LayerDiff, ...]
    chunks: tuple[ChunkDiff, ...]
    worst: tuple[TokenDiff, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def squared_norms(a: Floats, b: Floats) -> Doubles:
    """Return ‖a − b‖² and ‖b‖² of each token and layer: float64 (2, tokens, layers)."""
    norms = np.empty((2, *a.shape[:2]))
    for layer in range(a.shape[1]):
        reference = b[:, layer].astype(np.float64)
        with np.errstate(invalid="ignore"):  # Inf − Inf, refused afterwards
            error = a[:, layer] - reference
        for out, values in zip(norms, (error, reference)):
            np.einsum("nh,nh->n", values, values, out=out[:, layer])
    return norms


def _relative(squares: Doubles) -> Doubles:
    """Return the errors of squares (2, …): 0 where nothing differs, NaN where only b is zeros."""
    error, reference = squares
    ratio = np.where(error > 0, np.nan, 0.0)
    np.divide(error, reference, out=ratio, where=reference > 0)
    return np.asarray(np.sqrt(ratio))


class ErrorSums:
    """Sums of squared errors over blocks of tokens, and the worst tokens so far.

    Parameters
    ----------
    pack : Pack
        The table A.
    kept_layers : frozenset of int
        Layers that B stores.
    counts : ndarray, optional
        int64 (vocab_size,): weights of the tokens.
    worst : int
        Number of tokens to list, those of the largest error.
    """

    def __init__(
        self, pack: Pack, kept_layers: frozenset[int], counts: Ints | None, worst: int
    ) -> None:
        self._pack, self._counts, self._worst_count = pack, counts, worst
        layers, views = pack.num_layers, pack.container.chunks
        sides = {"A": frozenset(pack.kept_layers), "B": kept_layers}
        self._missing = [[side for side in "AB" if n not in sides[side]] for n in range(layers)]
        self._shared = np.array(sorted(sides["A"] & sides["B"]), np.int64)
        self._layers, self._chunks = np.zeros((2, layers)), np.zeros((2, len(views)))
        self._weighted, self._chunk_counts = np.zeros(2), np.zeros(len(views))
        self._row_errors, self._row_tokens = np.zeros(layers), np.full(layers, -1, np.int64)
        self._worst: list[TokenDiff] = []
        self._differing = self._zeros = 0

    def add(self, chunk: int, ids: Ints, squares: Doubles) -> None:
        """Add the `squared_norms` of tokens `ids`, int64 (n,), of a chunk."""
        rows = squares.sum(axis=2)
        self._layers += squares.sum(axis=1)
        self._chunks[:, chunk] += rows.sum(axis=1)
        if self._counts is not None:
            counts = self._counts[ids].astype(np.float64)
            self._weighted += rows @ counts
            self._chunk_counts[chunk] += counts.sum()
        self._differing += int(np.count_nonzero(rows[0]))
        self._zeros += int(np.count_nonzero((rows[0] > 0) & (rows[1] == 0)))
        by_layer = np.nan_to_num(_relative(squares), nan=-1.0)
        first = by_layer.argmax(axis=0)
        largest = by_layer.max(axis=0)
        larger = largest > self._row_errors
        self._row_errors[larger], self._row_tokens[larger] = largest[larger], ids[first][larger]
        self._keep_worst(chunk, ids, _relative(rows), by_layer)

    def _keep_worst(self, chunk: int, ids: Ints, errors: Doubles, by_layer: Doubles) -> None:
        wrong = np.flatnonzero(errors > 0)
        wrong = wrong[np.argsort(-errors[wrong], kind="stable")[: self._worst_count]]
        for n in wrong.tolist():
            shared = by_layer[n, self._shared]
            layer = error = None
            if shared.max(initial=-1.0) >= 0:
                layer, error = int(self._shared[shared.argmax()]), float(shared.max())
            token = int(ids[n])
            count = None if self._counts is None else int(self._counts[token])
            self._worst.append(TokenDiff(token, chunk, float(errors[n]), layer, error, count))
        self._worst.sort(key=lambda one: -one.relative_error)
        del self._worst[self._worst_count :]

    def result(self, a: InputPath, b: InputPath, texts: Texts | None) -> TableDiff:
        """Return the errors of all that was added; `texts` gives the texts of token ids."""
        pack, weighted = self._pack, None
        listed = [one.token_id for one in self._worst]
        listed += [token for token in self._row_tokens.tolist() if token >= 0]
        text = dict(zip(listed, texts(listed))) if texts is not None else {}
        if self._counts is not None:
            weighted = _or_none(_relative(self._weighted))
        return TableDiff(
            a=str(a),
            b=str(b),
            vocab_size=pack.vocab_size,
            num_layers=pack.num_layers,
            hidden_size=pack.hidden_size,
            equal=self._differing == 0,
            differing_tokens=self._differing,
            zero_tokens=self._zeros,
            relative_error=_or_none(_relative(self._layers.sum(axis=1))),
            weighted_error=weighted,
            layers=tuple(self._layer_errors(text)),
            chunks=tuple(self._chunk_errors()),
            worst=tuple(replace(one, text=text.get(one.token_id)) for one in self._worst),
        )

    def _layer_errors(self, text: dict[int, str | None]) -> Iterator[LayerDiff]:
        for layer, error in enumerate(_relative(self._layers)):
            missing, token = self._missing[layer], int(self._row_tokens[layer])
            dropped = "both" if len(missing) == 2 else "".join(missing) or None
            worst: tuple[float | None, int | None, str | None] = (None, None, None)
            if token >= 0:
                worst = (float(self._row_errors[layer]), token, text.get(token))
            yield LayerDiff(layer, dropped, _or_none(error), *worst)

    def _chunk_errors(self) -> Iterator[ChunkDiff]:
        shares = self._chunk_counts / max(self._chunk_counts.sum(), 1)
        for view, share, error in zip(
            self._pack.container.chunks, shares.tolist(), _relative(self._chunks)
        ):
            yield ChunkDiff(
                view.chunk.rows,
                view.encoding.frame,
                view.length_bytes,
                None if self._counts is None else share,
                _or_none(error),
            )


def _or_none(error: Any) -> float | None:
    return None if np.isnan(error) else float(error)
