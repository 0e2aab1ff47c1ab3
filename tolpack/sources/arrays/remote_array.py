"""Arrays in files that are read by ranges: ``.npy``, and a ``.safetensors`` of one tensor."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.sources.arrays.npy import read_layout
from tolpack.sources.arrays.stored_array import StoredArray
from tolpack.sources.checkpoint.safetensors_file import RemoteSafetensors
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.tensors.last_rows import LastRows
from tolpack.sources.tensors.tensor_rows import FileRows, JoinedRows
from tolpack.storage.remote_input import RemoteInput, open_remote_stream
from tolpack.storage.remote_path import RemotePath


def open_remote_npy(path: RemotePath) -> StoredArray:
    """Open a ``.npy``.

    Raises
    ------
    CheckpointError
        It is missing or damaged, or its rows do not lie one after the other.
    """
    try:
        with open_remote_stream(path) as stream:
            layout = read_layout(stream)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read table {path}: {error}") from error
    if layout.fortran and len(layout.shape) > 1:
        raise CheckpointError(
            f"the array of {path} is in Fortran order, whose rows lie all over the file: save it "
            "with numpy.ascontiguousarray, or download it first"
        )
    return _stored_array(path, str(layout.dtype), layout.offset, layout.shape)


def open_remote_tensor(path: RemotePath) -> StoredArray | None:
    """Open a ``.safetensors`` of one tensor; ``None`` if it has more, or none.

    Raises
    ------
    CheckpointError
        It is missing or damaged.
    """
    file = RemoteSafetensors(path)
    if len(file.infos()) != 1:
        return None
    ((name, info),) = file.infos().items()
    offset = (file.extent(name) or (0, 0))[0]
    return _stored_array(path, info.dtype, offset, info.shape)


def _stored_array(path: RemotePath, dtype: str, offset: int, shape: tuple[int, ...]) -> StoredArray:
    """Return rows of `dtype` that begin at `offset`."""
    value_bytes = DTYPE_BYTES.get(dtype, 0)
    width = math.prod(shape[1:]) * value_bytes if shape else 0
    if not width or not shape[0]:
        raise CheckpointError(
            f"the table of {path} is {dtype} {list(shape)}, expected float32, float16 or bfloat16 "
            "[vocab, layers, hidden] or [vocab, layers·hidden]"
        )
    rows = JoinedRows([FileRows(RemoteInput(path), "table", dtype, offset, shape[0], width)])
    last = LastRows(rows)

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        first, size = start * value_bytes, (stop - start) * value_bytes
        stored = torch.from_numpy(last.columns(ids, first, size))
        values: NDArray[np.float32] = stored.view(getattr(torch, dtype)).float().numpy()
        return values

    return StoredArray(path, take, rows.block, shape, dtype)
