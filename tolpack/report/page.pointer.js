// Pointer and keyboard on a chart: show points, zoom, move.

/** Place of a pointer in the chart's own pixels. */
function within(chart, event) {
  const edge = chart.svg.getBoundingClientRect();
  const scale = chart.width / edge.width;
  return [(event.clientX - edge.left) * scale, (event.clientY - edge.top) * scale];
}

/** What share of the axes a place is at, from low to high. */
function shares({ left, right, top, bottom }, [x, y]) {
  return { x: (x - left) / (right - left), y: (bottom - y) / (bottom - top) };
}

/** Enlarge a view by a factor about a place given as shares of the axes. */
function enlarged(view, factor, about) {
  const zoom = ([low, high], share) => {
    const fixed = low + (high - low) * share;
    return [fixed - (fixed - low) / factor, fixed + (high - fixed) / factor];
  };
  return { x: zoom(view.x, about.x), y: zoom(view.y, about.y) };
}

/** View between two corners; a band that is thin in one direction keeps that direction. */
function between(chart, from, to) {
  const [a, b] = [shares(chart.box, from), shares(chart.box, to)];
  const cut = (name, moved) => {
    const [low, high] = chart.view[name];
    if (moved < 12) return [low, high];
    const ends = [a[name], b[name]].map((share) => low + (high - low) * clamp(share, 0, 1));
    return ends.sort((one, other) => one - other);
  };
  return { x: cut("x", Math.abs(to[0] - from[0])), y: cut("y", Math.abs(to[1] - from[1])) };
}

function moved(chart, view, from, to) {
  const [a, b] = [shares(chart.box, from), shares(chart.box, to)];
  const shift = ([low, high], share) => [low - (high - low) * share, high - (high - low) * share];
  return { x: shift(view.x, b.x - a.x), y: shift(view.y, b.y - a.y) };
}

function listen(chart) {
  const picture = chart.svg;
  chart.reset.addEventListener("click", () => { chart.showAll(); picture.focus(); });
  picture.addEventListener("dblclick", () => chart.showAll());
  picture.addEventListener("wheel", (event) => {
    // A wheel over a chart scrolls the page until the reader has turned to the chart.
    if (!event.ctrlKey && document.activeElement !== picture) return;
    event.preventDefault();
    const about = shares(chart.box, within(chart, event));
    chart.look(enlarged(chart.view, 1.0015 ** -event.deltaY, about));
  }, { passive: false });
  picture.addEventListener("blur", () => chart.select(null));
  picture.addEventListener("keydown", (event) => key(chart, event));
  listenToDrags(chart);
}

function listenToDrags(chart) {
  const picture = chart.svg;
  let drag = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch") return;
    drag = { from: within(chart, event), view: chart.view, moves: event.shiftKey, band: null };
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    const to = within(chart, event);
    if (!drag) {
      chart.select(chart.nearest(...to));
    } else if (drag.moves) {
      chart.look(moved(chart, drag.view, drag.from, to));
    } else if (Math.hypot(to[0] - drag.from[0], to[1] - drag.from[1]) > 5) {
      if (!drag.band) picture.append(drag.band = svg("rect", { class: "band" }));
      chart.select(null);
      stretch(drag.band, drag.from, to);
    }
  });
  picture.addEventListener("pointerup", (event) => {
    const to = within(chart, event);
    const { band, from } = drag ?? {};
    drag = null;
    band?.remove();
    if (band) chart.look(between(chart, from, to));
    else chart.select(chart.nearest(...to));
  });
  picture.addEventListener("pointercancel", () => { drag?.band?.remove(); drag = null; });
  picture.addEventListener("pointerleave", () => {
    if (!picture.matches(":focus-visible")) chart.select(null);
  });
}

function stretch(band, [a, b], [c, d]) {
  const edges = { x: Math.min(a, c), y: Math.min(b, d), width: Math.abs(c - a), height: Math.abs(d - b) };
  for (const [name, value] of Object.entries(edges)) band.setAttribute(name, value);
}

/** Left and right go along a series, up and down from one to the next. */
function key(chart, event) {
  const view = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  const other = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (view) chart.look(enlarged(chart.view, view, { x: 0.5, y: 0.5 }));
  else if (event.key === "0") chart.showAll();
  else if (event.key === "Escape") chart.select(null);
  else if (step || other) chart.select(neighbour(chart, step ?? 0, other ?? 0));
  else return;
  event.preventDefault();
}

function neighbour(chart, step, other) {
  const names = [...new Set(chart.spots.map(({ series }) => series.index))];
  if (!names.length) return null;
  const current = chart.selected;
  const row = current ? names.indexOf(current.series.index) : 0;
  const name = names[(row + other + names.length) % names.length];
  const along = chart.spots.filter(({ series }) => series.index === name)
    .sort((a, b) => a.x - b.x || a.y - b.y);
  if (!current) return along[0];
  if (other) {
    return along.reduce((a, b) => (Math.abs(b.x - current.x) < Math.abs(a.x - current.x) ? b : a));
  }
  return along[clamp(along.indexOf(current) + step, 0, along.length - 1)];
}
