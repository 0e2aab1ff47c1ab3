"""Sweeps as a file for a spreadsheet, and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tolpack.container.atomic_write import replacing
from tolpack.report.plots import TradeOffPoint, plot_trade_off

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.evaluator import PackScore
    from tolpack.evaluation.sweep_runner import SweepPoint

_COLUMNS = ("rank", "bits", "drop", "size", "max_ppl_increase", "path", "bytes", "ratio_fp16",
            "bits_per_weight", "ppl", "ppl_se", "nll_nats", "tokens", "ppl_increase_pct",
            "ppl_increase_se_pct", "read_bytes_per_token", "resident_bytes", "macs_per_token",
            "build_seconds", "eval_seconds", "on_front")  # fmt: skip


def write_csv(packs: Sequence[PackScore], points: Sequence[SweepPoint], path: Path) -> None:
    """Write a line per pack and per setting, with a header; what does not apply is empty.

    Raises
    ------
    FileAccessError
        The file cannot be written.
    """
    from dataclasses import asdict

    lines = [asdict(pack) for pack in packs]
    for point in points:
        found = point.to_json()
        lines.append({**found, **found["setting"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def plot_sweep(
    packs: Sequence[PackScore], points: Sequence[SweepPoint], path: Path, title: str
) -> None:
    """Draw packs and settings; see `tolpack.report.plots.plot_trade_off`."""
    drawn = [
        TradeOffPoint(
            pack.bytes / 1e6, pack.ppl_increase_pct, pack.ppl_increase_se_pct, "packs",
            Path(pack.path).name, on_front=False,
        )
        for pack in packs
    ]  # fmt: skip
    drawn += [
        TradeOffPoint(
            point.score.bytes / 1e6, point.score.ppl_increase_pct, point.score.ppl_increase_se_pct,
            family(point), point.setting.short, point.on_front,
        )
        for point in points
    ]  # fmt: skip
    plot_trade_off(drawn, path, title)


def family(point: SweepPoint) -> str:
    """The kind of setting that gives a point its colour."""
    bits = "entropy-coded" if point.setting.bits == "auto" else "fixed bits"
    basis = {"none": "no basis", "auto": "ranks by loss"}.get(point.setting.rank, "uniform rank")
    return f"{bits}, {basis}"
