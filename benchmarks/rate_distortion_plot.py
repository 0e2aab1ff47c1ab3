"""The picture of `rate_distortion.py`: KL divergence and perplexity increase against size.

python benchmarks/rate_distortion_plot.py result.json curve.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Families with a curve; the others are single settings.
CURVES = {
    "--bits auto --rank auto": ("tab:blue", "o-", "pack: --bits auto --rank auto"),
    "--bits auto --rank auto --trellis": ("navy", ".--", "pack: … --rank auto --trellis"),
    "--bits auto --rank none": ("tab:cyan", "o-", "pack: --bits auto --rank none"),
    "--bits auto --rank none --trellis": ("teal", ".--", "pack: … --rank none --trellis"),
    "water-filling": ("tab:olive", "v-", "water-filling, ideal entropy coder"),
    "water-filling, steps by count": ("tab:brown", "^-", "water-filling, steps by count"),
    "bitshift trellis": ("tab:red", "D-", "bitshift trellis, 1 to 3 bits"),
}
SINGLES = {
    "groups of 64": ("black", "s", "pack: int8 and int4, groups of 64"),
    "--rank auto --bits 4": ("tab:gray", "s", "pack: --rank auto --bits 4"),
    "uniform SVD": ("tab:purple", "s", "pack: SVD, 16 and 4 bits"),
    "a layer dropped": ("tab:pink", "s", "pack: a layer dropped, int4"),
    "NF4": ("tab:orange", "P", "NF4, blocks of 64"),
    "GGUF": ("tab:green", "X", "GGUF types"),
    "2-bit Hadamard": ("magenta", "*", "2-bit Hadamard, groups of 128"),
}
NAMED = {"Q4_0", "Q2_K", "TQ2_0", "Q4_K", "rank 50%, 4 bits", "rank 25%, 4 bits"}
# Where the names stand, in points; those at nearly equal sizes would cover each other.
PLACES = {
    "Q4_0": (-26, 3), "Q4_K": (7, -8), "Q2_K": (-28, -3),
    "rank 50%, 4 bits": (-6, 14), "rank 25%, 4 bits": (-66, 7),
}  # fmt: skip
# Lines of what packs would take with ideal coders.
IDEAL = {
    "entropy_ratio_fp16": ("--", "if codes took their entropy (scalar quantizer)"),
    "above_gaussian_ratio_fp16": ("-.", "if codes took R(D) + 0.1 bit"),
    "gaussian_ratio_fp16": (":", "if codes took R(D) of a Gaussian"),
}
TICKS = [2, 3, 4, 6, 8, 12, 16, 24, 32]
MEASURES = {
    "kl_mean_nats": ("mean KL divergence, nats a token", 1e-5, 1.0),
    "increase_pct": ("perplexity increase, %", 5e-3, 60.0),
}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the first text of a result."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 7))
    for axes, (measure, (label, low, high)) in zip(panels, MEASURES.items()):
        draw(axes, result["points"], measure)
        axes.set(xscale="log", yscale="log", ylim=(low, high), xlim=(1.8, 45), ylabel=label)
        axes.set_xlabel("times smaller than the FP16 table of all layers")
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
    for style, label in IDEAL.values():
        panels[0].plot([], [], style, color="black", lw=1, label=label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=5, loc="lower center")
    tokens, ppl = result["tokens"][0], result["baseline_ppl"][0]
    figure.suptitle(
        f"{tokens:,} held-out tokens, perplexity of the checkpoint {ppl:.1f}", fontsize=10
    )
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=120)


def draw(axes: Any, points: list[dict[str, Any]], measure: str) -> None:
    """Draw one panel: every family against size, and lines for ideal coders of packs."""
    for family, (color, style, label) in {**CURVES, **SINGLES}.items():
        own = [one for one in points if one["family"] == family and (one[measure] or 0) > 0]
        own.sort(key=lambda one: one["ratio_fp16"])
        if not own:
            continue
        xs, ys = [one["ratio_fp16"] for one in own], [one[measure] for one in own]
        error = measure.replace("nats", "se_nats").replace("_pct", "_se_pct")
        errors = [min(one[error], 0.9 * one[measure]) for one in own]
        axes.errorbar(xs, ys, errors, fmt=style, color=color, label=label, capsize=2, ms=5, lw=1.3)
        for one in own:
            if one["name"] in NAMED:
                at = (one["ratio_fp16"], one[measure])
                axes.annotate(
                    one["name"], at, PLACES.get(one["name"], (6, -3)),
                    textcoords="offset points", fontsize=7, color=color,
                )  # fmt: skip
        if family.startswith("--bits auto"):
            for name, (dashes, _) in IDEAL.items():
                if all(one.get(name) for one in own):
                    axes.plot([one[name] for one in own], ys, dashes, color=color, lw=0.9)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
