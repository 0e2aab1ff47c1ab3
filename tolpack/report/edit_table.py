"""The text table of ``tolpack edit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.errors import printable
from tolpack.report.row_tables import quote_token
from tolpack.report.tables import format_bytes, format_table
from tolpack.runtime.sizes import counted

if TYPE_CHECKING:  # it loads torch
    from tolpack.edits.edit_request import MadeEdits

_SHOWN_TOKENS, _SHOWN_KEYS = 8, 8


def edit_table(made: MadeEdits) -> str:
    """Write the edited tokens, a line per changed layer, and the file with its bytes."""
    result = made.result
    heads = ["layer", *["keys"] * (made.keys is not None), "changed rows", "mean change",
             "largest change", "of token"]  # fmt: skip
    lines = [
        [
            str(one.layer),
            *([] if made.keys is None else [_listed(made.keys[one.layer], _SHOWN_KEYS)]),
            str(one.moved),
            f"{one.mean:.2%}",
            f"{one.largest:.2%}",
            _token(made, one.token_id),
        ]
        for one in result.layers
    ]
    tokens = [_token(made, token) for token in result.token_ids]
    named = f"edited tokens: {_listed(tokens, _SHOWN_TOKENS)}"
    note = "changes are relative to the length of the old row"
    size = f"{printable(str(result.path))}: {format_bytes(result.nbytes)}, "
    size += f"{counted(len(result.token_ids), 'token')} of table {printable(result.table)}"
    return "\n\n".join([named, format_table(heads, lines), f"{note}\n{size}"])


def _listed(values: Sequence[object], most: int) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def _token(made: MadeEdits, token_id: int) -> str:
    """Write a token's id, and its text if it is known."""
    if made.texts is None:
        return str(token_id)
    return f"{token_id} {quote_token(made.texts[made.result.token_ids.index(token_id)])}"
