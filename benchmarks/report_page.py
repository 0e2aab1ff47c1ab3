"""Time how fast a report opens, and save pictures of it.

The script writes a report of invented but plausible numbers (a sweep of 200 settings and all parts
of a study) and opens it in headless Chromium. It prints the time from the start of the navigation
to the first painted chart, and to the last paint.

    python benchmarks/report_page.py --json result.json
    python benchmarks/report_page.py --keep folder       # the report, and pictures of both themes
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from pathlib import Path

from browser import Browser
from machine import described

from tolpack.report.page import write_page
from tolpack.report.page_content import (
    Axis,
    Chart,
    ChartPoint,
    DataTable,
    Heatmap,
    Page,
    PageSection,
    Series,
)

LAYERS = 24
TABLE_MB = 12_600.0
SIZE, INCREASE = Axis("size", "MB", log=True), Axis("perplexity increase", "%")
COMMAND = (
    "tolpack eval llama-1b-memory --text held-out.txt --tokens 200000 --context 1024 "
    "--sweep 'bits=3,4,6,8 rank=none,auto,12%,25%,50% drop=none,auto:2' --report report.html"
)


def main() -> None:
    """Write the example, open it a few times, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the report and its pictures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / "report.html"
        write_page(example(), path)
        with Browser() as browser:
            opened = [measure(browser, path) for _ in range(args.runs)]
            if args.keep:
                take_pictures(browser, keep)
        size = path.stat().st_size
    first, ready = (sorted(times) for times in zip(*opened))
    result = {
        "points": 200,
        "bytes": size,
        "first_chart_ms": {"median": statistics.median(first), "max": first[-1]},
        "ready_ms": {"median": statistics.median(ready), "max": ready[-1]},
        "runs": args.runs,
        **described(),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def measure(browser: Browser, path: Path) -> tuple[float, float]:
    """Return milliseconds from the navigation's start to the first chart, and to the last paint."""
    browser.open(path)
    first, ready = browser.evaluate(
        "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(["
        "performance.getEntriesByName('tolpack:chart')[0].startTime, performance.now()]))))"
    )
    return round(first, 1), round(ready, 1)


def take_pictures(browser: Browser, folder: Path) -> None:
    """Save the page at three widths in both themes."""
    for scheme in ("light", "dark"):
        for width in (1600, 1400, 800, 390):
            browser.resize(width, 900, scheme=scheme)
            browser.screenshot(folder / f"{scheme}-{width}.png")


def example() -> Page:
    """Return a report of invented numbers with every kind of chart."""
    rng = random.Random(7)
    sweep = sweep_points(rng)
    return Page(
        "llama-1b-memory: perplexity against size",
        "The smallest pack that costs less than 1 % perplexity takes 1.06 GB, a twelfth of the "
        "FP16 table: entropy-coded rows with ranks chosen by loss and two layers folded away.",
        (
            ("Model", "llama-1b-memory, memoryllm, 128,256 tokens × 24 layers × 2048"),
            ("Text", "held-out.txt, 200,000 tokens in windows of 1024"),
            ("Perplexity of the checkpoint", "11.482 ± 0.061"),
            ("Size of the FP16 table", "12.61 GB"),
            ("Machine", "AMD EPYC 9454 (avx2, avx512f), 2 cores, 24 GB"),
            ("Versions", "tolpack 0.1.0, torch 2.4.1, numpy 2.1.2, Python 3.11.7"),
            ("Duration", "3 h 41 min, of which 2 h 58 min evaluating"),
            ("Command", COMMAND),
        ),
        (
            trade_off(sweep),
            precision(),
            ranks(),
            dropped(rng),
            alpha(),
            spectra(rng),
        ),
    )


def sweep_points(rng: random.Random) -> list[ChartPoint]:
    """Return 200 settings: size in MB against perplexity increase in percent."""
    points = []
    for _ in range(200):
        bits = rng.choice((2, 3, 4, 6, 8))
        rank = rng.choice(("none", "auto", "12%", "25%", "50%"))
        share = {"none": 1.0, "auto": 0.8, "12%": 0.16, "25%": 0.3, "50%": 0.55}[rank]
        drop = rng.choice((0, 0, 1, 2, 4))
        size = TABLE_MB * (bits + 0.25) / 16 * share * (1 - drop / LAYERS)
        size *= math.exp(rng.gauss(0, 0.12))
        loss = 34 * 2.0 ** (-1.55 * bits) * 2.2 + 3.4 * (1 / share - 1) ** 1.15 / 2 + 0.45 * drop
        loss = max(0.0, loss * math.exp(rng.gauss(0, 0.3)) + rng.gauss(0.02, 0.03))
        if rank == "auto":
            loss *= 0.42
        details = (
            ("bits", str(bits)), ("rank", rank), ("dropped", str(drop)),
            ("× FP16", f"{TABLE_MB / size:.2f}"), ("read per token", f"{size / 128.256:.1f} KB"),
        )  # fmt: skip
        label = f"bits={bits} rank={rank}" + (f" drop=auto:{drop}" if drop else "")
        points.append(ChartPoint(size, loss, 0.02 + 0.05 * loss**0.7, label, details))
    return points


def front_of(points: list[ChartPoint]) -> tuple[ChartPoint, ...]:
    """Return the points that no smaller one beats."""
    front: list[ChartPoint] = []
    for point in sorted(points, key=lambda one: one.x):
        if not front or point.y < front[-1].y:
            front.append(point)
    return tuple(front)


def trade_off(sweep: list[ChartPoint]) -> PageSection:
    """Size against perplexity: the main result."""
    front = front_of(sweep)
    chart = Chart(
        SIZE,
        INCREASE,
        (
            Series("settings", tuple(sweep)),
            Series("Pareto front", front, "step"),
        ),
        "Each point is one pack; whiskers are paired standard errors. No pack that is smaller than "
        "one on the front has a lower perplexity.",
    )
    rows = tuple(
        (point.label, point.x, TABLE_MB / point.x, point.y, point.error, point.x / 128.256)
        for point in sorted(sweep, key=lambda one: one.x)
    )
    table = DataTable(
        ("setting", "size (MB)", "× FP16", "increase (%)", "± (%)", "read per token (KB)"),
        rows,
        ("", ",.1f", ".2f", "+.3f", ".3f", ".2f"),
        "All 200 settings",
    )
    return PageSection("Size against perplexity", "", (chart,), table, COMMAND)


def precision() -> PageSection:
    """Bits per value: bars with whiskers."""
    bits = ("FP16", "int8", "int6", "int4", "int3", "int2")
    costs = {"plain": (0.0, 0.0, 0.02, 0.16, 1.6, 4.9), "entropy-coded": (0, 0, 0.01, 0.08, 0.6, 2)}
    series = tuple(
        Series(
            name,
            tuple(
                ChartPoint(n, y, 0.02 + 0.06 * y, f"{bits[n]}, {name}")
                for n, y in enumerate(values)
            ),
            "bars",
        )
        for name, values in costs.items()
    )
    chart = Chart(Axis("precision"), INCREASE, series, "Without a basis.", bits)
    rows = tuple(zip(bits, *costs.values()))
    return PageSection(
        "Precision",
        "Down to 4 bits plain rounding is almost free. Below, entropy coding with steps that "
        "follow token frequency costs a third as much.",
        (chart,),
        DataTable(("precision", "plain (%)", "entropy-coded (%)"), rows, ("", "+.2f", "+.2f")),
        "tolpack study llama-1b-memory --only precision --text held-out.txt",
    )


def ranks() -> PageSection:
    """Uniform against allocated ranks: two lines, and what each layer gets."""
    sizes = [400 * 1.33**n for n in range(10)]
    uniform = tuple(ChartPoint(x, 5200 / x, 120 / x, f"{x / 126:.0f} % of rank") for x in sizes)
    chosen = tuple(ChartPoint(x, 2900 / x**1.02, 90 / x, f"slope {n}") for n, x in enumerate(sizes))
    lines = (Series("uniform", uniform, "line"), Series("by loss", chosen, "line"))
    per_layer = tuple(
        ChartPoint(
            n, round(2048 * (0.25 + 0.6 * math.exp(-((n - 15) ** 2) / 60))), None, f"layer {n}"
        )
        for n in range(LAYERS)
    )
    return PageSection(
        "Ranks",
        "Ranks chosen by what each direction does to the loss beat one rank for all layers at "
        "every size.",
        (
            Chart(SIZE, Axis("perplexity increase", "%", log=True), lines, "At equal bytes."),
            Chart(
                Axis("layer"), Axis("rank"), (Series("by loss", per_layer, "bars"),),
                "Ranks of the pack of 1.1 GB.", tuple(str(n) for n in range(LAYERS)),
            ),
        ),
    )  # fmt: skip


def dropped(rng: random.Random) -> PageSection:
    """Heatmap: perplexity when layers first … last are dropped."""
    cost = [41.6, 6.0, 4.1, 2.4, 1.7, 2.1, 2.0, 2.7, 2.2, 1.9, 1.6, 3.4]
    values = tuple(
        tuple(
            None if last < first else
            sum(cost[first : last + 1]) * (1 + 0.35 * (last - first)) * rng.uniform(0.9, 1.1)
            for last in range(len(cost))
        )
        for first in range(len(cost))
    )  # fmt: skip
    names = tuple(str(n) for n in range(len(cost)))
    heat = Heatmap(
        names, names, values, "perplexity increase", "%", "Colours follow the logarithm.",
        "first dropped layer", "last dropped layer", log=True,
    )  # fmt: skip
    return PageSection("Dropped layers", "Runs of layers left out, without retraining.", (heat,))


def alpha() -> PageSection:
    """How strongly steps follow token frequency: one curve on linear axes."""
    points = tuple(
        ChartPoint(a / 10, 0.31 + 0.9 * (a / 10 - 0.62) ** 2, 0.025, f"α = {a / 10}")
        for a in range(11)
    )
    chart = Chart(
        Axis("α"), INCREASE, (Series("step ∝ frequency^(−α/2)", points, "line"),),
        "At 2.0 bits per value; the default is 0.6.",
    )  # fmt: skip
    return PageSection(
        "Frequency", "", (chart,), None, "tolpack study llama-1b-memory --only alpha"
    )


def spectra(rng: random.Random) -> PageSection:
    """Singular values per layer: many ordered lines on logarithmic axes."""
    series = []
    for layer in range(0, LAYERS, 2):
        fall = 0.5 + 0.5 * math.sin(layer / 7) ** 2
        points = tuple(
            ChartPoint(k, (1 + layer / 8) * k**-fall * math.exp(-k / (900 + 60 * layer)) + 1e-4)
            for k in (round(1.12**n) for n in range(20, 68))
        )
        series.append(Series(f"layer {layer}", points, "line"))
    chart = Chart(
        Axis("component", log=True), Axis("singular value", log=True), tuple(series),
        "Loss-weighted, per layer.", ordered=True,
    )  # fmt: skip
    return PageSection("Spectra", "", (chart,))


if __name__ == "__main__":
    main()
