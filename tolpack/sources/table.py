"""Where rows come from, whatever the source: the `TableSource` protocol and its two kinds.

`MemoryTable` computes a layer's rows from a checkpoint's FFNs; `ArrayTable` reads them from a
plain ``.npy``, ``.safetensors`` or ``.h5`` of shape ``[vocab, layers, hidden]`` or
``[vocab, layers·hidden]``. Both hand out float32 rows for any list of token ids, one layer at a
time, and never hold the whole table.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.checkpoint import Checkpoint, Reading, open_checkpoint
from tolpack.sources.description import group_tensors
from tolpack.sources.ffn import load_memory
from tolpack.sources.npy import read_npy
from tolpack.sources.readiness import check_memory
from tolpack.sources.residency import Residency
from tolpack.sources.tensors import SafetensorsFile

LayerRows = Callable[[NDArray[np.int64]], NDArray[np.float32]]

# Rows that tell two tables apart; the fingerprint is an identity, not an integrity check.
_FINGERPRINT_ROWS = 256


class TableSource(Protocol):
    """A table of ``vocab_size`` rows of ``num_layers`` fields of ``hidden_size`` values.

    ``dtype`` is ``"float32"``, ``"float16"`` or ``"bfloat16"``: what the values are exact in.
    ``ffn_bytes`` are the bytes of the FFN weights that the table replaces, if there are any;
    ``inner_size`` is their inner width, 0 if there are none.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    inner_size: int
    dtype: str
    ffn_bytes: int | None

    def layer(self, layer: int) -> LayerRows:
        """Return a function that maps int64 ids (n,) to layer `layer`'s rows, float32 (n, hidden).

        Weights are loaded here, once; the function may be called from several threads.
        """
        ...

    def fingerprint(self) -> bytes:
        """Return bytes that differ for different tables and do not depend on file names."""
        ...

    def describe(self) -> list[str]:
        """Return lines that say what was matched, with shapes."""
        ...


class MemoryTable:
    """Token-wise lookups computed from a MemoryLLM or Flex checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    compute : torch.dtype
        What the FFNs are multiplied in; see `tolpack.sources.ffn`. Rows are float32.
    """

    dtype = "float32"

    def __init__(self, checkpoint: Checkpoint, compute: torch.dtype = torch.float32) -> None:
        self._names = check_memory(checkpoint)
        config = checkpoint.config
        self.checkpoint = checkpoint
        self.compute = compute
        self.vocab_size = config.vocab_size
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.inner_size = int(config.require("memory_intermediate_size", "the memory FFNs"))
        self.ffn_bytes: int | None = sum(
            checkpoint.stored_bytes(name) for name in self._names if ".memory_" in name
        )

    def layer(self, layer: int) -> LayerRows:
        """See `TableSource.layer`."""
        norm, ffn = load_memory(self.checkpoint, layer, self.compute)

        @torch.inference_mode()
        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            x = self.checkpoint.rows("embed_tokens.weight", torch.from_numpy(ids)).float()
            values = np.asarray(ffn(norm(x)).numpy())
            _check_finite(values, ids, layer)
            return values

        return rows

    def check_embedding(self, done: Callable[[int], object]) -> None:
        """Raise `CheckpointError` if the embedding holds NaN or Inf; FFNs are checked as they are
        loaded. `done` is called with the number of rows read since the last call.
        """
        self.checkpoint.check_finite_rows("embed_tokens.weight", done)

    def computed_in(self, compute: torch.dtype) -> MemoryTable:
        """Return the same table, its FFNs multiplied in `compute`."""
        other = copy.copy(self)
        other.compute = compute
        return other

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: configuration, and evenly spaced rows of every weight."""
        config = self.checkpoint.config
        settings = (config.norm, config.rms_norm_eps, config.hidden_act, self.compute)
        digest = hashlib.sha256(repr(settings).encode())
        return digest.digest() + self.checkpoint.fingerprint(self._names)

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        named = f"tensor names: {self.checkpoint.key_map.name}"
        groups = group_tensors(self.checkpoint, self._names)
        return [named, *map(str, groups), *_left_over(self.checkpoint.unknown)]


class ArrayTable:
    """A plain table on disk.

    Parameters
    ----------
    take : callable
        ``take(ids, start, stop)`` returns float rows (n, stop - start) of the flattened table.
    shape : tuple of int
        ``[vocab, layers, hidden]`` or ``[vocab, layers · hidden]``.
    dtype : str
        Stored dtype.
    layers : int or None
        Number of layers; required for a two-dimensional table.
    """

    ffn_bytes: int | None = None
    inner_size = 0

    def __init__(
        self,
        take: Callable[[NDArray[np.int64], int, int], NDArray[np.float32]],
        shape: tuple[int, ...],
        dtype: str,
        layers: int | None,
    ) -> None:
        if dtype not in ("float32", "float16", "bfloat16"):
            raise CheckpointError(
                f"the table is {dtype}, expected float32, float16 or bfloat16: convert it"
            )
        self._take = take
        self.dtype = dtype
        self.vocab_size, self.num_layers, self.hidden_size = _table_shape(shape, layers)

    def layer(self, layer: int) -> LayerRows:
        """See `TableSource.layer`."""
        start = layer * self.hidden_size

        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            values = self._take(ids, start, start + self.hidden_size)
            _check_finite(values, ids, layer)
            return values

        return rows

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: shape and evenly spaced rows."""
        shape = (self.vocab_size, self.num_layers, self.hidden_size)
        digest = hashlib.sha256(f"{shape} {self.dtype}".encode())
        step = max(1, self.vocab_size // _FINGERPRINT_ROWS)
        ids = np.arange(0, self.vocab_size, step, dtype=np.int64)
        for layer in range(self.num_layers):
            digest.update(self.layer(layer)(ids).tobytes())
        return digest.digest()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        return [f"table [{self.vocab_size}, {self.num_layers}, {self.hidden_size}] {self.dtype}"]


def open_source(
    path: str | Path, reading: Reading | None = None, layers: int | None = None
) -> MemoryTable | ArrayTable:
    """Open a checkpoint or a plain table.

    Parameters
    ----------
    path : str or Path
        ``.pt``, ``.pth``, a folder, or ``.safetensors`` for checkpoints; ``.npy``, ``.h5`` or
        a ``.safetensors`` with one tensor and no config for tables.
    reading : Reading, optional
        What a checkpoint does not say itself.
    layers : int, optional
        Layers of a two-dimensional table.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used; the message says what to do.
    """
    path = Path(path)
    if path.is_file() and path.suffix in _TABLE_OPENERS:
        opened = _TABLE_OPENERS[path.suffix](path)
        if opened is not None:
            return ArrayTable(*opened, layers)
    if layers is not None:
        raise ConfigError("--layers is for two-dimensional tables; a checkpoint has its config")
    return MemoryTable(open_checkpoint(path, reading))


_Opened = tuple[Callable[..., NDArray[np.float32]], tuple[int, ...], str]


def _open_npy(path: Path) -> _Opened:
    def map_file() -> NDArray[Any]:
        try:
            return read_npy(path, "table", mapped=True)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error

    held = [map_file()]
    shape, dtype = held[0].shape, str(held[0].dtype)
    row_bytes = held[0].dtype.itemsize * math.prod(shape[1:])
    if not held[0].flags.c_contiguous:  # a row lies all over the file
        row_bytes = held[0].nbytes
    residency = Residency(held.clear)

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((len(ids), stop - start), np.float32)
        for piece in residency.pieces(ids, row_bytes):
            array = next(iter(held), None)
            if array is None:
                held[:] = [array := map_file()]
            if array.ndim == 3:  # no reshape: it would copy a table in Fortran order
                rows[piece] = array[ids[piece], start // array.shape[2]]
            else:
                rows[piece] = array[ids[piece], start:stop]
            del array  # what is referenced cannot be released
        return rows

    return take, shape, dtype


def _open_tensor(path: Path) -> _Opened | None:
    file = SafetensorsFile(path)
    infos = file.infos()
    if len(infos) != 1:
        return None  # a checkpoint
    name, info = next(iter(infos.items()))
    residency = Residency(file.release)

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((len(ids), stop - start), np.float32)
        row_bytes = getattr(torch, info.dtype).itemsize * math.prod(info.shape[1:])
        for piece in residency.pieces(ids, row_bytes):
            flat = file.load(name).flatten(1)
            rows[piece] = flat[torch.from_numpy(ids[piece]), start:stop].float().numpy()
            del flat  # what is referenced cannot be released
        return rows

    return take, info.shape, info.dtype


def _open_h5(path: Path) -> _Opened:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("reading .h5 needs h5py: pip install 'tolpack[build]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CheckpointError(f"cannot read table {path}: {error}") from error
    found: list[Any] = []
    file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
    if len(found) != 1:
        names = ", ".join(dataset.name for dataset in found) or "none"
        raise CheckpointError(f"{path} must hold one dataset, found {names}")
    dataset = found[0]

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        distinct, inverse = np.unique(ids, return_inverse=True)  # h5py wants increasing indices
        if dataset.ndim == 3:
            layer = start // dataset.shape[2]
            return np.asarray(dataset[distinct, layer], dtype=np.float32)[inverse]
        return np.asarray(dataset[distinct, start:stop], dtype=np.float32)[inverse]

    return take, tuple(dataset.shape), str(dataset.dtype)


def _left_over(names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"not used: {', '.join(names[:3])}{more}"]


_TABLE_OPENERS: dict[str, Callable[[Path], _Opened | None]] = {
    ".npy": _open_npy,
    ".safetensors": _open_tensor,
    ".h5": _open_h5,
    ".hdf5": _open_h5,
}


def _check_finite(values: NDArray[np.float32], ids: NDArray[np.int64], layer: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        token = ids[~finite.all(axis=1)][0]
        raise CheckpointError(
            f"the table holds NaN or Inf at token {token}, layer {layer}: repair the checkpoint"
        )


def _table_shape(shape: tuple[int, ...], layers: int | None) -> tuple[int, int, int]:
    if len(shape) == 3 and layers in (None, shape[1]) and min(shape) > 0:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2 and layers is None:
        raise ConfigError(
            f"the table has shape {list(shape)}: say how many layers a row holds with --layers N"
        )
    if len(shape) == 2 and layers and min(shape) > 0 and shape[1] % layers == 0:
        return shape[0], layers, shape[1] // layers
    raise CheckpointError(
        f"the table has shape {list(shape)}, expected [vocab, layers, hidden] or "
        f"[vocab, layers·hidden] with --layers (given: {layers})"
    )
