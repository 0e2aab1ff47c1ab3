"""`Pack`: rows of an open pack on demand.

A lookup maps token ids to slots, sorts and deduplicates them, reads each block of records once,
verifies it, decodes all kept layers of it together, and puts the rows where they were asked for.
One token costs one extent of the file. Token map, bases and means are read at the first lookup
that needs them and stay resident; rows are not cached here.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tolpack.codecs.record import record_layout
from tolpack.codecs.values import Bytes, Floats
from tolpack.container.reader import Container
from tolpack.errors import ConfigError
from tolpack.lookup import Scatter, check_ids, check_out
from tolpack.sections import read_floats, read_records, read_token_map
from tolpack.verification import Damage, find_damage

# Rows decoded together: small enough that codes and rows of a 1B model stay in the L2 cache.
_DECODE_BYTES = 1 << 20


class Pack:
    """An open pack; made by `tolpack.open`, closed by `close` or a ``with`` block.

    Safe to use from several threads.

    Parameters
    ----------
    path : str or Path
        The file.
    io : str
        ``"auto"`` and ``"pread"`` read each block into private memory; ``"mmap"`` maps the file
        (see `tolpack.container.storage` for its risk); ``"memory"`` reads the whole file now.
    checksums : bool
        Whether the checksum of everything that a lookup reads is compared before it is decoded.
        Without, damaged bytes give wrong rows or another error; extents and sizes are still
        checked.

    Raises
    ------
    FileAccessError
        The file is missing or unreadable.
    FormatError
        The file is not a valid pack (`ChecksumError`: damaged; `UnsupportedVersionError`: newer).
    """

    def __init__(self, path: str | Path, io: str = "auto", *, checksums: bool = True) -> None:
        self._container = Container.open(path, io, checksums=checksums)
        self._table = self._container.table
        self._lock = threading.Lock()
        self._slots: NDArray[np.integer[Any]] | None = None
        self._arrays: dict[int, Floats] = {}
        self._rows_served = 0
        self._layouts = [
            record_layout(encoding.fields) for encoding in self._container.header.encodings
        ]
        self._kept = [n for n, field in enumerate(self._table.fields) if not field.dropped]

    @property
    def container(self) -> Container:
        """The container below, for inspection."""
        return self._container

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._table.rows

    @property
    def num_layers(self) -> int:
        """Number of layers, dropped ones included."""
        return len(self._table.fields)

    @property
    def hidden_size(self) -> int:
        """Values per layer and token."""
        return self._table.fields[0].width

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers that are stored."""
        return tuple(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self._container.preamble.file_length

    @property
    def resident_bytes(self) -> int:
        """Bytes of header, token map, bases, means and frame indexes, as stored."""
        return self._container.resident_bytes

    @property
    def macs_per_token(self) -> int:
        """Multiply–accumulates of the basis products for one token (0 without a basis)."""
        return sum((field.rank or 0) * field.width for field in self._table.kept_fields)

    def rows(
        self,
        token_ids: ArrayLike,
        layers: Sequence[int] | None = None,
        dtype: DTypeLike = "float32",
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return the rows of `token_ids`.

        Parameters
        ----------
        token_ids : array_like of int
            One-dimensional, each in ``0 … vocab_size-1``; duplicates are read once.
        layers : sequence of int, optional
            Layers to return, in this order; default: all.
        dtype : dtype
            ``"float32"`` or ``"float16"``.
        out : ndarray, optional
            Array of the result's shape and `dtype` to fill; it is also returned.

        Returns
        -------
        ndarray
            (ids, layers, hidden_size); dropped layers are zeros. A new array unless `out` is given.

        Raises
        ------
        TokenIdError
            Ids of the wrong kind, shape or range.
        ConfigError
            Unknown layers or dtype, or an `out` that does not fit.
        ChecksumError, FormatError
            The bytes read are damaged.
        FileAccessError
            The pack is closed, or reading failed.
        """
        ids = check_ids(token_ids, self.vocab_size)
        wanted = self._check_layers(layers)
        out = check_out(out, (len(ids), len(wanted), self.hidden_size), dtype)
        positions = {layer: n for n, layer in reversed(list(enumerate(wanted)))}
        with self._container.storage.lease(), np.errstate(over="ignore", invalid="ignore"):
            slots = self._slots_of(ids)
            order = np.argsort(slots, kind="stable")
            distinct, first = np.unique(slots[order], return_index=True)
            for number, start, stop in self._steps(distinct):
                records = self._records(number, distinct[start:stop])
                bounds = first[start:stop], first[stop] if stop < len(first) else len(ids)
                self._decode(records, number, positions, Scatter(out, order, *bounds))
        for n, layer in enumerate(wanted):
            if layer not in self._kept:
                out[:, n] = 0
            elif positions[layer] != n:
                out[:, n] = out[:, positions[layer]]
        with self._lock:
            self._rows_served += len(ids)
        return out

    def extents(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """Return the extent of the file that a lookup of each id alone reads.

        Parameters
        ----------
        token_ids : array_like of int
            As for `rows`.

        Returns
        -------
        ndarray
            int64 (ids, 2): offset and length in bytes. One extent holds all layers of a token.
        """
        with self._container.storage.lease():
            slots = self._slots_of(check_ids(token_ids, self.vocab_size))
            distinct, inverse = np.unique(slots, return_inverse=True)
            found = np.empty((len(distinct), 2), np.int64)
            for number, begin, end in self._spans(distinct):
                view = self._container.chunks[number]
                blocks = (distinct[begin:end] - view.first_slot) // view.rows_per_block
                found[begin:end] = [self._container.block_extent(number, int(b)) for b in blocks]
        return found[inverse]

    def prefetch(self, token_ids: ArrayLike) -> None:
        """Ask the system to read the extents of `token_ids` ahead; returns at once.

        A hint: where the system has no such call (macOS, Windows) nothing happens.
        """
        with self._container.storage.lease():
            extents = np.unique(self.extents(token_ids), axis=0)
            self._container.storage.advise([(int(o), int(n)) for o, n in extents])

    def stats(self) -> dict[str, int | str]:
        """Return the I/O mode and counters since opening: reads and bytes by purpose, rows."""
        counters = asdict(self._container.counters)
        return {"io": self._container.storage.mode, "rows": self._rows_served, **counters}

    def verify(self, progress: Callable[[int], object] | None = None) -> list[Damage]:
        """Read everything, and return what is damaged (an empty list: nothing is).

        Parameters
        ----------
        progress : callable, optional
            Called with the number of bytes of the file checked since the last call.

        Raises
        ------
        ConfigError
            The pack was opened without `checksums`, which this would compare.
        """
        if not self._container.checksums:
            raise ConfigError("verify compares checksums: open the pack with checksums=True")
        with self._container.storage.lease():
            return find_damage(self._container, progress)

    def close(self) -> None:
        """Close the file. Reads that run in other threads end first; later ones fail."""
        self._container.close()

    def __enter__(self) -> Pack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Pack: {self.vocab_size} tokens × {len(self._kept)} of {self.num_layers} layers × "
            f"{self.hidden_size}, {self.nbytes} bytes>"
        )

    def _check_layers(self, layers: Sequence[int] | None) -> list[int]:
        if layers is None:
            return list(range(self.num_layers))
        try:
            wanted = [operator.index(layer) for layer in layers]
            if any(isinstance(layer, (bool, np.bool_)) for layer in layers):
                raise TypeError("bool is no layer number")
        except TypeError as error:
            raise ConfigError(f"layers are {layers!r}, expected a list of integers") from error
        wrong = [layer for layer in wanted if not 0 <= layer < self.num_layers]
        if wrong:
            raise ConfigError(f"layer {wrong[0]} is out of range 0 … {self.num_layers - 1}")
        return wanted

    def _slots_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._table.token_map is None:
            return ids
        if self._slots is None:
            self._slots = read_token_map(self._container, self._table.token_map)
        return np.asarray(self._slots)[ids].astype(np.int64)

    def _steps(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Cut ascending slots into (chunk, begin, end) that are decoded together.

        A step never ends within a block, so that each block is read once.
        """
        for number, begin, end in self._spans(slots):
            view, start = self._container.chunks[number], begin
            while start < end:
                stop = min(start + self._decode_rows(number), end)
                if stop < end:
                    into = (int(slots[stop]) - view.first_slot) % view.rows_per_block
                    stop = int(np.searchsorted(slots, int(slots[stop]) - into))
                yield number, start, stop
                start = stop

    def _spans(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Cut ascending slots by chunk: (chunk, begin, end) of the runs that are not empty."""
        starts = [view.first_slot for view in self._container.chunks] + [self.vocab_size]
        bounds = np.searchsorted(slots, starts).tolist()
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if begin < end:
                yield number, begin, end

    def _decode_rows(self, number: int) -> int:
        decoded_bytes = 4 * len(self._kept) * self.hidden_size
        whole_blocks = self._container.chunks[number].rows_per_block
        return max(_DECODE_BYTES // decoded_bytes // whole_blocks * whole_blocks, whole_blocks)

    def _records(self, number: int, slots: NDArray[np.int64]) -> Bytes:
        """Read the records of ascending `slots` of one chunk: uint8 (slots, record_bytes)."""
        view = self._container.chunks[number]
        local = slots - view.first_slot
        blocks = local // view.rows_per_block
        if view.rows_per_block == 1 and len(slots) == 1:
            return read_records(self._container, number, int(blocks[0]))
        out = np.empty((len(slots), view.record_bytes), np.uint8)
        bounds = np.flatnonzero(np.diff(blocks, prepend=-1)).tolist() + [len(slots)]
        for begin, end in zip(bounds, bounds[1:]):
            records = read_records(self._container, number, int(blocks[begin]))
            out[begin:end] = records[local[begin:end] % view.rows_per_block]
        return out

    def _decode(
        self, records: Bytes, number: int, positions: dict[int, int], scatter: Scatter
    ) -> None:
        """Decode the wanted layers of `records` and scatter them."""
        layout = self._layouts[self._container.chunks[number].chunk.encoding]
        wanted = [n for n, layer in enumerate(self._kept) if layer in positions]
        for kept, stored in layout.decode(records, wanted).items():
            field = self._table.fields[self._kept[kept]]
            values = stored if field.basis is None else stored @ self._array(field.basis)
            if field.mean is not None:
                values = values + self._array(field.mean)
            if self._table.multiplier != 1.0:
                values = values * np.float32(self._table.multiplier)
            scatter.put(positions[self._kept[kept]], values)

    def _array(self, number: int) -> Floats:
        if number not in self._arrays:
            self._arrays[number] = read_floats(self._container, number)
        return self._arrays[number]
