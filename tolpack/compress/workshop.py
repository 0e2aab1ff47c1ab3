"""Where packs of one checkpoint are made: it is opened, checked and calibrated once for all.

`tolpack.build` makes one pack and leaves; a sweep makes many, and shares the token counts, the loss
metrics, and, where memory allows, the table itself and the second moments of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tolpack.calibration.stats import CalibrationStats, calibrate
from tolpack.compress.assembly import Assembly
from tolpack.compress.entropy.drop_layers import best_assembly
from tolpack.compress.entropy.encoder import EntropyCodedAssembly
from tolpack.compress.entropy.error_compensation import REACH
from tolpack.compress.fixed.encoder import FixedBitsAssembly
from tolpack.compress.limits import choose_compute, plan_limits
from tolpack.compress.settings import DEFAULT_MAX_MEMORY, BuildSettings, Drop
from tolpack.compress.table_passes import product_precision, torch_threads
from tolpack.container.header import Header, Table
from tolpack.container.writer import PackWriter
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch
from tolpack.sources.arrays import ArrayTable
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.held_table import HeldTable
from tolpack.sources.protocol import TableSource
from tolpack.version import __version__

# Of the memory for what is put aside, the share that a held table may take.
_HELD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class CalibrationInputs:
    """Files that tell what tokens and losses are like; see `tolpack.build`."""

    calibrate: str | Path | None = None
    frequencies: str | Path | None = None
    tokenizer: str | Path | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What a build may use, and what it multiplies in; see `tolpack.build`."""

    compute: str = "auto"
    max_memory: str | int = DEFAULT_MAX_MEMORY
    threads: int | None = None


class Workshop:
    """See the module; use as a context manager.

    Parameters
    ----------
    source : FFNTable or ArrayTable
        The table, exact.
    folder : Path
        Where what does not fit into memory is put aside.
    calibration : CalibrationInputs
        What is known of its tokens.
    resources : Resources
        What a build may use.
    share : bool
        Whether several packs will be made.
    reporter : Reporter, optional
        Receives progress.
    """

    def __init__(
        self,
        source: FFNTable | ArrayTable,
        folder: Path,
        calibration: CalibrationInputs,
        resources: Resources,
        *,
        share: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        self._exact = source
        self._knowledge = calibration
        self._compute = resources.compute
        self._reporter = reporter or Reporter()
        self._limits = plan_limits(source, resources.max_memory, resources.threads)
        self._share = share
        held = HeldTable.nbytes(source)
        self._hold = share and held <= _HELD_SHARE * self._limits.scratch_bytes
        self._shared: dict[torch.dtype, HeldTable] = {}
        self._known: dict[tuple[object, ...], CalibrationStats] = {}
        limit = self._limits.scratch_bytes - (held if self._hold else 0)
        self._scratch = Scratch(folder, limit)
        self._described = False

    def make(
        self, settings: BuildSettings, path: Path, *, resume: bool = False, force: bool = True
    ) -> None:
        """Write a pack to `path`; without `force` nothing may be there, until the end.

        Raises
        ------
        ConfigError, CheckpointError, FileAccessError
            As `tolpack.build`.
        """
        dtype = self._prepare(settings.bits)
        with ExitStack() as stack:
            stack.enter_context(torch_threads(self._limits.threads))
            stack.enter_context(product_precision(dtype))
            # Of one pack alone, arrays are not kept for the next.
            scratch = self._scratch
            if self._share:
                room = Scratch(scratch.folder, scratch.left)
                scratch = stack.enter_context(room)
            work = self._assembly(settings, dtype, scratch)
            # What is written must come from what was hashed into the key.
            check = self._exact.check_unchanged
            open_writer = partial(PackWriter, path, replace=force, check=check)
            while not _write(work, open_writer, resume, self._reporter):
                resume = False

    @property
    def table(self) -> TableSource:
        """The exact table, held where memory allows."""
        return self._table(torch.float32)

    def __enter__(self) -> Workshop:
        self._scratch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.__exit__(*error)

    def _prepare(self, bits: int | str) -> torch.dtype:
        """Say what was matched, once; returns what everything is multiplied in."""
        source = self._exact
        if not self._described:
            for line in source.describe():
                self._reporter.say(line)
            with self._reporter.phase("checking the input", source.stored_bytes, "B") as done:
                source.check(done)
            self._described = True
        if not isinstance(source, FFNTable):
            return torch.float32
        dtype = choose_compute(self._compute, source, bits)
        if dtype is not torch.float32:
            self._reporter.say("multiplying in bfloat16 (--compute float32 is exact, and slower)")
        return dtype

    def _source(self, dtype: torch.dtype) -> FFNTable | ArrayTable:
        exact = self._exact
        return exact.computed_in(dtype) if isinstance(exact, FFNTable) else exact

    def _table(self, dtype: torch.dtype) -> TableSource:
        if not self._share:
            return self._source(dtype)
        if dtype not in self._shared:
            source = self._source(dtype)
            self._shared = {dtype: HeldTable(source, self._scratch, hold=self._hold)}
        return self._shared[dtype]

    def _weighing(self, settings: BuildSettings, dtype: torch.dtype) -> CalibrationStats:
        needs_metrics = settings.ranks.word == "auto" or settings.bits == "auto"
        reach = REACH if settings.bits == "auto" else 0
        key = (dtype, needs_metrics, reach)
        if key not in self._known:
            known = self._knowledge
            self._known[key] = calibrate(
                self._source(dtype),
                needs_metrics=needs_metrics,
                reach=reach,
                text=known.calibrate,
                frequencies=known.frequencies,
                tokenizer=known.tokenizer,
                decoder_bytes=self._limits.decoder_bytes,
                scratch=self._scratch,
                reporter=self._reporter,
            )
        return self._known[key]

    def _assembly(self, settings: BuildSettings, dtype: torch.dtype, scratch: Scratch) -> Assembly:
        """Return the way in which `settings` store the table."""
        weighing, table = self._weighing(settings, dtype), self._table(dtype)
        limits, reporter = self._limits, self._reporter
        if settings.bits != "auto":
            return FixedBitsAssembly(table, settings, weighing, limits, scratch, reporter)

        def dropping(layers: Drop) -> EntropyCodedAssembly:
            chosen = replace(settings, drop=layers)
            return EntropyCodedAssembly(table, chosen, weighing, limits, scratch, reporter)

        if not settings.drop.auto:
            return dropping(settings.drop)
        return best_assembly(lambda layers: dropping(Drop(layers)), settings.drop, reporter)


def _write(
    work: Assembly, open_writer: Callable[..., PackWriter], resume: bool, reporter: Reporter
) -> bool:
    """Write the pack; false, and nothing under its name, if it came out larger than ``--size``."""
    attempt = work.kept_back
    with open_writer(work.key, work.header_room, resume=resume, attempt=attempt) as writer:
        if resume:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        fields = work.write_fields(writer)
        token_map = work.write_token_map(writer)
        encodings, chunks = work.write_chunks(writer)
        excess = writer.end_bytes - work.size if work.size is not None else 0
        if excess > 0:
            reporter.say(f"{excess} bytes over --size: cold rows compress less than their sample")
            writer.discard()
            work.keep_back(excess)
            return False
        table = Table("tol", work.source.vocab_size, tuple(fields), tuple(chunks), token_map)
        writer.commit(Header((table,), encodings, tuple(writer.sections), f"tolpack {__version__}"))
    return True
