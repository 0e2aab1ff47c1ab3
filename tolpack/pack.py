"""`Pack`: rows of an open pack on demand.

A lookup maps token ids to slots, sorts and deduplicates them, reads each block of records once,
verifies it unless it was opened with ``checksums=False``, decodes all wanted layers of it together,
and puts the rows where they were asked for (`tolpack.reading`). One token costs one extent of the
file. Token map, bases and means are read at the first lookup that needs them and stay resident;
records stay in a cache, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tolpack.codecs import kernels
from tolpack.container.header import Field
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError, FileAccessError, memory_errors
from tolpack.ngrams.hashing import NGramHash
from tolpack.reading.edited_rows import EditedIds, EditedRows
from tolpack.reading.edits_files import listed_edits, open_edits
from tolpack.reading.lookup import LayerSelection, UniqueSlots, check_ids, check_out
from tolpack.reading.ngram_rows import NGramRows
from tolpack.reading.prefetching import Prefetcher
from tolpack.reading.record_reader import RecordReader, RecordSink
from tolpack.reading.reopening import reopen
from tolpack.reading.row_cache import RowCache
from tolpack.reading.row_decoder import RowDecoder, TableDecoder
from tolpack.reading.table_choice import open_table
from tolpack.reading.token_map import StoredOrder, TokenMap
from tolpack.reading.verification import Damage, find_damage
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.runtime.pool import thread_count
from tolpack.runtime.sizes import parse_bytes
from tolpack.storage.locations import Location, absolute

# Rows from which on compiled loops are worth loading.
_KERNEL_ROWS = 64
_within_memory = memory_errors("ask for fewer rows at a time, or open it with a smaller cache")


def open_first_table(path: Location, edits: Sequence[Location] = ()) -> Pack:
    """Open the first table of a pack, or of edits: for what concerns all tables of the file, as
    `Pack.verify`. `edits`: as of `Pack`.

    Raises
    ------
    FileAccessError, FormatError
        As of `Pack`.
    """
    with closing(Container.open(path)) as container:
        header = container.header
    name = (header.unedited_tables or header.tables)[0].name
    return (Pack if header.base is None else _EditsAlone)(path, table=name, edits=edits)


class Pack(ForkSafe):
    """An open pack; made by `tolpack.open`, closed by `close` or a ``with`` block.

    Safe to use from several threads. ``decoder``: what its records mean.

    Parameters
    ----------
    path : str or Path
        The file: a path, or a URL such as ``s3://bucket/model.tolpack``.
    io : str
        ``"auto"`` copies what the page cache has and reads the rest at queue depth; ``"pread"``
        does without asking the page cache; ``"direct"`` reads past it; ``"mmap"`` maps the file
        (see `tolpack.container.local_file` for its risk); ``"memory"`` reads the whole file now.
        A URL is read in place, ``"remote"``: only the ranges that a lookup needs are requested.
        `stats` tells which way blocks came. docs/serving.md says what to choose.
    cache : str or int, optional
        Bytes, such as ``"256MB"``, for records of the most frequent tokens, which are kept once
        they were read.
    threads : int, optional
        Threads that share lookups of many rows; default: one for each processor.
    checksums : bool
        Whether the checksum of everything that a lookup reads is compared before it is decoded.
        Without, damaged bytes give wrong rows or another error; extents and sizes are still
        checked.
    table : str, optional
        Name of the table to read; a pack of several tables needs it.
    disk_cache : str or int, optional
        Bytes, such as ``"10GB"``, that may be kept on this machine of what was read from URLs; all
        processes of the user share them. Files of this machine need none.
    edits : sequence of str or Path
        Files of edits, made by ``tolpack edit``: rows of the tokens that they name are taken from
        them, of a token in several from the last one. All edits of the pack's own file come before
        them.

    Raises
    ------
    ConfigError
        There is no such table, or there are several, which the message lists, and none is named;
        or a setting does not fit; or edits belong to another pack.
    FileAccessError
        The file is missing or unreadable.
    FormatError
        The file is not a valid pack (`ChecksumError`: damaged; `UnsupportedVersionError`: newer);
        later, code ``changed``: what the URL names was replaced.
    """

    _opens_edits_alone: ClassVar[bool] = False

    @_within_memory
    def __init__(
        self,
        path: Location,
        io: str = "auto",
        *,
        cache: str | int | None = None,
        threads: int | None = None,
        checksums: bool = True,
        table: str | None = None,
        disk_cache: str | int | None = None,
        edits: Sequence[Location] = (),
    ) -> None:
        edits = listed_edits(edits)
        budget = None if cache is None else parse_bytes(cache, "cache", "256MB or 1GB")
        workers = thread_count(threads)
        self._container = open_table(
            path, io, table, checksums=checksums, disk_cache=disk_cache,
            edits_alone=self._opens_edits_alone,
        )  # fmt: skip
        self._table = self._container.table
        try:
            self._edits = open_edits(self._container, path, edits, io, workers, disk_cache)
        except BaseException:
            self._container.close()
            raise
        self._path = absolute(path)
        self._settings: dict[str, Any] = {
            "io": io, "cache": cache, "threads": threads, "checksums": checksums, "table": table,
            "disk_cache": disk_cache, "edits": tuple(map(absolute, edits)),
        }  # fmt: skip
        self._ngrams = NGramRows(self._container)
        self._tokens = TokenMap(self._container)
        self._rows_served = self._edited_rows_served = 0
        self._cache = None if budget is None else RowCache(self._container.chunks, budget)
        if budget is not None:
            self._container.source.limit_mapped(budget // 64)
        self.decoder = TableDecoder(self._container)
        self._ahead = Prefetcher(self._container)
        self._reader = RecordReader(self._container, self._ahead, self._cache, workers)
        self._kept = [n for n, field in enumerate(self._table.fields) if not field.dropped]
        super().__init__()

    @property
    def container(self) -> Container:
        """The container below, for inspection."""
        return self._container

    @property
    def path(self) -> str:
        """The file's absolute path when it was opened, or its URL."""
        return self._path

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of all tables of the pack, in its order; those with edits of others are none."""
        header = self._container.header
        return tuple(table.name for table in header.unedited_tables or header.tables)

    @property
    def table(self) -> str:
        """Name of the table that is read."""
        return self._table.name

    def open_table(self, name: str) -> Pack:
        """Open another table of the same file, with the same settings.

        Parameters
        ----------
        name : str
            One of `tables`.

        Returns
        -------
        Pack
            Independent of this one, and closed on its own.

        Raises
        ------
        ConfigError, FileAccessError, FormatError
            As of `Pack`; FileAccessError also if the file is another pack by now.
        """
        other = type(self)(self._path, **{**self._settings, "table": name})
        if other.container.preamble != self._container.preamble:
            other.close()
            raise FileAccessError(
                f"{self._path} is no longer the pack that was opened: open it again, all its tables"
            )
        return other

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the table: ``name``, ``layer`` (that of the model), ``width``, ``dtype``.

        Where other methods take layers, they mean numbers of fields, in this order.
        """
        return self._table.fields

    @property
    def ngrams(self) -> NGramHash | None:
        """The hash that gives the rows of a text; ``None`` where each token id has a row.

        Raises
        ------
        FormatError, FileAccessError
            Its compressed ids cannot be read.
        """
        with self._container.source.lease():
            return self._ngrams.hash

    @property
    def vocab_size(self) -> int:
        """Number of rows: one for each token id, unless the table has `ngrams`."""
        return self._table.rows

    @property
    def num_layers(self) -> int:
        """Number of fields, dropped ones included."""
        return len(self._table.fields)

    @property
    def hidden_size(self) -> int:
        """Values per layer and token; raises `ConfigError` if layers differ in it."""
        return self._all_layers.width

    @property
    def widths(self) -> tuple[int, ...]:
        """Values of each layer in a row, dropped layers included."""
        return tuple(field.width for field in self._table.fields)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Numbers of the fields that are stored."""
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
    def digest(self) -> str:
        """SHA-256 of the file's preamble and header, 64 digits, by which edits name their pack.

        Raises
        ------
        FileAccessError
            The pack is closed, or reading failed.
        """
        with self._container.source.lease():
            return self._container.digest()

    @property
    def identity(self) -> bytes:
        """What differs if the file, or edits of the table, were replaced: their preambles."""
        edits = b"" if self._edits is None else self._edits.identity
        return self._container.preamble.to_bytes() + edits

    @property
    def edit_files(self) -> tuple[str, ...]:
        """The files of edits that the pack was opened with: absolute paths, or URLs."""
        found: tuple[str, ...] = self._settings["edits"]
        return found

    @property
    def edits(self) -> EditedRows | None:
        """What edits the table, for those who use `gather`; ``None`` if nothing does."""
        return self._edits

    @property
    def edited_tokens(self) -> NDArray[np.int64]:
        """The tokens whose rows come from edits, int64 (n,), ascending: a copy.

        Raises
        ------
        FormatError, FileAccessError
            Edits in the pack's own file cannot be read.
        """
        return np.empty(0, np.int64) if self._edits is None else self._edits.token_ids.copy()

    @property
    def macs_per_token(self) -> int:
        """Multiply–accumulates of the basis products for one token (0 without a basis)."""
        return self._table.macs_per_token

    @_within_memory
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
            One-dimensional, each in ``0 … vocab_size-1``; duplicates are read once. Of a table with
            `ngrams`: numbers of rows, see `row_ids`.
        layers : sequence of int, optional
            Numbers of the `fields` to return, in this order; default: all.
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
            Unknown layers or dtype, layers of different widths, or an `out` that does not fit.
        ChecksumError, FormatError
            The bytes read are damaged.
        FileAccessError
            The pack is closed, or reading failed.
        """
        ids = check_ids(token_ids, self.vocab_size)
        edited = None if self._edits is None else self._edits.find(ids)
        slots = self._find_slots(ids, edited)
        fields = self._table.fields
        selection = self._all_layers if layers is None else LayerSelection.of(layers, fields)
        out = check_out(out, (len(ids), selection.count, selection.width), dtype)
        if selection.count > len(selection.zeros):
            sink = RowDecoder(self.decoder, out, selection)
            if edited is None:
                unique = self._read(slots, sink)
            else:
                unique = self._read_others(slots, sink, edited)
                self._put_edited(edited, out, selection)
            unique.fill_duplicates(out)
        selection.fill_undecoded(out)
        return out

    @_within_memory
    def row_ids(self, token_ids: ArrayLike, history: ArrayLike | None = None) -> NDArray[np.int64]:
        """Return the numbers of the rows that each token of a text touches.

        Parameters
        ----------
        token_ids : array_like of int
            The text, or a piece of it: one-dimensional.
        history : array_like of int, optional
            The token ids before the first one, which decide its rows where the table has `ngrams`;
            only the last ``ngrams.context`` matter. Default: the text begins here.

        Returns
        -------
        ndarray
            int64 (ids, heads), in ``0 … vocab_size-1``; without `ngrams` (ids, 1), the ids
            themselves.

        Raises
        ------
        TokenIdError
            Ids of the wrong kind, shape or range.
        FormatError, FileAccessError
            The compressed ids of the hash cannot be read.
        """
        with self._container.source.lease():
            return self._ngrams.rows(token_ids, history)

    def lookup(
        self,
        token_ids: ArrayLike,
        history: ArrayLike | None = None,
        *,
        layers: Sequence[int] | None = None,
        dtype: DTypeLike = "float32",
    ) -> NDArray[Any]:
        """Return the rows that each token of a text touches.

        Parameters
        ----------
        token_ids, history
            As for `row_ids`.
        layers, dtype
            As for `rows`.

        Returns
        -------
        ndarray
            (ids, layers, hidden_size); of a table with `ngrams` (ids, heads, layers, hidden_size).

        Raises
        ------
        TokenIdError, ConfigError, FormatError, FileAccessError
            As `row_ids` and `rows`.
        """
        numbers = self.row_ids(token_ids, history)
        rows = self.rows(numbers.reshape(-1), layers, dtype)
        return rows if self._table.ngrams is None else rows.reshape(*numbers.shape, *rows.shape[1:])

    @_within_memory
    def gather(self, token_ids: ArrayLike, sink: RecordSink) -> UniqueSlots:
        """Pass the records of the distinct `token_ids` to `sink`, which decodes them elsewhere: on
        another device, or into a form of its own.

        Edited tokens have no such record, and are left out: `edits` finds them.

        Parameters
        ----------
        token_ids : array_like of int
            As for `rows`.
        sink : callable
            Takes the number of an encoding, records uint8 (n, record_bytes or more: a record may
            be followed by its padding), and places int64 (n,) in the order of `token_ids`.
            Called several times, also from other threads; not at all for duplicates.

        Returns
        -------
        UniqueSlots
            Where duplicates belong.
        """
        ids = check_ids(token_ids, self.vocab_size)
        edited = None if self._edits is None else self._edits.find(ids)
        slots = self._find_slots(ids, edited)
        return self._read(slots, sink) if edited is None else self._read_others(slots, sink, edited)

    @_within_memory
    def most_frequent(self, count: int) -> NDArray[np.int64]:
        """Return the most frequent tokens, as the pack orders them.

        A pack that was built without frequencies has its tokens in the order of their ids, and a
        small table of ``--bits auto`` has so those of each chunk, the most frequent chunk first.

        Parameters
        ----------
        count : int
            How many, 0 … `vocab_size`.

        Returns
        -------
        ndarray
            int64 (count,): token ids, the most frequent first, or chunk by chunk.

        Raises
        ------
        ConfigError
            `count` is outside its range.
        """
        if not 0 <= count <= self.vocab_size:
            raise ConfigError(f"count is {count}, expected 0 … {self.vocab_size}")
        with self._container.source.lease():
            return self._tokens.first(count)

    @_within_memory
    def stored_order(self) -> StoredOrder:
        """Return the order of `most_frequent` for all tokens.

        Returns
        -------
        StoredOrder
            Gives the token ids of a range of slots at a time.
        """
        with self._container.source.lease():
            return self._tokens.order()

    @_within_memory
    def slots(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """Return the slot of each id: its number in the order of `most_frequent`, edited or not.

        Parameters
        ----------
        token_ids : array_like of int
            As for `rows`, which raises the same errors.

        Returns
        -------
        ndarray
            int64 (ids,).
        """
        with self._container.source.lease():
            return self._tokens.slots(check_ids(token_ids, self.vocab_size))

    @_within_memory
    def extents(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """Return the extent of the file that a lookup of each id alone reads.

        Parameters
        ----------
        token_ids : array_like of int
            As for `rows`.

        Returns
        -------
        ndarray
            int64 (ids, 2): offset and length in bytes. One extent holds all layers of a token. Of
            a token in a file of edits they are zeros: nothing is read of the pack.
        """
        with self._container.source.lease():
            ids = check_ids(token_ids, self.vocab_size)
            slots, numbers = np.unique(self._tokens.slots(ids), return_inverse=True)
            found = self._reader.extents(slots)[numbers]
            if self._edits is not None:
                edited = self._edits.find(ids)
                if edited is not None:
                    found[edited.positions] = edited.extents(self._container)
            return found

    def prefetch(self, token_ids: ArrayLike) -> None:
        """Begin to read the blocks of `token_ids`, and return at once.

        With ``io="direct"`` they are kept, up to 64 MiB, until a lookup takes them; otherwise the
        system reads them into the page cache. A hint: what cannot be read is left to the lookup.

        Parameters
        ----------
        token_ids : array_like of int
            As for `rows`.

        Raises
        ------
        TokenIdError, FileAccessError
            As `rows`: wrong ids, or the pack is closed.
        """
        ids = check_ids(token_ids, self.vocab_size)
        with self._container.source.lease():
            self._ahead.begin(lambda: self._missing_blocks(ids))

    @_within_memory
    def warm(self) -> int:
        """Fill the cache now, with the most frequent tokens that it holds.

        Without it records are cached as lookups read them. They lie side by side at the beginning
        of the file, so this reads it from there on.

        Returns
        -------
        int
            Bytes of the cache.

        Raises
        ------
        ConfigError
            The pack was opened without `cache`.
        ChecksumError, FormatError, FileAccessError
            As `rows`.
        """
        if self._cache is None:
            raise ConfigError("there is no cache to fill: open the pack with cache='256MB'")
        with self._container.source.lease():
            self._reader.read_first(self._cache.rows)
        return self._cache.nbytes

    def stats(self) -> dict[str, int | float | str]:
        """Return the I/O mode, and counters since opening.

        Returns
        -------
        dict
            ``rows`` served, and ``edited_rows`` of them; reads and bytes asked of the file, but for
            edits, by purpose (``open_``, ``array_``, ``index_``, ``block_``); ``fetched_…``: in
            which way extents came, see `tolpack.container.byte_source.FetchCounts`; ``file_bytes``
            that this took, and
            ``read_amplification``, those over the bytes of the records that lookups needed and no
            cache had (0 before the first); ``cache_hits`` and ``cache_misses``, distinct rows of a
            lookup, and ``cache_bytes``; ``prefetched_blocks``; ``kernels``: ``numba`` or ``numpy``.
        """
        fetches = asdict(self._container.source.fetches)
        file_bytes, asked = fetches.pop("file_bytes"), self._reader.asked_bytes
        return {
            "io": self._container.source.mode,
            "kernels": "numpy" if kernels.loaded() is None else "numba",
            "rows": self._rows_served,
            "edited_rows": self._edited_rows_served,
            **asdict(self._container.counters),
            **{f"fetched_{way}": count for way, count in fetches.items()},
            "file_bytes": file_bytes,
            "read_amplification": file_bytes / asked if asked else 0,
            "cache_hits": self._reader.cache_hits,
            "cache_misses": self._reader.cache_misses if self._cache is not None else 0,
            "cache_bytes": 0 if self._cache is None else self._cache.nbytes,
            "prefetched_blocks": self._ahead.blocks,
        }

    @_within_memory
    def verify(self, progress: Callable[[int], object] | None = None) -> list[Damage]:
        """Read the whole file, all its tables, and check it.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of bytes of the file checked since the last call.

        Returns
        -------
        list of Damage
            The damaged places; empty if there are none.

        Raises
        ------
        ConfigError
            The pack was opened without `checksums`, which this would compare.
        """
        if not self._container.checksums:
            raise ConfigError("verify compares checksums: open the pack with checksums=True")
        with self._container.source.lease():
            self._container.source.expect_order(sequential=True)
            try:
                return find_damage(self._container, progress, self._settings["threads"])
            finally:
                self._container.source.expect_order(sequential=False)

    @_within_memory
    def close(self) -> None:
        """Close the file. Reads that run in other threads end first; later ones fail."""
        if self._edits is not None:
            self._edits.close()
        self._container.close()
        self._reader.close()
        self._ahead.close()

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what another process unpickles, are opened again by path and settings.

        Raises
        ------
        FileAccessError
            The pack is closed; when it is opened, the file is gone, or is another pack by now.
        """
        with self._container.source.lease():
            return reopen, (type(self), self._path, self._settings, self.identity)

    def __repr__(self) -> str:
        name = f"{self.table!r}, " if len(self.tables) > 1 else ""
        rows = "tokens" if self._table.ngrams is None else "rows"
        return (
            f"<Pack: {name}{self.vocab_size} {rows} × {len(self._kept)} of {self.num_layers} "
            f"layers × {'/'.join(map(str, dict.fromkeys(self.widths)))}, {self.nbytes} bytes>"
        )

    @cached_property
    def _all_layers(self) -> LayerSelection:
        return LayerSelection.of(range(self.num_layers), self._table.fields)

    def _find_slots(self, ids: NDArray[np.int64], edited: EditedIds | None) -> NDArray[np.int64]:
        """Return the slots of `ids`, or of those that are not `edited`; the system begins to read
        the block of one alone.
        """
        with self._container.source.lease():
            if edited is not None:
                ids = ids[edited.others]
                if not len(ids):
                    return ids
            slots = self._tokens.slots(ids)
            if len(slots) == 1:
                self._reader.advise_one(int(slots[0]))
        return slots

    def _read_others(
        self, slots: NDArray[np.int64], sink: RecordSink, edited: EditedIds
    ) -> UniqueSlots:
        """Do as `_read` with the slots of those that are not edited, at their places among all."""
        others = edited.others
        if not len(others):
            return UniqueSlots.none()

        def put(encoding: int, records: Bytes, places: Ints) -> None:
            sink(encoding, records, others[places])

        found = self._read(slots, put)
        return UniqueSlots(found.slots, others[found.places], others[found.copies])

    def _put_edited(self, edited: EditedIds, out: NDArray[Any], layers: LayerSelection) -> None:
        """Read the rows of edited tokens to where they belong in `out`."""
        copies = edited.read(edited.positions, lambda decoder: RowDecoder(decoder, out, layers))
        out[copies[0]] = out[copies[1]]
        with self._lock:
            self._rows_served += len(edited.positions)
            self._edited_rows_served += len(edited.positions)

    def _read(self, slots: NDArray[np.int64], sink: RecordSink) -> UniqueSlots:
        if len(slots) >= _KERNEL_ROWS or self._rows_served >= _KERNEL_ROWS:
            kernels.load()
        with self._container.source.lease():
            unique = UniqueSlots.of(slots)
            self._reader.read(unique.slots, unique.places, sink)
        with self._lock:
            self._rows_served += len(slots)
        return unique

    def _missing_blocks(self, ids: NDArray[np.int64]) -> list[tuple[int, list[int]]]:
        """By chunk: the blocks of those of `ids` that no cache has."""
        edited = None if self._edits is None else self._edits.find(ids)
        if edited is not None:
            ids = ids[edited.others]
            if not len(ids):
                return []
        return self._reader.missing_blocks(np.unique(self._tokens.slots(ids)))


class _EditsAlone(Pack):
    """Edits without their pack: what they hold can be looked at, and verified."""

    _opens_edits_alone = True
