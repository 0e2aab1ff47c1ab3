"""Names beside the points of a front in a picture by matplotlib.

Each point gets its name where all names have room, else a number, and a list below the axes says
what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_INK, _FONT = "#1c2024", 8.5
_CLEAR_POINTS = 5.0
_AWAY_POINTS = (0, 5)
_KEY_COLUMNS = 2
# Left, low, right, high, in pixels.
_Box = tuple[float, float, float, float]


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


def on_drawn_front(points: Sequence[TradeOffPoint]) -> list[TradeOffPoint]:
    """Return the points of the front that have a place on the axes, smallest first; of points in
    one place the first.
    """
    front = {
        (one.megabytes, one.kl_nats): one
        for one in reversed(points)
        if one.on_front and one.has_logarithm
    }
    return sorted(front.values(), key=lambda point: point.megabytes)


def label_front(
    figure: Any, axes: Any, points: Sequence[TradeOffPoint], front: Sequence[TradeOffPoint]
) -> None:
    """Label all of `front`, which is ordered by size, without covering any of `points`."""
    figure.draw_without_rendering()  # settles where the axes are
    if _place(axes, points, front, [one.label for one in front]):
        return
    _write_key(axes, [f"{number}  {one.label}" for number, one in enumerate(front, 1)])
    figure.draw_without_rendering()
    _place(axes, points, front, [str(number) for number in range(1, len(front) + 1)], force=True)


def _place(
    axes: Any,
    points: Sequence[TradeOffPoint],
    front: Sequence[TradeOffPoint],
    labels: Sequence[str],
    *,
    force: bool = False,
) -> bool:
    """Write a label beside each point of the front; none if one has no room, unless `force`."""
    taken = _covered(axes, points, front)
    written = []
    for point, label in zip(front, labels):
        text = axes.annotate(
            label, (point.megabytes, point.kl_nats), xytext=(0, 0), textcoords="offset points",
            fontsize=_FONT, color=_INK, zorder=4,
        )  # fmt: skip
        written.append(text)
        box = _free_box(axes, text, taken)
        if box is None and not force:
            for one in written:
                one.remove()
            return False
        taken += [] if box is None else [box]
    return True


def _free_box(axes: Any, text: Any, taken: Sequence[_Box]) -> _Box | None:
    """Move a text to the first place where it covers nothing, and return its box."""
    frame = axes.bbox
    for offset, sideways, upright in _offsets():
        text.set(position=offset, horizontalalignment=sideways, verticalalignment=upright)
        own = text.get_window_extent()
        box = (own.x0, own.y0, own.x1, own.y1)
        inside = box[0] > frame.x0 and box[1] > frame.y0 and box[2] < frame.x1 and box[3] < frame.y1
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _offsets() -> Iterator[tuple[tuple[float, float], str, str]]:
    """Yield places around a point, the best first: no point is below and left of a front."""
    for more in _AWAY_POINTS:
        away = _CLEAR_POINTS + more
        yield (-away, -away), "right", "top"
        yield (0, -away), "center", "top"
        yield (away, away), "left", "bottom"
        yield (away, -away), "left", "top"
        yield (-away, away), "right", "bottom"
        yield (0, away), "center", "bottom"


def _covered(
    axes: Any, points: Sequence[TradeOffPoint], front: Sequence[TradeOffPoint]
) -> list[_Box]:
    """Return the boxes of all marks, of the front's line and of the legend."""
    drawn = [one for one in points if one.has_logarithm]
    half = _CLEAR_POINTS * axes.figure.dpi / 72
    boxes = []
    for x, y in (axes.transData.transform((one.megabytes, one.kl_nats)) for one in drawn):
        boxes.append((x - half, y - half, x + half, y + half))
    places = [axes.transData.transform((one.megabytes, one.kl_nats)) for one in front]
    for (a, b), (x, y) in zip(places, places[1:]):
        boxes += [(a, b - 1, x, b + 1), (x - 1, min(b, y), x + 1, max(b, y))]
    legend = axes.get_legend()
    if legend is not None:
        around = legend.get_window_extent()
        boxes.append((around.x0, around.y0, around.x1, around.y1))
    return boxes


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _write_key(axes: Any, lines: Sequence[str]) -> None:
    """Write what numbers mean below the axes, in columns."""
    high = math.ceil(len(lines) / _KEY_COLUMNS)
    for column in range(_KEY_COLUMNS):
        axes.annotate(
            "\n".join(lines[column * high : (column + 1) * high]), (column / _KEY_COLUMNS, 0),
            xytext=(0, -40), xycoords="axes fraction", textcoords="offset points",
            verticalalignment="top", fontsize=_FONT, color=_INK,
        )  # fmt: skip
