"""Text tables of rows and of their errors: ``tolpack rows`` and ``tolpack diff``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import printable
from tolpack.evaluation.pack_description import Location
from tolpack.report.tables import format_bytes, format_table, warning_lines

if TYPE_CHECKING:
    from tolpack.evaluation.row_errors import LayerDiff, TableDiff

# A table has a column for each layer if there are at most so many; else only the whole norm.
_MOST_COLUMNS = 12
_LONGEST_TEXT = 24


def quote_token(text: str | None) -> str:
    """Write a token's text in quotes, with line breaks escaped; "?" if it has none."""
    if text is None:
        return "?"
    return repr(text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…")


# A row as its fields, which may differ in width: float32 (width,) each.
Row = Sequence[NDArray[np.float32]]


def rows_table(
    token_ids: Sequence[int],
    rows: Sequence[Row],
    layers: Sequence[str],
    texts: Sequence[str | None] | None = None,
) -> str:
    """Write norm and first values of rows, a line per token and layer."""
    names = [_id_and_text(token, None if texts is None else texts[n])
             for n, token in enumerate(token_ids)]  # fmt: skip
    lines = [
        [
            name,
            printable(layer),
            f"{np.linalg.norm(values):.4f}",
            *[f"{value:.4f}" for value in values[:4]],
        ]
        for name, row in zip(names, rows)
        for layer, values in zip(layers, row)
    ]
    shown = max((min(4, len(values)) for row in rows for values in row), default=0)
    lines = [line + [""] * (3 + shown - len(line)) for line in lines]
    return format_table(["token", "layer", "norm", *[f"[{n}]" for n in range(shown)]], lines)


def text_table(
    token_ids: Sequence[int],
    texts: Sequence[str | None],
    locations: Sequence[Location],
    rows: Sequence[Row],
    layer_names: Sequence[str],
    kept_layers: Sequence[int],
) -> str:
    """Write a line per token of a text: its location, and the norm of its row, whole and by layer.

    `kept_layers` are numbers of those that are stored.
    """
    norms = np.array([[np.linalg.norm(field.astype(np.float64)) for field in row] for row in rows])
    wide = norms.shape[1] <= _MOST_COLUMNS
    layers = range(norms.shape[1]) if wide else range(0)
    lines = [
        [
            quote_token(text),
            str(token),
            str(location.slot),
            "edits" if location.chunk is None else str(location.chunk),
            format_bytes(location.read_bytes),
            _digits(float(np.linalg.norm(row)), 4),
            *[_digits(row[layer], 4) if layer in kept_layers else "-" for layer in layers],
        ]
        for token, text, location, row in zip(token_ids, texts, locations, norms)
    ]
    header = [
        "token",
        "id",
        "slot",
        "chunk",
        "read",
        "norm",
        *[_column(layer_names[n]) for n in layers],
    ]
    table = format_table(header, lines)
    return table if wide else f"{table}\n\nnorms by layer: tolpack rows PACK {token_ids[0]}"


def _column(layer: str) -> str:
    return f"layer {layer}" if layer.isdecimal() else printable(layer)


def row_ids_table(
    token_ids: Sequence[int], texts: Sequence[str | None], row_ids: NDArray[np.int64]
) -> str:
    """Write a line per token of a text: the numbers of the rows that it touches, (ids, heads)."""
    lines = [
        [quote_token(text), str(token), *map(str, numbers)]
        for token, text, numbers in zip(token_ids, texts, row_ids.tolist())
    ]
    heads = [f"head {number}" for number in range(row_ids.shape[1])]
    return format_table(["token", "id", *heads], lines)


def diff_table(diff: TableDiff) -> str:
    """Write the differences between two tables: by layer, by chunk, by token, and in all."""
    head = (
        f"{printable(diff.a)} against {printable(diff.b)}\n"
        f"{diff.vocab_size:,} tokens × {diff.num_layers} layers × {diff.hidden_size}"
    )
    if diff.equal:
        equal = "equal: every value of every row is the same"
        return f"{head}\n\n{equal}{warning_lines(diff.warnings)}"
    parts = [head, _layer_table(diff), _chunk_table(diff), _worst_table(diff), _totals(diff)]
    return "\n\n".join(part for part in parts if part) + warning_lines(diff.warnings)


def _layer_table(diff: TableDiff) -> str:
    lines = [
        [
            str(one.layer),
            _percent(one.relative_error),
            *_worst_row(one),
            *([f"dropped in {one.dropped}" if one.dropped else ""] if _any_dropped(diff) else []),
        ]
        for one in diff.layers
    ]
    header = ["layer", "rel. error", "worst row", "of token"]
    return format_table([*header, ""] if _any_dropped(diff) else header, lines)


def _worst_row(one: LayerDiff) -> tuple[str, str]:
    if one.worst_token is None:
        return "-", "-"
    return _percent(one.worst_row_error), _id_and_text(one.worst_token, one.worst_text)


def _chunk_table(diff: TableDiff) -> str:
    lines = [
        [
            str(number),
            f"{one.tokens:,}",
            one.encoding,
            f"{one.bytes / one.tokens:.0f} B",
            *([] if one.share is None else [_percent(one.share)]),
            _percent(one.relative_error),
        ]
        for number, one in enumerate(diff.chunks)
    ]
    share = ["of text"] if diff.weighted_error is not None else []
    return format_table(["chunk", "tokens", "encoding", "per token", *share, "rel. error"], lines)


def _worst_table(diff: TableDiff) -> str:
    if not diff.worst:
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
        for one in diff.worst
    ]
    named = any(one.text is not None for one in diff.worst)
    count = ["count"] if diff.weighted_error is not None else []
    header = ["worst tokens", "id", *count, "chunk", "rel. error", "worst layer", "error there"]
    if not named:
        lines, header = [line[1:] for line in lines], ["worst tokens", *header[2:]]
    return format_table(header, lines)


def _totals(diff: TableDiff) -> str:
    lines = [f"relative error of the whole table: {_percent(diff.relative_error)}"]
    if diff.weighted_error is not None:
        lines.append(f"weighted by frequency: {_percent(diff.weighted_error)}")
    if diff.differing_tokens < diff.vocab_size:
        lines.append(f"tokens that differ: {diff.differing_tokens:,} of {diff.vocab_size:,}")
    if diff.zero_tokens:
        lines.append(
            f"tokens that are zeros in B alone, and have no relative error: {diff.zero_tokens:,}"
        )
    if _any_dropped(diff):
        lines.append(
            "dropped layers count as the zeros that are read in their place; the worst layer of a "
            "token is one of the others"
        )
    return "\n".join(lines)


def _any_dropped(diff: TableDiff) -> bool:
    return any(one.dropped for one in diff.layers)


def _id_and_text(token: int, text: str | None) -> str:
    return str(token) if text is None else f"{token} {quote_token(text)}"


def _percent(error: float | None) -> str:
    """Write an error with three digits; "-" if it has none."""
    return "-" if error is None else f"{_digits(100 * error, 3)} %"


def _digits(value: float, count: int) -> str:
    """Write a number with `count` significant digits, and with all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:#.{count}g}"
