"""Plots as picture files, by matplotlib, which is an optional dependency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tolpack.container.atomic_write import replacing
from tolpack.errors import ConfigError
from tolpack.report.page_content import LINEAR_PCT
from tolpack.report.plot_labels import TradeOffPoint, label_front, on_drawn_front

SUFFIXES = (".png", ".svg")
# Colours and marks of families, in their order: those of a report's page in the light theme
# (page.css, page.tools.js).
COLOURS = ("#2a6593", "#ca5a24", "#044d41", "#b56abd", "#775819", "#7d30ca")
MARKS = ("o", "s", "D", "^", "v", "P")
_PAPER, _INK, _GREY = "#fdfcfa", "#1c2024", "#5a6067"
# The x axis begins at this share of the smallest size, so that labels fit to the left of points.
_ROOM_LEFT = 0.4
_MARK_POINTS = {"^": 8.5, "v": 8.5, "D": 7.0}


def check_plot() -> None:
    """Raise `ConfigError` if matplotlib is not installed."""
    _pyplot()


def plot_trade_off(points: Sequence[TradeOffPoint], path: Path, title: str) -> None:
    """Draw perplexity increase, and below it KL divergence with its Pareto front, against size.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    FileAccessError
        The file cannot be written.
    """
    pyplot = _pyplot()
    with pyplot.rc_context({"font.size": 10, "svg.hashsalt": "tolpack", "svg.fonttype": "none"}):
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(8, 9), layout="constrained", sharex=True, facecolor=_PAPER
        )
        families = list(dict.fromkeys(point.family for point in points))
        _draw_increases(above, points, families)
        _draw_divergences(below, points, families)
        below.set_xlim(left=_ROOM_LEFT * min(point.megabytes for point in points))
        front = on_drawn_front(points)
        if front:
            _draw_front(below, front)
        _style_sizes(below)
        above.set_title(title, loc="left", fontsize=11)
        for axes in (above, below):
            axes.grid(color="#e6e6e6", linewidth=0.7, zorder=0)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.legend(frameon=False, fontsize=8.5)
            axes.set_facecolor(_PAPER)
        if front:
            label_front(figure, below, points, front)
        _save(figure, path)
        pyplot.close(figure)


def _draw_increases(axes: Any, points: Sequence[TradeOffPoint], families: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR_PCT, linscale=0.6)
    shown = [(point, point.increase_pct, point.increase_se_pct) for point in points]
    _draw_points(axes, shown, families)
    axes.axhline(0, color=_GREY, linewidth=0.8, zorder=1)
    axes.set_ylabel("perplexity increase, %")
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LINEAR_PCT, subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_divergences(axes: Any, points: Sequence[TradeOffPoint], families: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    shown = [(point, point.kl_nats, point.kl_se_nats) for point in points if point.has_logarithm]
    _draw_points(axes, shown, families)
    left_out = len(points) - len(shown)
    axes.set_ylabel("mean KL divergence, nats (log scale)")
    if left_out:
        note = f"{left_out} without a place on this axis: 0 or infinite"
        axes.annotate(note, (0.01, 0.01), xycoords="axes fraction", fontsize=8.5, color=_INK)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_points(
    axes: Any, shown: Sequence[tuple[TradeOffPoint, float, float]], families: Sequence[str]
) -> None:
    """Draw points at given heights with given errors, a colour and a mark for each family.

    Marks have an outline in the colour of the paper, and one that a later one nearly covers is
    larger, so that its edge shows.
    """
    for number, family in enumerate(families):
        own = [one for one in shown if one[0].family == family]
        later = [one for one in shown if families.index(one[0].family) > number]
        colour, shape = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        size = _MARK_POINTS.get(shape, 7.5)
        mark = {"marker": shape, "color": colour, "markeredgewidth": 1.0,
                "markeredgecolor": _PAPER, "linestyle": "none"}  # fmt: skip
        axes.plot([], [], **mark, markersize=size, label=family)
        for point, height, error in own:
            covered = any(_covers(other, (point, height, error)) for other in later)
            axes.errorbar(
                [point.megabytes], [height], [error], **mark,
                markersize=size * (1.5 if covered else 1), elinewidth=1, zorder=3,
            )  # fmt: skip
    axes.margins(x=0.05, y=0.12)
    axes.autoscale_view()


def _covers(
    one: tuple[TradeOffPoint, float, float], other: tuple[TradeOffPoint, float, float]
) -> bool:
    """Return whether two marks lie nearly in one place: by size and height, in proportion."""
    near = abs(math.log(one[0].megabytes / other[0].megabytes)) < 0.03
    return near and abs(one[1] - other[1]) <= 0.15 * max(abs(one[1]), abs(other[1]))


def _draw_front(axes: Any, ordered: Sequence[TradeOffPoint]) -> None:
    """Join the points of the front."""
    axes.step(
        [point.megabytes for point in ordered],
        [point.kl_nats for point in ordered],
        where="post",
        color=_GREY,
        linewidth=1.2,
        zorder=2,
        label="Pareto front",
    )


def _style_sizes(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlabel("size of the pack, MB (log scale)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: Path) -> None:
    """Write the picture without a date, so that equal results are equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with replacing(path) as file:
        figure.savefig(file, dpi=160, metadata=metadata, format=path.suffix.removeprefix("."))


def _pyplot() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'tolpack[plot]'") from error
    return pyplot
