"""The picture of docs/choosing-settings.md: packs of `rate_distortion.py`, drawn as `--plot` draws.

python benchmarks/trade_off_plot.py benchmarks/results/rate_distortion.json docs/trade-off.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tolpack.evaluation.pareto import on_front
from tolpack.report.plot_labels import TradeOffPoint
from tolpack.report.plots import plot_trade_off

# Families of packs in the result, and what `tolpack eval --plot` calls their settings.
FAMILIES = {
    "groups of 64": "fixed bits, no basis",
    "uniform SVD": "fixed bits, uniform rank",
    "--rank auto --bits 4": "fixed bits, ranks by loss",
    "--bits auto --rank none": "entropy-coded, no basis",
    "--bits auto --rank auto": "entropy-coded, ranks by loss",
}


def main(source: Path, picture: Path) -> None:
    """Draw the packs of a result."""
    result = json.loads(source.read_text("utf-8"))
    kept = [one for one in result["points"] if one["family"] in FAMILIES]
    marks = on_front([(one["bytes"], one["kl_mean_nats"]) for one in kept])
    ordered = sorted(
        (point(one, mark) for one, mark in zip(kept, marks)),
        key=lambda one: list(FAMILIES.values()).index(one.family),
    )
    title = f"A MemoryLLM of 11M parameters: {result['tokens'][0]:,} held-out tokens"
    plot_trade_off(ordered, picture, title)


def point(one: dict[str, Any], mark: bool) -> TradeOffPoint:
    """Return a pack's point, named after the bits or size that it was built for."""
    family = FAMILIES[one["family"]]
    kind = f"entropy-coded{', by loss' if 'ranks by loss' in family else ''}, "
    label = f"{kind * one['family'].startswith('--bits auto')}{one['name']}"
    return TradeOffPoint(
        one["bytes"] / 1e6, one["increase_pct"], one["increase_se_pct"], one["kl_mean_nats"],
        one["kl_mean_se_nats"], family, label, mark,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
