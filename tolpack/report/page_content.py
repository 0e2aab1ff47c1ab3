"""Content of a report's page as plain values without markup: sections, charts and tables.

Numbers need not be finite. Tables show NaN as "–" and infinity as "∞". Charts leave such points out
and say how many they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tolpack.runtime.array_types import Floats, Ints

# Increases of perplexity below this, in percent, are drawn in proportion, larger ones by their
# logarithm.
LINEAR_PCT = 0.1
Style = Literal["points", "line", "step", "bars"]


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One measurement.

    Parameters
    ----------
    x, y : float
        Coordinates. In a chart with categories, `x` is the number of a category, from 0.
    error : float, optional
        Standard error of `y`; the chart's caption may give whiskers another meaning.
    label : str
        Its name, such as the options of a pack.
    details : tuple of (str, str)
        More names and values, shown beside the point.
    command : str
        The command line that makes what was measured; a button in the chart's table copies it.
    """

    x: float
    y: float
    error: float | None = None
    label: str = ""
    details: tuple[tuple[str, str], ...] = ()
    command: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together.

    Parameters
    ----------
    name : str
        Its name in the legend.
    points : tuple of ChartPoint
        Lines and steps join them in the order given.
    style : str
        ``"points"``; ``"line"``; ``"step"``, a Pareto front: it has no markers of its own, holds a
        value until the next point's `x`, and every point shows its label; or ``"bars"``, drawn as
        points on an axis that is logarithmic, where the length of a bar has no meaning.
    """

    name: str
    points: tuple[ChartPoint, ...]
    style: Style = "points"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a chart.

    Parameters
    ----------
    label, unit : str
        The quantity and its unit.
    log : bool
        The axis is logarithmic.
    linear_below : float
        If positive, the axis is linear near zero and logarithmic for numbers larger than this, of
        either sign (an inverse hyperbolic sine).
    """

    label: str
    unit: str = ""
    log: bool = False
    linear_below: float = 0.0

    @property
    def title(self) -> str:
        """Label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, slots=True)
class Chart:
    """Series on common axes.

    Parameters
    ----------
    x, y : Axis
        The axes.
    series : tuple of Series
        Later ones are drawn over earlier ones.
    caption : str
        A sentence on how to read it.
    categories : tuple of str
        Names along x, for bars; without them x is a number.
    ordered : bool
        The series are steps of one quantity, such as layers: they get shades of one scale of
        colours instead of colours of their own.
    """

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    caption: str = ""
    categories: tuple[str, ...] = ()
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A table of numbers as colours.

    Parameters
    ----------
    rows, columns : tuple of str
        Their names.
    values : tuple of tuple of (float or None)
        A number per row and column; ``None`` leaves a cell empty.
    label, unit : str
        The quantity and its unit.
    caption : str
        A sentence on how to read it.
    row_label, column_label : str
        Meaning of the rows' and the columns' names.
    log : bool
        Colours follow the logarithm, for positive numbers of different magnitude.
    digits : int
        Significant digits of the numbers in the cells.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    label: str
    unit: str = ""
    caption: str = ""
    row_label: str = ""
    column_label: str = ""
    log: bool = False
    digits: int = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table that is more than a text or a number.

    Parameters
    ----------
    text : str
        The text that it shows.
    value : float, optional
        The number that the text stands for; rows sort by it.
    note : str
        A line below the text.
    command : str
        A command line; a button copies it.
    """

    text: str
    value: float | None = None
    note: str = ""
    command: str = ""


CellContent = str | float | Cell | None


@dataclass(frozen=True, slots=True)
class DataTable:
    """Text and numbers in columns that a reader can sort; the first column names the row.

    Parameters
    ----------
    header : tuple of str
        Names of the columns, with their units.
    rows : tuple of tuple of (str or float or Cell or None)
        The cells. Numbers sort by value; ``None`` is a missing one.
    formats : tuple of str
        Format of each column's numbers, as for `format`: ``"+.2f"``, ``",.0f"``. An empty or
        missing one writes four significant digits, and all digits before the decimal point.
    caption : str
        Caption of the table.
    matrix : bool
        Columns are as many and alike as rows: a narrow window shows the table, not a card a row.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[CellContent, ...], ...]
    formats: tuple[str, ...] = ()
    caption: str = ""
    matrix: bool = False


@dataclass(frozen=True, slots=True)
class PageSection:
    """One question and its answer.

    Parameters
    ----------
    title, text : str
        Heading and explanation; an empty line in `text` begins a paragraph.
    charts : tuple of Chart or Heatmap
        One has the full width; several stand side by side where there is room.
    table : DataTable, optional
        The numbers.
    command : str
        The command line that makes them.
    """

    title: str
    text: str = ""
    charts: tuple[Chart | Heatmap, ...] = ()
    table: DataTable | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class MapCluster:
    """A cluster of tokens on a map.

    Parameters
    ----------
    size : int
        Number of its tokens.
    tokens : tuple of int
        The tokens that its name is made of.
    key : tuple of (int, float, float), optional
        The key that its tokens share, its share of them, and of all tokens.
    """

    size: int
    tokens: tuple[int, ...]
    key: tuple[int, float, float] | None


@dataclass(frozen=True, slots=True)
class MapLayer:
    """The map of one layer.

    Parameters
    ----------
    layer : int
        Its number.
    places : ndarray
        float32 (tokens, 2).
    labels : ndarray
        int64 (tokens,): the cluster of each token, below 256.
    clusters : tuple of MapCluster
        By number.
    """

    layer: int
    places: Floats
    labels: Ints
    clusters: tuple[MapCluster, ...]


@dataclass(frozen=True, slots=True)
class TokenMap:
    """A map of the vocabulary, with a view for each layer.

    Parameters
    ----------
    title, text : str
        Heading and explanation.
    texts : tuple of (str or None), optional
        Text of each token.
    layers : tuple of MapLayer
        At least one, all of the same tokens.
    """

    title: str
    text: str
    texts: tuple[str | None, ...] | None
    layers: tuple[MapLayer, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Parameters
    ----------
    title, lead : str
        Heading, and the main result in a sentence or two.
    facts : tuple of (str, str)
        The conditions: model, text, tokens, machine, versions. One named "command" is shown as a
        command line.
    sections : tuple of PageSection
        The main result first.
    token_map : TokenMap, optional
        Shown before the sections.
    warnings : tuple of str
        What makes numbers of the report doubtful, and what to do; shown below the lead.
    """

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[PageSection, ...]
    token_map: TokenMap | None = None
    warnings: tuple[str, ...] = ()
