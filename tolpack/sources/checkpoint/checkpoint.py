"""A MemoryLLM, Flex-MemoryLLM or dense checkpoint, whose tensors have the names of the schema.

`open_checkpoint` opens the files and finds the configuration and the key map. A `Checkpoint` reads
tensors by their name in the schema (`tolpack.sources.checkpoint.schema`), whatever they are called
on disk, and whether they are fused or split there. A tensor that is not as the configuration says
cannot be read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Bytes
from tolpack.sources.checkpoint.config import ModelConfig, find_config
from tolpack.sources.checkpoint.key_map import (
    Matches,
    match,
    nearest,
)
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.schema import pattern_of
from tolpack.sources.checkpoint.schema_tensors import SchemaTensor, find_schema_tensors
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.checkpoint.tensor_slices import read_rows, read_slice
from tolpack.sources.checkpoint.tensors import TensorStore
from tolpack.sources.identity import rows_digest
from tolpack.sources.input_kind import check_input
from tolpack.sources.tensors.last_rows import LastRows
from tolpack.sources.tensors.tensor_rows import FileRows, JoinedRows
from tolpack.storage.inputs import InputPath, input_path
from tolpack.storage.locations import Location
from tolpack.storage.remote_input import RemoteInput
from tolpack.storage.remote_path import RemotePath

# Values, and rows, that are checked at once, so that a large tensor is not doubled in memory.
_CHECKED_VALUES = 1 << 22
_CHECKED_ROWS = 1024
# By dtype: an integer of its size, and the bits of infinity.
_INFINITY: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], int]] = {
    torch.float32: (np.uint32, 0x7F800000),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float16: (np.uint16, 0x7C00),
}


class Checkpoint:
    """Weights by schema name, with their configuration.

    Parameters
    ----------
    path : Path or RemotePath
        For messages only; never written into a pack.
    store : TensorStore
        Tensors under the names of the files.
    config : ModelConfig
        The model's settings.
    matches : Matches
        Where each tensor of the schema is.
    """

    def __init__(
        self, path: InputPath, store: TensorStore, config: ModelConfig, matches: Matches
    ) -> None:
        self.path = path
        self.config = config
        self.key_map = matches.key_map
        self.unknown = matches.unknown
        self.schema_tensors = find_schema_tensors(config, matches.slices, store.infos)
        self._store = store
        self._finite: set[str] = set()
        self._digests: dict[str, bytes] = {}
        self._remote: dict[str, LastRows] = {}
        self._opened: dict[RemotePath, RemoteInput] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that tensors are read from."""
        return self._store.files

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds schema name `name`."""
        return name in self.schema_tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor `name` as stored (fp32, bf16 or fp16), checked to be finite.

        It is a view of the mapped file, unless it is split over files or stored by head groups.

        Raises
        ------
        CheckpointError
            The tensor is missing, or has another shape or dtype, or holds NaN or Inf.
        """
        found = self.check(name)
        if self._remote_rows(found) is not None:
            tensor = self.row_block(name, 0, found.shape[0])
        else:
            tensor = read_slice(found, self._store.load(found.stored))
        if name not in self._finite:
            _check_finite(tensor, name, found.stored)
            self._finite.add(name)
        self._store.mapped.touch(tensor.nbytes)
        return tensor

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Return rows `ids`, int64 (n,), of tensor `name` as stored: a copy; reads no others."""
        tensor = self.check(name)
        remote = self._remote_rows(tensor)
        if remote is not None:
            return _as_tensor(remote.take(ids.numpy() + tensor.first_row).copy(), tensor)
        by_rows = not tensor.slice.fused and not tensor.slice.transpose
        pieces = []
        for piece in self._store.mapped.pieces(ids.numpy(), tensor.nbytes // tensor.shape[0]):
            stored = self._store.load(tensor.stored)
            if by_rows:
                pieces.append(read_rows(stored, tensor.shape, ids[piece]))
            else:
                pieces.append(read_slice(tensor, stored)[ids[piece]])
            del stored  # what is referenced cannot be released
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def row_block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start … stop-1`` of tensor `name` as stored, if possible as a view."""
        tensor = self.check(name)
        remote = self._remote_rows(tensor)
        if remote is not None:
            first = tensor.first_row
            return _as_tensor(remote.rows.block(first + start, first + stop), tensor)
        pieces = self._store.load(tensor.stored)
        if len(pieces) > 1 or tensor.slice.fused or tensor.slice.transpose:
            return self.rows(name, torch.arange(start, stop))
        block = pieces[0][start:stop]
        self._store.mapped.touch(block.nbytes)
        return block

    def check_finite_rows(
        self, name: str, done: Callable[[int], object] = lambda rows: None
    ) -> None:
        """Raise `CheckpointError` if tensor `name` holds NaN or Inf; never holds all of it."""
        tensor = self.check(name)
        count = tensor.shape[0]
        for start in range(0, count, _CHECKED_ROWS):
            block = self.row_block(name, start, min(count, start + _CHECKED_ROWS))
            _check_finite(block, name, tensor.stored)
            done(len(block))

    def fingerprint(self, names: Iterable[str] | None = None) -> bytes:
        """Return 32 bytes that depend on every bit of tensors `names` (default: of all), but not on
        their names in the files or on how they are stored.
        """
        digest = hashlib.sha256()
        for name in sorted(self.schema_tensors if names is None else names):
            tensor = self.check(name)
            digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
            digest.update(self.digest(name))
        return digest.digest()

    def digest(self, name: str, done: Callable[[int], object] = lambda size: None) -> bytes:
        """Return 32 bytes that depend on every bit of tensor `name`; a second call reads nothing.

        `done` is called with the number of bytes read since the last call. A tensor that lies as
        it is in the file is read in blocks, and never held whole.

        Raises
        ------
        CheckpointError
            As `tensor`.
        """
        if name not in self._digests:
            tensor = self.check(name)
            count = tensor.shape[0]

            def block(start: int, stop: int) -> NDArray[np.uint8]:
                rows = self.row_block(name, start, stop)
                _check_finite(rows, name, tensor.stored)
                stored: NDArray[np.uint8] = rows.contiguous().view(torch.uint8).numpy()
                return stored

            self._digests[name] = rows_digest(count, tensor.nbytes // count, block, done)
            self._finite.add(name)
        return self._digests[name]

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors of one shape have the same values, whatever their dtypes."""
        count = self.check(name).shape[0]
        self.check(other)
        for start in range(0, count, _CHECKED_ROWS):
            stop = min(count, start + _CHECKED_ROWS)
            first, second = (self.row_block(one, start, stop).float() for one in (name, other))
            if not torch.equal(first, second):
                return False
        return True

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when the checkpoint was opened."""
        self._store.check_unchanged()

    def sampled_digest(self) -> bytes:
        """Return 32 bytes that depend on how tensors are called, and on samples of their files."""
        names = {name: tensor.stored for name, tensor in self.schema_tensors.items()}
        digest = hashlib.sha256(repr(sorted(names.items())).encode())
        return hashlib.sha256(digest.digest() + self._store.states.sampled_digest()).digest()

    def decoder_bytes(self) -> int:
        """Bytes of all the weights of a decoder in float32."""
        return sum(4 * math.prod(self.check(name).shape) for name in self.schema_tensors)

    def refuse_bias(self, *names: str) -> None:
        """Raise `CheckpointError` if one of ``{name}.bias`` exists: nothing would use it."""
        for name in names:
            if self.has(f"{name}.bias"):
                raise CheckpointError(
                    f"tensor {self.schema_tensors[name + '.bias'].stored!r} has no place in this "
                    "architecture, and results without it would be wrong: remove it if it is zero"
                )

    def check(self, name: str) -> SchemaTensor:
        """Return shape and place of tensor `name`.

        Raises
        ------
        CheckpointError
            The tensor is missing, or has another shape than the config says, or another dtype than
            fp32, bf16 and fp16.
        """
        found = self.schema_tensors.get(name)
        if found is None:
            raise CheckpointError(self._missing(name))
        if found.problem is not None:
            raise CheckpointError(found.problem)
        return found

    def _remote_rows(self, tensor: SchemaTensor) -> LastRows | None:
        """Return the rows of the stored tensor if its file is elsewhere; ``None`` for others, and
        where rows of `tensor` are not rows of it.
        """
        path = self._store.infos[tensor.stored][0].path
        extent = self._store.extents(tensor.stored)[0]
        if not isinstance(path, RemotePath) or extent is None:
            return None
        if tensor.slice.transpose or tensor.head_groups is not None:
            return None
        if tensor.stored not in self._remote:
            if path not in self._opened:
                self._opened[path] = RemoteInput(path)
            file = self._opened[path]
            count, size = tensor.stored_shape[0], tensor.nbytes // tensor.shape[0]
            rows = FileRows(file, tensor.stored, tensor.dtype, extent[0], count, size)
            self._remote[tensor.stored] = LastRows(JoinedRows([rows]))
        return self._remote[tensor.stored]

    def _missing(self, name: str) -> str:
        """Say where the key map looks for a tensor, and which names are near."""
        pattern = pattern_of(name)
        number = name.split(".")[1] if "{N}" in pattern else ""
        sought = [
            rule.source.replace("{N}", number)
            for rule in self.key_map.rules
            if {pattern, pattern.replace("memory_mlp", "mlp")} & set(rule.targets)
        ]
        stored = [tensor.stored for tensor in self.schema_tensors.values()] + list(self.unknown)
        return (
            f"tensor {name!r} is missing from {self.path}: key map {self.key_map.name} "
            f"{'looks for ' + ' or '.join(sought) if sought else 'has no rule for it'}"
            f"{nearest(sought[0] if sought else name, stored)} (names: docs/checkpoints.md)"
        )


def open_checkpoint(path: Location, options: CheckpointOptions | None = None) -> Checkpoint:
    """Open a ``.pt``/``.pth``, a ``.safetensors`` or a folder of shards with ``config.json``.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    options : CheckpointOptions, optional
        Settings that the checkpoint lacks, or that replace its own.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used; the message says what to do.
    """
    found = input_path(path)
    check_input(found)
    return name_tensors(found, open_store(found), options or CheckpointOptions())


def name_tensors(path: InputPath, store: TensorStore, options: CheckpointOptions) -> Checkpoint:
    """Find the configuration and the names of the tensors in `store`, and return the checkpoint.

    Raises
    ------
    CheckpointError, ConfigError
        As `open_checkpoint`.
    """
    options.check_arch()
    key_map = options.chosen_map()
    config = find_config(path, options.config, store.config, options.arch)
    matches = match(store.infos, key_map)
    implied = matches.key_map.rope_interleaved
    if config.rope_interleaved is None and implied is not None:
        config = replace(config, rope_interleaved=implied)
    return Checkpoint(path, store, config, matches)


def _as_tensor(rows: Bytes, tensor: SchemaTensor) -> torch.Tensor:
    """Return rows as they are stored, uint8 (n, row bytes), as a tensor (n, …)."""
    values = torch.from_numpy(rows).view(getattr(torch, tensor.dtype))
    return values.reshape(len(rows), *tensor.shape[1:])


def _check_finite(tensor: torch.Tensor, name: str, stored: str) -> None:
    rows = max(1, _CHECKED_VALUES // max(1, tensor[0].numel())) if len(tensor) else 1
    for block in torch.split(tensor, rows):
        if not _is_finite(block):
            also = f" ({stored!r})" if stored.removeprefix("model.") != name else ""
            raise CheckpointError(
                f"tensor {name!r}{also} holds NaN or Inf: the checkpoint is damaged"
            )


def _is_finite(block: torch.Tensor) -> bool:
    """Whether all exponents are below that of infinity: by integers, ten times `torch.isfinite`."""
    unsigned, infinity = _INFINITY[block.dtype]
    bits = block.contiguous().view(torch.uint8).numpy().view(unsigned)
    without_sign = np.iinfo(unsigned).max >> 1
    return not bits.size or int((bits & unsigned(without_sign)).max()) < infinity
