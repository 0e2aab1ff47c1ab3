"""The picture of `ple_curve.py`: perplexity increase and KL divergence against bits per value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {"pack": "tab:gray", "auto": "tab:blue", "auto, metrics": "tab:red", "GGUF": "tab:green",
          "others": "tab:purple"}  # fmt: skip
LABELS = {
    "pack": "pack: lossless, 8 and 4 bits",
    "auto": "pack: --bits auto, rows alone",
    "auto, metrics": "pack: --bits auto, loss metrics of the model",
    "GGUF": "GGUF types",
    "others": "NF4, 2-bit Hadamard",
}


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw both panels for the first text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    text, base = next(iter(found["baseline"].items()))
    for family, label in LABELS.items():
        own = [one for one in found["points"] if one["family"] == family]
        own = [one for one in own if one["bits_per_value"] > 0 and one["name"] != "lossless"]
        xs = [one["bits_per_value"] for one in own]
        style = "o-" if family.startswith("auto") else "s"
        for axes, key, error in ((left, "ppl_increase_pct", "ppl_increase_se_pct"),
                                 (right, "kl_mean_nats", "kl_mean_se_nats")):  # fmt: skip
            measures = [one["texts"][text] for one in own]
            values, errors = ([m[name] for m in measures] for name in (key, error))
            axes.errorbar(
                xs, values, errors, fmt=style, color=COLORS[family], label=label, capsize=2, ms=5
            )
        if not family.startswith("auto"):
            for one in own:
                place = one["bits_per_value"], one["texts"][text]["kl_mean_nats"]
                right.annotate(one["name"], place, (6, 3), textcoords="offset points", fontsize=8)
    dropped = next(one for one in found["points"] if one["name"] == "no table")["texts"][text]
    right.axhline(dropped["kl_mean_nats"], color="black", ls=":", lw=1)
    right.annotate("no table", (9, dropped["kl_mean_nats"]), (0, 3), textcoords="offset points",
                   fontsize=8, ha="right")  # fmt: skip
    left.set_yscale("symlog", linthresh=0.1)
    left.axhline(0, color="black", lw=0.6)
    right.set_yscale("log")
    left.set_ylabel("perplexity increase, %")
    right.set_ylabel("mean KL divergence, nats per token")
    for axes in (left, right):
        axes.set_xlabel("bits per value of the table")
        axes.set_xlim(0, 9.3)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(
        f"A Gemma 3n with {found['table_values'] / 1e6:.1f}M values of PLE, perplexity "
        f"{base['ppl']:.0f} on {base['tokens']:,} held-out tokens",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
