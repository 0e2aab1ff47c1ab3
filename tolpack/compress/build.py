"""`build`: a checkpoint becomes a pack.

The main path has five stages: `open_source` (rows, computed or read), `calibrate` (token counts and
losses), `make_planner` and its plan (everything that is decided), `encode` (the blocks of each
chunk), and `write` (the file).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.calibration.calibrate import CalibrationInputs, samples_counts
from tolpack.calibration.calibrate import calibrate as run_calibration
from tolpack.compress.encode import encode
from tolpack.compress.make_plan import TableInputs, make_planner, plan_key
from tolpack.compress.settings import BuildSettings
from tolpack.compress.write import PackFile, write
from tolpack.container.atomic_write import check_output
from tolpack.container.local_sink import check_unfinished
from tolpack.errors import ConfigError, FileAccessError, memory_errors
from tolpack.pack import Pack
from tolpack.reading.summary import bits_per_weight, layer_summaries, ratio_fp16
from tolpack.runtime.pool import processor_count
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import InputPath, input_path, local_output
from tolpack.storage.remote_path import RemotePath
from tolpack.workspace.limits import choose_compute
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
    """A finished pack: its path, its size and its layers."""

    path: Path
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    layers: tuple[LayerResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


@memory_errors("give less --max-memory or fewer --threads")
def build(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    rank: str | int = "none",
    bits: int | str = 4,
    drop: str = "none",
    size: str | int | None = None,
    max_kld: str | float | None = None,
    max_ppl_increase: str | float | None = None,
    max_relative_error: str | float | None = None,
    compression: str = "auto",
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
        is elsewhere.
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
    resume : bool
        Continue a build of the same inputs and settings that was interrupted.
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
    """
    reporter = reporter or Reporter()
    settings = BuildSettings.parse(
        rank, bits, drop, size, max_ppl_increase, compression, max_relative_error, max_kld
    )
    inputs = CalibrationInputs(calibrate, frequencies, tokenizer).beside(checkpoint)
    files = (calibrate, frequencies, tokenizer, config, key_map)
    resources = Resources(compute, max_memory, threads)
    options = CheckpointOptions(config, arch, map_name, key_map)
    sources = open_tables(checkpoint, options, layers, tensor)
    path = output_path(checkpoint, output, force, files)
    if output is None and isinstance(input_path(checkpoint), RemotePath):
        reporter.say(f"writing {path}")
    file = PackFile(path, lambda: check_unchanged(sources), overwrite=force, resume=resume)
    measured = calibrated_tables(sources, settings, inputs, path.parent, resources, reporter)
    with measured as (tables, workspace):
        build_pack(tables, settings, file, workspace)
    with torch_threads(threads or processor_count()):
        return _result(file, sources, reporter)


@contextmanager
def calibrated_tables(
    sources: Sequence[TableSource],
    settings: BuildSettings,
    inputs: CalibrationInputs,
    folder: Path,
    resources: Resources,
    reporter: Reporter,
) -> Iterator[tuple[list[TableInputs], Workspace]]:
    """Check `sources`, and yield their tables, as they are fast to compute, with what is known of
    their tokens, and a workspace for them whose arrays are spilled to `folder`.

    Raises
    ------
    ConfigError, CheckpointError
        As of `build`.
    """
    counted = inputs.gives_counts or any(map(samples_counts, sources))
    with open_workspace(
        sources, folder, resources, reporter,
        token_arrays=counted, matrices=settings.has_matrices,
        models=settings.loss_reach is not None,
    ) as workspace:  # fmt: skip
        check_sources(sources, reporter)
        dtype = choose_compute(resources.compute, sources[0], settings.bits, reporter)
        with torch_settings(workspace.limits.threads, dtype):
            tables = []
            for source in sources:
                table = source.computed_in(dtype)
                stats = run_calibration(table, inputs, settings.loss_reach, workspace)
                tables.append(TableInputs(table, stats))
            yield tables, workspace


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
    settings: BuildSettings,
    file: PackFile,
    workspace: Workspace,
) -> None:
    """Plan, encode and write the pack of tables whose tokens and losses are known.

    A pack that comes out larger than ``--size`` is discarded, and the next plan aims lower.

    Raises
    ------
    ConfigError, CheckpointError, FileAccessError
        As of `build`.
    """
    with ExitStack() as stack:
        sink = None
        if not settings.drop.auto:  # which decides a part of the key
            sink = stack.enter_context(file.open(plan_key(tables, settings, workspace)))
        planner, reserve = make_planner(tables, settings, workspace), 0
        plan = planner.plan()
        while True:
            sink = sink or stack.enter_context(file.open(plan.key))
            blocks = encode(plan, [table.source for table in tables], workspace)
            excess = write(plan, blocks, sink, file.check_inputs, workspace.reporter)
            if not excess:
                return
            reserve += excess
            plan = planner.plan(reserve)
            file, sink = replace(file, resume=False), None  # nothing is left to resume


def output_path(
    checkpoint: str | Path,
    output: str | Path | None,
    force: bool,
    inputs: Sequence[str | Path | None] = (),
) -> Path:
    """Return where the pack goes, after checking that nothing is lost by writing it.

    Raises
    ------
    ConfigError
        The output is no possible file, or one of the inputs, or exists and `force` is false; or an
        input has the name of an unfinished output.
    """
    source = input_path(checkpoint)
    path = _default_output(source) if output is None else local_output(output)
    paths = [input_path(one) for one in (checkpoint, *inputs) if one is not None]
    given = [one for one in paths if isinstance(one, Path)]
    if isinstance(source, Path) and source.is_dir():
        given += [file for file in source.iterdir() if file.suffix != ".tolpack"]
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder: give a file name with -o")
    if not path.parent.is_dir():
        raise FileAccessError(
            f"cannot write {path}: there is no folder {path.parent}; make it, or give another -o"
        )
    check_output(path, given)
    check_unfinished(path, given)
    if os.path.lexists(path) and not force:
        raise ConfigError(f"output {path} exists: use --force to replace it, or another -o")
    return path


def _default_output(source: InputPath) -> Path:
    """``NAME.tolpack`` beside the checkpoint, or in the current folder for one that is elsewhere; a
    dot in a folder's name is no suffix.
    """
    if isinstance(source, Path) and not source.name:
        source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    return Path(source.parent if isinstance(source, Path) else "", f"{name}.tolpack")


def _result(file: PackFile, sources: Sequence[TableSource], reporter: Reporter) -> BuildResult:
    """Open the finished pack and compare a sample of it with the source."""
    layers: list[LayerResult] = []
    for source in sources:
        layers += _layer_results(file, source, reporter)
    with Pack(file.path, table=sources[0].name) as pack:
        ratio, bits = ratio_fp16(pack.container), bits_per_weight(pack.container)
        return BuildResult(file.path, pack.nbytes, ratio, bits, tuple(layers))


def _layer_results(file: PackFile, source: TableSource, reporter: Reporter) -> list[LayerResult]:
    row_bytes = 4 * sum(field.width for field in source.fields)
    count = min(_SAMPLE_TOKENS, max(1, _SAMPLE_BYTES // (row_bytes * len(source.fields))))
    ids = np.arange(0, source.rows, max(1, source.rows // count))
    layers, total = [], len(source.fields) * len(ids)
    with (
        Pack(file.path, table=source.name) as pack,
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
