"""One token's bytes: the scales of all kept layers, then their codes (SPEC §6).

All kept layers of a token stand side by side, so a decode step reads one place. The first parts of
all fields come first, then the second parts, and so on. Parts of neighbouring layers that are
stored alike (same codec, group and number of values) form a run, and a run decodes at once for
all its layers, each with its own step: with no basis that is the whole record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs import kernels
from tolpack.codecs.bfloat16 import rounded_to_bfloat16
from tolpack.codecs.codec import scale_not_finite
from tolpack.codecs.encodings import FieldEncoding, Part, ordered_parts
from tolpack.codecs.part_values import decode_values, encode_values
from tolpack.codecs.registry import CODECS
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Run:
    """The same part of ``count`` neighbouring kept fields from number ``first`` on.

    ``value_offset`` counts the field's values before this part; the other offsets are in bytes
    from the record's start. ``steps``: one per field; ``part`` has a step of 1 in their place.
    """

    first: int
    count: int
    part: Part
    steps: tuple[float, ...]
    value_offset: int
    scale_offset_bytes: int
    code_offset_bytes: int

    def spans(self, kept: int) -> tuple[slice, slice]:
        """Where in a record the scales and the codes of kept field `kept` stand."""
        sizes = self.part.scale_bytes, self.part.code_bytes
        offsets = self.scale_offset_bytes, self.code_offset_bytes
        starts = [offset + (kept - self.first) * size for offset, size in zip(offsets, sizes)]
        scales, codes = (slice(start, start + size) for start, size in zip(starts, sizes))
        return scales, codes


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """Where the parts of a record lie; ``stored_values`` counts each kept field's values."""

    record_bytes: int
    stored_values: tuple[int, ...]
    runs: tuple[Run, ...]

    def decode(self, records: Bytes, wanted: Collection[int]) -> dict[int, Floats]:
        """Decode kept fields.

        Parameters
        ----------
        records : ndarray
            uint8 (rows, record_bytes).
        wanted : collection of int
            Numbers of kept fields.

        Returns
        -------
        dict
            Field number → float32 (rows, stored values); views of one array.

        Raises
        ------
        FormatError
            Code ``scale-not-finite``.
        """
        columns, width = np.full(len(self.stored_values), -1, np.int64), 0
        for n in sorted(wanted):
            columns[n] = width
            width += self.stored_values[n]
        out = np.empty((len(records), width), np.float32)
        self.decode_into(records, columns, out, np.arange(len(records)))
        spans = {n: slice(columns[n], columns[n] + self.stored_values[n]) for n in wanted}
        return {n: out[:, span] for n, span in spans.items()}

    def decode_into(
        self,
        records: Bytes,
        columns: NDArray[np.int64],
        out: NDArray[Any],
        places: NDArray[np.int64],
    ) -> None:
        """Decode kept fields to where they are wanted.

        Parameters
        ----------
        records : ndarray
            uint8 (rows, record_bytes or more).
        columns : ndarray
            int64 (kept fields,): where in a row of `out` each field begins; negative: not wanted.
        out : ndarray
            float32 (any, width), or uint16 for the bits of bfloat16, rounded as torch rounds.
        places : ndarray
            int64 (rows,): the row of `out` for each record.

        Raises
        ------
        FormatError
            Code ``scale-not-finite``.
        """
        compiled, whole = kernels.loaded(), min(columns.tolist()) >= 0
        for run in self.runs:
            own = columns[run.first : run.first + run.count]
            if whole:
                own = own + run.value_offset if run.value_offset else own
            else:
                own = np.where(own < 0, -1, own + run.value_offset)
                if (own < 0).all():
                    continue
            if compiled is None or not _decode_compiled(compiled, records, run, own, out, places):
                _decode_plain(records, run, own, out, places)

    def check_scales(self, records: Bytes) -> None:
        """Raise `FormatError` (``scale-not-finite``) if a scale of `records`, uint8 (rows,
        record_bytes or more), is not finite: all that decoding them could find.
        """
        for run in self.runs:
            size = run.count * run.part.scale_bytes
            if not size:
                continue
            stored = records[:, run.scale_offset_bytes : run.scale_offset_bytes + size]
            CODECS[run.part.codec].check_scales(stored)

    def encode(self, records: NDArray[np.uint8], kept: int, values: Floats) -> None:
        """Encode float32 (rows, stored values) of kept field `kept` into uint8 `records`."""
        for run in self._runs_of(kept):
            stop = run.value_offset + run.part.values
            part = replace(run.part, step=(run.steps or (None,) * run.count)[kept - run.first])
            encoded = encode_values(values[:, run.value_offset : stop], part)
            for data, span in zip(encoded, run.spans(kept)):
                records[:, span] = data

    def place(self, records: NDArray[np.uint8], kept: int, scales: Bytes, codes: Bytes) -> None:
        """Put a field that is coded already into records, the inverse of `take`.

        Parameters
        ----------
        records : ndarray
            uint8 (rows, record_bytes), written to.
        kept : int
            Number of the kept field.
        scales, codes : ndarray
            uint8 (rows, scale bytes) and (rows, code bytes) of the field's parts, in order.
        """
        for run in self._runs_of(kept):
            size = run.part.scale_bytes, run.part.code_bytes
            for span, data, n in zip(run.spans(kept), (scales, codes), size):
                records[:, span] = data[:, :n]
            scales, codes = scales[:, size[0] :], codes[:, size[1] :]

    def take(self, records: Bytes, kept: int) -> tuple[Bytes, Bytes]:
        """Return scales and codes of kept field `kept`, uint8 (rows, scale bytes) and (rows, code
        bytes), as they stand in `records`, uint8 (rows, record_bytes or more).
        """
        spans = [run.spans(kept) for run in self._runs_of(kept)]
        scales, codes = ([records[:, pair[n]] for pair in spans] for n in (0, 1))
        return np.concatenate(scales, axis=1), np.concatenate(codes, axis=1)

    def _runs_of(self, kept: int) -> Iterator[Run]:
        """Yield the runs that hold the parts of a kept field, in the order of the parts."""
        return (run for run in self.runs if run.first <= kept < run.first + run.count)


def record_layout(fields: tuple[FieldEncoding, ...]) -> RecordLayout:
    """Lay out the records of kept `fields`."""
    segments = [
        (field, fields[field][n], sum(part.values for part in fields[field][:n]))
        for field, n in ordered_parts(fields)
    ]
    scale_at, code_at = 0, sum(part.scale_bytes for _, part, _ in segments)
    runs: list[Run] = []
    steps: list[list[float]] = []
    for field, own, offset in segments:
        part = own if own.step is None else replace(own, step=1.0)
        last = runs[-1] if runs else None
        if last and (last.first + len(steps[-1]), last.part, last.value_offset) == (
            field, part, offset,
        ):  # fmt: skip
            steps[-1].append(own.step or 0)
        else:
            runs.append(Run(field, 1, part, (), offset, scale_at, code_at))
            steps.append([own.step or 0])
        scale_at, code_at = scale_at + part.scale_bytes, code_at + part.code_bytes
    runs = [
        replace(run, count=len(own), steps=tuple(own) if run.part.step else ())
        for run, own in zip(runs, steps)
    ]
    stored = tuple(sum(part.values for part in parts) for parts in fields)
    return RecordLayout(code_at, stored, tuple(runs))


def _decode_compiled(
    compiled: kernels.Kernels, records: Bytes, run: Run, columns: NDArray[np.int64],
    out: NDArray[Any], places: NDArray[np.int64],
) -> bool:  # fmt: skip
    """Decode a run in one pass; false if nothing was compiled for its codec and these arrays."""
    part, decode = run.part, compiled.decoders.get(run.part.codec)
    if decode is None or not (records.flags.c_contiguous and out.flags.c_contiguous):
        return False
    finite = decode(
        records, run.scale_offset_bytes, run.code_offset_bytes, part.group_size or part.values,
        part.values, np.array(run.steps, np.float32), places, columns, out,
    )  # fmt: skip
    if not finite:
        raise scale_not_finite()
    return True


def _decode_plain(
    records: Bytes,
    run: Run,
    columns: NDArray[np.int64],
    out: NDArray[Any],
    places: NDArray[np.int64],
) -> None:
    """Decode a run with numpy: its fields together if all are wanted, else one by one."""
    wanted = np.flatnonzero(columns >= 0)
    together = len(wanted) == run.count
    whole = _decode(records, run, 0, run.count) if together else None
    rows: slice | NDArray[np.int64] = places
    if len(places) and (np.diff(places) == 1).all():  # a view of `out`, faster to write to
        rows = slice(int(places[0]), int(places[-1]) + 1)
    for n in wanted.tolist():
        values = _decode(records, run, n, 1)[:, 0] if whole is None else whole[:, n]
        span = slice(columns[n], columns[n] + run.part.values)
        out[rows, span] = rounded_to_bfloat16(values) if out.dtype == np.uint16 else values


def _decode(records: Bytes, run: Run, start: int, count: int) -> Floats:
    """Decode `count` fields of `run` from its `start`-th on: float32 (rows, count, values)."""
    part = run.part
    scales = _slice(records, run.scale_offset_bytes, part.scale_bytes, start, count)
    codes = _slice(records, run.code_offset_bytes, part.code_bytes, start, count)
    values = decode_values(scales, codes, part).reshape(len(records), count, part.values)
    if run.steps:
        with np.errstate(over="ignore"):
            values *= np.array(run.steps[start : start + count], np.float32)[:, None]
    return values


def _slice(records: Bytes, offset: int, size: int, start: int, count: int) -> Bytes:
    """Fields' bytes as (rows · fields, size); a view where the strides allow it."""
    begin = offset + start * size
    return records[:, begin : begin + count * size].reshape(len(records) * count, size)
