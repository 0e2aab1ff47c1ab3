"""`edit_pack`: new rows for some tokens of a pack, written as edits.

The rows of the tokens are read from the pack, changed layer by layer, and written whole. So edited
rows are exact however the pack stores its own, and no other token's row depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tolpack.edits.row_changes import RowChange
from tolpack.edits.write_edits import ascending_ids, write_edits
from tolpack.errors import CheckpointError, ConfigError
from tolpack.pack import Pack
from tolpack.reading.lookup import check_ids
from tolpack.runtime.array_types import Doubles, Floats, Ints


@dataclass(frozen=True, slots=True)
class LayerChange:
    """How far rows of field ``layer`` moved: lengths of the change, relative to the old row's.

    ``mean`` and ``largest`` are over the edited tokens whose old row is not zero, and ``token_id``
    is the token of the largest one; ``moved`` counts the tokens whose row differs from the old one.
    """

    layer: int
    moved: int
    mean: float
    largest: float
    token_id: int


@dataclass(frozen=True, slots=True)
class EditResult:
    """A finished file of edits, and what it changes in table ``table``."""

    path: Path
    nbytes: int
    table: str
    token_ids: tuple[int, ...]
    layers: tuple[LayerChange, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "path": str(self.path), "token_ids": list(self.token_ids),
                "layers": [asdict(one) for one in self.layers]}  # fmt: skip


def edit_pack(
    pack: Pack,
    output: str | Path,
    token_ids: ArrayLike,
    change: RowChange,
    *,
    layers: Sequence[int] | None = None,
    bits: int = 32,
    force: bool = False,
) -> EditResult:
    """Change the rows of some tokens of a pack, and write them as edits; the pack stays as it is.

    Parameters
    ----------
    pack : Pack
        The open pack, at the table to edit. `tolpack.open` gives its rows with the edits.
    output : str or Path
        The file of edits.
    token_ids : array_like of int
        (tokens,), in any order; a token that is named twice counts once.
    change : callable
        What rows become, as of `tolpack.edits.row_changes`: it is called with the number of a
        field, int64 ids (n,) ascending, and rows float32 (n, width), and returns such rows.
    layers : sequence of int, optional
        Numbers of the fields to change; default: all that the pack has not dropped.
    bits : int
        32: new rows are stored as they are; 16: rounded to 16 bits, unchanged layers too.
    force : bool
        Replace an existing file.

    Returns
    -------
    EditResult
        What was written.

    Raises
    ------
    ConfigError
        A layer is unknown or dropped, the change does not fit the pack, or the output exists.
    CheckpointError
        A new row holds NaN or infinity.
    TokenIdError
        Ids are out of range, or there are none.
    FormatError, FileAccessError
        Of reading the pack, and of writing.
    """
    ids = ascending_ids(np.unique(check_ids(token_ids, pack.vocab_size)), pack.container.table)
    chosen = chosen_layers(pack, layers)
    columns, changes = [], []
    for field in range(pack.num_layers):
        rows = pack.rows(ids, [field])[:, 0]
        if field in chosen:
            new = _changed(change, field, ids, rows)
            changes.append(_layer_change(field, ids, rows, new))
            rows = new
        columns.append(rows)
    written = write_edits(pack, output, ids, {pack.table: columns}, bits=bits, force=force)
    return EditResult(written.path, written.nbytes, pack.table, tuple(ids.tolist()), tuple(changes))


def chosen_layers(pack: Pack, layers: Sequence[int] | None) -> frozenset[int]:
    """Return the numbers of the fields to change.

    Raises
    ------
    ConfigError
        There is no such field, or it is dropped.
    """
    if layers is None:
        return frozenset(pack.kept_layers)
    wrong = next((layer for layer in layers if layer not in pack.kept_layers), None)
    if wrong is None:
        return frozenset(layers)
    kept = ", ".join(map(str, pack.kept_layers))
    reason = "was dropped" if 0 <= wrong < pack.num_layers else "does not exist"
    raise ConfigError(f"layer {wrong} {reason} in {pack.path}: choose among layers {kept}")


def _changed(change: RowChange, field: int, ids: Ints, rows: Floats) -> Floats:
    new = np.asarray(change(field, ids, rows.copy()), np.float32)
    if new.shape != rows.shape:
        raise ConfigError(
            f"new rows of layer {field} are {new.shape}, expected {rows.shape}: (tokens, width)"
        )
    finite = np.isfinite(new).all(axis=1)
    if not finite.all():
        raise CheckpointError(
            f"the new row of token {ids[~finite][0]}, layer {field}, holds NaN or infinity: "
            "correct the table or the factor that it comes from"
        )
    return new


def _layer_change(field: int, ids: Ints, old: Floats, new: Floats) -> LayerChange:
    moved = _norms(new.astype(np.float64) - old)
    length = _norms(old)
    relative = np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
    known = relative[length > 0]
    largest = int(relative.argmax())
    return LayerChange(
        layer=field,
        moved=int((moved > 0).sum()),
        mean=float(known.mean()) if len(known) else 0.0,
        largest=float(relative[largest]),
        token_id=int(ids[largest]),
    )


def _norms(rows: Floats | Doubles) -> Doubles:
    wide = rows.astype(np.float64)
    return np.asarray(np.sqrt(np.square(wide).sum(axis=1)))
