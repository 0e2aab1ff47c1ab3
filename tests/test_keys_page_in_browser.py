"""The map of the vocabulary in headless Chromium: search, zoom, hover, layers, clusters.

Skipped where no browser is installed.
"""

import re

import pytest
from browser import NO_BROWSER, Browser, find_browser
from keys_page import example

from tolpack.report.page import write_page
from tolpack.report.page_content import MapCluster, MapLayer, Page, TokenMap

pytestmark = pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)

TOKENS = 3000
HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028\ud800\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the path of a report of 3,000 invented tokens in three layers."""
    path = tmp_path_factory.mktemp("report") / "keys.html"
    write_page(example(TOKENS, 3), path)
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
    ask(running, "0")
    yield running
    assert running.complaints() == []
    assert set(running.requests()) <= {report.as_uri(), "data:,"}


def ask(browser, expression):
    """Return the value of an expression of the map, named `map`, once it has been drawn again."""
    return browser.evaluate(
        "tokenMap.then(async (map) => { await new Promise(requestAnimationFrame);"
        f"await new Promise(requestAnimationFrame); return {expression}; }})"
    )


def view(browser):
    """Return the middle and the zoom of the map, after any flight has ended."""
    ask(browser, "new Promise(done => { const wait = () => map.flight ? setTimeout(wait, 20) : "
                 "done(); wait(); })")  # fmt: skip
    return ask(browser, "[map.view.x, map.view.y, map.view.zoom]")


def canvas(browser, x=0.5, y=0.5):
    """Return a place of the canvas in the window, scrolled to."""
    return browser.evaluate(
        "(() => { const one = document.querySelector('canvas');"
        "one.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = one.getBoundingClientRect();"
        f"return [b.x + b.width * {x}, b.y + b.height * {y}]; }})()"
    )


def click_at(browser, x, y):
    """Press and release at a place."""
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, x, y, button="left", clickCount=1)


def click(browser, selector, n=0):
    """Click an element."""
    x, y = browser.evaluate(
        f"(() => {{ const one = document.querySelectorAll({selector!r})[{n}];"
        "one.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = one.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
    )
    click_at(browser, x, y)


def type_text(browser, text):
    """Write into the search field."""
    click(browser, ".map-search input")
    browser.call("Input.insertText", text=text)


def colours(browser):
    """Return how many colours the pixels of the map have."""
    return ask(browser, "new Set(map.buffer).size")


def test_every_cluster_is_drawn_in_its_colour(browser):
    """The map has a colour for each cluster and the background, and the list has its swatches."""
    assert colours(browser) == 32 + 1
    assert ask(browser, "map.clusters.children.length") == 32


def test_hovering_a_token_shows_it(browser):
    """The tooltip names the token under the pointer, its id and its cluster."""
    x, y = canvas(browser)
    # A token in the window, and where it is.
    nearest = "map.nearest(map.width / 2, map.height / 2) ?? 0"
    token, tx, ty = ask(
        browser, f"(() => {{ const n = {nearest}; return [n, ...map.toScreen(n)]; }})()"
    )
    middle = ask(browser, "[map.width / 2, map.height / 2]")
    browser.mouse("mouseMoved", x - middle[0] + tx, y - middle[1] + ty)
    shown = ask(browser, "map.tooltip.innerText")
    pointed = ask(browser, "map.pointed")
    text = ask(browser, f"map.texts[{pointed}]")
    assert text.strip() in shown and str(pointed) in shown and "cluster" in shown
    at = "[map.layer.x[{0}], map.layer.y[{0}]]"
    assert ask(browser, at.format(pointed)) == pytest.approx(
        ask(browser, at.format(token)), abs=0.01
    )
    browser.mouse("mouseMoved", 1, 1)
    assert ask(browser, "map.tooltip.innerText") == ""


def test_wheel_drag_and_keys_move_the_map(browser):
    """The wheel zooms about the pointer after a click; dragging and arrows move; 0 shows all."""
    x, y = canvas(browser)
    whole = view(browser)
    click_at(browser, x, y)
    browser.mouse("mouseWheel", x + 50, y, deltaX=0, deltaY=-600)
    zoomed = view(browser)
    assert zoomed[2] > 2 and zoomed[0] > whole[0]
    browser.mouse("mousePressed", x, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", x - 80, y - 40, button="left", buttons=1)
    browser.mouse("mouseReleased", x - 80, y - 40, button="left", clickCount=1)
    moved = view(browser)
    assert moved[0] > zoomed[0] and moved[1] > zoomed[1] and moved[2] == zoomed[2]
    browser.press("ArrowLeft")
    assert view(browser)[0] < moved[0]
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
    assert view(browser) == pytest.approx(whole, abs=1e-6)


def test_the_wheel_scrolls_past_a_map(browser):
    """A map without the focus leaves the wheel to the page."""
    before = view(browser)
    x, y = canvas(browser)
    browser.evaluate("scrollTo(0, 0)")
    browser.mouse("mouseWheel", x, min(y, 800), deltaX=0, deltaY=-300)
    assert view(browser) == before


def test_buttons_zoom(browser):
    """Each button does what it says."""
    click(browser, ".map-zoom button", 0)
    assert view(browser)[2] == pytest.approx(1.6)
    click(browser, ".map-zoom button", 1)
    click(browser, ".map-zoom button", 1)
    assert view(browser)[2] == pytest.approx(1 / 1.6)
    click(browser, ".map-zoom button", 2)
    assert view(browser) == pytest.approx([0.5, 0.5, 1])


def test_search_flies_to_a_token(browser):
    """Enter flies to the first token found, rings it, and says which cluster it is of."""
    text = ask(browser, "map.texts[123]").strip()
    type_text(browser, "#123")
    browser.press("Enter")
    x, y, zoom = view(browser)
    place = ask(browser, "[map.layer.x[123], map.layer.y[123]]")
    assert [x, y] == pytest.approx(place, abs=1e-6) and zoom >= 8
    status = ask(browser, "map.status.textContent")
    assert text in status and "(#123)" in status and "cluster" in status


def test_search_lists_equal_texts_first(browser):
    """A text finds equal texts before those that only hold it; a click chooses one of the list."""
    text = ask(browser, "map.texts[5]").strip()
    type_text(browser, text)
    names = ask(browser, "[...map.found.querySelectorAll('button')].map(one => one.innerText)")
    assert len(names) == 12 and text in names[0]
    first, hits = ask(browser, "[map.texts[map.hits[0]].trim(), map.hits.length]")
    assert first == text and hits >= 12
    click(browser, ".map-found button", 1)
    assert ask(browser, "map.chosen") == ask(browser, "map.hits[1]")
    assert ask(browser, "map.found.children.length") == 0


def test_nothing_found(browser):
    """A text that no token has says so; ids outside the vocabulary are not tokens."""
    for query in ("no such text", f"#{TOKENS}"):
        browser.evaluate("tokenMap.then(map => { map.input.value = ''; })")
        type_text(browser, query)
        assert "No such token" in ask(browser, "map.found.innerText")


def test_layers_have_maps_of_their_own(browser):
    """A layer's button shows its map and its clusters, and keeps a chosen token in the middle."""
    type_text(browser, "#77")
    browser.press("Enter")
    first = view(browser)
    click(browser, ".map-layers button", 2)
    ask(browser, "new Promise(done => setTimeout(done, 100))")
    pressed = "[...document.querySelectorAll('.map-layers button')].map(b => b.ariaPressed)"
    assert browser.evaluate(pressed) == ["false", "false", "true"]
    second = view(browser)
    assert second[:2] != first[:2] and second[2] == first[2]
    assert second[:2] == pytest.approx(ask(browser, "[map.layer.x[77], map.layer.y[77]]"), abs=1e-6)
    assert "Layer 2" in ask(browser, "map.status.textContent")


def test_a_cluster_can_be_shown_alone(browser):
    """A click in the list leaves one cluster's colour, the others grey; a second click ends it."""
    click(browser, ".map-clusters button", 3)
    assert colours(browser) == 3
    assert "cluster 3" in ask(browser, "map.status.textContent")
    click(browser, ".map-clusters button", 3)
    assert colours(browser) == 33


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(browser, scheme):
    """The map's background is that of the theme, and follows the button."""
    browser.resize(1400, 900, scheme=scheme)
    light = {"light": 255, "dark": 30}
    assert ask(browser, "map.background & 255") == light[scheme]
    click(browser, "#theme")
    assert ask(browser, "map.background & 255") == light["dark" if scheme == "light" else "light"]


@pytest.mark.parametrize("width", (360, 800, 1600))
def test_the_page_does_not_scroll_sideways(browser, width):
    """The map takes the width that there is, and its pixels are those of its box."""
    browser.resize(width, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        ask(browser, "[map.width, map.canvas.width]")
        == [browser.evaluate("document.querySelector('canvas').clientWidth")] * 2
    )


def test_odd_maps(running, tmp_path):
    """Hostile texts, missing texts, empty clusters and one place for all tokens are drawn."""
    import numpy as np

    same = np.zeros((3, 2), np.float32)
    labels = np.array([0, 0, 2])
    clusters = (MapCluster(2, (0, 1), (5, 1.0, 0.5)), MapCluster(0, (), None),
                MapCluster(1, (2,), None))  # fmt: skip
    for texts in ((HOSTILE, None, ""), None):
        layers = (MapLayer(4, same, labels, clusters),)
        path = tmp_path / "odd.html"
        write_page(Page(HOSTILE, "", (), (), TokenMap(HOSTILE, HOSTILE, texts, layers)), path)
        running.open(path)
        assert ask(running, "map.clusters.children.length") == 3
        assert running.evaluate("document.querySelectorAll('img').length") == 0
        assert running.complaints() == []
        text = running.evaluate("document.body.innerText")
        assert not {"NaN", "undefined", "null"} & set(re.findall(r"\w+", text))
    running.events.clear()


def test_without_scripts(browser, report):
    """The page says where the clusters are listed."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
        assert "Scripts are off" in browser.evaluate("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
