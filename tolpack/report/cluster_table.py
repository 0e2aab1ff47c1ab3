"""The phases of a build on a cluster, as a text table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tolpack.report.tables import format_bytes, format_table
from tolpack.runtime.machine import machine
from tolpack.runtime.sizes import counted

if TYPE_CHECKING:  # it loads torch, which reading a pack does not need
    from tolpack.compress.cluster_model import ClusterPlan


def cluster_table(plan: ClusterPlan) -> str:
    """Write a line for each phase, the sums, and what was measured."""
    costs = plan.total_cost() is not None
    header = ["phase", "machines", "time", "read", "over network", "bound by", "cost"]
    rows = [
        [
            phase.name,
            str(phase.machines),
            format_time(phase.seconds),
            _bytes_or_none(phase.read_bytes),
            _bytes_or_none(phase.network_bytes),
            phase.bound,
            f"{plan.cost(phase) or 0:.2f}",
        ]
        for phase in plan.phases
    ]
    read = sum(phase.read_bytes for phase in plan.phases)
    total = [
        "all", str(plan.cluster.machines), format_time(plan.seconds), format_bytes(read),
        format_bytes(plan.network_bytes), "", f"{plan.total_cost() or 0:.2f}",
    ]  # fmt: skip
    columns = len(header) if costs else len(header) - 1
    table = format_table(header[:columns], [row[:columns] for row in [*rows, total]])
    return f"{table}\n\n{_parts_line(plan)}\n{_measured_lines(plan)}"


def format_time(seconds: float) -> str:
    """Write a time with a unit and two or three digits."""
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes_or_none(size: int) -> str:
    return format_bytes(size) if size else "-"


def _parts_line(plan: ClusterPlan) -> str:
    cluster, work = plan.cluster, plan.work
    pack = format_bytes(work.pack_bytes)
    place = "object storage" if work.remote else "the machine's disk"
    files = "one file" if work.part_bytes is None else counted(work.parts, "part")
    return (
        f"{pack} in {files}; {counted(cluster.machines * cluster.processes, 'worker')} on "
        f"{counted(cluster.machines * cluster.cores, 'core')}; input and pack on {place}"
    )


def _measured_lines(plan: ClusterPlan) -> str:
    rows = sum(table.rows for table in plan.work.tables)
    encoding = sum(table.rows * table.row_seconds for table in plan.work.tables)
    digest, start = format_bytes(plan.rates.digest), plan.rates.start_seconds
    return (
        f"measured here, on this machine ({machine()}):\n"
        f"a core encodes {rows / encoding:,.0f} rows and hashes {digest} (SHA-256) a second; "
        f"a worker starts in {start:.1f} s"
    )
