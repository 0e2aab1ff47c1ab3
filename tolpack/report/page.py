"""A report as one HTML file that needs no network.

`render` fills the template ``page.html`` with the content, ``page.css`` and the scripts. Headings,
text and tables are HTML, so that all numbers can be read where no script runs. The script draws
charts from the JSON in the page, and sorts tables.

A report shows file names that others chose. Text is escaped, and the JSON holds no character that
ends a script element. The page's Content-Security-Policy allows one style and one script, by their
hashes, and no request.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from string import Template

from tolpack.container.atomic_write import replacing
from tolpack.report import map_data, markup
from tolpack.report.page_content import Page

_SCRIPTS = (
    "page.tools.js", "page.chart.js", "page.labels.js", "page.pointer.js", "page.heat.js",
    "page.tables.js", "page.js",
)  # fmt: skip


def write_page(page: Page, path: Path) -> None:
    """Write a report, whole or not at all.

    Parameters
    ----------
    page : Page
        The report.
    path : Path
        The HTML file; an existing one is replaced.

    Raises
    ------
    FileAccessError
        The file cannot be written.
    """
    with replacing(path) as file:
        file.write(render(page).encode("utf-8"))


def render(page: Page) -> str:
    """Return a report as HTML; the same report gives the same text."""
    style, script = _asset("page.css"), "\n".join(map(_asset, _SCRIPTS))
    shown = data = ""
    if page.token_map is not None:
        style += _asset("page.map.css")
        script += _asset("page.map.js")
        shown = f"{markup.map_section(page.token_map)}\n"
        data = f"{map_data.map_elements(page.token_map)}\n"
    charts = [chart for section in page.sections for chart in section.charts]
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=policy,
        title=markup.text(page.title),
        lead=markup.paragraphs(page.lead),
        warnings=markup.warnings(page.warnings),
        contents=markup.contents(page),
        map=shown,
        map_data=data,
        sections=markup.sections(page),
        facts=markup.facts(page.facts),
        data=markup.chart_data(charts),
        style=style,
        script=script,
    )


def _asset(name: str) -> str:
    return resources.files("tolpack.report").joinpath(name).read_text("utf-8")


def _hash(asset: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(asset.encode()).digest()).decode()}"
