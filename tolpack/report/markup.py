"""Parts of a report's page as HTML, and the numbers of its charts as JSON."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tolpack.report.page_content import (
    Axis,
    Cell,
    CellContent,
    Chart,
    DataTable,
    Heatmap,
    Page,
    PageSection,
    Series,
    TokenMap,
)

_FACTS, _MAP = "conditions", "section-map"
# A table with more rows scrolls in its box.
_MOST_ROWS_OPEN = 40
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def text(value: str) -> str:
    """Escape text for an element or a quoted attribute; a lone surrogate becomes "?"."""
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"))


def paragraphs(value: str) -> str:
    """Write text with empty lines between its paragraphs."""
    return "\n".join(f"<p>{text(part)}</p>" for part in value.split("\n\n") if part.strip())


def warnings(values: Sequence[str]) -> str:
    """Write a paragraph for each warning."""
    return "\n".join(
        f'<p class="warning"><strong>Warning:</strong> {text(value)}</p>' for value in values
    )


def number(value: float | None, spec: str = "") -> str:
    """Write a number with commas between thousands, a true minus sign and a power of ten where it
    is very small; infinity as "∞", and a missing one as "–".
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    plain = ",.0f" if 1e3 <= abs(value) < 1e15 else ".4g"
    grouped = spec if "," in spec else spec.replace(".", ",.", 1)
    return _typeset(format(value, grouped or plain))


def _typeset(value: str) -> str:
    """Give a number a true minus sign, and a power of ten for its exponent: 1.2×10⁻⁵."""
    mantissa, _, exponent = value.partition("e")
    power = f"×10{str(int(exponent)).translate(_RAISED)}" if exponent else ""
    return mantissa.replace("-", "−") + power


def contents(page: Page) -> str:
    """Write a link to each section."""
    links = [(f"section-{n}", section.title) for n, section in enumerate(page.sections, 1)]
    if page.token_map is not None:
        links.insert(0, (_MAP, page.token_map.title))
    if page.facts:
        links.append((_FACTS, "Conditions"))
    return "\n".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in links)


def map_section(token_map: TokenMap) -> str:
    """Write heading and text of a map, and the element that it is drawn in."""
    return f"""<section id="{_MAP}" aria-labelledby="{_MAP}-title">
<h2 id="{_MAP}-title">{text(token_map.title)}</h2>
{paragraphs(token_map.text)}
<div class="map" id="map"></div>
<noscript>Scripts are off: the clusters are listed below.</noscript>
</section>"""


def sections(page: Page) -> str:
    """Write all sections; their charts are numbered in the order of `chart_data`."""
    numbers = itertools.count()
    return "\n".join(_section(n, one, numbers) for n, one in enumerate(page.sections, 1))


def _section(index: int, section: PageSection, charts: Iterator[int]) -> str:
    name = f"section-{index}"
    parts = [f'<section id="{name}" aria-labelledby="{name}-title">']
    parts.append(f'<h2 id="{name}-title">{text(section.title)}</h2>')
    parts.append(paragraphs(section.text))
    if section.charts:
        parts.append('<div class="charts">')
        parts += [_figure(chart, next(charts)) for chart in section.charts]
        parts.append("</div>")
    if section.table is not None:
        parts.append(_table(section.table, section.table.caption or section.title))
    parts.append(_command(section.command))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _figure(chart: Chart | Heatmap, index: int) -> str:
    """Write the element that a chart is drawn in, its caption, and its numbers as a table."""
    data = _heatmap_table(chart) if isinstance(chart, Heatmap) else _chart_table(chart)
    hidden = 0 if isinstance(chart, Heatmap) else _count_undrawable(chart)
    left_out = f" {hidden} without a place on these axes, in the table only." if hidden else ""
    caption = f"<figcaption>{text((chart.caption + left_out).strip())}</figcaption>"
    return f"""<figure data-chart="{index}">
<div class="plot"><noscript>Scripts are off: the numbers of this chart are below.</noscript></div>
{caption if chart.caption or left_out else ""}
<details><summary>Numbers of this chart</summary>
{_table(data, data.caption)}
</details>
</figure>"""


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Write the conditions of a report as a list of names and values."""
    if not values:
        return ""
    items = "\n".join(
        f"<div><dt>{text(name)}</dt><dd>"
        f"{_command(value) if name.lower() in ('command', 'commands') else text(value)}</dd></div>"
        for name, value in values
    )
    return (
        f'<section id="{_FACTS}" aria-labelledby="{_FACTS}-title">\n'
        f'<h2 id="{_FACTS}-title">Conditions</h2>\n<dl>\n{items}\n</dl>\n</section>'
    )


def _command(command: str) -> str:
    if not command:
        return ""
    return f'<div class="command"><pre><code>{text(command)}</code></pre></div>'


def _table(table: DataTable, caption: str) -> str:
    """Write a table in a box that scrolls; numbers sort by their ``data-value``."""
    specs = [*table.formats, *[""] * (len(table.header) - len(table.formats))]
    numeric = [_is_numeric([row[n] for row in table.rows]) for n in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{_class(right)}>{text(name)}</th>'
        for name, right in zip(table.header, numeric)
    )
    body = "\n".join(
        f"<tr>{''.join(_cell(*cell) for cell in zip(row, specs, numeric))}</tr>"
        for row in table.rows
    )
    kinds = "table" + " long" * (len(table.rows) > _MOST_ROWS_OPEN) + " matrix" * table.matrix
    return (
        f'<div class="{kinds}" role="region" tabindex="0" aria-label="{text(caption)}">\n<table>\n'
        f"<caption>{text(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _is_numeric(cells: Sequence[CellContent]) -> bool:
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(
        cell.value is not None if isinstance(cell, Cell) else not isinstance(cell, str)
        for cell in known
    )


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(content: CellContent, spec: str, right: bool) -> str:
    if isinstance(content, Cell):
        return _rich_cell(content, right)
    if isinstance(content, str):
        return f"<td{_class(right)}>{text(content)}</td>"
    return f"<td{_class(right)}{_key(content)}>{number(content, spec)}</td>"


def _key(value: float | None) -> str:
    unknown = value is None or math.isnan(value)
    return "" if unknown else f' data-value="{float(value or 0.0)!r}"'


def _rich_cell(cell: Cell, right: bool) -> str:
    """Write a cell with its note; one that is not a number may wrap."""
    note = f"<small>{text(cell.note)}</small>" if cell.note else ""
    copied = f' data-command="{text(cell.command)}"' if cell.command else ""
    kind = "number" if right else "setting"
    return f'<td class="{kind}"{_key(cell.value)}{copied}><span>{_shown(cell)}</span>{note}</td>'


def _shown(cell: Cell) -> str:
    """Write numbers as `number` does; of arguments, a line may end between two options only."""
    if cell.value is not None:
        return text(" ".join(map(_typeset, cell.text.split(" "))))
    if not cell.command:
        return text(cell.text)
    first, *more = cell.text.split(" --")
    return " ".join(f"<i>{text(part)}</i>" for part in (first, *(f"--{one}" for one in more)))


def _chart_table(chart: Chart) -> DataTable:
    """Return the points of a chart as a table, without empty columns."""
    points = [(series.name, point) for series in chart.series for point in series.points]
    names = list(dict.fromkeys(name for _, point in points for name, _ in point.details))
    rows: list[tuple[CellContent, ...]] = []
    for series, point in points:
        details = dict(point.details)
        x = _category(chart.categories, point.x) if chart.categories else point.x
        label = Cell(point.label, command=point.command) if point.command else point.label
        cells = [label, x, point.y, point.error, *(details.get(name) for name in names)]
        rows.append((*cells, series))
    header = ["setting", chart.x.title, chart.y.title, "±", *names, "series"]
    filled = [n for n in range(len(header)) if any(row[n] not in (None, "") for row in rows)]
    return DataTable(
        tuple(header[n] for n in filled),
        tuple(tuple(row[n] for n in filled) for row in rows),
        caption=f"{chart.y.title} against {chart.x.title}",
    )


def _category(categories: Sequence[str], x: float) -> str | float:
    known = math.isfinite(x) and 0 <= round(x) < len(categories)
    return categories[round(x)] if known else x


def _heatmap_table(heat: Heatmap) -> DataTable:
    corner = " \\ ".join(name for name in (heat.row_label, heat.column_label) if name)
    rows = tuple((name, *values) for name, values in zip(heat.rows, heat.values))
    return DataTable(
        (corner, *heat.columns), rows, caption=Axis(heat.label, heat.unit).title, matrix=True
    )


def _count_undrawable(chart: Chart) -> int:
    """Count the points that cannot be drawn: not finite, or not positive on a logarithmic axis."""
    return sum(
        not (_drawable(point.x, chart.x) and _drawable(point.y, chart.y))
        for series in chart.series
        for point in series.points
    )


def _drawable(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def chart_data(charts: Sequence[Chart | Heatmap]) -> str:
    """Return the charts as JSON for a script element.

    All but ASCII is escaped, and so are the characters that could end the element or begin a
    comment in it; numbers that JSON cannot hold are ``null``.
    """
    plain = [_heatmap(one) if isinstance(one, Heatmap) else _chart(one) for one in charts]
    encoded = json.dumps(plain, allow_nan=False, separators=(",", ":"))
    return encoded.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "kind": "chart",
        "x": _axis(chart.x),
        "y": _axis(chart.y),
        "categories": chart.categories,
        "ordered": chart.ordered,
        "series": [
            {
                "name": series.name,
                "style": _style(series, chart.y),
                "points": [
                    [_rounded(p.x), _rounded(p.y), _rounded(p.error), p.label, p.details]
                    for p in series.points
                ],
            }
            for series in chart.series
        ],
    }


def _style(series: Series, y: Axis) -> str:
    """Return the style to draw; the length of a bar means nothing on a logarithmic axis."""
    logarithmic = y.log or y.linear_below > 0
    return "points" if series.style == "bars" and logarithmic else series.style


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "label": axis.label,
        "unit": axis.unit,
        "title": axis.title,
        "log": axis.log,
        "linearBelow": axis.linear_below,
    }


def _heatmap(heat: Heatmap) -> dict[str, Any]:
    return {
        "kind": "heat",
        "rows": heat.rows,
        "columns": heat.columns,
        "rowLabel": heat.row_label,
        "columnLabel": heat.column_label,
        "values": [[_rounded(value) for value in row] for row in heat.values],
        "title": Axis(heat.label, heat.unit).title,
        "label": heat.label,
        "unit": heat.unit,
        "log": heat.log,
        "digits": heat.digits,
    }


def _rounded(value: float | None) -> float | None:
    """Round a number to the seven digits that a chart can show; ``None`` if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")
