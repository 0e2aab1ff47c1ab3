"""Measure the report of `tolpack keys`: its size, and the frames a second of its map.

The script writes a report of an invented vocabulary (128,000 tokens in 24 layers, 32 clusters each)
and opens it in headless Chromium. It zooms by wheel events from the whole map to sixty times as
large, around a token, and back, and counts frames. It prints frames a second, and the time that
drawing a frame takes.

    python benchmarks/keys_page.py --json benchmarks/results/keys_page.json
    python benchmarks/keys_page.py --tokens 8192 --layers 3 --keep folder
    python benchmarks/keys_page.py --picture keys.html map.png    # the map of a report as it opens
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from browser import Browser
from machine import described

from tolpack.report.page import write_page
from tolpack.report.page_content import MapCluster, MapLayer, Page, TokenMap

CLUSTERS = 32
FRAMES = 160
# Zooms in for half of the frames and out again; a wheel event for each frame.
ZOOM = """
tokenMap.then(async (map) => {
  const edge = map.canvas.getBoundingClientRect();
  const [x, y] = [edge.left + edge.width * 0.4, edge.top + edge.height * 0.45];
  map.canvas.focus();
  const [times, draws] = [[], []];
  for (let n = 0; n < FRAMES; n += 1) {
    const deltaY = n < FRAMES / 2 ? -28 : 28;
    map.canvas.dispatchEvent(new WheelEvent("wheel",
      { deltaY, clientX: x, clientY: y, bubbles: true, cancelable: true }));
    await new Promise(requestAnimationFrame);
    times.push(performance.now());
    draws.push(map.drawMs);
  }
  return { times, draws, zoom: map.view.zoom };
})
""".replace("FRAMES", str(FRAMES))


def main() -> None:
    """Write the report, zoom in it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=128_000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the report and pictures of it")
    parser.add_argument("--picture", type=Path, nargs=2, metavar=("REPORT", "PNG"))
    args = parser.parse_args()
    if args.picture:
        with Browser() as browser:
            take_picture(browser, *args.picture)
        return
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / "keys.html"
        write_page(example(args.tokens, args.layers), path)
        with Browser() as browser:
            browser.resize(1400, 900)
            measured = measure(browser, path)
            if args.keep:
                browser.screenshot(keep / "map.png", full=False)
        size = path.stat().st_size
    result = {
        "tokens": args.tokens,
        "layers": args.layers,
        "bytes": size,
        **measured,
        "window": "1400 × 900",
        **described("numpy"),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def measure(browser: Browser, path: Path) -> dict[str, object]:
    """Return times of opening a report and of the frames of its map."""
    browser.open(path)
    ready = browser.evaluate(
        "tokenMap.then(() => performance.getEntriesByName('tolpack:map')[0].startTime)"
    )
    layer = browser.evaluate(
        "tokenMap.then(async (map) => { const began = performance.now();"
        "await map.show(map.index.layers.length - 1); return performance.now() - began; })"
    )
    zoomed = browser.evaluate(ZOOM)
    times, draws = zoomed["times"], sorted(zoomed["draws"])
    gaps = sorted(b - a for a, b in zip(times, times[1:]))
    return {
        "frames_per_second": round(1000 * len(gaps) / (times[-1] - times[0]), 1),
        "frame_ms": {"median": statistics.median(gaps), "p99": gaps[int(0.99 * len(gaps))]},
        "draw_ms": {"median": round(statistics.median(draws), 2), "max": round(draws[-1], 2)},
        "first_map_ms": round(ready, 1),
        "next_layer_ms": round(layer, 1),
    }


def take_picture(browser: Browser, report: Path, picture: Path) -> None:
    """Save the map of a report, with its list of clusters, as PNG."""
    browser.resize(1480, 1000)
    browser.open(report)
    box = browser.evaluate(
        "tokenMap.then(async (map) => { await new Promise(requestAnimationFrame);"
        "await new Promise(requestAnimationFrame);"
        "const b = document.querySelector('.map').getBoundingClientRect(); return {"
        "x: b.x - 12, y: b.y + scrollY - 12, width: b.width + 24, height: b.height + 24}; })"
    )
    clip = {**box, "scale": 1}
    data = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    picture.write_bytes(base64.b64decode(data["data"]))


def example(tokens: int, layers: int, seed: int = 7) -> Page:
    """Return a report whose map has clusters of points, and texts of invented words."""
    random = np.random.default_rng(seed)
    parts = ("al", "be", "co", "den", "er", "fi", "gra", "ho", "in", "ka", "lo", "mi", "na", "os")
    texts = tuple(
        " " * int(n % 2) + "".join(parts[int(k)] for k in random.integers(0, 14, 1 + n % 4))
        for n in range(tokens)
    )
    found = tuple(_layer(number, tokens, random) for number in range(layers))
    token_map = TokenMap("Map of the vocabulary", "Invented tokens.", texts, found)
    return Page("An invented model", "", (), (), token_map)


def _layer(number: int, tokens: int, random: np.random.Generator) -> MapLayer:
    centres = random.normal(0, 25, (CLUSTERS, 2))
    labels = random.integers(0, CLUSTERS, tokens)
    spread = random.uniform(1, 8, CLUSTERS)[labels][:, None]
    places = (centres[labels] + random.normal(0, 1, (tokens, 2)) * spread).astype(np.float32)
    clusters = []
    for cluster in range(CLUSTERS):
        members = np.flatnonzero(labels == cluster)
        nearest = tuple(map(int, members[:12]))
        clusters.append(MapCluster(len(members), nearest, (cluster * 7, 0.8, 0.03)))
    return MapLayer(number, places, labels, tuple(clusters))


if __name__ == "__main__":
    main()
