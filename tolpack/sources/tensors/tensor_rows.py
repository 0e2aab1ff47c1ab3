"""Rows of stored tensors as bytes: those of one tensor, and those of several one after the other.

Rows are read from the file at their offsets into private buffers. A map would end in SIGBUS where
a file is truncated meanwhile, and its pages would count as memory of the process. Consecutive rows
are one read. Others are sorted, and neighbours with small gaps are read together. What the page
cache has is copied at once, and the rest is announced to the system before it is waited for, so
that a disk is read at queue depth.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Bytes
from tolpack.runtime.files import open_regular
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.sources.checkpoint.tensors import TensorStore
from tolpack.storage.inputs import InputPath
from tolpack.storage.remote_input import RemoteInput
from tolpack.storage.remote_path import RemotePath

# Unwanted bytes that are read along rather than begin another read, which takes about as long.
_GAP_BYTES = 8 << 10
_REMOTE_GAP_BYTES = 256 << 10
# Bytes of a read of rows with gaps.
_SPAN_BYTES = 4 << 20
# Bytes of one call: some systems refuse 2 GiB.
_READ_BYTES = 1 << 30
# Rows of each tensor that are compared with those of others.
_COMPARED_ROWS = 16
_HAS_PREADV = hasattr(os, "preadv")
_HAS_FADVISE = hasattr(os, "posix_fadvise")
_NOWAIT = getattr(os, "RWF_NOWAIT", 0) if _HAS_PREADV else 0


class TensorRows(Protocol):
    """The rows of one stored tensor: ``rows`` of ``row_bytes`` each.

    ``name``, ``path`` and ``dtype`` (torch's name) say which tensor it is.
    """

    name: str
    path: InputPath
    dtype: str
    rows: int
    row_bytes: int

    def read_into(self, start: int, out: Bytes, *, wait: bool = True) -> bool:
        """Read the rows from `start` on into `out`, uint8 (n, row_bytes), C-contiguous; may be
        called from several threads.

        With ``wait=False`` it returns whether that could be done without waiting for a disk.

        Raises
        ------
        CheckpointError
            They cannot be read.
        """
        ...

    def advise(self, start: int, stop: int) -> None:
        """Announce that rows ``start … stop-1`` will be read soon: a hint."""
        ...


class RowsFile(ForkSafe):
    """An open file that rows are read from.

    Raises
    ------
    CheckpointError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = open_regular(path)
        except OSError as error:
            raise CheckpointError(str(error)) from error
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size
        self._nowait = _NOWAIT
        super().__init__()

    def read_into(self, offset: int, out: Bytes, *, wait: bool = True) -> bool:
        """Fill `out`, uint8 and C-contiguous, with the bytes from `offset` on; see
        `TensorRows.read_into`.
        """
        left = out.reshape(-1).data
        if not wait and self._nowait:
            return self._read_cached(offset, left)
        while left:
            try:
                count = self._read(offset, left)
            except OSError as error:
                raise CheckpointError(
                    f"reading {self.path} at byte {offset:,} failed: {error.strerror or error}"
                ) from error
            if not count:
                raise CheckpointError(
                    f"{self.path} ends at byte {offset:,}, which it did not when it was opened: it "
                    "was changed meanwhile; copy it again"
                )
            left, offset = left[count:], offset + count
        return True

    def advise(self, offset: int, length: int) -> None:
        """Have the system read bytes ahead, where it can."""
        if _HAS_FADVISE:
            with suppress(OSError):  # a hint
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _read_cached(self, offset: int, out: memoryview) -> bool:
        try:
            return os.preadv(self._fd, [out], offset, _NOWAIT) == len(out)
        except BlockingIOError:
            return False
        except OSError:  # a file system that cannot tell
            self._nowait = 0
            return False

    def _read(self, offset: int, out: memoryview) -> int:
        if _HAS_PREADV:
            return os.preadv(self._fd, [out[:_READ_BYTES]], offset)
        with self._lock:  # elsewhere seek and read must not be interleaved
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, min(len(out), _READ_BYTES))
        out[: len(data)] = data
        return len(data)


InputFile = RowsFile | RemoteInput


def open_input(path: InputPath) -> InputFile:
    """Open a file that rows are read from; errors as of `RowsFile` and `RemoteInput`."""
    return RemoteInput(path) if isinstance(path, RemotePath) else RowsFile(path)


class FileRows:
    """`TensorRows` that lie in a file one after the other, from ``offset`` on.

    Raises
    ------
    CheckpointError
        The file is too short for them.
    """

    def __init__(
        self, file: InputFile, name: str, dtype: str, offset: int, rows: int, row_bytes: int
    ) -> None:
        if offset + rows * row_bytes > file.size:
            raise CheckpointError(
                f"{file.path} has {file.size:,} bytes, but tensor {name!r} ends at byte "
                f"{offset + rows * row_bytes:,}: it is cut off; copy it again"
            )
        self.name, self.path, self.dtype = name, file.path, dtype
        self.rows, self.row_bytes = rows, row_bytes
        self._file, self._offset = file, offset

    def read_into(self, start: int, out: Bytes, *, wait: bool = True) -> bool:
        """See `TensorRows.read_into`."""
        return self._file.read_into(self._offset + start * self.row_bytes, out, wait=wait)

    def advise(self, start: int, stop: int) -> None:
        """See `TensorRows.advise`."""
        length = (stop - start) * self.row_bytes
        self._file.advise(self._offset + start * self.row_bytes, length)


class LoadedRows:
    """`TensorRows` of a tensor that torch maps, as in a ``.bin`` or ``.pt``."""

    def __init__(self, store: TensorStore, name: str) -> None:
        info = store.infos[name][0]
        self.name, self.path, self.dtype = name, info.path, info.dtype
        self.rows = info.shape[0]
        self.row_bytes = store.load(name)[0][:0].view(torch.uint8).flatten(1).shape[1]
        self._store = store

    def read_into(self, start: int, out: Bytes, *, wait: bool = True) -> bool:
        """See `TensorRows.read_into`."""
        rows = self._store.load(self.name)[0][start : start + len(out)].contiguous()
        torch.from_numpy(out).copy_(rows.view(torch.uint8).flatten(1))
        self._store.mapped.touch(rows.nbytes)
        return True

    def advise(self, start: int, stop: int) -> None:
        """See `TensorRows.advise`; the system reads a map ahead by itself."""


class JoinedRows:
    """The rows of several tensors, one tensor after the other.

    Parameters
    ----------
    parts : sequence of TensorRows
        One at least, all of one dtype and with rows of one length.

    Raises
    ------
    CheckpointError
        Their dtypes or lengths differ.
    """

    def __init__(self, parts: Sequence[TensorRows]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if (part.dtype, part.row_bytes) != (first.dtype, first.row_bytes):
                raise CheckpointError(
                    f"tensor {part.name!r} in {part.path.name} has rows of {part.row_bytes} bytes "
                    f"({part.dtype}), but {first.name!r} in {first.path.name} of "
                    f"{first.row_bytes} ({first.dtype}): the files are of different checkpoints; "
                    "copy all of one"
                )
        self.parts = tuple(parts)
        self.dtype, self.row_bytes = first.dtype, first.row_bytes
        self._remote = any(isinstance(part.path, RemotePath) for part in parts)
        self._starts = np.cumsum([0, *(part.rows for part in parts)])
        self.rows = int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes

    def place(self, row: int) -> tuple[TensorRows, int]:
        """Return the tensor that holds a row, and the row's number in it."""
        part = self._part(row)
        return self.parts[part], row - int(self._starts[part])

    def equal_parts(self) -> tuple[TensorRows, TensorRows] | None:
        """Return two tensors that hold the same rows; ``None`` if there are none. Tensors all of
        whose rows are equal, such as zeros, are left out.

        Some rows of each tensor are read, and all of those tensors whose rows are alike so far.
        """
        seen: dict[bytes, TensorRows] = {}
        for part in self.parts if len(self.parts) > 1 else ():
            some = np.empty((min(part.rows, _COMPARED_ROWS), self.row_bytes), np.uint8)
            for n, row in enumerate(np.linspace(0, part.rows - 1, len(some), dtype=int).tolist()):
                part.read_into(row, some[n : n + 1])
            if not (some == some[0]).all():
                other = seen.setdefault(some.tobytes(), part)
                if other is not part and _are_equal(part, other):
                    return other, part
        return None

    def block(self, start: int, stop: int) -> Bytes:
        """Return rows ``start … stop-1``, uint8 (n, row_bytes), a new array."""
        out = np.empty((stop - start, self.row_bytes), np.uint8)
        self._read_into(start, out)
        return out

    def take(self, ids: NDArray[np.int64]) -> Bytes:
        """Return rows `ids`, int64 (n,), in their order: uint8 (n, row_bytes), a new array."""
        if len(ids) and ids[-1] - ids[0] == len(ids) - 1 and (np.diff(ids) == 1).all():
            return self.block(int(ids[0]), int(ids[-1]) + 1)
        out = np.empty((len(ids), self.row_bytes), np.uint8)
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        cuts = self._cuts(ordered).tolist()

        def gather(start: int, stop: int, *, wait: bool) -> bool:
            """Read rows ``ordered[start:stop]`` to their places."""
            first = int(ordered[start])
            if stop - start == 1:
                return self._read_into(first, out[order[start] : order[start] + 1], wait=wait)
            span = np.empty((int(ordered[stop - 1]) + 1 - first, self.row_bytes), np.uint8)
            done = self._read_into(first, span, wait=wait)
            out[order[start:stop]] = span[ordered[start:stop] - first]
            return done

        waiting = [one for one in pairwise(cuts) if not gather(*one, wait=False)]
        for start, stop in waiting:
            self._advise(int(ordered[start]), int(ordered[stop - 1]) + 1)
        for one in waiting:
            gather(*one, wait=True)
        return out

    def _cuts(self, ordered: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where ascending rows are cut into reads, int64, from 0 to their number."""
        most = _REMOTE_GAP_BYTES if self._remote else _GAP_BYTES
        gaps = (np.diff(ordered) - 1) * self.row_bytes > most
        spans = np.diff(ordered // max(1, _SPAN_BYTES // max(self.row_bytes, 1))) != 0
        inner = np.flatnonzero(gaps | spans) + 1
        return np.concatenate([[0], inner, [len(ordered)]]) if len(ordered) else np.zeros(1, int)

    def _read_into(self, start: int, out: Bytes, *, wait: bool = True) -> bool:
        """Read rows from `start` on, over the ends of tensors; see `TensorRows.read_into`."""
        done = True
        for part, inside, rows in self._spans(start, start + len(out)):
            done = done and part.read_into(inside, out[: len(rows)], wait=wait)
            out = out[len(rows) :]
        return done

    def _advise(self, start: int, stop: int) -> None:
        for part, inside, rows in self._spans(start, stop):
            part.advise(inside, inside + len(rows))

    def _spans(self, start: int, stop: int) -> Iterator[tuple[TensorRows, int, range]]:
        """Yield the tensors of rows ``start … stop-1``, with the first row in each, and the rows
        of all that they are.
        """
        while start < stop:
            number = self._part(start)
            part, inside = self.parts[number], start - int(self._starts[number])
            end = min(stop, int(self._starts[number + 1]))
            yield part, inside, range(start, end)
            start = end

    def _part(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def _are_equal(part: TensorRows, other: TensorRows) -> bool:
    """Whether two tensors hold the same rows."""
    if part.rows != other.rows:
        return False
    step = max(1, _SPAN_BYTES // max(part.row_bytes, 1))
    for start in range(0, part.rows, step):
        count = min(step, part.rows - start)
        blocks = np.empty((2, count, part.row_bytes), np.uint8)
        part.read_into(start, blocks[0])
        other.read_into(start, blocks[1])
        if not np.array_equal(blocks[0], blocks[1]):
            return False
    return True
