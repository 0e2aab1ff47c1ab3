"""The planner for the settings: it measures the table, and makes plans of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.compress.entropy.drop_layers import best_planner
from tolpack.compress.entropy.planner import EntropyCodedPlanner
from tolpack.compress.fixed.planner import FixedBitsPlanner
from tolpack.compress.plan import Plan, PlanInputs
from tolpack.compress.settings import BuildSettings, Drop
from tolpack.sources.protocol import TableSource
from tolpack.workspace.workspace import Workspace


class Planner(Protocol):
    """Has measured a table, and makes plans of it."""

    def plan(self, reserve_bytes: int = 0) -> Plan:
        """Return a plan whose file leaves `reserve_bytes` of ``--size`` free."""
        ...


def make_planner(
    source: TableSource, stats: CalibrationStats, settings: BuildSettings, workspace: Workspace
) -> Planner:
    """Return the planner for `settings`, after its measurements of `source`.

    Raises
    ------
    ConfigError
        The settings do not fit the table.
    """
    if settings.bits != "auto":
        return FixedBitsPlanner.of(PlanInputs.of(source, stats, settings, workspace))

    def inputs_without(layers: tuple[int, ...]) -> PlanInputs:
        return PlanInputs.of(source, stats, replace(settings, drop=Drop(layers)), workspace)

    if settings.drop.auto:
        return best_planner(inputs_without, settings.drop, workspace.reporter)
    return EntropyCodedPlanner.of(inputs_without(settings.drop.layers))


def make_plan(
    source: TableSource, stats: CalibrationStats, settings: BuildSettings, workspace: Workspace
) -> Plan:
    """Decide everything about the pack of `source` under `settings`; raises as `make_planner`."""
    return make_planner(source, stats, settings, workspace).plan()
