"""Rows and differences token by token, as text tables: ``tolpack rows`` and ``tolpack diff``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import printable
from tolpack.reading.summary import Location
from tolpack.report.tables import format_bytes, format_table

if TYPE_CHECKING:
    from tolpack.evaluation.row_errors import LayerDiff, TableDiff

# A table with a column for each layer has at most so many; others have the whole row's norm alone.
_MOST_COLUMNS = 12
_LONGEST_TEXT = 24


def quote_token(text: str | None) -> str:
    """Write a token's text in quotes, spaces and line breaks to be seen; "?" if there is none."""
    if text is None:
        return "?"
    return repr(text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…")


def rows_table(
    token_ids: Sequence[int], rows: NDArray[np.float32], texts: Sequence[str | None] | None = None
) -> str:
    """Write norm and first values of rows (ids, layers, hidden), a line per token and layer."""
    names = [_named(token, None if texts is None else texts[n])
             for n, token in enumerate(token_ids)]  # fmt: skip
    lines = [
        [
            name,
            str(layer),
            f"{np.linalg.norm(values):.4f}",
            *[f"{value:.4f}" for value in values[:4]],
        ]
        for name, row in zip(names, rows)
        for layer, values in enumerate(row)
    ]
    shown = min(4, rows.shape[2])
    return format_table(["token", "layer", "norm", *[f"[{n}]" for n in range(shown)]], lines)


def text_table(
    token_ids: Sequence[int],
    texts: Sequence[str | None],
    locations: Sequence[Location],
    rows: NDArray[np.float32],
    kept_layers: Sequence[int],
) -> str:
    """Write the tokens of a text, a line each: where they are stored, and norms of their rows
    (ids, layers, hidden), whole and by layer.
    """
    norms = np.linalg.norm(rows.astype(np.float64), axis=2)
    wide = norms.shape[1] <= _MOST_COLUMNS
    layers = range(norms.shape[1]) if wide else range(0)
    lines = [
        [
            quote_token(text),
            str(token),
            str(place.slot),
            str(place.chunk),
            format_bytes(place.read_bytes),
            _digits(float(np.linalg.norm(row)), 4),
            *[_digits(row[layer], 4) if layer in kept_layers else "-" for layer in layers],
        ]
        for token, text, place, row in zip(token_ids, texts, locations, norms)
    ]
    header = ["token", "id", "slot", "chunk", "read", "norm", *[f"layer {n}" for n in layers]]
    table = format_table(header, lines)
    return table if wide else f"{table}\n\nnorms by layer: tolpack rows PACK {token_ids[0]}"


def diff_table(found: TableDiff) -> str:
    """Write what `tolpack.evaluation.diff` found: by layer, by chunk, by token, and in all."""
    head = (
        f"{printable(found.a)} against {printable(found.b)}\n"
        f"{found.vocab_size} tokens × {found.num_layers} layers × {found.hidden_size}"
    )
    if found.equal:
        return f"{head}\n\nequal: every value of every row is the same"
    parts = [head, _layer_table(found), _chunk_table(found), _worst_table(found), _totals(found)]
    return "\n\n".join(part for part in parts if part)


def _layer_table(found: TableDiff) -> str:
    lines = [
        [
            str(one.layer),
            _percent(one.relative_error),
            *_worst_row(one),
            *([f"dropped in {one.dropped}" if one.dropped else ""] if _any_dropped(found) else []),
        ]
        for one in found.layers
    ]
    header = ["layer", "rel. error", "worst row", "of token"]
    return format_table([*header, ""] if _any_dropped(found) else header, lines)


def _worst_row(one: LayerDiff) -> tuple[str, str]:
    if one.worst_token is None:
        return "-", "-"
    return _percent(one.worst_row_error), _named(one.worst_token, one.worst_text)


def _chunk_table(found: TableDiff) -> str:
    lines = [
        [
            str(number),
            str(one.tokens),
            one.encoding,
            f"{one.bytes / one.tokens:.0f} B",
            *([] if one.share is None else [_percent(one.share)]),
            _percent(one.relative_error),
        ]
        for number, one in enumerate(found.chunks)
    ]
    share = ["of text"] if found.weighted_error is not None else []
    return format_table(["chunk", "tokens", "encoding", "per token", *share, "rel. error"], lines)


def _worst_table(found: TableDiff) -> str:
    if not found.worst:
        return ""
    lines = [
        [
            quote_token(one.text),
            str(one.token_id),
            *([] if one.count is None else [str(one.count)]),
            str(one.chunk),
            _percent(one.relative_error),
            "-" if one.layer is None else str(one.layer),
            _percent(one.layer_error),
        ]
        for one in found.worst
    ]
    named = any(one.text is not None for one in found.worst)
    count = ["count"] if found.weighted_error is not None else []
    header = ["worst tokens", "id", *count, "chunk", "rel. error", "worst layer", "error there"]
    if not named:
        lines, header = [line[1:] for line in lines], ["worst tokens", *header[2:]]
    return format_table(header, lines)


def _totals(found: TableDiff) -> str:
    lines = [f"relative error of the whole table: {_percent(found.relative_error)}"]
    if found.weighted_error is not None:
        lines.append(f"weighted by frequency: {_percent(found.weighted_error)}")
    if found.differing_tokens < found.vocab_size:
        lines.append(f"tokens that differ: {found.differing_tokens} of {found.vocab_size}")
    if found.zero_tokens:
        lines.append(
            f"tokens that are zeros in B alone, and have no relative error: {found.zero_tokens}"
        )
    if _any_dropped(found):
        lines.append(
            "dropped layers count as the zeros that are read in their place; the worst layer of a "
            "token is one of the others"
        )
    return "\n".join(lines)


def _any_dropped(found: TableDiff) -> bool:
    return any(one.dropped for one in found.layers)


def _named(token: int, text: str | None) -> str:
    return str(token) if text is None else f"{token} {quote_token(text)}"


def _percent(error: float | None) -> str:
    """Write an error with three digits; "-" where there is none."""
    return "-" if error is None else f"{_digits(100 * error, 3)} %"


def _digits(value: float, count: int) -> str:
    """Write a number with so many digits, and all of them before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:#.{count}g}"
