"""Plots as picture files, by matplotlib, which is an optional dependency."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolpack.container.atomic_write import replacing
from tolpack.errors import ConfigError
from tolpack.report.page_content import LINEAR_PCT

SUFFIXES = (".png", ".svg")
# Colours of families, in their order: Okabe and Ito's, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "D", "^", "v", "P", "X")
# Labels are wrapped at so many letters; the x axis begins at this share of the smallest size, so
# that labels fit to the left of all points.
_LABEL_WIDTH = 20
_ROOM_LEFT = 0.45
_INK, _GREY = "#222222", "#8a8a8a"


@dataclass(frozen=True, slots=True)
class TradeOffPoint:
    """A pack in the plot: ``family`` decides its colour; points on the front show their label."""

    megabytes: float
    increase_pct: float
    increase_se_pct: float
    kl_nats: float
    kl_se_nats: float
    family: str
    label: str
    on_front: bool

    @property
    def has_logarithm(self) -> bool:
        """Whether the divergence has a place on a logarithmic axis."""
        return 0 < self.kl_nats < math.inf


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
            2, 1, figsize=(8, 9), layout="constrained", sharex=True
        )
        families = list(dict.fromkeys(point.family for point in points))
        _draw_increases(above, points, families)
        _draw_divergences(below, points, families)
        below.set_xlim(left=_ROOM_LEFT * min(point.megabytes for point in points))
        front = [point for point in points if point.on_front and point.has_logarithm]
        if front:
            _draw_front(below, front)
        _style_sizes(below)
        above.set_title(title, loc="left", fontsize=11)
        for axes in (above, below):
            axes.grid(color="#e6e6e6", linewidth=0.7, zorder=0)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.legend(frameon=False, fontsize=8.5)
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
    """Draw points at given heights with given errors, a colour and a mark for each family."""
    for number, family in enumerate(families):
        own = [one for one in shown if one[0].family == family]
        axes.errorbar(
            [point.megabytes for point, _, _ in own],
            [height for _, height, _ in own],
            [error for _, _, error in own],
            fmt=_MARKS[number % len(_MARKS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=6,
            elinewidth=1,
            label=family,
            zorder=3,
        )
    axes.margins(x=0.05, y=0.12)
    axes.autoscale_view()


def _draw_front(axes: Any, front: Sequence[TradeOffPoint]) -> None:
    """Join the points of the front, and label those whose labels do not overlap."""
    ordered = sorted(front, key=lambda point: point.megabytes)
    axes.step(
        [point.megabytes for point in ordered],
        [point.kl_nats for point in ordered],
        where="post",
        color=_GREY,
        linewidth=1.2,
        zorder=2,
        label="Pareto front",
    )
    for point in _without_overlap(axes, ordered):
        axes.annotate(
            textwrap.fill(point.label, _LABEL_WIDTH),
            (point.megabytes, point.kl_nats),
            xytext=(-8, -3),  # no point lies below and to the left of the front
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="top",
            fontsize=8.5,
            color=_INK,
            zorder=4,
        )


def _without_overlap(axes: Any, points: Sequence[TradeOffPoint]) -> list[TradeOffPoint]:
    """Return the points whose labels do not overlap those of points further left."""
    labelled: list[TradeOffPoint] = []
    occupied: list[tuple[float, float, float]] = []
    for point in points:
        x, y = axes.transData.transform((point.megabytes, point.kl_nats))
        lines = textwrap.wrap(point.label, _LABEL_WIDTH)
        left, low = x - 6.5 * max(map(len, lines)) - 8, y - 16 * len(lines)
        if all(left > right or y < bottom or low > top for right, bottom, top in occupied):
            occupied.append((x, low, y))
            labelled.append(point)
    return labelled


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
