"""A report in headless Chromium: what a reader sees, hovers, sorts and zooms.

Skipped where no browser is installed.
"""

import re

import pytest
from browser import NO_BROWSER, Browser, find_browser
from report_page import example

from tolpack.report.page import write_page
from tolpack.report.page_content import Axis, Chart, ChartPoint, Heatmap, Page, PageSection, Series

pytestmark = pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)

WIDTHS = (360, 390, 800, 1400, 1600)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the path of the example report: 200 settings and every kind of chart."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(example(), path)
    return path


@pytest.fixture(scope="module")
def running():
    """Return one browser for all tests."""
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(running, report):
    """Return the browser with the report freshly opened; no test may leave a complaint."""
    running.resize(1400, 900)
    running.mouse("mouseMoved", 1, 1)
    running.open(report)
    yield running
    assert running.complaints() == []
    assert set(running.requests()) <= {report.as_uri(), "data:,"}


def place(browser, selector, n=0):
    """Return the middle of an element in the window, scrolled to."""
    return browser.evaluate(
        f"(() => {{ const one = document.querySelectorAll({selector!r})[{n}];"
        "one.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = one.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
    )


def click(browser, selector, n=0, count=1):
    """Click an element."""
    x, y = place(browser, selector, n)
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, x, y, button="left", clickCount=count)


def drag(browser, start, end, modifiers=0):
    """Press at one place, and release at another."""
    browser.mouse("mousePressed", *start, button="left", clickCount=1, modifiers=modifiers)
    browser.mouse("mouseMoved", *end, button="left", buttons=1, modifiers=modifiers)
    browser.mouse("mouseReleased", *end, button="left", clickCount=1, modifiers=modifiers)


def count(browser, selector):
    """Return how many elements a selector finds."""
    return browser.evaluate(f"document.querySelectorAll({selector!r}).length")


def tooltip(browser, n=0):
    """Return the text of a chart's tooltip."""
    return browser.evaluate(f"document.querySelectorAll('.tooltip')[{n}].innerText")


def x_ticks(browser):
    """Return what stands along the x axis of the first chart."""
    return browser.evaluate(
        "[...document.querySelectorAll('.plot svg')[0].querySelectorAll("
        "'text[text-anchor=middle]')].map(one => one.textContent)"
    )


def test_all_charts_are_drawn(browser):
    """Each chart has its marks, and nothing was asked for or complained about."""
    assert count(browser, ".plot > svg") == 7
    assert count(browser, "[data-chart='0'] .plot .mark") == 200
    assert count(browser, ".plot .bar") == 12 + 24
    assert count(browser, ".cell") == 78
    assert "NaN" not in browser.evaluate("document.querySelector('main').outerHTML")


HOSTILE = "</script><img src=x onerror=alert(1)>\u2028"


def test_odd_charts(browser, running, tmp_path):
    """Empty, constant, missing and hostile data are drawn as far as they go, without an error."""
    none = float("nan")
    sets = ((), ((1, 1),), ((2, 3), (2, 3)), ((0, 0), (-1, none)), ((1e-300, 1e300), (1, none)))
    charts = [
        Chart(
            Axis(HOSTILE, log=log),
            Axis("y", log=log),
            (Series(HOSTILE, tuple(ChartPoint(x, y, 1.0, HOSTILE) for x, y in points), style),),
        )
        for points in sets
        for log in (False, True)
        for style in ("points", "line", "step", "bars")
    ]
    empty = Heatmap((HOSTILE,), ("c",), ((None,),), HOSTILE)
    same = Heatmap(("a", "b"), ("c",), ((2.0,), (2.0,)), HOSTILE, log=True)
    path = tmp_path / "odd.html"
    write_page(Page(HOSTILE, "", (), (PageSection(HOSTILE, "", (*charts, empty, same)),)), path)
    running.open(path)
    assert count(browser, ".plot > svg") == len(charts) + 2
    assert count(browser, "img") == 0
    drawn = "[...document.querySelectorAll('svg')].map(one => one.outerHTML).join()"
    assert not {"NaN", "Infinity", "undefined"} & set(re.findall(r"\w+", browser.evaluate(drawn)))
    assert running.complaints() == []
    running.events.clear()


def test_hovering_a_point_shows_its_setting(browser):
    """The tooltip names setting, size, increase with its error, and the details."""
    data = "JSON.parse(document.getElementById('chart-data').textContent)"
    point = browser.evaluate(f"{data}[0].series[0].points[0]")
    browser.mouse("mouseMoved", *place(browser, "figure .points .mark"))
    shown = tooltip(browser)
    assert shown.startswith(point[3])
    assert "size" in shown and "MB" in shown and "±" in shown
    assert all(name in shown and value in shown for name, value in point[4])
    browser.mouse("mouseMoved", 1, 1)
    assert tooltip(browser) == ""


def test_hovering_a_bar_and_a_cell(browser):
    """Bars show their category, and cells their row and column."""
    browser.mouse("mouseMoved", *place(browser, ".plot .bar", 4))
    assert "int3, plain" in tooltip(browser, 1)
    browser.mouse("mouseMoved", *place(browser, ".cell", 1))
    assert "first dropped layer" in tooltip(browser, 4)


def test_keys_show_points_as_hover_does(browser):
    """A chart takes one tab stop; arrows go through its points."""
    browser.evaluate("document.querySelector('.plot > svg').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        browser.press(key)
        seen.append(tooltip(browser))
    assert all("perplexity increase" in one for one in seen)
    assert len(set(seen)) == 4


def test_zoom_and_back(browser):
    """Dragging zooms, Shift-dragging moves, the wheel zooms in a chart that has the focus."""
    whole = x_ticks(browser)
    x, y = place(browser, ".plot > svg")
    drag(browser, (x - 100, y - 60), (x + 100, y + 60))
    zoomed = x_ticks(browser)
    assert zoomed != whole
    drag(browser, (x, y), (x + 250, y), modifiers=8)
    moved = x_ticks(browser)
    assert moved != zoomed
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    browser.evaluate("new Promise(requestAnimationFrame)")
    assert x_ticks(browser) != moved
    click(browser, ".reset")
    assert x_ticks(browser) == whole
    drag(browser, (x - 100, y - 60), (x + 100, y + 60))
    click(browser, ".plot > svg", count=2)
    assert x_ticks(browser) == whole


def test_the_wheel_scrolls_past_a_chart(browser):
    """A chart without the focus leaves the wheel to the page."""
    whole = x_ticks(browser)
    x, y = place(browser, ".plot > svg")
    before = browser.evaluate("scrollY")
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=300)
    browser.evaluate("new Promise(done => setTimeout(done, 400))")
    assert browser.evaluate("scrollY") > before
    assert x_ticks(browser) == whole


def test_the_legend_hides_series(browser):
    """A legend's button takes its series out of the chart, and puts it back."""
    marks = "[data-chart='0'] .points .mark"
    before = count(browser, marks)
    click(browser, ".legend button")
    assert count(browser, marks) == 0
    click(browser, ".legend button")
    assert count(browser, marks) == before > 0


def test_tables_sort_numbers_both_ways(browser):
    """The first click sorts up, the second down; the heading says which."""
    click(browser, "section > .table th button", 3)
    column = (
        "[...document.querySelectorAll('section > .table')[0].querySelectorAll('tbody tr')]"
        ".map(row => Number(row.cells[3].dataset.value))"
    )
    heading = "document.querySelectorAll('section > .table th')[3].getAttribute('aria-sort')"
    up = browser.evaluate(column)
    assert len(up) == 200 and up == sorted(up) and browser.evaluate(heading) == "ascending"
    browser.press("Enter")  # the focus is on the heading's button
    down = browser.evaluate(column)
    assert down == sorted(up, reverse=True) and browser.evaluate(heading) == "descending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(browser, scheme):
    """A page follows the system's theme, and the button changes to the other."""
    browser.resize(1400, 900, scheme=scheme)
    colour = "getComputedStyle(document.body).backgroundColor"
    paper = {"light": "rgb(253, 252, 250)", "dark": "rgb(21, 24, 28)"}
    assert browser.evaluate(colour) == paper[scheme]
    click(browser, "#theme")
    assert browser.evaluate(colour) == paper["dark" if scheme == "light" else "light"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_does_not_scroll_sideways(browser, width):
    """Wide tables scroll in their own boxes, and charts take the width that there is."""
    browser.resize(width, 800)
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    widths = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(one => one.clientWidth -"
        " one.firstElementChild.viewBox.baseVal.width)"
    )
    assert widths == [0] * 7


def test_commands_can_be_copied(browser):
    """The button gives the whole command, or selects it where copying is not allowed."""
    click(browser, ".command button")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    named = browser.evaluate("document.querySelector('.command button').textContent")
    assert named in ("Copied", "Selected")


def test_without_scripts(browser, report):
    """All text and numbers are there, and each chart says where its numbers are."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
        shown = browser.evaluate("document.body.innerText")
        assert shown.count("Scripts are off") == 7
        assert count(browser, "section > .table tbody tr") >= 200
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
