"""Picture and table of `suppress_tokens.py`: how much less likely targets are, and what it costs.

python benchmarks/suppress_plot.py benchmarks/results/suppress_tokens.json docs/suppress-tokens.png

The table is printed, as docs/editing.md has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLORS = {"names": "tab:blue", "numbers": "tab:green", "words": "tab:red",
          "three words": "tab:orange"}  # fmt: skip
LABELS = {"names": "18 names", "numbers": "18 numbers", "words": "25 words of war and death",
          "three words": "3 of these words"}  # fmt: skip
WAYS = {
    "solved rows": ("o", "rows of the last layer, solved"),
    "keys by logit lens": ("^", "64 keys less, by logit lens"),
    "keys by gradient": ("v", "64 keys less, by gradient"),
    "keys like the targets": ("s", "64 keys less, those of the targets"),
    "random keys": ("x", "64 keys less, random"),
    "zero rows": ("*", "rows are zeros"),
}
TITLES = {"calibration": "windows of the training text that served nothing",
          "held-out": "another book"}  # fmt: skip
GOAL = 0.1  # percent; the right end of the grey band
COSTS = [-1, -0.5, 0, 0.5, 1, 3, 10, 30, 100, 300, 1000]
TIMES = [0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500]


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw one panel for each text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(1, 2, figsize=(13, 6.4), sharey=True)
    for axes, (text, tokens) in zip(panels, result["texts"].items()):
        draw(axes, [one for one in result["points"] if one["text"] == text])
        axes.set_title(f"{TITLES[text]}: {tokens:,} tokens", fontsize=11)
    panels[0].set_ylabel("targets: times less probable")
    drawn = {point["set"] for point in result["points"]}
    handles = [Line2D([], [], color=COLORS[name], lw=3, label=label)
               for name, label in LABELS.items() if name in drawn]  # fmt: skip
    handles += [Line2D([], [], color="black", ls="", marker=mark, label=label)
                for mark, label in WAYS.values()]  # fmt: skip
    figure.legend(handles=handles, ncols=4, fontsize=9, loc="lower center")
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=110)


def draw(axes: Any, points: list[dict[str, Any]]) -> None:
    """Draw the ways of all sets: solved rows as curves, others as points."""
    axes.axhline(10, color="gray", lw=0.8, ls="--")
    axes.axhline(1, color="gray", lw=0.8)
    axes.axvspan(-100, GOAL, color="tab:gray", alpha=0.12, lw=0)
    for name, color in COLORS.items():
        own = [one for one in points if one["set"] == name and one["pack"] == "exact"]
        for way, (mark, _) in WAYS.items():
            found = sorted((one["ppl_elsewhere_pct"], height(one), one["ppl_elsewhere_se_pct"])
                           for one in own if one["way"].startswith(way))  # fmt: skip
            if found:
                x, y, error = zip(*sorted(found, key=lambda one: one[1]))
                line = "-" if way == "solved rows" else ""
                axes.errorbar(x, y, xerr=error, fmt=mark + line, color=color, ms=7, lw=1.4)
    axes.set(yscale="log", xlabel="perplexity elsewhere, %")
    axes.set_xscale("symlog", linthresh=1, linscale=1.6)
    axes.set_xticks(COSTS, [f"{cost:g}" for cost in COSTS])
    axes.set_yticks(TIMES, [f"{times:g}" for times in TIMES])
    axes.set(xlim=(-1, 6000), ylim=(0.1, 800))
    axes.minorticks_off()
    axes.grid(alpha=0.25)


def height(point: dict[str, Any]) -> float:
    """Return the fall at the targets; of their mass everywhere, where there are hardly any."""
    few = point["targets"] < FEW_TARGETS
    return float(point["mass_times_less"] if few else point["times_less"])


def table(result: dict[str, Any]) -> str:
    """Write a line for each set and way of the exact pack, both texts beside each other."""
    texts = list(result["texts"])
    head = ["set", "way", *(f"{text}: {what}" for text in texts for what in COLUMNS), "edits"]
    lines = [head, ["---"] * len(head)]
    grouped: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for point in result["points"]:
        key = (point["set"], name_of(point), point["pack"])
        grouped.setdefault(key, {})[point["text"]] = point
    for (name, way, pack), found in grouped.items():
        if pack == "exact":
            cells = [cell for text in texts for cell in cells_of(found[text])]
            lines.append([name, way, *cells, f"{found[texts[0]]['bytes'] / 1e6:.2f} MB"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def name_of(point: dict[str, Any]) -> str:
    """Return a way's name, with how far the targets were to fall."""
    return f"{point['way']}, ÷ {point['fall']}" if "fall" in point else str(point["way"])


def cells_of(point: dict[str, Any]) -> list[str]:
    """Return the fall at the targets, of their mass everywhere, and perplexity elsewhere."""
    fall, se = point["times_less"], point["times_less_relative_se"]
    few = point["targets"] < FEW_TARGETS
    return [
        f"({point['targets']} targets)" if few else f"{fall:.1f} ± {se * fall:.1f}",
        f"{point['mass_times_less']:.1f}",
        f"{point['ppl_elsewhere_pct']:+.2f} ± {point['ppl_elsewhere_se_pct']:.2f} %",
    ]


COLUMNS = ("÷ targets", "÷ mass", "perplexity elsewhere")
FEW_TARGETS = 20

if __name__ == "__main__":
    loaded = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    plot(loaded, Path(sys.argv[2]))
    print(table(loaded))
