"""The job of encoding parts: the plan, how to open the input, limits, and where each row goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tolpack.compress.plan import PackPlan
from tolpack.compress.planned_pack import planned_header
from tolpack.container.parts.layout import RowRun, cut, other_sections
from tolpack.container.parts.part_file import PartHeader
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_location import InputLocation, are_unchanged
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.workspace.jobs import OpenJobs
from tolpack.workspace.limits import Limits


@dataclass(frozen=True, slots=True)
class BuildJob:
    """See the module, and `tolpack.workspace.jobs`.

    ``plan`` has what encoders need, and nothing else; ``plan_digest`` is that of the whole plan;
    ``parts`` are the rows of each part file, and ``other_sections`` is how many arrays and indexes
    the last part file holds. For workers, ``input`` is where the input lies, and ``sampled`` are
    the sampled fingerprints of its tables, by which they notice that theirs is another one;
    ``is_durable`` is that of the folder.
    """

    plan: PackPlan
    plan_digest: int
    limits: Limits
    parts: tuple[tuple[RowRun, ...], ...]
    other_sections: int
    input: InputLocation | None = None
    sampled: tuple[bytes, ...] = ()
    is_durable: bool = True

    @classmethod
    def of(cls, plan: PackPlan, limits: Limits, part_bytes: int) -> BuildJob:
        """Return the job of `plan` whose part files take about `part_bytes` bytes each, for this
        process.
        """
        header = planned_header(plan)
        tables = tuple(one.for_encoding() for one in plan.tables)
        return cls(
            replace(plan, tables=tables), plan.digest, limits, cut(header, part_bytes),
            len(other_sections(header)),
        )  # fmt: skip

    def for_workers(
        self,
        location: InputLocation,
        sources: Sequence[TableSource],
        limits: Limits,
        *,
        is_durable: bool,
    ) -> BuildJob:
        """Return it for workers that open the tables `sources` at `location`."""
        computed = [one.compute for one in sources if one.compute is not torch.float32]
        found = location.computed_in(computed[0] if computed else torch.float32)
        sampled = tuple(one.sampled_fingerprint() for one in sources)
        return replace(self, input=found, sampled=sampled, limits=limits, is_durable=is_durable)

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


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job and its tables, as a worker keeps them."""

    job: BuildJob
    folder: Folder
    sources: tuple[TableSource, ...]
    compute: torch.dtype

    def is_unchanged(self) -> bool:
        """Whether the files are those that were opened."""
        return are_unchanged(self.sources)


_open_jobs: OpenJobs[OpenJob] = OpenJobs()


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
    return _open_jobs.get(location, digest, _open)


def _open(folder: Folder, job: BuildJob) -> OpenJob:
    folder.is_durable = job.is_durable
    found = job.input or InputLocation("", CheckpointOptions())
    return OpenJob(job, folder, found.open_as(job.sampled), found.compute)
