"""A report's page: whole in one file, readable without scripts, and safe with any text in it."""

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tolpack.report
from tolpack.errors import FileAccessError
from tolpack.evaluation.scores import Baseline
from tolpack.report.markup import chart_data, number
from tolpack.report.page import render, write_page
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
from tolpack.report.plots import COLOURS
from tolpack.report.report_subject import lead

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>&amp;\"'\u2028\u2029]]>\udcff{{$x}}"
CSS = (Path(tolpack.report.__file__).parent / "page.css").read_text("utf-8")


def page(text="tiny", numbers=(1.0, 2.5, 4.0)):
    """Return a page that has a string and some numbers everywhere that they can be."""
    points = tuple(ChartPoint(n, n, n, text, ((text, text),)) for n in numbers)
    axis = Axis(text, text, log=True)
    charts = (
        Chart(axis, axis, (Series(text, points), Series(text, points, "step")), text),
        Chart(Axis(text), Axis(text), (Series(text, points, "bars"),), text, (text, text)),
        Heatmap((text,), (text,) * len(numbers), (tuple(numbers),), text, text, text, text, text),
    )
    table = DataTable((text, text), tuple((text, n) for n in numbers), ("", ".2f"), text)
    sections = (PageSection(text, text, charts, table, text),)
    return Page(text, text, ((text, text), ("Command", text)), sections)


class Elements(HTMLParser):
    """Collects elements with their attributes, and what the script elements hold."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Note an element."""
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        """Note what a script or a cell holds."""
        tag = self.elements[-1][0] if self.elements else ""
        if tag == "script":
            self.scripts.append(data)
        if tag == "td":
            self.cells.append(data.strip())

    def names(self):
        """Return the names of all elements in order."""
        return [tag for tag, _ in self.elements]


def test_the_same_page_gives_the_same_text():
    """Rendering depends on nothing but the page."""
    assert render(page()) == render(page())


def test_nothing_is_loaded():
    """No element names another file, and the policy allows none."""
    text = render(page())
    for tag, attributes in Elements(text).elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag, value) == ("link", "data:,")
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in CSS and "@import" not in CSS
    assert "default-src 'none'" in text and "unsafe" not in text


def test_no_text_breaks_out():
    """Whatever a name holds, it adds no element, no attribute and no comment to the page."""
    plain, hostile = Elements(render(page())), Elements(render(page(HOSTILE)))
    assert hostile.names() == plain.names()
    assert [set(a) for _, a in hostile.elements] == [set(a) for _, a in plain.elements]
    data = hostile.scripts[0]
    assert data.isascii() and not set(data) & set("<>&")
    assert json.loads(data)[0]["series"][0]["name"] == HOSTILE


def test_text_that_utf8_cannot_hold_is_written(tmp_path):
    """A file name that is not UTF-8 does not keep a report from being written."""
    write_page(page(HOSTILE), tmp_path / "report.html")
    assert "]]&gt;?{{$x}}" in (tmp_path / "report.html").read_text("utf-8")


def test_every_number_is_in_a_table():
    """Without scripts, the numbers of charts, heat maps and tables can all be read."""
    numbers = (1.25, 37.0, 1234.0)
    cells = Elements(render(page("tiny", numbers))).cells
    for shown in ("1.25", "37", "1,234"):
        assert cells.count(shown) >= 3 * 3  # x, y and error in three charts, and the heat map
    assert "1,234.00" in cells


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, None])
def test_numbers_that_are_not_finite(number):
    """They are null for the script and written as such for people; charts say they are left out."""
    points = (ChartPoint(1, 2), ChartPoint(2, math.nan if number is None else number, number))
    charts = (
        Chart(Axis("x"), Axis("y"), (Series("s", points),)),
        Heatmap(("r",), ("c", "d"), ((1.0, number),), "label"),
    )
    table = DataTable(("a", "b"), (("first", number), ("second", 1.0)), ("", ".1f"))
    text = render(Page("t", "l", (), (PageSection("s", "", charts, table),)))
    chart, heat = json.loads(Elements(text).scripts[0], parse_constant=pytest.fail)
    assert chart["series"][0]["points"][1][1:3] == [None, None]
    assert heat["values"] == [[1.0, None]]
    shown = {math.inf: "∞", -math.inf: "−∞"}.get(number, "–")
    assert Elements(text).cells.count(shown) >= 3
    assert "1 without a place on these axes" in text


def test_numbers_sort_as_numbers():
    """A formatted number carries its full value, and its column says that it holds numbers."""
    table = DataTable(("name", "n"), (("a", -1234.5678), ("b", None)), ("", ",.1f"))
    text = render(Page("t", "l", (), (PageSection("s", table=table),)))
    assert '<td class="number" data-value="-1234.5678">−1,234.6</td>' in text
    assert '<td class="number">–</td>' in text
    assert '<th scope="col" class="number">n</th>' in text


def test_a_page_replaces_what_was_there(tmp_path):
    """A report is written over an older one, with the rights of any new file, and nothing more."""
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page(page(), path)
    assert path.read_text("utf-8") == render(page())
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_write_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    """When the disk is full the old report stays, and no piece of the new one."""
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileAccessError, match="No space left"):
        write_page(page(), path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    """The message names the file and what to do."""
    with pytest.raises(FileAccessError, match=r"cannot write .*missing.*name a file in"):
        write_page(page(), tmp_path / "missing" / "report.html")


def luminance(colour):
    """Return the relative luminance of WCAG."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_contrast(theme):
    """Text has 4.5 : 1 on what it stands on, and marks have 3 : 1, in both themes."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
    colours = {name: both[theme] for name, *both in pairs}

    def contrast(one, other):
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "ink-quiet", "link"):
        assert all(contrast(text, behind) >= 4.5 for behind in ("paper", "raised", "shade"))
    marks = [name for name in colours if name.startswith(("series-", "ramp-"))]
    assert len(marks) == 9
    assert all(contrast(mark, "paper") >= 3 for mark in marks)
    assert contrast("ink", "heat-low") >= 4.5 and contrast("paper", "heat-high") >= 4.5


def test_pictures_have_the_pages_colours():
    """Families have the colours of the page in the light theme, in the same order."""
    pairs = re.findall(r"--series-\d: light-dark\((#\w{6}), #\w{6}\)", CSS)
    assert tuple(pairs) == COLOURS


def test_numbers_are_grouped_alike():
    """Commas between thousands with any format, and no letter e in a small number."""
    assert number(16330.125, ".3f") == "16,330.125" and number(44553.0) == "44,553"
    assert number(1.5e-7) == "1.5×10⁻⁷" and number(-1234.5, "+.1f") == "−1,234.5"


def test_bars_are_not_drawn_on_a_logarithmic_axis():
    """Their length would mean nothing there: the script gets points."""
    series = (Series("s", (ChartPoint(0, 2.0),), "bars"),)
    axes = (Axis("y"), Axis("y", log=True), Axis("y", linear_below=0.1))
    charts = tuple(Chart(Axis("x"), y, series, "", ("one",)) for y in axes)
    drawn = json.loads(chart_data(charts))
    assert [one["series"][0]["style"] for one in drawn] == ["bars", "points", "points"]


def test_warnings_stand_below_the_lead():
    """Each in a paragraph of its own, before the sections."""
    text = render(Page("t", "the lead", (), (PageSection("s"),), warnings=("<first>", "second")))
    found = re.findall(r'<p class="warning"><strong>Warning:</strong> (.*)</p>', text)
    assert found == ["&lt;first&gt;", "second"]
    assert text.index("the lead") < text.index("&lt;first&gt;") < text.index("<main>")


@pytest.mark.parametrize(
    ("tokens", "context", "words"),
    [
        (332_165, 256, "Measured on 332,165 tokens, in 1,298 windows of 256."),
        (9_999, 256, "Provisional: measured on 9,999 tokens, in 40 windows of 256. Use 10,000"),
        (200_000, 40_000, "Provisional: measured on 200,000 tokens, in 5 windows of 40,000."),
        (206, 256, "Provisional: measured on 206 tokens, in 1 window of 256."),
    ],
)
def test_the_lead_says_what_was_measured_on(tokens, context, words):
    """Tokens and windows, and that numbers are provisional where they are few."""
    baseline = Baseline(16.0, 0.1, 2.7, tokens, None)
    assert words in lead(baseline, context, ())
