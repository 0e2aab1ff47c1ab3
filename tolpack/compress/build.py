"""`build`: a checkpoint becomes a pack.

The main path has five stages: `open_source` (rows, computed or read), `calibrate` (token counts and
losses), `make_planner` and its plan (everything that is decided), `encode` (the blocks of each
chunk), and `write` (the file).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.calibration.calibrate import CalibrationInputs, samples_counts
from tolpack.calibration.calibrate import calibrate as run_calibration
from tolpack.compress.early_checks import check_request
from tolpack.compress.make_plan import TableInputs, make_planner, plan_key
from tolpack.compress.outputs import PackOutput, choose_output
from tolpack.compress.settings import BuildSettings
from tolpack.container.provenance import Provenance
from tolpack.errors import memory_errors
from tolpack.pack import Pack
from tolpack.reading.summary import bits_per_weight, layer_summaries, ratio_fp16
from tolpack.runtime.pool import processor_count
from tolpack.runtime.progress import KeptWarnings, Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_location import InputLocation
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath
from tolpack.workspace.build_workers import BuildWorkers, open_build_workers
from tolpack.workspace.limits import BuildNeeds, choose_compute
from tolpack.workspace.resources import DEFAULT_MAX_MEMORY, Resources
from tolpack.workspace.workers import torch_settings, torch_threads
from tolpack.workspace.workspace import Workspace, open_workspace

# Rows that a finished pack is compared on: fewer where all their fields are many bytes, as a lookup
# of one field reads whole records.
_SAMPLE_TOKENS = 512
_SAMPLE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer of a table of a finished pack.

    ``table`` and ``field``: their names; ``relative_error`` is
    ``√(Σ‖row - packed row‖² / Σ‖row‖²)`` over evenly spaced tokens, ``None`` for a dropped layer;
    ``entropy_bits`` and ``gaussian_bits`` as in `tolpack.reading.code_rates`.
    """

    layer: int
    rank: int | None
    bits: float
    relative_error: float | None
    bytes: int
    entropy_bits: float | None = None
    gaussian_bits: float | None = None
    table: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished pack: its path, or the URL of its folder, its size and its layers.

    ``warnings``: what makes its figures doubtful; ``provenance``: what the pack says of its making,
    and of the weights that it replaces.
    """

    path: Location
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    layers: tuple[LayerResult, ...]
    warnings: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        own = {"path": str(self.path), "provenance": self.provenance.to_json()}
        return {**asdict(self), **own, **self.provenance.weight_bytes()}


@memory_errors("give less --max-memory or fewer --threads")
def build(
    checkpoint: str | Path,
    output: Location | None = None,
    *,
    rank: str | int = "none",
    bits: int | str = 4,
    drop: str = "none",
    size: str | int | None = None,
    max_kld: str | float | None = None,
    max_ppl_increase: str | float | None = None,
    max_relative_error: str | float | None = None,
    compression: str = "auto",
    trellis: bool = False,
    calibrate: str | Path | None = None,
    frequencies: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    arch: str | None = None,
    map_name: str | None = None,
    key_map: str | Path | None = None,
    layers: int | None = None,
    tensor: str | None = None,
    compute: str = "auto",
    max_memory: str | int = DEFAULT_MAX_MEMORY,
    threads: int | None = None,
    executor: Executor | None = None,
    processes: int | None = None,
    part_size: str | int | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build a pack from a checkpoint, a model of a known family, or a plain table.

    Parameters
    ----------
    checkpoint : str or Path
        See `tolpack.sources.open_source.open_tables`.
    output : str or Path, optional
        The pack; default: ``NAME.tolpack`` beside the checkpoint, or in the current folder if that
        is elsewhere. A URL, or with `part_size` a path, is a folder that gets part files and
        ``manifest.json``.
    rank : str or int
        ``"none"`` (no basis), ``"full"``, ``"auto"``, a number, ``"50%"``, or ``"r0,r1,…"``.
    bits : int or str
        16, 8, 4, ``"auto"``: entropy-coded, with one step for all; or ``"lossless"``: every bit as
        the model's file has it.
    drop : str
        ``"none"``, layers like ``"3,7-9"``; with bits ``"auto"`` also ``"auto"``, or ``"auto:2"``
        for two layers. With bits ``"auto"``, neighbouring layers compensate.
    size : str or int, optional
        With rank or bits ``"auto"``: the file's largest size, ``"800MB"`` or ``"12%"`` of FP16.
    max_kld : str or float, optional
        With bits ``"auto"``: limit in nats of the mean KL divergence from the model's own
        predictions, on the held-out part of the calibration text; default, without another limit:
        0.002.
    max_ppl_increase : str or float, optional
        With bits ``"auto"``: limit of the perplexity increase on the same, ``"1%"``.
    max_relative_error : str or float, optional
        With bits ``"auto"``: limit of ``√(Σ‖row - packed row‖² / Σ‖row‖²)``, each row weighted by
        how often it is read, ``"5%"``; for tables whose model cannot be run.
    compression : str
        With bits 16, 8, 4 and lossless: ``"auto"`` (frames are entropy-coded where that saves
        enough) or ``"none"``.
    trellis : bool
        With bits ``"auto"``: choose codes along a trellis of 8 states. Packs are smaller by some
        percent, but slower to build and to read.
    calibrate : str or Path, optional
        Text or ``.npy`` of token ids: token counts, and the losses for ``auto``.
    tokenizer : str or Path, optional
        ``tokenizer.json`` for the text; default: the one beside the checkpoint.
    config, arch, map_name, key_map : str or Path, optional
        Settings that a checkpoint lacks, or that replace its own: see
        `tolpack.sources.checkpoint.options.CheckpointOptions`.
    frequencies : str or Path, optional
        ``.npy`` of token counts, or a folder with ``TABLE.npy`` for each table; frequent tokens are
        stored first, with bits 16, 8, 4 and lossless as raw records.
    layers : int, optional
        Layers of a two-dimensional plain table.
    tensor : str, optional
        Name of a tensor of the checkpoint that is the table, where that is not the table of a known
        family; ``*`` stands for the numbers of a series.
    compute : str
        Dtype of the FFNs' products: ``"float32"``, ``"bfloat16"`` (not for 16 bits), or
        ``"auto"``: bfloat16 for large tables where the processor has instructions for it.
    max_memory : str or int
        Largest resident memory of the process, ``"4GB"`` or a number of bytes.
    threads : int, optional
        Cores to use; default: all. Neither memory nor threads change a byte of the pack.
    executor : concurrent.futures.Executor, optional
        Encodes the rows on its workers, such as ``distributed.Client(…).get_executor()``. They must
        see the same files, or URLs; `max_memory` and `threads` (default: 1) are those of each task.
        No byte of the pack depends on the executor.
    processes : int, optional
        Encode the rows in so many processes of this machine, each with `max_memory`, and `threads`
        (default: its share of the cores). A script must not build when it is only imported.
    part_size : str or int, optional
        Bytes of a part file, about: ``"256MB"`` (the default for a URL), or a number.
    resume : bool
        Continue a build of the same inputs and settings that was interrupted. Part files that are
        there are used again in any case.
    force : bool
        Replace an existing pack.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    BuildResult
        The pack's path, its size and its layers.

    Raises
    ------
    ConfigError, CheckpointError
        A setting or an input cannot be used, or the output exists.
    FileAccessError
        Reading or writing failed; what was written stays for `resume`.
    ExecutorError
        Workers were lost; what they made is kept for the next build of the same.
    """
    reporter = KeptWarnings(reporter)
    settings = BuildSettings.parse(
        rank, bits, drop, size, max_ppl_increase, compression, max_relative_error, max_kld, trellis
    )  # fmt: skip
    inputs = CalibrationInputs(calibrate, frequencies, tokenizer).beside(checkpoint)
    files = (calibrate, frequencies, tokenizer, config, key_map)
    resources = Resources(compute, max_memory, threads)
    options = CheckpointOptions(config, arch, map_name, key_map)
    sources = open_tables(checkpoint, options, layers, tensor)
    check_request(sources, settings, inputs)
    target = choose_output(
        checkpoint, output, part_size, lambda: check_unchanged(sources),
        force=force, resume=resume, inputs=files,
    )  # fmt: skip
    if output is None and isinstance(input_path(checkpoint), RemotePath):
        reporter.say(f"writing {target.location}")
    location = InputLocation.of(checkpoint, options, layers, tensor)
    needs = build_needs(sources, settings, inputs)
    with ExitStack() as stack:
        workers = stack.enter_context(open_build_workers(
            executor, processes, location, sources, target.task_folder, resources, needs
        ))  # fmt: skip
        measured = calibrated_tables(
            sources, settings, inputs, target.spill_folder, resources, reporter, workers
        )
        build_pack(*stack.enter_context(measured), settings, target)
    with torch_threads(threads or processor_count()):
        return _result(target.location, sources, reporter)


@contextmanager
def calibrated_tables(
    sources: Sequence[TableSource],
    settings: BuildSettings,
    inputs: CalibrationInputs,
    folder: Path,
    resources: Resources,
    reporter: Reporter,
    workers: BuildWorkers | None = None,
) -> Iterator[tuple[list[TableInputs], Workspace]]:
    """Check `sources`, and yield their tables, as they are fast to compute, with what is known of
    their tokens, and a workspace for them whose arrays are spilled to `folder`; `workers` share the
    work.

    Raises
    ------
    ConfigError, CheckpointError
        As of `build`.
    """
    needs = build_needs(sources, settings, inputs)
    with open_workspace(sources, folder, resources, reporter, needs, workers) as workspace:
        check_sources(sources, reporter)
        dtype = choose_compute(resources.compute, sources[0], settings.bits, reporter)
        with torch_settings(workspace.limits.threads, dtype):
            tables = []
            for source in sources:
                table = source.computed_in(dtype)
                stats = run_calibration(table, inputs, settings.loss_reach, workspace)
                tables.append(TableInputs(table, stats))
            yield tables, workspace


def build_needs(
    sources: Sequence[TableSource], settings: BuildSettings, inputs: CalibrationInputs
) -> BuildNeeds:
    """Return what a build of `sources` works out besides encoding."""
    counted = inputs.gives_counts or any(map(samples_counts, sources))
    return BuildNeeds(counted, settings.has_matrices, settings.loss_reach is not None)


def check_sources(sources: Sequence[TableSource], reporter: Reporter) -> None:
    """Say what was matched, and read every input once, for its digest.

    Raises
    ------
    CheckpointError
        A weight is NaN or infinite.
    """
    for source in sources:
        for line in source.describe():
            reporter.say(line)
        with reporter.phase("checking the input", source.stored_bytes, "B") as done:
            source.check(done)


def check_unchanged(sources: Sequence[TableSource]) -> None:
    """Raise `CheckpointError` if a file is another one than when it was opened."""
    for source in sources:
        source.check_unchanged()


def build_pack(
    tables: Sequence[TableInputs],
    workspace: Workspace,
    settings: BuildSettings,
    output: PackOutput,
) -> None:
    """Plan, encode and write the pack of tables whose tokens and losses are known.

    A pack that comes out larger than ``--size`` is discarded, and the next plan aims lower.

    Raises
    ------
    ConfigError, CheckpointError, FileAccessError
        As of `build`.
    """
    with ExitStack() as stack:
        write_pack = None
        if not settings.drop.auto:  # which decides a part of the key
            write_pack = stack.enter_context(output.open(plan_key(tables, settings, workspace)))
        planner, reserve = make_planner(tables, settings, workspace), 0
        plan = planner.plan()
        while True:
            write_pack = write_pack or stack.enter_context(output.open(plan.key))
            excess = write_pack(plan, [table.source for table in tables], workspace)
            if not excess:
                return
            reserve += excess
            plan = planner.plan(reserve)
            output, write_pack = output.afresh(), None  # nothing is left to resume


def _result(
    location: Location, sources: Sequence[TableSource], reporter: KeptWarnings
) -> BuildResult:
    """Open the finished pack and compare a sample of it with the source."""
    layers: list[LayerResult] = []
    for source in sources:
        layers += _layer_results(location, source, reporter)
    with Pack(location, table=sources[0].name) as pack:
        ratio, bits = ratio_fp16(pack.container), bits_per_weight(pack.container)
        warnings = tuple(reporter.warnings)
        made_from = Provenance.parse(pack.container.header.provenance)
        return BuildResult(location, pack.nbytes, ratio, bits, tuple(layers), warnings, made_from)


def _layer_results(
    location: Location, source: TableSource, reporter: Reporter
) -> list[LayerResult]:
    row_bytes = 4 * sum(field.width for field in source.fields)
    count = min(_SAMPLE_TOKENS, max(1, _SAMPLE_BYTES // (row_bytes * len(source.fields))))
    ids = np.arange(0, source.rows, max(1, source.rows // count))
    layers, total = [], len(source.fields) * len(ids)
    with (
        Pack(location, table=source.name) as pack,
        reporter.phase("checking", total, "rows") as done,
    ):
        for number, summary in enumerate(layer_summaries(pack.container)):
            error = None
            if summary.bytes:
                multiplier = np.float32(source.fields[number].multiplier)
                rows = source.field_rows(number)(ids) * multiplier
                difference = pack.rows(ids, layers=[number])[:, 0] - rows
                norm = float(np.square(rows, dtype=np.float64).sum())
                error = float(np.sqrt(np.square(difference, dtype=np.float64).sum() / (norm or 1)))
            done(len(ids))
            name = source.fields[number].name
            layers.append(
                LayerResult(**asdict(summary), relative_error=error, table=source.name, field=name)
            )
    return layers
