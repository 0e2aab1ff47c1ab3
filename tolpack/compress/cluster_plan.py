"""``tolpack plan --machines``: the size of a pack, and the phases of its build on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tolpack.compress.cluster_model import (
    DEFAULT_PART_BYTES,
    BuildWork,
    Cluster,
    ClusterPlan,
    TableWork,
    plan_cluster,
)
from tolpack.compress.cluster_rates import (
    array_bytes,
    frame_index_bytes,
    measure_plan,
    measure_rates,
    measure_table,
)
from tolpack.compress.measured_plan import PlanRequest, decided_plan
from tolpack.compress.size_prediction import SizePrediction, predict_tables
from tolpack.errors import memory_errors
from tolpack.runtime.progress import Reporter
from tolpack.sources.open_source import open_tables
from tolpack.storage.locations import is_url


@dataclass(frozen=True, slots=True)
class ClusterBuild:
    """A cluster, and the size of the parts that are built on it, ``None`` for the default: on
    one machine, from a file of it, a pack in one file.
    """

    cluster: Cluster
    part_bytes: int | None = None

    def work(
        self, request: PlanRequest, tables: Sequence[TableWork], pack_bytes: int, index_bytes: int,
        calibration_seconds: float = 0.0, plan_seconds: float = 0.0,
    ) -> BuildWork:  # fmt: skip
        """Return what is to be done, given what was measured."""
        remote = self.cluster.machines > 1 or is_url(request.checkpoint)
        part_bytes = self.part_bytes or (DEFAULT_PART_BYTES if remote else None)
        return BuildWork(
            tuple(tables), pack_bytes, index_bytes, part_bytes, calibration_seconds, plan_seconds,
            remote,
        )  # fmt: skip


@memory_errors("give less --max-memory or fewer --threads")
def predict_build(
    request: PlanRequest, rank: str, build: ClusterBuild, reporter: Reporter
) -> tuple[SizePrediction, ClusterPlan]:
    """Predict a build for whose plan the table is not measured. A sample of its rows is encoded.

    Parameters
    ----------
    request : PlanRequest
        What is to be built; its inputs are not used.
    rank : str
        ``--rank`` as it was given.
    build : ClusterBuild
        Where, and in which parts.
    reporter : Reporter
        Receives progress.

    Returns
    -------
    tuple of SizePrediction and ClusterPlan
        The pack's size, and the phases.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    settings = request.settings
    sources = open_tables(request.checkpoint, request.options, request.layers, request.tensor)
    raw = settings.compression == "none"
    size = predict_tables(sources, rank, settings.bits, settings.drop.layers, raw=raw)
    found = [measure_table(one, settings, request.resources, reporter) for one in sources]
    tables, written = [table for table, _ in found], sum(index for _, index in found)
    work = build.work(request, tables, size.bytes, written)
    return size, plan_cluster(build.cluster, work, measure_rates())


@memory_errors("give less --max-memory or fewer --threads")
def preview_build(
    request: PlanRequest, build: ClusterBuild, reporter: Reporter
) -> tuple[list[dict[str, Any]], ClusterPlan]:
    """Measure and decide as a build does, encode a sample of rows, and predict the build.

    Parameters
    ----------
    request, build, reporter
        As of `predict_build`.

    Returns
    -------
    tuple of list and ClusterPlan
        What `tolpack.compress.measured_plan.preview_plan` returns, and the phases.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    with decided_plan(request, reporter) as decided:
        plans = decided.plan.tables
        tables = [
            measure_plan(plan, table.source, decided.workspace.limits)
            for plan, table in zip(plans, decided.tables)
        ]
        written = sum(array_bytes(plan) + frame_index_bytes(plan) for plan in plans)
        work = build.work(
            request, tables, decided.plan.predicted_bytes, written,
            decided.calibration_seconds, decided.plan_seconds,
        )  # fmt: skip
    return [one.to_json() for one in plans], plan_cluster(build.cluster, work, measure_rates())
