"""Named tensors of a checkpoint on disk, read in place and one at a time.

A store maps its files and gives tensors as views of the maps. Pages that were touched count as
resident memory for as long as a map lives, so `TensorStore.release` drops the maps; the next tensor
maps its file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tolpack.errors import CheckpointError
from tolpack.sources.identity import FileStates
from tolpack.sources.mapped_memory import MappedMemory
from tolpack.storage.inputs import InputPath

# Stored dtypes that are computed with, by the bytes of a value.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Characters of a tensor's name.
MAX_NAME = 512


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape, dtype (torch's name) and file of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    path: InputPath


class TensorFile(Protocol):
    """One file of named tensors; ``config`` is the model's configuration in it, or ``None``."""

    config: object

    @property
    def path(self) -> InputPath:
        """Where it is."""
        ...

    def infos(self) -> dict[str, TensorInfo]:
        """Return every tensor's shape and dtype."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor as stored, usually a view of the mapped file."""
        ...

    def extent(self, name: str) -> tuple[int, int] | None:
        """Return offset and length in bytes of a tensor whose values lie in the file as they are,
        row by row and little-endian; ``None`` where that is not so.
        """
        ...

    def release(self) -> None:
        """Drop the map; tensors that are still referenced keep theirs."""
        ...


class TensorStore:
    """All tensors of a checkpoint, by name.

    Parameters
    ----------
    files : sequence of TensorFile
        The checkpoint's files.
    pieces : bool
        Whether a name may be in several files, each holding a piece of the tensor, as tensor
        parallel trainers save it; otherwise that is an error.

    ``infos`` are shapes and dtypes of each tensor's pieces, ``config`` the configuration inside the
    only file, if it has one, and ``states`` the files as they were when opened. Whoever reads
    tensors counts their bytes with ``mapped``.
    """

    def __init__(self, files: Sequence[TensorFile], *, pieces: bool = False) -> None:
        self._files: dict[str, list[TensorFile]] = {}
        self.infos: dict[str, tuple[TensorInfo, ...]] = {}
        for file in files:
            for name, info in file.infos().items():
                others = self._files.setdefault(name, [])
                if others and not pieces:
                    raise CheckpointError(
                        f"tensor {name!r} is in both {others[0].path.name} and {file.path.name}: "
                        "remove one of the two files"
                    )
                others.append(file)
                self.infos[name] = (*self.infos.get(name, ()), info)
        self._all = list(files)
        self.config = files[0].config if len(files) == 1 else None
        self.states = FileStates(file.path for file in files)
        self.mapped = MappedMemory(self.release)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold tensors."""
        return tuple(sorted({info.path.name for one in self.infos.values() for info in one}))

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when it was opened."""
        self.states.check()

    def load(self, name: str) -> list[torch.Tensor]:
        """Return the tensor's pieces, one unless it is split over files, as stored."""
        return [file.load(name) for file in self._files[name]]

    def extents(self, name: str) -> list[tuple[int, int] | None]:
        """Return the extents of the tensor's pieces: see `TensorFile.extent`."""
        return [file.extent(name) for file in self._files[name]]

    def release(self) -> None:
        """Drop the maps of all files, and with them the resident pages."""
        for file in self._all:
            file.release()
