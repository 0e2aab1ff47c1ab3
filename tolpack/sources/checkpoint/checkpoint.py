"""A MemoryLLM, Flex-MemoryLLM or dense checkpoint, under the names of tolpack's schema.

`open_checkpoint` finds the files, the configuration and the key map, and gives tensors by their
schema name (`tolpack.sources.checkpoint.schema`), whatever they are called, fused or split on disk.
Every tensor's shape is held against the configuration before it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.checkpoint.config import MODEL_TYPES, ModelConfig, parse_config, read_config
from tolpack.sources.checkpoint.fused_tensors import (
    joined_dimension,
    memory_in_place,
    stored_shape,
    take,
    take_rows,
)
from tolpack.sources.checkpoint.key_map import (
    KeyMap,
    Matches,
    Part,
    built_in,
    match,
    nearest,
    read_key_map,
)
from tolpack.sources.checkpoint.schema import expected_shape, pattern_of
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.checkpoint.tensors import FLOAT_DTYPES, TensorStore
from tolpack.sources.identity import FileStates, rows_digest
from tolpack.sources.input_kind import check_input
from tolpack.sources.residency import Residency

# Values that are checked to be finite at once, so that a large tensor is not doubled in memory.
_CHECKED_VALUES = 1 << 22
_CHECKED_ROWS = 1024
# By dtype: an integer of its size, and the bits of infinity.
_INFINITY: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], int]] = {
    torch.float32: (np.uint32, 0x7F800000),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float16: (np.uint16, 0x7C00),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a checkpoint is to be read, where it does not say so itself.

    Parameters
    ----------
    config : str or Path, optional
        A ``config.json`` that replaces the checkpoint's own.
    arch : str, optional
        Replaces the config's ``model_type``.
    map_name : str, optional
        A built-in key map, in place of the one that fits best (``--map``).
    key_map : str or Path, optional
        The user's own key map.
    """

    config: str | Path | None = None
    arch: str | None = None
    map_name: str | None = None
    key_map: str | Path | None = None

    def chosen_map(self) -> KeyMap | None:
        """Return the map that was asked for, or raise `ConfigError`."""
        if self.map_name is not None and self.key_map is not None:
            raise ConfigError("--map and --key-map both choose the names: give one of them")
        if self.key_map is not None:
            return read_key_map(self.key_map)
        return None if self.map_name is None else built_in(self.map_name)

    def check_arch(self) -> None:
        """Raise `ConfigError` if ``arch`` is none of the model types."""
        if self.arch is not None and self.arch not in MODEL_TYPES:
            raise ConfigError(f"--arch {self.arch!r} is unknown: one of {', '.join(MODEL_TYPES)}")


class Checkpoint:
    """Weights by schema name, with their configuration.

    Parameters
    ----------
    store : TensorStore
        Tensors under the names of the files.
    config : ModelConfig
        The model's settings.
    path : Path
        For messages only; never written into a pack.
    matches : Matches
        Which tensor of the schema is where.
    """

    def __init__(
        self, store: TensorStore, config: ModelConfig, path: Path, matches: Matches
    ) -> None:
        implied = matches.key_map.rope_interleaved
        if config.rope_interleaved is None and implied is not None:
            config = replace(config, rope_interleaved=implied)
        self.config = config
        self.path = path
        self.key_map = matches.key_map
        self.unknown = matches.unknown
        plain = config.model_type == "memoryllm"
        self.parts = memory_in_place(matches.parts) if plain else matches.parts
        self._store = store
        self._residency = Residency(store.release)
        self._finite: set[str] = set()
        self._digests: dict[str, bytes] = {}
        self._states = FileStates(self._paths())

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that tensors are read from."""
        return tuple(sorted({path.name for path in self._paths()}))

    def _paths(self) -> set[Path]:
        return {info.path for pieces in self._store.infos.values() for info in pieces}

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds schema name `name`."""
        return name in self.parts

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor `name` as stored (fp32, bf16 or fp16), checked to be finite.

        It is a view of the mapped file, unless it is split over files or stored by head groups.

        Raises
        ------
        CheckpointError
            The tensor is missing, or has another shape or dtype, or holds NaN or Inf.
        """
        self.check(name)
        tensor = self._take(name)
        if name not in self._finite:
            _check_finite(tensor, name, self.parts[name].stored)
            self._finite.add(name)
        self._residency.touch(tensor.nbytes)
        return tensor

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Return rows `ids`, int64 (n,), of tensor `name` as stored: a copy; reads no others."""
        part, shape = self.parts[name], expected_shape(self.config, name)
        joined = len(part.rule.targets) > 1 or part.rule.transpose
        row_bytes = getattr(torch, self.dtype(name)).itemsize * torch.Size(shape[1:]).numel()
        pieces = []
        for piece in self._residency.pieces(ids.numpy(), row_bytes):
            if joined:
                pieces.append(self._take(name)[ids[piece]])
            else:
                pieces.append(take_rows(self._store.load(part.stored), shape, ids[piece]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def row_block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start … stop-1`` of tensor `name` as stored, if possible as a view."""
        part = self.parts[name]
        pieces = self._store.load(part.stored)
        if len(pieces) > 1 or len(part.rule.targets) > 1 or part.rule.transpose:
            return self.rows(name, torch.arange(start, stop))
        block = pieces[0][start:stop]
        self._residency.touch(block.nbytes)
        return block

    def check_finite_rows(
        self, name: str, done: Callable[[int], object] = lambda rows: None
    ) -> None:
        """Raise `CheckpointError` if tensor `name` holds NaN or Inf; never holds all of it."""
        self.check(name)
        count = expected_shape(self.config, name)[0]
        for start in range(0, count, _CHECKED_ROWS):
            block = self.row_block(name, start, min(count, start + _CHECKED_ROWS))
            _check_finite(block, name, self.parts[name].stored)
            done(len(block))

    def fingerprint(self, names: Iterable[str] | None = None) -> bytes:
        """Return 32 bytes that depend on every bit of tensors `names` (default: of all), and not on
        how they are called or stored.
        """
        digest = hashlib.sha256()
        for name in sorted(self.parts if names is None else names):
            digest.update(f"{name} {expected_shape(self.config, name)} {self.dtype(name)}".encode())
            digest.update(self.digest(name))
        return digest.digest()

    def digest(self, name: str, done: Callable[[int], object] = lambda size: None) -> bytes:
        """Return 32 bytes that depend on every bit of tensor `name`, kept once they are known.

        `done` is called with the number of bytes read since the last call; never holds all of a
        tensor that lies in the file as it is.

        Raises
        ------
        CheckpointError
            As `tensor`.
        """
        if name not in self._digests:
            self.check(name)
            count = expected_shape(self.config, name)[0]

            def block(start: int, stop: int) -> NDArray[np.uint8]:
                rows = self.row_block(name, start, stop)
                _check_finite(rows, name, self.parts[name].stored)
                stored: NDArray[np.uint8] = rows.contiguous().view(torch.uint8).numpy()
                return stored

            row_bytes = self.stored_bytes(name) // count
            self._digests[name] = rows_digest(count, row_bytes, block, done)
            self._finite.add(name)
        return self._digests[name]

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors of one shape have the same values, whatever their dtypes."""
        self.check(name)
        self.check(other)
        count = expected_shape(self.config, name)[0]
        for start in range(0, count, _CHECKED_ROWS):
            stop = min(count, start + _CHECKED_ROWS)
            first, second = (self.row_block(one, start, stop).float() for one in (name, other))
            if not torch.equal(first, second):
                return False
        return True

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when the checkpoint was opened."""
        self._states.check()

    def decoder_bytes(self) -> int:
        """Bytes of all the weights of a decoder in float32."""
        return sum(4 * torch.Size(expected_shape(self.config, n)).numel() for n in self.parts)

    def refuse_bias(self, *names: str) -> None:
        """Raise `CheckpointError` if one of ``{name}.bias`` exists: it would be left out."""
        for name in names:
            if self.has(f"{name}.bias"):
                raise CheckpointError(
                    f"tensor {self.parts[name + '.bias'].stored!r} has no place in this "
                    "architecture, and results without it would be wrong: remove it if it is zero"
                )

    def check(self, name: str) -> None:
        """Raise `CheckpointError` unless tensor `name` is there with the config's shape."""
        if name not in self.parts:
            raise CheckpointError(self._missing(name))
        part = self.parts[name]
        infos = self._store.infos[part.stored]
        expected = stored_shape(self.config, name, part)
        for info in infos:
            if info.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"tensor {part.stored!r} is {info.dtype} in {info.path.name}, expected dense "
                    "float32, bfloat16 or float16: convert it and save again"
                )
        shapes = [info.shape for info in infos]
        try:
            joined_dimension(shapes, expected)
        except ValueError:
            raise CheckpointError(self._misshapen(part, shapes, expected)) from None
        if len(shapes) > 1 and len(part.rule.targets) > 1:
            raise CheckpointError(
                f"tensor {part.stored!r} is fused and split over {len(shapes)} files, so its rows "
                "are in no known order: save it whole"
            )

    def stored_bytes(self, name: str) -> int:
        """Bytes of tensor `name` as stored."""
        rows = expected_shape(self.config, name)
        dtype = getattr(torch, self.dtype(name))
        return int(torch.Size(rows).numel() * dtype.itemsize)

    def dtype(self, name: str) -> str:
        """Stored dtype of tensor `name`, as torch calls it."""
        return self._store.infos[self.parts[name].stored][0].dtype

    def _missing(self, name: str) -> str:
        pattern = pattern_of(name)
        number = name.split(".")[1] if "{N}" in pattern else ""
        sought = [
            rule.source.replace("{N}", number)
            for rule in self.key_map.rules
            if {pattern, pattern.replace("memory_mlp", "mlp")} & set(rule.targets)
        ]
        stored = [part.stored for part in self.parts.values()] + list(self.unknown)
        return (
            f"tensor {name!r} is missing from {self.path}: key map {self.key_map.name} "
            f"{'looks for ' + ' or '.join(sought) if sought else 'has no rule for it'}"
            f"{nearest(sought[0] if sought else name, stored)} (names: docs/checkpoints.md)"
        )

    def _misshapen(
        self, part: Part, shapes: list[tuple[int, ...]], expected: tuple[int, ...]
    ) -> str:
        fused = f" for {' and '.join(part.rule.targets)}" if len(part.rule.targets) > 1 else ""
        if len(shapes) > 1:
            found = f"has pieces of shapes {', '.join(str(list(shape)) for shape in shapes)}"
        else:
            found = f"has shape {list(shapes[0])}"
        turned = shapes[0] == expected[::-1] and len(expected) == 2
        hint = " (or, as it is stored the other way round, transpose it)" if turned else ""
        files = {info.path.name for info in self._store.infos[part.stored]}
        if any(name.startswith("consolidated.") for name in files):
            hint += " (or, as these are pieces of tensors, add the file that is missing)"
        return (
            f"tensor {part.stored!r} {found}, but the config asks for {list(expected)}{fused}: "
            f"correct config.json or the checkpoint{hint}"
        )

    def _take(self, name: str) -> torch.Tensor:
        """Read the tensor, without looking at its values."""
        part = self.parts[name]
        pieces = self._store.load(part.stored)
        return take(self.config, name, part, pieces)


def open_checkpoint(path: str | Path, reading: Reading | None = None) -> Checkpoint:
    """Open a ``.pt``/``.pth``, a ``.safetensors`` or a folder of shards with ``config.json``.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    reading : Reading, optional
        What the checkpoint does not say itself.

    Raises
    ------
    CheckpointError, ConfigError
        Nothing usable there; the message says what to do.
    """
    path, reading = Path(path), reading or Reading()
    reading.check_arch()
    key_map = reading.chosen_map()
    check_input(path)
    store, embedded = open_store(path)
    config = _find_config(reading, embedded, path)
    return Checkpoint(store, config, path, match(store.infos, key_map))


def _find_config(reading: Reading, embedded: object, path: Path) -> ModelConfig:
    if reading.config is not None:
        return read_config(Path(reading.config), reading.arch)
    if embedded is not None:
        return parse_config(embedded, reading.arch)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if beside.exists():
        return read_config(beside, reading.arch)
    raise CheckpointError(
        f"{path} carries no config: give one with --config config.json, or put it beside"
    )


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
