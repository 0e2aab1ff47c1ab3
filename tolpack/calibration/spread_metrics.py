"""Loss metrics measured by the workers of a build: a group of windows is a task.

A worker opens the model for itself, and stores the sums of its group in a file of the build's
folder. They are added here in the order of the groups, so the metrics are those that one process
measures. Groups whose file is there already, from a build that was interrupted, are not measured
again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.loss_metrics import (
    LossMetrics,
    metric_batches,
    metric_tokens,
    metrics_of,
    new_sums,
)
from tolpack.calibration.metric_sums import REVISION, MetricSums, groups, sum_group
from tolpack.calibration.open_model import open_model
from tolpack.errors import FileAccessError, memory_errors
from tolpack.model.language_model import LanguageModel
from tolpack.runtime.scratch import Scratch
from tolpack.sources.input_location import InputLocation, are_unchanged
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.storage.inputs import open_stream
from tolpack.storage.locations import absolute
from tolpack.workspace.jobs import JOB_SUFFIX, SUMS_SUFFIX, OpenJobs, store_job
from tolpack.workspace.limits import Limits
from tolpack.workspace.run_tasks import run_tasks
from tolpack.workspace.workers import SharedTorchSettings
from tolpack.workspace.workspace import Workspace

_READ_BYTES = 1 << 20
# A process may have several threads that work on tasks.
_torch_settings = SharedTorchSettings()


@dataclass(frozen=True, slots=True)
class MetricsJob:
    """What all groups have in common: the input and its sampled fingerprints, the fingerprint of
    all of the model, the table's name, the text, int64 (tokens,), and how it is measured.
    ``revision``: sums of another one are not of this job.
    """

    input: InputLocation
    sampled: tuple[bytes, ...]
    model: bytes
    table: str
    token_ids: NDArray[np.int64]
    context: int
    reach: int
    limits: Limits
    revision: int


@dataclass(frozen=True, slots=True)
class OpenMetricsJob:
    """A job, its table and its model, as a worker keeps them."""

    job: MetricsJob
    folder: Folder
    source: TableSource
    model: LanguageModel

    def is_unchanged(self) -> bool:
        """Whether the files are those that were opened."""
        return are_unchanged([self.source])


_open_jobs: OpenJobs[OpenMetricsJob] = OpenJobs()


def spread_loss_metrics(
    source: TableSource,
    model: LanguageModel,
    token_ids: NDArray[np.int64],
    context: int,
    reach: int,
    workspace: Workspace,
    progress: Callable[[int], object],
) -> LossMetrics:
    """Measure what `tolpack.calibration.loss_metrics.measure_loss_metrics` does, on the workers of
    `workspace`.

    Raises
    ------
    TolpackError
        As of `measure_group` and `tolpack.workspace.run_tasks.run_tasks`.
    """
    found, scratch = workspace.workers, workspace.scratch
    if found is None:
        raise ValueError("there are no workers")
    location = found.input.computed_in(source.compute)
    sampled = tuple(table.sampled_fingerprint() for table in location.open())
    job = MetricsJob(
        location, sampled, model.fingerprint(), source.name, token_ids, context, reach,
        found.limits, REVISION,
    )  # fmt: skip
    folder = found.folder
    digest, attempt = store_job(job, folder), uuid.uuid4().hex
    batches = groups(metric_batches(model, token_ids, context))
    names = _stored_sums(folder, digest)
    missing = [n for n in range(len(batches)) if n not in names]

    def take(place: int, name: str) -> None:
        names[missing[place]] = name
        progress(sum(batch[:, 1:].numel() for batch in batches[missing[place]]))

    calls = [(absolute(folder.location), digest, number, attempt) for number in missing]
    run_tasks(found.workers, measure_group, calls, take, workspace.reporter)
    total, one = new_sums(model, reach, scratch), new_sums(model, reach, scratch)
    for number in range(len(batches)):
        _load_sums(folder, names[number], one)
        total.add(one)
    for name in (digest + JOB_SUFFIX, *names.values()):
        folder.delete(name)
    return metrics_of(total, metric_tokens(model, len(token_ids), context))


def _stored_sums(folder: Folder, digest: str) -> dict[int, str]:
    """Return the files of sums that an interrupted build of the same has left: group → name."""
    found = {}
    for name in folder.names():
        job, _, rest = name.removesuffix(SUMS_SUFFIX).partition("-")
        number = rest.partition("-")[0]
        if name.endswith(SUMS_SUFFIX) and job == digest and number.isdecimal():
            found[int(number)] = name
    return found


def _load_sums(folder: Folder, name: str, sums: MetricSums) -> None:
    """Take the sums of a file, whose name ends in its SHA-256.

    Raises
    ------
    FileAccessError
        It was damaged, and is removed.
    """
    with open_stream(folder.file_location(name)) as file:
        found = hashlib.sha256()
        while data := file.read(_READ_BYTES):
            found.update(data)
        if name.endswith(f"-{found.hexdigest()}{SUMS_SUFFIX}"):
            file.seek(0)
            sums.load(file)
            return
    folder.delete(name)
    raise FileAccessError(f"{folder.file_location(name)} was damaged: give the same command again")


@memory_errors("give each worker more memory, or run fewer of them on a machine")
def measure_group(location: str, digest: str, number: int, attempt: str) -> str:
    """Sum group `number` of the job of `digest` into a file of the folder at `location`; returns
    the file's name. `attempt` differs in each build: an engine may remember earlier calls.

    Raises
    ------
    TolpackError
        As of `tolpack.workspace.jobs.load_job`; or the input is another one, or the model cannot be
        run.
    """
    opened = _open_jobs.get(location, digest, _open)
    job, model, folder = opened.job, opened.model, opened.folder
    group = groups(metric_batches(model, job.token_ids, job.context))[number]
    with (
        _torch_settings.using(opened.source.compute),
        folder.temporary() as path,
        Scratch(path.parent, job.limits.scratch_bytes) as scratch,
    ):
        sums = new_sums(model, job.reach, scratch)
        sum_group(sums, model, group)
        opened.source.check_unchanged()
        with open(path, "w+b") as file:
            sums.save(file)
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{digest}-{number}-{found}{SUMS_SUFFIX}"
        folder.put(name, path)
    return name


def _open(folder: Folder, job: MetricsJob) -> OpenMetricsJob:
    sources = job.input.open_as(job.sampled)
    source = next(table for table in sources if table.name == job.table)
    return OpenMetricsJob(job, folder, source, open_model(source, job.limits))
