r"""Accuracy on tasks by α and by setting: the results of ``tolpack study --tasks``, side by side.

The paper finds that memory FFNs matter more for tasks that retrieve than for those that reason
(arXiv 2602.00398, Tables 1 and 7). For each model a study runs the tasks on its packs and on memory
outputs times α; this script keeps what concerns tasks, draws it, and prints tables for a document::

    tolpack study MODEL.pt --text HELD-OUT.txt --calibrate TEXT.txt --tasks 'tolpack_*' \
        --task-limit 1000 --only precision,trade-off,alpha --json > study.json
    python benchmarks/task_accuracy.py "11M MemoryLLM=study.json" --json result.json --png tasks.png

Differences are paired document by document by the study.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TASKS = {
    "tolpack_word_repeated": ("word repeated (retrieval)", "tab:blue", "o-"),
    "tolpack_word_new": ("word new (retrieval)", "tab:cyan", "s-"),
    "tolpack_last_word": ("last word (retrieval)", "tab:purple", "^-"),
    "tolpack_endings": ("endings (choice of four)", "tab:red", "D-"),
}
PLOTTED = {"acc": "accuracy, difference in points", "perplexity": "perplexity of the word, factor"}
ALPHA = "α = "


def main() -> None:
    """Read studies, write what concerns tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="NAME=STUDY.json")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--png", type=Path, required=True)
    args = parser.parse_args()
    models = {}
    for one in args.studies:
        name, _, path = one.partition("=")
        models[name] = task_results(json.loads(Path(path).read_text("utf-8")))
    args.json.write_text(json.dumps(models, indent=1, ensure_ascii=False) + "\n", "utf-8")
    plot(models, args.png)
    for name, memories in models.items():
        print(f"\n{name}\n\n{table(memories)}")


def task_results(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each memory its name, size and KL divergence if it is a pack, and its tasks."""
    packs = {one["label"]: one for one in study["packs"]}
    found = []
    for one in study["tasks"]:
        pack = packs.get(one["name"])
        sizes = None
        if pack is not None:
            sizes = {key: pack[key] for key in ("ratio_fp16", "kl_mean_nats", "ppl_increase_pct")}
        results = [result for result in one["results"] if result["metric"] in PLOTTED]
        found.append({"name": one["name"], "pack": sizes, "results": results})
    return found


def table(memories: list[dict[str, Any]]) -> str:
    """Write a line for each memory: accuracy in percent, and differences in points."""
    names = list(TASKS)
    lines = [
        "| memory | × FP16 | KL, nats | " + " | ".join(TASKS[name][0] for name in names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for memory in memories:
        by_task = {one["task"]: one for one in memory["results"] if one["metric"] == "acc"}
        cells = [cell(by_task[name]) for name in names]
        pack = memory["pack"]
        size = ["", ""]
        if pack is not None:
            size = [f"{pack['ratio_fp16']:.1f}", f"{pack['kl_mean_nats']:.5f}"]
        lines.append(f"| {' | '.join([memory['name'], *size, *cells])} |")
    return "\n".join(lines)


def cell(result: dict[str, Any]) -> str:
    """Write the accuracy of the checkpoint, or the difference from it."""
    if result["difference"] is None:
        return f"{100 * result['value']:.1f} ± {100 * result['se']:.1f} %"
    return f"{100 * result['difference']:+.1f} ± {100 * result['difference_se']:.1f}"


def plot(models: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw accuracy and word perplexity against α, a column for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(models), figsize=(5.5 * len(models), 7.5), sharex=True, sharey="row", squeeze=False
    )
    for column, (name, memories) in enumerate(models.items()):
        for axes, metric in zip(panels[:, column], PLOTTED):
            draw(axes, memories, metric)
        panels[0, column].set_title(name)
        panels[1, column].set_xlabel("α: all outputs of memory FFNs are multiplied by it")
    for axes, label in zip(panels[:, 0], PLOTTED.values()):
        axes.set_ylabel(label)
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw(axes: Any, memories: list[dict[str, Any]], metric: str) -> None:
    """Draw a line for each task: differences from α = 1 in points, or factors."""
    for task, (label, colour, style) in TASKS.items():
        points = []
        for memory in memories:
            found = [o for o in memory["results"] if (o["task"], o["metric"]) == (task, metric)]
            if memory["name"].startswith(ALPHA) and found:
                points.append((float(memory["name"].removeprefix(ALPHA)), found[0]))
        if not points:
            continue
        alphas = [1.0, *(alpha for alpha, _ in points)]
        if metric == "acc":
            values = [0.0, *(100 * one["difference"] for _, one in points)]
            errors = [0.0, *(100 * one["difference_se"] for _, one in points)]
        else:
            bases = [one["value"] - one["difference"] for _, one in points]
            values = [1.0, *(one["value"] / base for base, (_, one) in zip(bases, points))]
            errors = [0.0, *(one["difference_se"] / base for base, (_, one) in zip(bases, points))]
            axes.set_yscale("log")
        axes.errorbar(alphas, values, errors, fmt=style, color=colour, label=label, ms=4, capsize=2)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
