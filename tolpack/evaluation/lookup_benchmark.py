"""Times of lookups on this machine, warm and cold, in every I/O mode: ``tolpack bench``.

Warm lookups find the file in the page cache. Before a cold one its pages are dropped. A file system
in memory keeps them all the same: there no cold lookups are shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tolpack.codecs import kernels
from tolpack.container.io_modes import IO_MODES
from tolpack.container.parts.parts_source import PartsSource, local_files
from tolpack.errors import ConfigError, FileAccessError
from tolpack.pack import Pack
from tolpack.runtime.progress import Reporter
from tolpack.storage.inputs import local_input
from tolpack.storage.locations import Location

_LEAST, _MOST = 5, 2000
# Lookups that warm up; also those that may fail to be cold before the mode has none.
_FIRST = 3
# A mode is named as faster from this ratio on: lookups vary as much.
_EQUAL = 1.1
# Rows may take so many times the file's bytes, and some besides: a header may claim any width.
_MOST_TIMES, _SPARE_BYTES = 4, 64 << 20
# A file stays in the page cache if the memory is so many times as large.
_FITS = 4


@dataclass(frozen=True, slots=True)
class LookupTiming:
    """Lookups of ``rows`` distinct tokens in one mode: median and 99th percentile."""

    io: str
    rows: int
    warm_p50_ms: float
    warm_p99_ms: float
    cold_p50_ms: float | None
    cold_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class LookupBenchmark:
    """Timings of one pack, and advice on the mode to choose."""

    path: str
    bytes: int
    timings: list[LookupTiming]
    advice: list[str]

    def to_json(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is looked up: a table of a pack, ``None`` for the only one, with edits of it."""

    path: Path
    table: str | None
    edits: Sequence[Location]

    def open(self, io: str = "auto") -> Pack:
        return Pack(self.path, io, table=self.table, edits=self.edits)

    def files(self, pack: Pack) -> list[Path]:
        """Return the files that hold the pack, which is open."""
        return local_files(self.path, pack.container.source)

    def place(self, pack: Pack, offset: int) -> tuple[Path, int]:
        """Return the file that holds a byte of the pack, and the offset there."""
        source = pack.container.source
        if not isinstance(source, PartsSource):
            return self.path, offset
        number, start = source.place(offset)
        return self.files(pack)[number], start


def benchmark_lookups(
    path: Location, rows: int, seconds: float, reporter: Reporter, table: str | None = None,
    edits: Sequence[Location] = (),
) -> LookupBenchmark:  # fmt: skip
    """Time lookups of one row and of `rows`, each mode for about `seconds` warm and cold. Edits, as
    of `Pack`, stay warm.

    Where widths of fields differ, rows are those of the first field's width: a lookup reads the
    same either way.

    Raises
    ------
    ConfigError
        `rows` or `seconds` out of range, or no such table.
    FormatError, FileAccessError
        The pack cannot be read.
    """
    if not 0.01 <= seconds <= 600:
        raise ConfigError(f"--seconds is {seconds:g}, expected 0.01 … 600")
    timings: list[LookupTiming] = []
    subject = _Subject(local_input(path, "a pack that is timed"), table, edits)
    with subject.open() as pack:
        vocab_size, nbytes = pack.vocab_size, pack.nbytes
        row_bytes = 4 * sum(pack.widths)
    if not 1 <= rows <= vocab_size:
        raise ConfigError(f"--rows is {rows}, expected 1 … {vocab_size} (vocab_size)")
    if rows * row_bytes > _MOST_TIMES * nbytes + _SPARE_BYTES:
        most = (_MOST_TIMES * nbytes + _SPARE_BYTES) // row_bytes
        raise ConfigError(
            f"--rows is {rows}, and they take {rows * row_bytes:,} bytes, of a file of {nbytes:,}: "
            f"give --rows {most} or fewer"
        )
    kernels.load()
    sizes = sorted({1, rows})
    modes = [io for io in IO_MODES if _opens(subject, io, reporter)]
    with reporter.phase("lookups", len(modes) * len(sizes), "measurements") as done:
        for io in modes:
            for size in sizes:
                timings.append(_timing(subject, io, size, seconds))
                done(1)
    return LookupBenchmark(str(path), nbytes, timings, _advice(timings, nbytes))


def _opens(subject: _Subject, io: str, reporter: Reporter) -> bool:
    try:
        subject.open(io).close()
    except FileAccessError as error:
        reporter.say(f"io={io} is left out: {error}")
        return False
    return True


def _timing(subject: _Subject, io: str, rows: int, seconds: float) -> LookupTiming:
    rng = np.random.default_rng(rows)
    warm = _warm_seconds(subject, io, rows, seconds, rng)
    cold = [] if IO_MODES[io].is_resident else _cold_seconds(subject, io, rows, seconds, rng)
    p50, p99 = (1e3 * float(np.percentile(warm, q)) for q in (50, 99))
    if len(cold) < _LEAST:
        return LookupTiming(io, rows, p50, p99, None, None)
    cold_p50, cold_p99 = (1e3 * float(np.percentile(cold, q)) for q in (50, 99))
    return LookupTiming(io, rows, p50, p99, cold_p50, cold_p99)


def _warm_seconds(
    subject: _Subject, io: str, rows: int, seconds: float, rng: np.random.Generator
) -> list[float]:
    """Seconds of lookups with the file in the page cache."""
    times: list[float] = []
    with subject.open(io) as pack:
        for path in subject.files(pack):
            _read_whole(path)
        layers = _layers_of_one_width(pack)
        out = np.empty((rows, len(layers), pack.widths[0]), np.float32)
        for number in range(_MOST):
            ids = rng.choice(pack.vocab_size, rows, replace=False)
            begin = time.perf_counter()
            pack.rows(ids, layers, out=out)
            if number >= _FIRST:
                times.append(time.perf_counter() - begin)
            if len(times) >= _LEAST and sum(times) > seconds:
                break
    return times


def _cold_seconds(
    subject: _Subject, io: str, rows: int, seconds: float, rng: np.random.Generator
) -> list[float]:
    """Seconds of lookups after the file was dropped from the page cache; none if it stays."""
    times: list[float] = []
    begun = time.perf_counter()
    for number in range(_MOST):
        with subject.open(io) as pack:
            layers = _layers_of_one_width(pack)
            ids = rng.choice(pack.vocab_size, rows, replace=False)
            out = np.empty((rows, len(layers), pack.widths[0]), np.float32)
            pack.rows([int(rng.integers(pack.vocab_size))], layers)  # token map, bases
            # Mapped pages stay in the cache: those of that one row, which may be among `ids`.
            kept = subject.place(pack, int(pack.extents(ids[-1:])[0, 0]))
            for path in subject.files(pack):
                if path != kept[0]:
                    _evict(path, 0)
            if _evict(*kept):
                begin = time.perf_counter()
                pack.rows(ids, layers, out=out)
                times.append(time.perf_counter() - begin)
        enough = sum(times) > seconds or time.perf_counter() - begun > 3 * seconds
        if (len(times) >= _LEAST and enough) or number > _FIRST + 2 * len(times):
            break
    return times


def _layers_of_one_width(pack: Pack) -> list[int]:
    return [n for n, width in enumerate(pack.widths) if width == pack.widths[0]]


def _read_whole(path: Path) -> None:
    """Bring the file into the page cache."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def _evict(path: Path, offset: int) -> bool:
    """Drop a file from the page cache.

    Returns false if the page at `offset` is still there, or if this system cannot say so.
    """
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")):
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _advice(timings: list[LookupTiming], nbytes: int) -> list[str]:
    """Say which mode to choose, and why."""
    single = {one.io: one for one in timings if one.rows == 1}
    auto = single["auto"]
    found = [
        f"auto (the default): one row in {auto.warm_p50_ms:.3f} ms warm"
        + (f", {auto.cold_p50_ms:.3f} ms cold." if auto.cold_p50_ms is not None else ".")
    ]
    best = min(single.values(), key=lambda one: one.warm_p50_ms)
    if auto.warm_p50_ms > _EQUAL * best.warm_p50_ms:
        hint = {
            "memory": f"needs {nbytes:,} bytes of memory",
            "mmap": "for files that nobody rewrites in place",
        }.get(best.io, "see docs/serving.md")
        found.append(f"{best.io}: {auto.warm_p50_ms / best.warm_p50_ms:.1f} × faster warm; {hint}.")
    memory = _memory_bytes()
    if memory is not None and nbytes * _FITS < memory:
        found.append(
            "The file fits this machine's memory several times: after its first use it stays warm."
        )
    elif memory is not None:
        found.append(
            "The file is large for this machine's memory: give open a cache, cache='1GB'; with "
            "io='direct' it pushes nothing else out of the page cache."
        )
    return found


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
