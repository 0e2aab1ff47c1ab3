"""What a build costs a core, measured in a few seconds on this machine: for `cluster_model`.

A few thousand rows of the source are encoded under the real settings, on one thread, from the page
cache. Their table is a sample of the real one, so that nothing that grows with it is done. With a
basis the sample has one field, which stands for all.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.calibration.token_order import order_tokens
from tolpack.compress.cluster_model import Rates, TableWork
from tolpack.compress.encode import encode_chunk
from tolpack.compress.make_plan import TableInputs, make_plan
from tolpack.compress.plan import Plan
from tolpack.compress.run_tasks import open_workers
from tolpack.compress.settings import BuildSettings, Drop, parse_rank
from tolpack.container.parts.check_pieces import LENGTH_BYTES
from tolpack.runtime.array_types import Ints
from tolpack.runtime.progress import Reporter
from tolpack.sources.protocol import FieldRows, StoredRows, TableSource
from tolpack.sources.uniform_table import DerivedTable
from tolpack.workspace.limits import Limits, choose_compute
from tolpack.workspace.resources import Resources
from tolpack.workspace.workers import torch_settings
from tolpack.workspace.workspace import open_workspace

# A sample: rows, values of all fields, and operations to compute them, at most; from several places
# of the table.
_ROWS, _VALUES, _FLOPS, _PLACES, _LEAST_ROWS = 4096, 1 << 23, 5e10, 8, 64
# Rows are compared with this part of them; they take this share of the time at least.
_FEW, _LEAST_SHARE = 8, 0.1
# Times are the best of as many repetitions as fit.
_REPETITIONS, _SECONDS = 5, 0.6
_DIGEST_BYTES = 8 << 20
_PRODUCT_SIZE = 1024
# Eigenvalues and eigenvectors of a symmetric matrix of n rows take about 9 n³ operations (Golub and
# Van Loan, Matrix Computations, §8.3), its Gram matrix n² for each row and two each.
_EIGEN_FLOPS = 9


class RowSample(DerivedTable):
    """Some rows of another table as a table of their own, which is not checked and not hashed.

    Parameters
    ----------
    source : TableSource
        The other table.
    token_ids : ndarray
        Its rows, int64 (n,).
    fields : int
        How many of its first fields are kept.
    """

    def __init__(self, source: TableSource, token_ids: Ints, fields: int) -> None:
        super().__init__(source)
        self.fields, self.rows, self._ids = self.fields[:fields], len(token_ids), token_ids
        self.ngrams = self.checkpoint = self.transformers_model = None

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource`."""
        rows = self._source.field_rows(field)
        return lambda ids: rows(self._ids[ids])

    def stored_rows(self, field: int) -> StoredRows:
        """See `TableSource`."""
        rows = self._source.stored_rows(field)
        return lambda ids: rows(self._ids[ids])

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource`."""

    def fingerprint(self) -> bytes:
        """Return bytes that are those of every sample: its packs are thrown away."""
        return hashlib.sha256(b"a sample of rows").digest()


def measure_rates() -> Rates:
    """Measure what one core does whatever the table is."""
    data = np.random.default_rng(0).integers(0, 256, _DIGEST_BYTES, np.uint8)
    matrix = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE)
    with torch_settings(1, torch.float32):
        product = _best_seconds(lambda: matrix @ matrix)
    return Rates(
        _DIGEST_BYTES / _best_seconds(lambda: hashlib.sha256(data.data)),
        2 * _PRODUCT_SIZE**3 / product,
        start_seconds(),
    )


def measure_table(
    source: TableSource, settings: BuildSettings, resources: Resources, reporter: Reporter
) -> tuple[TableWork, int]:
    """Measure what a table costs under fixed settings.

    Parameters
    ----------
    source : TableSource
        The table.
    settings : BuildSettings
        Without anything for which losses or counts are needed.
    resources : Resources
        Of which ``threads`` is not used.
    reporter : Reporter
        Receives progress.

    Returns
    -------
    tuple of TableWork and int
        Its work, and the bytes of its arrays and indexes, about.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    based = settings.has_matrices
    sample = RowSample(source, _spread_ids(source, based), 1 if based else len(source.fields))
    dtype = choose_compute(resources.compute, source, settings.bits, reporter)
    one_thread = replace(resources, threads=1)
    opened = open_workspace(
        [sample], Path(tempfile.gettempdir()), one_thread, Reporter(),
        token_arrays=False, matrices=based, models=False,
    )  # fmt: skip
    with opened as workspace, torch_settings(1, dtype):
        table = sample.computed_in(dtype)
        stats = CalibrationStats(order_tokens(None, table.rows), None, None, b"")
        own = _of_one_field(settings, source, sample.rows) if based else settings
        (plan,) = make_plan([TableInputs(table, stats)], own, workspace).tables
        work = measure_plan(plan, table, workspace.limits)
    scale = sum(field.width for field in source.fields) / sum(f.width for f in sample.fields)
    if settings.drop.layers and based:
        scale *= 1 - len(settings.drop.layers) / len(source.fields)
    flops = 0.0
    if based:
        flops = sum(2.0 * source.rows * f.width**2 + _EIGEN_FLOPS * f.width**3
                    for f in source.fields)  # fmt: skip
    whole = replace(
        work, rows=source.rows, stored_bytes=source.stored_bytes,
        row_seconds=scale * work.row_seconds, load_seconds=scale * work.load_seconds,
        basis_flops=flops,
    )  # fmt: skip
    lengths = frame_index_bytes(plan) * source.rows / plan.rows
    return whole, round(scale * array_bytes(plan) + lengths)


def measure_plan(plan: Plan, source: TableSource, limits: Limits) -> TableWork:
    """Measure what encoding the rows of `plan` costs one core, on those of its middle chunk."""
    limits = replace(limits, threads=1)
    longest = max(chunk.rows for chunk in plan.chunks)
    numbers = [number for number, chunk in enumerate(plan.chunks) if chunk.rows == longest]
    number = numbers[len(numbers) // 2]

    def seconds(rows: int) -> float:
        return _best_seconds(lambda: list(encode_chunk(plan, source, limits, number, rows=rows)))

    rows = min(longest, _sample_rows(source))
    whole, load, computed = seconds(rows), 0.0, bool(source.weight_bytes)
    if computed and (few := rows // _FEW):  # loading weights takes as long for few rows
        part = seconds(few)
        load = max(0.0, (rows * part - few * whole) / (rows - few))
    row_seconds = max(whole - load, _LEAST_SHARE * whole) / rows
    return TableWork(source.rows, source.stored_bytes, row_seconds, load, computed)


def array_bytes(plan: Plan) -> int:
    """Return the bytes of a plan's arrays."""
    return sum(array.values.nbytes for array in plan.arrays)


def frame_index_bytes(plan: Plan) -> int:
    """Return the bytes of the indexes of a plan's frames."""
    encodings = [(chunk.rows, plan.encodings[chunk.encoding]) for chunk in plan.chunks]
    return sum(
        LENGTH_BYTES * -(-rows // encoding.rows_per_block)
        for rows, encoding in encodings
        if encoding.is_compressed
    )


def _of_one_field(settings: BuildSettings, source: TableSource, most: int) -> BuildSettings:
    """Return settings for the first field alone, with the mean of all ranks, `most` at most."""
    widths = [field.width for field in source.fields]
    ranks = settings.ranks.for_layers(len(widths), min(*widths, source.rows))
    known = [rank for rank in ranks or () if rank is not None]
    mean = max(1, round(sum(known) / len(known))) if known else widths[0]
    return replace(settings, ranks=parse_rank(min(mean, most)), drop=Drop())


def _sample_rows(source: TableSource) -> int:
    """Rows that can be encoded in about half a second."""
    values = sum(field.width for field in source.fields)
    rows = min(_ROWS, max(_LEAST_ROWS, _VALUES // values))
    if source.inner_size:
        rows = min(rows, max(_LEAST_ROWS, int(_FLOPS / (6 * values * source.inner_size))))
    return min(rows, source.rows)


def _spread_ids(source: TableSource, based: bool) -> Ints:
    """Return runs of rows from several places, int64 (n,): with a basis as many as it is wide."""
    count = min(source.rows, _ROWS if based else _sample_rows(source))
    run = -(-count // _PLACES)
    starts = np.linspace(0, max(0, source.rows - run), _PLACES).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(run)).ravel())[:count]


def _best_seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of some repetitions, after one that is not counted."""
    work()
    times: list[float] = []
    while len(times) < _REPETITIONS and sum(times) < _SECONDS:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def start_seconds() -> float:
    """Return how long a new process takes to load what encodes, and to end."""
    begin = time.perf_counter()
    with open_workers(None, 1) as workers:
        workers.submit(loaded_modules, ()).result()
    return time.perf_counter() - begin


def loaded_modules() -> int:
    """Return how many modules a process has loaded that calls this."""
    return len(sys.modules)
