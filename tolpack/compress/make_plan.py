"""The planner for the settings: it measures the tables, and makes plans of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.compress.entropy.drop_layers import best_planner
from tolpack.compress.entropy.planner import EntropyCodedPlanner
from tolpack.compress.fixed.planner import FixedBitsPlanner
from tolpack.compress.lossless.planner import LosslessPlanner
from tolpack.compress.pack_provenance import provenance_of
from tolpack.compress.plan import PackPlan, Plan, PlanInputs, pack_key
from tolpack.compress.planned_pack import plan_pack
from tolpack.compress.settings import BuildSettings, Drop, parse_size
from tolpack.container.provenance import Provenance
from tolpack.errors import ConfigError
from tolpack.sources.protocol import TableSource
from tolpack.workspace.workspace import Workspace


@dataclass(frozen=True, slots=True)
class TableInputs:
    """A table of a pack, and what is known of its tokens and losses."""

    source: TableSource
    stats: CalibrationStats

    @property
    def fp16_bytes(self) -> int:
        """Bytes of the table in FP16, dropped layers included."""
        return 2 * self.source.rows * sum(field.width for field in self.source.fields)


class Planner(Protocol):
    """Has measured a table, and makes plans of it."""

    def plan(self, reserve_bytes: int = 0) -> Plan:
        """Return a plan whose file leaves `reserve_bytes` of ``--size`` free."""
        ...


@dataclass(frozen=True, slots=True)
class PackPlanner:
    """Has measured all tables of a pack; ``shares`` of ``--size`` that each of them has."""

    planners: tuple[Planner, ...]
    names: tuple[str, ...]
    shares: tuple[float, ...]

    def plan(self, reserve_bytes: int = 0) -> PackPlan:
        """Return a plan whose file leaves `reserve_bytes` of ``--size`` free.

        Raises
        ------
        ConfigError
            A table does not fit its share of ``--size``, or the format has no such pack.
        """
        return plan_pack([self._table_plan(n, reserve_bytes) for n in range(len(self.planners))])

    def _table_plan(self, number: int, reserve_bytes: int) -> Plan:
        try:
            return self.planners[number].plan(math.ceil(reserve_bytes * self.shares[number]))
        except ConfigError as error:
            if len(self.names) == 1:
                raise
            raise ConfigError(f"table {self.names[number]!r}: {error}") from error


def make_planner(
    tables: Sequence[TableInputs], settings: BuildSettings, workspace: Workspace
) -> PackPlanner:
    """Return the planner for `settings`, after its measurements of `tables`.

    Raises
    ------
    ConfigError
        The settings do not fit a table.
    """
    limits, total = size_limits(tables, settings), sum(table.fp16_bytes for table in tables)
    sources, stats = [one.source for one in tables], [one.stats for one in tables]
    provenance = provenance_of(sources, stats, settings)
    return PackPlanner(
        tuple(
            _table_planner(table, settings, workspace, limit, None if number else provenance)
            for number, (table, limit) in enumerate(zip(tables, limits))
        ),
        tuple(table.source.name for table in tables),
        tuple(table.fp16_bytes / total for table in tables),
    )


def make_plan(
    tables: Sequence[TableInputs], settings: BuildSettings, workspace: Workspace
) -> PackPlan:
    """Decide everything about the pack of `tables` under `settings`; raises as `make_planner`."""
    return make_planner(tables, settings, workspace).plan()


def plan_key(tables: Sequence[TableInputs], settings: BuildSettings, workspace: Workspace) -> bytes:
    """Return the key of plans to come, where no layers are chosen to be dropped."""
    limits = size_limits(tables, settings)
    inputs = [
        PlanInputs.of(table.source, table.stats, settings, workspace, limit)
        for table, limit in zip(tables, limits)
    ]
    return pack_key([one.key for one in inputs])


def size_limits(tables: Sequence[TableInputs], settings: BuildSettings) -> list[int | None]:
    """Divide ``--size`` among tables, by their sizes."""
    if settings.size is None:
        return [None] * len(tables)
    total = sum(table.fp16_bytes for table in tables)
    size = parse_size(settings.size, total)
    return [size * table.fp16_bytes // total for table in tables]


def _table_planner(
    table: TableInputs, settings: BuildSettings, workspace: Workspace, size_limit: int | None,
    provenance: Provenance | None,
) -> Planner:  # fmt: skip
    def inputs_of(given: BuildSettings) -> PlanInputs:
        return PlanInputs.of(table.source, table.stats, given, workspace, size_limit, provenance)

    def inputs_without(layers: tuple[int, ...]) -> PlanInputs:
        return inputs_of(replace(settings, drop=Drop(layers)))

    if settings.bits == "lossless":
        return LosslessPlanner.of(inputs_of(settings))
    if settings.bits != "auto":
        return FixedBitsPlanner.of(inputs_of(settings))
    if settings.drop.auto:
        return best_planner(inputs_without, settings.drop, workspace.reporter)
    return EntropyCodedPlanner.of(inputs_without(settings.drop.layers))
