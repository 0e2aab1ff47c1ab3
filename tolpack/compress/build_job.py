"""The job of a build whose parts are encoded by several processes, perhaps on several machines.

A job is all that encoding needs: the plan, how to open the input, limits, and where each row goes.
It is stored once, as ``SHA-256.job`` beside the part files. What is sent to workers names it: the
folder, the digest, and the number of a part. A worker compares the digest before it unpickles
anything, and keeps the job and the opened input for its next parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tolpack.compress.plan import PRODUCER, PackPlan
from tolpack.compress.planned_pack import planned_header
from tolpack.container.parts.layout import RowRun, cut, other_sections
from tolpack.container.parts.part_file import PartHeader
from tolpack.errors import CheckpointError, ConfigError, FileAccessError
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import AlreadyExistsError, Folder
from tolpack.storage.locations import Location, absolute, open_folder
from tolpack.workspace.limits import Limits

JOB_SUFFIX = ".job"
# Jobs that a process keeps opened: that of a build, and that of its next plan.
_KEPT_JOBS = 2
# A job holds an order of tokens and matrices of all layers: far below this.
_MOST_JOB_BYTES = 1 << 36
# Stands before the pickled job: plans of another version may mean something else.
_PRODUCER_LINE = f"{PRODUCER}\n".encode()


@dataclass(frozen=True, slots=True)
class InputLocation:
    """How to open the input of a build again, in any process that sees the same files.

    ``path``, ``options``, ``layers`` and ``tensor`` are those of
    `tolpack.sources.open_source.open_tables`, with absolute paths; ``compute`` is what products are
    made in.
    """

    path: str
    options: CheckpointOptions
    layers: int | None = None
    tensor: str | None = None
    compute: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, path: Location, options: CheckpointOptions, layers: int | None, tensor: str | None
    ) -> InputLocation:
        """Make the paths absolute: workers have working folders of their own."""
        found = replace(
            options,
            config=None if options.config is None else absolute(options.config),
            key_map=None if options.key_map is None else absolute(options.key_map),
        )
        return cls(absolute(path), found, layers, tensor)

    def open(self) -> tuple[TableSource, ...]:
        """Open all tables; errors as of `open_tables`."""
        tables = open_tables(self.path, self.options, self.layers, self.tensor)
        return tuple(table.computed_in(self.compute) for table in tables)


@dataclass(frozen=True, slots=True)
class BuildJob:
    """See the module.

    ``plan`` has what encoders need, and nothing else; ``plan_digest`` is that of the whole plan;
    ``parts`` are the rows of each part file, and ``other_sections`` is how many arrays and indexes
    the last part file holds. For workers, ``input`` is where the input lies, and ``sampled`` are
    the sampled fingerprints of its tables, by which they notice that theirs is another one.
    """

    plan: PackPlan
    plan_digest: int
    limits: Limits
    parts: tuple[tuple[RowRun, ...], ...]
    other_sections: int
    input: InputLocation | None = None
    sampled: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, plan: PackPlan, limits: Limits, part_bytes: int) -> BuildJob:
        """Return the job of `plan` whose part files take about `part_bytes` bytes each, for this
        process.
        """
        header = planned_header(plan)
        tables = tuple(
            replace(one, arrays=(), order=replace(one.order, counts=None)) for one in plan.tables
        )
        return cls(
            replace(plan, tables=tables), plan.digest, limits, cut(header, part_bytes),
            len(other_sections(header)),
        )  # fmt: skip

    def for_workers(
        self, location: InputLocation, sources: Sequence[TableSource], limits: Limits
    ) -> BuildJob:
        """Return it for workers that open the tables `sources` at `location`."""
        computed = [one.compute for one in sources if one.compute is not torch.float32]
        found = replace(location, compute=computed[0] if computed else torch.float32)
        sampled = tuple(one.sampled_fingerprint() for one in sources)
        return replace(self, input=found, sampled=sampled, limits=limits)

    @property
    def count(self) -> int:
        """The number of part files, that of arrays and indexes included."""
        return len(self.parts) + bool(self.other_sections)

    @property
    def pack_id(self) -> int:
        """The pack's."""
        return self.plan.tables[0].pack_id

    def part_header(self, number: int) -> PartHeader:
        """Return what part file `number` says of itself, but for its pieces."""
        return PartHeader(self.pack_id, number, self.count, (), self.plan_digest)

    def work(self, number: int) -> int:
        """Return how many rows × fields part file `number` holds."""
        return sum(
            run.rows * len(self.plan.tables[run.chunk.table].table.kept_fields)
            for run in self.parts[number]
        )


def store_job(job: BuildJob, folder: Folder) -> str:
    """Store a job, and return its digest, 64 hex digits."""
    data = _PRODUCER_LINE + pickle.dumps(job, protocol=5)
    digest = hashlib.sha256(data).hexdigest()
    with contextlib.suppress(AlreadyExistsError):  # stored by a build that was interrupted
        folder.create(digest + JOB_SUFFIX, data)
    return digest


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job and its tables, as a worker keeps them."""

    job: BuildJob
    folder: Folder
    sources: tuple[TableSource, ...]
    compute: torch.dtype


_open_jobs: OrderedDict[tuple[str, str], OpenJob] = OrderedDict()
_lock = threading.Lock()


def open_job(location: str, digest: str) -> OpenJob:
    """Return the job of `digest` in the folder at `location`, opened once for this process.

    Raises
    ------
    FileAccessError
        It cannot be read, or its bytes have another digest.
    ConfigError
        Another version of tolpack stored it.
    CheckpointError
        The input is another one than that of the build.
    """
    with _lock:
        found = _open_jobs.get((location, digest))
        if found is None or not _unchanged(found):
            found = _open_jobs[location, digest] = _open(location, digest)
        _open_jobs.move_to_end((location, digest))
        while len(_open_jobs) > _KEPT_JOBS:
            _open_jobs.popitem(last=False)
        return found


def _open(location: str, digest: str) -> OpenJob:
    folder = open_folder(location)
    name = digest + JOB_SUFFIX
    data = folder.read_whole(name, _MOST_JOB_BYTES)
    if hashlib.sha256(data).hexdigest() != digest:
        raise FileAccessError(
            f"{folder.file_location(name)} was changed: remove it, and give the same command again"
        )
    if not data.startswith(_PRODUCER_LINE):
        raise ConfigError(
            f"the build was started by another version than this worker's {PRODUCER}: install the "
            "same version everywhere"
        )
    job: BuildJob = pickle.loads(data[len(_PRODUCER_LINE) :])
    found = job.input or InputLocation("", CheckpointOptions())
    sources = found.open()
    if tuple(source.sampled_fingerprint() for source in sources) != job.sampled:
        raise CheckpointError(
            f"{found.path} is another input on this worker than where the build was started, "
            "or was changed since: copy it anew, and give the same command again"
        )
    return OpenJob(job, folder, sources, found.compute)


def _unchanged(job: OpenJob) -> bool:
    """Whether the files are those that were opened."""
    try:
        for source in job.sources:
            source.check_unchanged()
    except CheckpointError:
        return False
    return True
