"""Rows of edited tokens: which tokens of a lookup are edited, and where their rows come from.

The ids of edited tokens are few and stay in memory, so that other tokens cost a look at one flag,
or at those of many together. Rows of edits are stored whole, in tables of their own: edited tokens
are read from there alone, and nothing is read of their rows in the pack. Of several edits of a
token the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Encoding
from tolpack.container.verified_reader import Container
from tolpack.errors import FormatError
from tolpack.reading.lookup import UniqueSlots
from tolpack.reading.prefetching import Prefetcher
from tolpack.reading.record_reader import RecordReader, RecordSink
from tolpack.reading.row_decoder import StoredValueDecoder, TableDecoder
from tolpack.runtime.array_types import Floats, Ints
from tolpack.runtime.fork_safety import ForkSafe

# Rows of a table up to which each one has a flag that says whether it is edited: one byte, where
# finding an id in a set touches several places of memory.
_MOST_FLAGS = 1 << 24


class EditsTable:
    """One table of edits; ``decoder``: what its records mean.

    Parameters
    ----------
    container : Container
        A view of that table.
    threads : int
        Threads that share large lookups.
    """

    def __init__(self, container: Container, threads: int) -> None:
        self.container = container
        self.decoder = TableDecoder(container)
        self._ahead = Prefetcher(container)
        self._reader = RecordReader(container, self._ahead, None, threads)

    def token_ids(self) -> Ints:
        """Read the ids of its tokens, int64 (rows,), ascending.

        Raises
        ------
        FormatError, FileAccessError
            As of `read_token_ids`.
        """
        with self.container.source.lease():
            return read_token_ids(self.container)

    def read(self, rows: Ints, places: Ints, sink: RecordSink) -> Ints:
        """Pass the records of `rows`, int64 (n,), to `sink`, each with its number in `places`.

        Returns
        -------
        ndarray
            int64 (2, duplicates): the place of each duplicate, and that of the first one.
        """
        unique = UniqueSlots.of(rows)
        with self.container.source.lease():
            self._reader.read(unique.slots, places[unique.places], sink)
        return places[unique.copies]

    def extents(self, rows: Ints) -> Ints:
        """Return offset and bytes of the block of each row in its file: int64 (n, 2)."""
        distinct, numbers = np.unique(rows, return_inverse=True)
        with self.container.source.lease():
            return self._reader.extents(distinct)[numbers]

    def close(self) -> None:
        """Close its file."""
        self.container.close()
        self._reader.close()
        self._ahead.close()


def read_token_ids(container: Container) -> Ints:
    """Read which tokens the rows of a container's table of edits stand for: int64 (rows,).

    Raises
    ------
    FormatError
        Code ``array-checksum`` or ``token-ids`` (out of range, or not strictly ascending).
    FileAccessError
        They cannot be read.
    """
    edits = container.table.edits
    if edits is None:
        return np.empty(0, np.int64)
    ids = container.array(edits.token_ids).astype(np.int64)
    place = f"sections[{edits.token_ids}]"
    if len(ids) > 1 and int(np.diff(ids).min()) <= 0:
        raise FormatError("token-ids", place, "another order", "strictly ascending ids")
    if int(ids[-1]) >= edits.rows:
        raise FormatError("token-ids", place, int(ids[-1]), f"ids below {edits.rows}")
    return ids


@dataclass(frozen=True, slots=True)
class EditedIds:
    """The edited ones among the ids of a lookup.

    ``positions`` int64 (edited,) and ``others`` int64 (rest,): where edited tokens and others stand
    among the ids, ascending; ``numbers`` and ``rows`` int64 (edited,): the number of the table of
    each edited one, and its row there.
    """

    positions: Ints
    others: Ints
    tables: Sequence[EditsTable]
    numbers: Ints
    rows: Ints

    def read(self, places: Ints, sink: Callable[[TableDecoder], RecordSink]) -> Ints:
        """Pass the records of the edited tokens on.

        Parameters
        ----------
        places : ndarray
            int64 (edited,): what the sink is told of each one, such as ``positions``.
        sink : callable
            Takes the decoder of a table of edits, and gives what takes its records.

        Returns
        -------
        ndarray
            int64 (2, duplicates): the place of each duplicate, and that of the first one.

        Raises
        ------
        ChecksumError, FormatError, FileAccessError
            Edits are damaged, or cannot be read.
        """
        copies = [np.empty((2, 0), np.int64)]
        for table, own in self._by_table():
            copies.append(table.read(self.rows[own], places[own], sink(table.decoder)))
        return np.concatenate(copies, axis=1)

    def values(self) -> Floats:
        """Return the rows of the edited tokens, float32 (edited, values of all kept fields); errors
        as of `read`.
        """
        found = np.empty((len(self.rows), self.tables[0].decoder.stored_values), np.float32)
        places = np.arange(len(found))
        copies = self.read(places, lambda decoder: StoredValueDecoder(decoder, found))
        found[copies[0]] = found[copies[1]]
        return found

    def extents(self, container: Container) -> Ints:
        """Return the extents of a container's file that hold the rows of the edited tokens, int64
        (edited, 2): offset and bytes; zeros for those that are in another file.
        """
        found = np.zeros((len(self.rows), 2), np.int64)
        for table, own in self._by_table():
            if table.container.source is container.source:
                found[own] = table.extents(self.rows[own])
        return found

    def _by_table(self) -> Iterator[tuple[EditsTable, NDArray[np.bool_]]]:
        """Yield each table that is needed, and which of the edited ones it has."""
        for number in np.unique(self.numbers).tolist():
            yield self.tables[number], self.numbers == number


@dataclass(frozen=True, slots=True)
class _Index:
    """The edited tokens: ascending ``ids``, the ``numbers`` of their tables and ``rows`` there, all
    int64 (edited,).

    ``flags``: for each row of the edited table whether it is edited, a byte; or, if there are too
    many rows, empty, and ``known`` has the ids once more.
    """

    ids: Ints
    numbers: Ints
    rows: Ints
    flags: bytes
    known: frozenset[int]

    def are_edited(self, ids: Ints) -> NDArray[np.bool_]:
        """Whether each of `ids` is edited."""
        if self.flags:
            found: NDArray[np.bool_] = np.frombuffer(self.flags, bool).take(ids)
        else:
            found = self.ids.take(self.ids.searchsorted(ids), mode="clip") == ids
        return found


class EditedRows(ForkSafe):
    """All edits of one table.

    Parameters
    ----------
    tables : sequence of EditsTable
        The last one wins; one at least.
    rows : int
        Rows of the table that they edit.
    """

    def __init__(self, tables: Sequence[EditsTable], rows: int) -> None:
        self._tables, self._rows = tables, rows
        self._index: _Index | None = None
        super().__init__()

    @property
    def token_ids(self) -> Ints:
        """The edited tokens, int64 (edited,), ascending.

        Raises
        ------
        FormatError, FileAccessError
            As of `read_token_ids`.
        """
        return self._read_index().ids

    @property
    def encodings(self) -> list[Encoding]:
        """How rows of edits are stored, in all their tables."""
        views = [one.container for one in self._tables]
        return [view.header.encodings[n] for view in views for n in sorted(view.table.encodings)]

    @property
    def identity(self) -> bytes:
        """Preambles of the files: other ones if edits were replaced."""
        return b"".join(one.container.preamble.to_bytes() for one in self._tables)

    def find(self, ids: Ints) -> EditedIds | None:
        """Return which of `ids`, int64 (n,), are edited; ``None`` if none is.

        Raises
        ------
        FormatError, FileAccessError
            As of `token_ids`.
        """
        index = self._index or self._read_index()
        if len(ids) == 1:
            one = ids.item()
            if not (index.flags[one] if index.flags else one in index.known):
                return None
            edited = np.ones(1, bool)
        else:
            edited = index.are_edited(ids)
            if not edited.any():
                return None
        positions, others = np.flatnonzero(edited), np.flatnonzero(~edited)
        places = index.ids.searchsorted(ids[positions])
        return EditedIds(positions, others, self._tables, index.numbers[places], index.rows[places])

    def load(self) -> None:
        """Read the token ids now, and not with the first lookup; errors as of `token_ids`."""
        self._read_index()

    def close(self) -> None:
        """Close the files."""
        for table in self._tables:
            table.close()

    def _read_index(self) -> _Index:
        if self._index is None:
            with self._lock:  # not by every thread at once
                if self._index is None:
                    self._index = self._make_index()
        return self._index

    def _make_index(self) -> _Index:
        found = [table.token_ids() for table in self._tables]
        # From the last one on, as the first of equals is kept.
        ids, last = np.unique(np.concatenate(found)[::-1], return_index=True)
        counts = [len(one) for one in found]
        numbers = np.repeat(np.arange(len(found)), counts)[::-1][last]
        rows = np.concatenate([np.arange(count) for count in counts])[::-1][last]
        if self._rows > _MOST_FLAGS:
            return _Index(ids, numbers, rows, b"", frozenset(ids.tolist()))
        flags = np.zeros(self._rows, bool)
        flags[ids] = True
        return _Index(ids, numbers, rows, flags.tobytes(), frozenset())
