"""The picture of `ple_curve.py`: perplexity increase and KL divergence against bits per value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {
    "pack": "tab:gray", "auto": "tab:blue", "auto, no counts": "tab:cyan",
    "auto, metrics": "tab:red", "auto, metrics, no counts": "tab:orange",
    "GGUF": "tab:green", "others": "tab:purple",
}  # fmt: skip
LABELS = {
    "pack": "pack: 8 and 4 bits",
    "auto": "pack: --bits auto with counts",
    "auto, no counts": "pack: --bits auto, rows alike",
    "auto, metrics": "pack: --bits auto with counts and loss metrics",
    "auto, metrics, no counts": "pack: --bits auto, rows alike, with loss metrics",
    "GGUF": "GGUF types",
    "others": "NF4, 2-bit Hadamard",
}
# Where a point's name stands, in points; those at nearly equal bits would cover each other.
PLACES = {
    "4 bits": (-8, 6), "Q4_K": (7, -10), "NF4": (-26, -3), "8 bits": (-8, 7), "Q8_0": (7, -4),
    "Hadamard": (-36, 8), "ppl_increase Hadamard": (-20, -13),
}  # fmt: skip


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw perplexity and KL divergence of the first text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5))
    text, base = next(iter(found["baseline"].items()))
    points = [{**one, **one["texts"][text]} for one in found["points"]]
    for axes, measure in zip(panels, ("ppl_increase", "kl_mean")):
        draw(axes, points, measure)
    left, right = panels
    left.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    ticks = [-0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30]
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_ylim(-0.6, 60)
    left.set_ylabel("perplexity increase, %")
    left.axhline(0, color="black", lw=0.6)
    right.set_yscale("log")
    right.set_ylabel("mean KL divergence, nats per token")
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))
    figure.suptitle(
        f"A Gemma 3n with {found['table_values'] / 1e6:.1f}M values of PLE, perplexity "
        f"{base['ppl']:.0f} on {base['tokens']:,} held-out tokens",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw(axes: Any, points: list[dict[str, Any]], measure: str) -> None:
    """Draw one panel: each family against bits per value, and a line for the model without rows."""
    unit = "pct" if measure == "ppl_increase" else "nats"
    value, error = f"{measure}_{unit}", f"{measure}_se_{unit}"
    for family, label in LABELS.items():
        own = [one for one in points if one["family"] == family]
        own = [one for one in own if one["name"] not in ("lossless", "no table")]
        if not own:
            continue
        style = "o-" if family.startswith("auto") else "s"
        axes.errorbar(
            [one["bits_per_value"] for one in own], [one[value] for one in own],
            [one[error] for one in own],
            fmt=style, color=COLORS[family], label=label, capsize=2, ms=5, lw=1.5,
        )  # fmt: skip
        for one in own if not family.startswith("auto") else ():
            place = PLACES.get(f"{measure} {one['name']}", PLACES.get(one["name"], (7, 2)))
            axes.annotate(
                one["name"], (one["bits_per_value"], one[value]), place,
                textcoords="offset points", fontsize=8, color=COLORS[family],
            )  # fmt: skip
    dropped = next(one[value] for one in points if one["name"] == "no table")
    axes.axhline(dropped, color="black", ls=":", lw=1)
    axes.annotate(
        "no table", (9, dropped), (0, 3), textcoords="offset points", fontsize=8, ha="right"
    )
    axes.set_xlabel("bits per value of the table")
    axes.set_xlim(0, 9.3)
    axes.grid(alpha=0.3)
