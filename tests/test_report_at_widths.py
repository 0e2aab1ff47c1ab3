"""Reports of packs in headless Chromium at three widths: tables, cards, labels, copied commands.

Skipped where no browser is installed.
"""

import pytest
from browser import NO_BROWSER, Browser, find_browser
from keys_page import example as keys_example
from scored_packs import SUBJECT, pack_report, report, results

from tolpack.report.page import write_page

pytestmark = pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)

WIDTHS = (420, 1200, 1920)
TEXTS = ("held-out.txt", "another/domain.txt")
WARNINGS = ("The tokenizer has 1,000 tokens more than the model. Name the model's own.",)
SHIP = "[aria-label='Which setting to ship']"
# Boxes [left, top, right, bottom] of all elements that a selector finds.
BOXES = """
[...document.querySelectorAll(%r)].map(one => one.getBoundingClientRect())
  .map(({ left, top, right, bottom }) => [left, top, right, bottom])
"""
# Texts whose contrast to what is behind them is below 4.5 to 1, of all that are shown.
FAINT = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (colour, under) => {
    canvas.globalAlpha = 1;
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (one) => {
    for (let node = one; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "white";
  };
  const faint = [];
  let seen = 0;
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.getClientRects().length || one.closest("script, style")) continue;
    const style = getComputedStyle(one);
    const under = behind(one);
    const ink = one instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(pixel(ink, under)), light(pixel(under, under))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (contrast < 4.5) faint.push([one.tagName, one.textContent.slice(0, 40), contrast]);
  }
  return [seen, faint];
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the paths of reports by name."""
    folder = tmp_path_factory.mktemp("reports")
    made = {
        "sweep": report(warnings=WARNINGS),
        "two texts": report(texts=TEXTS),
        "packs": pack_report(),
        "packs, two texts": pack_report(TEXTS),
        "keys": keys_example(600, 2),
    }
    for name, page in made.items():
        write_page(page, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def browser():
    """Return one browser for all tests."""
    with Browser() as running:
        yield running


def show(browser, path, width, scheme="light"):
    """Open a page at a width."""
    browser.resize(width, 900, scheme=scheme)
    browser.open(path)
    browser.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")


def boxes(browser, selector):
    """Return the boxes of all elements that a selector finds."""
    return browser.evaluate(BOXES % selector)


def overlap(one, other):
    """Return whether two boxes share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["sweep", "two texts", "packs", "packs, two texts", "keys"])
def test_no_page_scrolls_sideways(browser, pages, name, width):
    """Nothing reaches out of the window, with the tables of all charts open."""
    show(browser, pages[name], width)
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.evaluate(
        "[document.documentElement.scrollWidth <= document.documentElement.clientWidth]"
    ) == [True]
    edge = browser.evaluate("document.documentElement.clientWidth")
    assert all(box[0] >= 0 and box[2] <= edge for box in boxes(browser, ".table, .plot, pre, p"))
    assert browser.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_all_columns_of_the_setting_to_ship_are_seen(browser, pages, width):
    """Down to the last one, which the text speaks of, in a table as wide as the page."""
    show(browser, pages["sweep"], width)
    left, _, right, _ = boxes(browser, SHIP)[0]
    cells = boxes(browser, f"{SHIP} tbody tr:first-child td, {SHIP} tbody tr:last-child td")
    assert len(cells) == 2 * 9
    assert all(box[0] >= left and box[2] <= right for box in cells)
    main = boxes(browser, "main")[0]
    assert (left, right) == pytest.approx((main[0], main[2]), abs=1)


@pytest.mark.parametrize("width", [700, 1200])
def test_the_name_of_a_row_stays_where_a_table_scrolls(browser, pages, width):
    """The first column keeps its place, the others move under it."""
    show(browser, pages["two texts"], width)
    table = "[aria-label='All packs']"
    before = boxes(browser, f"{table} tr:nth-child(3) td")
    browser.evaluate(f"document.querySelector({table!r}).scrollLeft = 150")
    after = boxes(browser, f"{table} tr:nth-child(3) td")
    assert after[0] == before[0]
    assert after[1][0] == pytest.approx(before[1][0] - 150, abs=1)
    heading = boxes(browser, f"{table} th:first-child")[0]
    assert heading[0] == after[0][0]


def test_size_and_change_stand_first(browser, pages):
    """Each table of settings has size, divergence, increase and bytes read behind the name."""
    show(browser, pages["sweep"], 1200)
    for label in ("Which setting to ship", "All packs"):
        names = browser.evaluate(
            f"[...document.querySelectorAll(\"[aria-label='{label}'] th button\")]"
            ".slice(1, 5).map(one => one.textContent)"
        )
        assert names == ["size", "KL divergence, nats", "perplexity increase", "read a token"]


def test_rows_are_cards_in_a_narrow_window(browser, pages):
    """At 420 pixels each cell has a line of its own, after the name of its column."""
    show(browser, pages["sweep"], 420)
    cells = boxes(browser, f"{SHIP} tbody tr:nth-child(3) td")
    assert all(above[3] <= below[1] + 0.5 for above, below in zip(cells, cells[1:]))
    labels = browser.evaluate(
        f"[...document.querySelectorAll({SHIP + ' tbody tr:nth-child(3) td'!r})]"
        ".map(one => getComputedStyle(one, '::before').content)"
    )
    assert labels[:4] == [
        '"build it with"', '"size"', '"KL divergence, nats"', '"perplexity increase"'
    ]  # fmt: skip
    assert labels[-1] == '"without a basis"'
    show(browser, pages["sweep"], 1200)
    first, second = boxes(browser, f"{SHIP} tbody tr:nth-child(3) td")[:2]
    assert first[1] == second[1]


@pytest.mark.parametrize("clipboard", [True, False])
def test_a_rows_button_copies_its_whole_command(browser, pages, clipboard):
    """Also where the browser has no clipboard object, as on a page without a secure context."""
    show(browser, pages["sweep"], 1200)
    browser.evaluate(
        "window.taken = [];"
        "document.addEventListener('copy', () => taken.push(document.activeElement.value));"
        "Object.defineProperty(navigator, 'clipboard', { value: "
        + ("{ writeText: async (text) => { taken.push(text); } }" if clipboard else "undefined")
        + "}); 0"
    )
    settings = [one.options for one in results()]
    for n, options in enumerate(settings[:5]):
        x1, y1, x2, y2 = browser.evaluate(
            f"(() => {{ const one = document.querySelectorAll(\"[aria-label='All packs'] .copy\")"
            f"[{n}]; one.scrollIntoView({{ block: 'center', behavior: 'instant' }});"
            "const b = one.getBoundingClientRect();"
            "return [b.left, b.top, b.right, b.bottom]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, (x1 + x2) / 2, (y1 + y2) / 2, button="left", clickCount=1)
        browser.evaluate("new Promise(done => setTimeout(done, 20))")
        assert browser.evaluate("taken.at(-1)") == SUBJECT.build_command(options)
    assert browser.evaluate("taken.length") == 5
    assert browser.evaluate("document.querySelectorAll('textarea').length") == 0


def test_every_row_that_names_a_setting_has_a_button(browser, pages):
    """In the table of what to ship, of all packs, and of each chart."""
    show(browser, pages["sweep"], 1200)
    rows = "document.querySelectorAll('%s tbody tr').length"
    buttons = "document.querySelectorAll('%s td:first-child .copy').length"
    for table, others in ((SHIP, 0), ('[aria-label="All packs"]', 1), ("details", 1 + 10)):
        place = table.replace("'", '"')
        named = browser.evaluate(buttons % place)
        assert named > 0
        assert named == browser.evaluate(rows % place) - others


@pytest.mark.parametrize("width", WIDTHS)
def test_every_point_of_the_front_is_labelled(browser, pages, width):
    """By name or number, with labels that cover neither each other nor a marker."""
    show(browser, pages["sweep"], width)
    count = sum(one.on_front for one in results())
    labels = boxes(browser, "[data-chart='1'] .label.front")
    assert len(labels) == count == 10
    marks = boxes(browser, "[data-chart='1'] .points .mark")
    for n, label in enumerate(labels):
        # A line of text is higher than its letters.
        inner = [label[0], label[1] + 3, label[2], label[3] - 3]
        assert not any(overlap(inner, other) for other in labels[n + 1 :])
        assert not any(overlap(inner, mark) for mark in marks)
    texts = browser.evaluate(
        "[...document.querySelectorAll(\"[data-chart='1'] .label.front\")]"
        ".map(one => one.textContent)"
    )
    key = browser.evaluate(
        "[...document.querySelectorAll(\"[data-chart='1'] .key li\")].map(one => one.textContent)"
    )
    names = [one.options.short_label for one in results() if one.on_front]
    assert sorted(key or texts) == sorted(names)
    assert key == [] or texts == [str(n + 1) for n in range(count)]


def test_a_front_has_no_markers(browser, pages):
    """Neither its line nor its entry in the legend; the packs' own markers are seen."""
    show(browser, pages["sweep"], 1200)
    assert browser.evaluate("document.querySelectorAll('.series.step .mark').length") == 0
    legend = "[...document.querySelectorAll(\"[data-chart='1'] .legend button\")].at(-1)"
    assert browser.evaluate(f"{legend}.textContent") == "Pareto front"
    assert browser.evaluate(f"{legend}.querySelectorAll('.mark').length") == 0
    assert browser.evaluate(f"{legend}.querySelectorAll('.line').length") == 1


def test_a_covered_marker_shows_its_edge(browser, pages):
    """Of two markers in nearly one place the one below is the larger one."""
    show(browser, pages["sweep"], 1200)
    marks = boxes(browser, "[data-chart='1'] .points .mark")
    for n, low in enumerate(marks):
        for high in marks[n + 1 :]:
            near = abs(low[0] + low[2] - high[0] - high[2]) < 4
            if near and abs(low[1] + low[3] - high[1] - high[3]) < 4:
                assert low[2] - low[0] > high[2] - high[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["sweep", "keys"])
def test_texts_have_contrast(browser, pages, name, width, scheme):
    """All that is shown has 4.5 to 1 against what is behind it."""
    show(browser, pages[name], width, scheme)
    seen, faint = browser.evaluate(FAINT)
    assert seen > 50
    assert faint == []
