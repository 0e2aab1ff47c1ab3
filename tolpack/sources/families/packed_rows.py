"""Rows of tensors whose integers are packed codes, read as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tolpack.errors import CheckpointError
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.tensor_rows import FileRows, JoinedRows, RowsFile


def packed_rows(
    files: CheckpointFiles, names: Sequence[str], dtype: str, value_bytes: int
) -> JoinedRows:
    """Return the rows of matrices, one matrix after the other.

    Parameters
    ----------
    files : CheckpointFiles
        Files of safetensors.
    names : sequence of str
        Names of the tensors.
    dtype : str
        The dtype that they must have, as safetensors names it.
    value_bytes : int
        Bytes of a value of it.

    Raises
    ------
    CheckpointError
        A tensor has another dtype or no rows, or is not in a ``.safetensors``.
    """
    opened: dict[Path, RowsFile] = {}
    parts = []
    for name in names:
        info, shape = files.store.infos[name][0], files.shape(name)
        (extent, *others) = files.store.extents(name)
        if info.dtype != dtype or len(shape) != 2 or min(shape) == 0 or others or extent is None:
            raise CheckpointError(
                f"tensor {name!r} in {info.path.name} is {info.dtype} {list(shape)}, expected "
                f"{dtype} [rows, columns] in a .safetensors"
            )
        if info.path not in opened:
            opened[info.path] = RowsFile(info.path)
        file = opened[info.path]
        parts.append(FileRows(file, name, dtype, extent[0], shape[0], shape[1] * value_bytes))
    return JoinedRows(parts)
