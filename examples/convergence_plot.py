"""Draw the pictures of ``docs/training-dynamics.md`` and print its tables.

Command, on the results of ``convergence.py``::

    python examples/convergence_plot.py benchmarks/results/convergence.json docs

Lines are means over seeds. Bands and bars are standard errors over seeds; for differences from
dense they are paired, as all kinds see the same batches with one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS = {
    "dense": "black", "β = 3": "tab:purple", "β = 2": "tab:blue", "β = 1": "tab:green",
    "MemoryLLM": "tab:orange",
}  # fmt: skip
GROUPS = {
    "attention": "attention",
    "ffn_c": "FFN-C (of the context)",
    "ffn_m": "FFN-M (the memory)",
    "embedding": "embedding and head",
}
Curves = NDArray[np.float64]  # (seeds, points)


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description="Pictures of convergence.py's results.")
    parser.add_argument("results", type=Path, help="JSON of convergence.py")
    parser.add_argument("folder", type=Path, help="folder of the pictures")
    args = parser.parse_args()
    found = json.loads(args.results.read_text(encoding="utf-8"))
    for name, draw in (("dynamics", draw_losses), ("gradients", draw_gradients)):
        figure = draw(found)
        figure.tight_layout()
        figure.savefig(args.folder / f"training-{name}.png", dpi=80)
    for rows in (loss_table(found), step_table(found), norm_table(found), pack_table(found)):
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), end="\n\n")


# ---- tables ----------------------------------------------------------------------------------


def loss_table(found: dict[str, Any]) -> list[list[str]]:
    """Return the losses at the end, and what they took."""
    rows = [["", "held-out loss", "over dense", "training FLOPs", "MFLOP per token"]]
    rows.append(["---"] * len(rows[0]))
    for kind, summary in found["summary"].items():
        flops, active = summary["training_flops"], summary["inference_flops_per_token"]
        rows.append([
            kind, shown(summary["heldout_loss"], 3), shown(summary["over_dense"], 3, "+"),
            f"{flops / 1e12:.2f}·10¹²", f"{active / 1e6:.2f}",
        ])  # fmt: skip
    return rows


def step_table(found: dict[str, Any]) -> list[list[str]]:
    """Return the steps to some validation losses, and their ratio to dense's."""
    levels = list(found["summary"]["dense"]["steps_to"])
    rows = [["", *(f"steps to {level}" for level in levels), *(f"of dense, {x}" for x in levels)]]
    rows.append(["---"] * len(rows[0]))
    for kind, summary in found["summary"].items():
        cells = summary["steps_to"].values()
        steps = [shown(cell["steps"], 0) for cell in cells]
        rows.append([kind, *steps, *(shown(cell["of_dense"], 3) for cell in cells)])
    return rows


def norm_table(found: dict[str, Any]) -> list[list[str]]:
    """Return the mean gradient norms of the second half of a run, by group."""
    rows = [["", *GROUPS.values()], ["---"] * (len(GROUPS) + 1)]
    for kind in COLORS:
        row = [kind]
        for group in GROUPS:
            norms = [run["gradient_norm"].get(group) for run in runs_of(found, kind)]
            if None in norms:
                row.append("–")
                continue
            own = np.array(norms)
            half = own[:, own.shape[1] // 2 :].mean(1)
            row.append(shown([half.mean(), half.std(ddof=1) / len(half) ** 0.5], 3))
        rows.append(row)
    return rows


def pack_table(found: dict[str, Any]) -> list[list[str]]:
    """Return what the tables of the memories take."""
    rows = [["", "KL divergence at 4 bits", "auto, × FP16", "auto, of the 4-bit pack"]]
    rows.append(["---"] * len(rows[0]))
    for kind, summary in found["summary"].items():
        if summary["four_bits_kl"]:
            rows.append([
                kind, shown(summary["four_bits_kl"], 5), shown(summary["auto_ratio_fp16"], 2),
                shown(summary["auto_of_four_bits"], 3),
            ])  # fmt: skip
    return rows


def shown(value: Sequence[float], digits: int, sign: str = "") -> str:
    """Write a mean and its standard error."""
    return f"{value[0]:{sign}.{digits}f} ± {value[1]:.{digits}f}"


# ---- pictures --------------------------------------------------------------------------------


def draw_losses(found: dict[str, Any]) -> Any:
    """Draw loss against steps, its difference from dense, and loss against both kinds of FLOPs."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.6))
    steps, difference, training, inference = panels.flat
    dense = curves(found, "dense", "validation_loss")
    for kind, color in COLORS.items():
        own = curves(found, kind, "validation_loss")
        x = curves(found, kind, "step")[0]
        draw_band(steps, x, own, color, kind)
        draw_band(difference, x, own - dense, color, kind)
        draw_band(training, curves(found, kind, "flops").mean(0) / 1e12, own, color, kind)
        summary = found["summary"][kind]
        (loss, error), flops = summary["heldout_loss"], summary["inference_flops_per_token"]
        inference.errorbar(flops / 1e6, loss, error, fmt="o", color=color, capsize=3)
        inference.annotate(kind, (flops / 1e6, loss), (5, 9), textcoords="offset points")
    for axes in (steps, training):
        axes.set_ylabel("validation loss, nats per token")
    steps.set_xlabel("steps, or FLOPs if FFN-M is computed at every position")
    difference.set_xlabel("steps")
    difference.set_ylabel("validation loss − dense's, same seed")
    training.set_xlabel("10¹² training FLOPs, FFN-M once for each distinct token of a batch")
    inference.set_xlabel("MFLOP per token at inference, FFN-M looked up")
    inference.set_ylabel("held-out loss at the end")
    inference.margins(x=0.15, y=0.15)
    steps.legend()
    limit(steps, curves(found, "dense", "validation_loss"))
    limit(training, curves(found, "dense", "validation_loss"))
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure


def draw_gradients(found: dict[str, Any]) -> Any:
    """Draw the gradient norm of each group of parameters against steps."""
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.8), sharey=True)
    for axes, (group, title) in zip(panels, GROUPS.items(), strict=True):
        for kind, color in COLORS.items():
            runs = runs_of(found, kind)
            if group in runs[0]["gradient_norm"]:
                norms = np.array([run["gradient_norm"][group] for run in runs])
                draw_band(axes, np.array(runs[0]["training"]["step"]), norms, color, kind)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("gradient norm before clipping")
    panels[0].legend(fontsize=8)
    return figure


def runs_of(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the runs of a kind, by seed."""
    return [run for run in found["runs"] if run["kind"] == kind]


def curves(found: dict[str, Any], kind: str, name: str) -> Curves:
    """Return a series of the validations of all seeds."""
    return np.array([run["validation"][name] for run in runs_of(found, kind)])


def draw_band(axes: Any, x: Curves, values: Curves, color: str, label: str) -> None:
    """Draw the mean over seeds, and a band of one standard error."""
    mean = values.mean(0)
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * mean
    axes.plot(x, mean, color=color, label=label, lw=1.5)
    axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, lw=0)


def limit(axes: Any, losses: Curves) -> None:
    """Leave out the first steps, where all losses fall alike."""
    axes.set_ylim(top=float(losses[:, 1].max()))


if __name__ == "__main__":
    main()
