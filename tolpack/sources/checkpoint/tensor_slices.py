"""Schema tensors out of what is stored: whole, transposed, fused with others, or in pieces.

A tensor-parallel trainer leaves one piece of a tensor in each file; along which dimension they join
follows from the shape that the whole should have. Results are views of the mapped files wherever
the rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.schema_tensors import SchemaTensor, joined_dimension


def read_slice(tensor: SchemaTensor, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a schema tensor out of the `pieces` of the tensor that it is stored in.

    Pieces must make ``tensor.stored_shape``. A copy if there are several, or if rows go by head
    groups.
    """
    dimension = joined_dimension([tuple(p.shape) for p in pieces], tensor.stored_shape)
    if dimension is None and any(not torch.equal(piece, pieces[0]) for piece in pieces[1:]):
        raise CheckpointError(
            f"tensor {tensor.stored!r} differs between the files that hold it: they are pieces of "
            "different checkpoints; copy all of one"
        )
    whole = pieces[0] if dimension is None else torch.cat(list(pieces), dimension)
    whole = whole.T if tensor.slice.transpose else whole
    start, rows = tensor.first_row, tensor.shape[0]
    if tensor.head_groups is None:
        return whole[start : start + rows]
    groups = tensor.head_groups
    by_group = whole.reshape(groups, -1, *whole.shape[1:])
    mine = by_group[:, start // groups : (start + rows) // groups]
    return mine.reshape(rows, *whole.shape[1:])


def read_rows(
    pieces: Sequence[torch.Tensor], shape: tuple[int, ...], ids: torch.Tensor
) -> torch.Tensor:
    """Return rows `ids` (n,) of the tensor of `shape` that `pieces` make, without joining the rest:
    a copy, (n, …).
    """
    dimension = joined_dimension([tuple(p.shape) for p in pieces], shape)
    if dimension is None:
        return pieces[0][ids]
    if dimension > 0:
        return torch.cat([piece[ids] for piece in pieces], dimension)
    rows = torch.empty(len(ids), *shape[1:], dtype=pieces[0].dtype)
    start = 0
    for piece in pieces:
        inside = (ids >= start) & (ids < start + len(piece))
        rows[inside] = piece[ids[inside] - start]
        start += len(piece)
    return rows
