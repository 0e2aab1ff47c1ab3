// Draws the charts of a report and makes its tables sort. No library: the usual ones are megabytes
// in every report (plotly: 4.8 MB), and a report needs four kinds of marks and a heat map.
//
// A chart keeps its view as two intervals in the space of its scale (the logarithm on a logarithmic
// axis), so zooming and panning are linear, and draws itself anew for every view.
"use strict";

// --- Elements ------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; attributes that are undefined are left out, strings become text. */
function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const html = (tag, attributes = {}, ...children) =>
  element(document.createElement(tag), attributes, children);

const svg = (tag, attributes = {}, ...children) =>
  element(document.createElementNS(SVG, tag), attributes, children);

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

const measure = (() => {
  const context = document.createElement("canvas").getContext("2d");
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return (text) => context.measureText(text).width;
})();

/** Cut a text to a width in pixels. */
function shortened(text, width) {
  if (measure(text) <= width) return text;
  let end = text.length;
  while (end > 1 && measure(text.slice(0, end) + "…") > width) end -= 1;
  return text.slice(0, end).trimEnd() + "…";
}

// --- Numbers -------------------------------------------------------------------------------------

const raised = (exponent) => String(exponent).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻");

/** Write a number with so many significant digits: 0.0123, 1,234, 1.2×10⁻⁵. */
function shown(value, digits = 4) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}×10${raised(Number(exponent))}`.replace("-", "−");
  }
  const plain = size >= 10 ** digits ? { maximumFractionDigits: 0 }
    : { maximumSignificantDigits: digits };
  return value.toLocaleString("en", plain).replace("-", "−");
}

/** Round ticks of an interval, and how to write them. */
function linearTicks([low, high], count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const decimals = clamp(-Math.floor(Math.log10(step) + 1e-9), 0, 12);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const write = decimals > 4 || largest >= 1e7
    ? (value) => shown(value, 3)
    : (value) => value.toLocaleString("en", {
      minimumFractionDigits: decimals, maximumFractionDigits: decimals,
    }).replace("-", "−");
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    ticks.push({ at: n * step, text: write(n === 0 ? 0 : n * step) });
  }
  return ticks;
}

/** Ticks of a logarithmic axis: powers of ten, with 2 and 5 between where few of them fit. */
function logTicks([low, high], count) {
  if (high - low < 0.8) {
    const ticks = linearTicks([10 ** low, 10 ** high], count);
    return ticks.map((tick) => ({ ...tick, at: Math.log10(tick.at) }));
  }
  const every = Math.max(1, Math.ceil((high - low) / count));
  const factors = [[1, 2, 5], [1, 3]].find((one) => one.length * (high - low) < count + 1) ?? [1];
  const plain = low > -3.5 && high < 5.5;
  const ticks = [];
  for (let exponent = Math.floor(low); exponent <= high; exponent += 1) {
    if (exponent % every) continue;
    for (const factor of factors) {
      const at = exponent + Math.log10(factor);
      const text = plain ? shown(factor * 10 ** exponent)
        : `${factor === 1 ? "" : `${factor}×`}10${raised(exponent)}`;
      if (at >= low - 1e-9 && at <= high + 1e-9) ticks.push({ at, text });
    }
  }
  return ticks;
}

// --- Colours and marks ---------------------------------------------------------------------------

/** A colour of a scale of three, in either theme. */
function shade(scale, part) {
  const [from, to, rest] = part < 0.5
    ? ["low", "middle", part * 2] : ["middle", "high", part * 2 - 1];
  return `color-mix(in oklab, var(--${scale}-${from}), ` +
    `var(--${scale}-${to}) ${(rest * 100).toFixed(1)}%)`;
}

const COLOURS = 6;

function colourOf(data, index) {
  const count = data.series.length;
  if (data.ordered || count > COLOURS) return shade("ramp", count > 1 ? index / (count - 1) : 0);
  return `var(--series-${index + 1})`;
}

/** Outlines of markers around a place: circle, square, diamond, two triangles, cross. */
const MARKS = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0 ${-r * 1.35}L${r * 1.35} 0L0 ${r * 1.35}L${-r * 1.35} 0Z`,
  (r) => `M0 ${-r * 1.2}L${r * 1.2} ${r}H${-r * 1.2}Z`,
  (r) => `M0 ${r * 1.2}L${r * 1.2} ${-r}H${-r * 1.2}Z`,
  (r) => `M${-r} ${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}` +
    `H${-r / 3}V${r / 3}H${-r}Z`,
];

const markOf = (data, index) => MARKS[data.ordered ? 0 : index % MARKS.length];

function swatch(data, index) {
  const { style } = data.series[index];
  const joined = style === "line" || style === "step";
  const picture = svg("svg", { width: 22, height: 12, "aria-hidden": "true", class: "series" });
  picture.style.setProperty("--colour", colourOf(data, index));
  if (style === "bars") picture.append(svg("rect", { x: 5, width: 12, height: 12, class: "bar" }));
  if (joined) picture.append(svg("path", { d: "M1 6H21", class: "line" }));
  if (style === "points" || (joined && !data.ordered)) {
    picture.append(svg("path", {
      d: markOf(data, index)(3.5), transform: "translate(11 6)", class: "mark",
    }));
  }
  return picture;
}

// --- Tooltip -------------------------------------------------------------------------------------

/** Fill a tooltip and place it beside a point of its plot, inside the plot's width. */
function showTooltip(tooltip, title, lines, x, y) {
  const list = html("dl", {}, ...lines.map(([name, value]) =>
    html("div", {}, html("dt", {}, name), html("dd", {}, value))));
  tooltip.replaceChildren(html("strong", {}, title), list);
  const box = tooltip.parentElement;
  const width = tooltip.offsetWidth;
  const right = x + 14 + width <= box.clientWidth;
  const left = right ? x + 14 : Math.max(0, x - 14 - width);
  const beside = right || x - 14 - width >= 0;
  const top = beside ? y - tooltip.offsetHeight / 2 : y + 16;
  tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(Math.max(0, top))}px)`;
}

// --- Charts --------------------------------------------------------------------------------------

const NEAR = 40; // pixels from which a point is shown
const HINT = "Drag to zoom, Shift-drag to move, wheel after a click; double-click for all";

class Chart {
  constructor(figure, data) {
    this.data = data;
    this.plot = figure.querySelector(".plot");
    this.title = `${data.y.title} against ${data.x.title}`;
    this.hidden = new Set();
    this.tooltip = html("div", { class: "tooltip", role: "status" });
    this.reset = html("button", { type: "button", class: "reset", hidden: "" }, "Show all");
    this.svg = svg("svg", {
      role: "application", tabindex: 0, "data-zooms": "", "aria-roledescription": "chart",
      "aria-label": `${this.title}. Arrow keys go from point to point, plus and minus zoom, ` +
        "0 shows all; the numbers follow as a table.",
    });
    this.plot.replaceChildren(this.svg, this.reset, this.tooltip);
    // A chart beside others keeps the room of a legend, so that their axes are level.
    const several = data.series.length > 1;
    if (several || figure.parentElement.children.length > 1) {
      this.plot.before(html("div", { class: "legend", role: "group", "aria-label": "Series" },
        ...(several ? this.legend() : [])));
    }
    figure.querySelector("details").before(html("p", { class: "hint" }, HINT));
    this.showAll();
    listen(this);
  }

  /** Buttons that hide a series and show it again. */
  legend() {
    return this.data.series.map((series, index) => {
      const button = html("button", { type: "button", "aria-pressed": "true" },
        swatch(this.data, index), series.name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(index)) this.hidden.add(index);
        button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
        if (this.reset.hidden) this.showAll();
        else this.draw();
      });
      return button;
    });
  }

  get visible() {
    return this.data.series.map((series, index) => ({ ...series, index }))
      .filter(({ index }) => !this.hidden.has(index));
  }

  showAll() {
    this.view = { x: extent(this, "x"), y: extent(this, "y") };
    this.reset.hidden = true;
    this.draw();
  }

  look(view) {
    for (const [low, high] of Object.values(view)) {
      if (!(high - low > 1e-9 * Math.max(1, Math.abs(low), Math.abs(high)))) return;
    }
    this.view = view;
    this.reset.hidden = false;
    this.draw();
  }

  draw() {
    this.width = Math.max(240, this.plot.clientWidth);
    this.height = Math.round(clamp(this.width * 0.56, 290, 500));
    this.box = layout(this);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.active = svg("path", { class: "active", visibility: "hidden" });
    const clip = `clip-${this.plot.parentElement.dataset.chart}`;
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    this.spots = [];
    for (const series of this.visible) inside.append(drawSeries(this, series));
    this.svg.replaceChildren(
      svg("clipPath", { id: clip }, svg("rect", {
        x: this.box.left - 6, y: this.box.top - 6,
        width: this.box.right - this.box.left + 12, height: this.box.bottom - this.box.top + 12,
      })),
      drawAxes(this), inside, drawLabels(this), this.active,
    );
    this.select(null);
  }

  /** Pixels of a number on an axis, already in the space of the axis. */
  px(value) {
    const [low, high] = this.view.x;
    return this.box.left + (value - low) / (high - low) * (this.box.right - this.box.left);
  }

  py(value) {
    const [low, high] = this.view.y;
    return this.box.bottom - (value - low) / (high - low) * (this.box.bottom - this.box.top);
  }

  /** Show a point as hover does, or none. */
  select(spot) {
    this.selected = spot;
    this.active.setAttribute("visibility", spot ? "visible" : "hidden");
    if (!spot) {
      this.tooltip.replaceChildren();
      return;
    }
    const { series, point: [x, y, error, label, details] } = spot;
    this.active.setAttribute("d", MARKS[0](7));
    this.active.setAttribute("transform", `translate(${spot.x} ${spot.y})`);
    const { x: xAxis, y: yAxis, categories } = this.data;
    const unit = (axis) => (axis.unit ? ` ${axis.unit}` : "");
    const lines = [
      [xAxis.label, categories[x] ?? shown(x) + unit(xAxis)],
      [yAxis.label, shown(y) + (error === null ? "" : ` ± ${shown(error, 2)}`) + unit(yAxis)],
      ...details,
    ];
    if (label && this.data.series.length > 1) lines.unshift(["series", series.name]);
    showTooltip(this.tooltip, label || series.name, lines, spot.x, spot.y);
  }

  /** The point next to a place: over bars the nearest along x, else the nearest of all. */
  nearest(x, y) {
    let best = null;
    let least = NEAR;
    for (const spot of this.spots) {
      const across = spot.series.style === "bars" ? 0.05 : 1;
      const distance = Math.hypot(spot.x - x, (spot.y - y) * across);
      if (distance < least) [best, least] = [spot, distance];
    }
    return best;
  }
}

const place = (axis, value) => {
  if (value === null || (axis.log && value <= 0)) return null;
  return axis.log ? Math.log10(value) : value;
};

/** What an axis spans when all is shown: bars from zero, others with room at the ends. */
function extent(chart, name) {
  const { data } = chart;
  if (name === "x" && data.categories.length) return [-0.5, data.categories.length - 0.5];
  const axis = data[name];
  const values = [];
  for (const { style, points } of chart.visible) {
    for (const [x, y, error] of points) {
      if (place(data.x, x) === null || place(data.y, y) === null) continue;
      const around = name === "x" ? [x] : [y, y - (error ?? 0), y + (error ?? 0)];
      values.push(...around.map((value) => place(axis, value)).filter((value) => value !== null));
      if (name === "y" && style === "bars" && !axis.log) values.push(0);
    }
  }
  if (!values.length) return [0, 1];
  let low = values.reduce((a, b) => Math.min(a, b));
  let high = values.reduce((a, b) => Math.max(a, b));
  if (!axis.log && low > 0 && low < high * 0.3) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return [low === 0 && !axis.log ? 0 : low - room, high === 0 && !axis.log ? 0 : high + room];
}

/** Edges of the area inside the axes, with the ticks that decide them. */
function layout(chart) {
  const { data, view, width, height } = chart;
  const ticksOf = (axis, interval, count) =>
    (axis.log ? logTicks : linearTicks)(interval, Math.max(2, Math.floor(count)));
  const yTicks = ticksOf(data.y, view.y, height / 62);
  const left = 14 + Math.max(...yTicks.map(({ text }) => measure(text)), 12);
  const ends = endLabels(chart);
  const right = width - (ends.length ? 12 + Math.max(...ends.map(measure)) : 14);
  const box = { left, right, top: 30, yTicks, ends: ends.length > 0, slanted: false };
  let below = 46;
  if (data.categories.length) {
    const band = (right - left) / (view.x[1] - view.x[0]);
    const longest = Math.max(...data.categories.map(measure));
    box.slanted = longest > band - 8 && longest > 40;
    if (box.slanted) below = 34 + Math.min(longest, 110) * 0.7;
    const every = Math.ceil((box.slanted ? 16 : longest + 8) / band);
    box.xTicks = data.categories.map((text, at) => ({ at, text }))
      .filter(({ at }) => at >= view.x[0] && at <= view.x[1] && at % every === 0);
  } else {
    box.xTicks = ticksOf(data.x, view.x, (right - left) / 82);
  }
  box.bottom = height - below;
  return box;
}

/** Names to write at the ends of lines: where there are a few lines and room for them. */
function endLabels(chart) {
  const lines = chart.visible.filter(({ style }) => style === "line");
  const names = lines.map(({ name }) => name);
  const fits = names.length > 1 && names.length <= 8 && chart.width >= 560 && chart.reset.hidden;
  return fits && Math.max(...names.map(measure)) <= 110 ? names : [];
}

function drawAxes(chart) {
  const { box, data, height } = chart;
  const group = svg("g", { "aria-hidden": "true" });
  for (const { at, text } of box.yTicks) {
    const y = chart.py(at);
    group.append(svg("path", { d: `M${box.left} ${y}H${box.right}`, class: "grid" }),
      svg("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, text));
  }
  for (const { at, text } of box.xTicks) {
    const x = chart.px(at);
    const y = box.bottom + 18;
    if (!data.categories.length) {
      group.append(svg("path", { d: `M${x} ${box.top}V${box.bottom}`, class: "grid" }));
    }
    group.append(box.slanted
      ? svg("text", { "text-anchor": "end", transform: `translate(${x + 4} ${y - 4}) rotate(-40)` },
        shortened(text, 110))
      : svg("text", { x, y, "text-anchor": "middle" }, text));
  }
  const zero = data.y.log ? null : chart.py(0);
  const base = zero > box.top && zero < box.bottom ? zero : box.bottom;
  group.append(
    svg("path", { d: `M${box.left} ${base}H${box.right}`, class: "axis" }),
    svg("text", { x: 0, y: 13, class: "title" }, data.y.title),
    svg("text", { x: box.right, y: height - 4, "text-anchor": "end", class: "title" },
      data.x.title),
  );
  return group;
}

/** Draw a series, and note where its points are. */
function drawSeries(chart, series) {
  const { data } = chart;
  const spots = [];
  for (const point of series.points) {
    const [x, y] = [place(data.x, point[0]), place(data.y, point[1])];
    if (x !== null && y !== null) spots.push({ series, point, x: chart.px(x), y: chart.py(y) });
  }
  const group = svg("g", { class: `series ${series.style}` });
  group.style.setProperty("--colour", colourOf(data, series.index));
  if (series.style === "bars") drawBars(chart, series, spots, group);
  if (series.style === "line" || series.style === "step") {
    const join = series.style === "step"
      ? (spot) => `H${spot.x.toFixed(1)}V${spot.y.toFixed(1)}`
      : (spot) => `L${spot.x.toFixed(1)} ${spot.y.toFixed(1)}`;
    const path = spots.map((spot, n) =>
      (n ? join(spot) : `M${spot.x.toFixed(1)} ${spot.y.toFixed(1)}`));
    group.append(svg("path", { d: path.join(""), class: "line" }));
  }
  for (const spot of spots) drawWhisker(chart, spot, group);
  if (series.style !== "bars" && (series.style !== "line" || spots.length <= 40)) {
    const outline = markOf(data, series.index)(series.style === "line" ? 3 : 3.75);
    for (const { x, y } of spots) {
      const transform = `translate(${x.toFixed(1)} ${y.toFixed(1)})`;
      group.append(svg("path", { d: outline, transform, class: "mark" }));
    }
  }
  const { left, right, top, bottom } = chart.box;
  chart.spots.push(...spots.filter(({ x, y }) =>
    x >= left - 1 && x <= right + 1 && y >= top - 1 && y <= bottom + 1));
  return group;
}

/** Bars of several series stand side by side in their category. */
function drawBars(chart, series, spots, group) {
  const groups = chart.visible.filter(({ style }) => style === "bars");
  const band = chart.px(1) - chart.px(0);
  const width = Math.min(band * 0.74 / groups.length, 56);
  const offset = (groups.findIndex(({ index }) => index === series.index)
    - (groups.length - 1) / 2) * width;
  const { top, bottom } = chart.box;
  const base = chart.data.y.log ? bottom : clamp(chart.py(0), top, bottom);
  for (const spot of spots) {
    spot.x += offset;
    group.append(svg("rect", {
      x: spot.x - width / 2 + 0.5, width: Math.max(1, width - 1), class: "bar",
      y: Math.min(spot.y, base), height: Math.abs(base - spot.y),
    }));
  }
}

function drawWhisker(chart, spot, group) {
  const [, y, error] = spot.point;
  if (!error) return;
  const axis = chart.data.y;
  const high = chart.py(place(axis, y + error));
  const under = place(axis, y - error);
  const low = under === null ? chart.box.bottom + 9 : chart.py(under);
  if (low - high < 3) return;
  const x = spot.x.toFixed(1);
  group.append(svg("path", {
    d: `M${x} ${high.toFixed(1)}V${low.toFixed(1)}m-3 0h6M${x - 3} ${high.toFixed(1)}h6`,
    class: "whisker",
  }));
}

/** Write names beside points and lines where they cover nothing. */
function drawLabels(chart) {
  const group = svg("g", { "aria-hidden": "true" });
  const { left, right, top, bottom } = chart.box;
  const taken = chart.spots.map(({ x, y }) => [x - 5, y - 5, x + 5, y + 5]);
  const free = ([a, b, c, d]) => a >= left && c <= right && b >= top && d <= bottom &&
    !taken.some(([e, f, g, h]) => a < g && e < c && b < h && f < d);
  const few = (series) => chart.width >= 480 && series.style === "step" ||
    (series.style === "points" && series.points.length <= 12);
  const named = chart.spots.filter(({ series, point }) => point[3] && few(series));
  for (const { x, y, point } of named.slice(0, 60)) {
    const width = measure(point[3]) * 0.92;
    const tries = [[x + 8, y - 14], [x - width - 8, y + 1], [x + 8, y + 1], [x - width - 8, y - 14]];
    const found = tries.find(([a, b]) => free([a - 2, b, a + width + 2, b + 13]));
    if (!found || width > 180) continue;
    const [a, b] = found;
    taken.push([a - 4, b - 2, a + width + 4, b + 15]);
    group.append(svg("text", { x: a, y: b + 10, class: "label" }, point[3]));
  }
  if (chart.box.ends) drawEnds(chart, group);
  return group;
}

/** Write the names of lines at their right ends, moved apart. */
function drawEnds(chart, group) {
  const ends = chart.visible.filter(({ style }) => style === "line").map((series) => {
    const spot = chart.spots.findLast((one) => one.series.index === series.index);
    return spot && { name: series.name, index: series.index, x: spot.x, y: spot.y };
  }).filter(Boolean).sort((a, b) => a.y - b.y);
  ends.forEach((end, n) => {
    if (n) end.y = Math.max(end.y, ends[n - 1].y + 14);
  });
  const over = ends.length ? Math.max(0, ends.at(-1).y - chart.box.bottom) : 0;
  for (const { name, x, y } of ends) {
    group.append(svg("text", { x: x + 8, y: y - over + 4, class: "label" }, name));
  }
}

// --- Pointer and keyboard ------------------------------------------------------------------------

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

// --- Heat maps -----------------------------------------------------------------------------------

class Heat {
  constructor(figure, data) {
    this.data = data;
    this.plot = figure.querySelector(".plot");
    this.tooltip = html("div", { class: "tooltip", role: "status" });
    this.svg = svg("svg", {
      role: "application", tabindex: 0, "aria-roledescription": "heat map",
      "aria-label": `${data.title}. Arrow keys go from cell to cell; the numbers follow as a table.`,
    });
    this.plot.replaceChildren(this.svg, this.tooltip);
    const values = data.values.flat().filter((value) => value !== null);
    this.log = data.log && values.every((value) => value > 0);
    this.range = [Math.min(...values), Math.max(...values)];
    this.draw();
    this.svg.addEventListener("pointermove", (event) => this.select(this.cellAt(event)));
    this.svg.addEventListener("pointerdown", (event) => this.select(this.cellAt(event)));
    this.svg.addEventListener("pointerleave", () => this.select(null));
    this.svg.addEventListener("blur", () => this.select(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  /** Where a number is between the least and the largest, from 0 to 1. */
  share(value) {
    const [low, high, at] = [...this.range, value].map((one) => (this.log ? Math.log(one) : one));
    return high > low ? (at - low) / (high - low) : 0.5;
  }

  draw() {
    const { data } = this;
    this.width = Math.max(240, this.plot.clientWidth);
    const left = 16 + Math.min(Math.max(...data.rows.map(measure)), this.width * 0.3);
    const cell = (this.width - left - 2) / data.columns.length;
    const height = clamp(cell * 0.62, 22, 36);
    this.box = { left, top: 46, cell, height };
    const below = this.box.top + height * data.rows.length;
    this.height = below + 42;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.active = svg("rect", { class: "active", visibility: "hidden", width: cell, height });
    this.svg.replaceChildren(this.cells(), this.names(below), this.scale(), this.active);
    this.select(null);
  }

  cells() {
    const { left, top, cell, height } = this.box;
    const group = svg("g", { "aria-hidden": "true" });
    this.data.values.forEach((row, r) => row.forEach((value, c) => {
      if (value === null) return;
      const [x, y, share] = [left + c * cell, top + r * height, this.share(value)];
      const rect = svg("rect", { x, y, width: cell, height, class: "cell" });
      rect.style.fill = shade("heat", share);
      group.append(rect);
      const text = shown(value, this.data.digits);
      if (measure(text) > cell - 6) return;
      group.append(svg("text", {
        x: x + cell / 2, y: y + height / 2 + 4, "text-anchor": "middle",
        class: share < 0.6 ? "light" : "dark",
      }, text));
    }));
    return group;
  }

  names(below) {
    const { left, top, cell, height } = this.box;
    const { rows, columns, rowLabel, columnLabel } = this.data;
    const group = svg("g", { "aria-hidden": "true" });
    rows.forEach((name, r) => group.append(svg("text", {
      x: left - 8, y: top + (r + 0.5) * height + 4, "text-anchor": "end",
    }, shortened(name, left - 8))));
    const every = Math.ceil((Math.max(...columns.map(measure)) + 8) / cell);
    columns.forEach((name, c) => {
      if (c % every) return;
      const x = left + (c + 0.5) * cell;
      group.append(svg("text", { x, y: below + 17, "text-anchor": "middle" }, name));
    });
    group.append(svg("text", { x: 0, y: top - 10, class: "title" }, rowLabel),
      svg("text", { x: this.width - 2, y: below + 37, "text-anchor": "end", class: "title" },
        columnLabel));
    return group;
  }

  /** The scale of colours above the cells, with its ends. */
  scale() {
    const group = svg("g", { "aria-hidden": "true" });
    const [low, high] = this.range.map((value) => shown(value, this.data.digits));
    group.append(svg("text", { x: 0, y: 13, class: "title" }, this.data.title));
    const [steps, step] = [24, 5];
    const right = this.width - measure(high) - 8;
    const left = right - steps * step;
    for (let n = 0; n < steps; n += 1) {
      const rect = svg("rect", { x: left + n * step, y: 3, width: step + 0.3, height: 11 });
      rect.style.fill = shade("heat", n / (steps - 1));
      group.append(rect);
    }
    group.append(svg("text", { x: left - 6, y: 13, "text-anchor": "end" }, low),
      svg("text", { x: right + 6, y: 13 }, high));
    return group;
  }

  cellAt(event) {
    const { left, top, cell, height } = this.box;
    const [x, y] = within(this, event);
    return { row: Math.floor((y - top) / height), column: Math.floor((x - left) / cell) };
  }

  select(at) {
    const value = at && this.data.values[at.row]?.[at.column];
    this.selected = typeof value === "number" ? at : null;
    this.active.setAttribute("visibility", this.selected ? "visible" : "hidden");
    if (!this.selected) {
      this.tooltip.replaceChildren();
      return;
    }
    const { left, top, cell, height } = this.box;
    const [x, y] = [left + at.column * cell, top + at.row * height];
    this.active.setAttribute("x", x);
    this.active.setAttribute("y", y);
    const { rows, columns, rowLabel, columnLabel, title } = this.data;
    showTooltip(this.tooltip, `${shown(value)} ${this.data.unit}`, [
      [rowLabel || "row", rows[at.row]], [columnLabel || "column", columns[at.column]],
      ["", title],
    ], x + cell / 2, y + height / 2);
  }

  key(event) {
    const [down, right] = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    }[event.key] ?? [];
    if (event.key === "Escape") this.select(null);
    if (down === undefined) return;
    event.preventDefault();
    const { values } = this.data;
    const from = this.selected;
    const known = (row, column) => typeof values[row]?.[column] === "number";
    let [row, column] = from ? [from.row + down, from.column + right] : [0, 0];
    while (values[row] && column >= 0 && column < values[row].length && !known(row, column)) {
      row += from ? down : 0;
      column += from ? right : 1;
    }
    if (known(row, column)) this.select({ row, column });
  }
}

// --- Tables, theme, commands ---------------------------------------------------------------------

const collator = new Intl.Collator("en", { numeric: true });

/** Let each heading of a table sort its rows: numbers by value, what is not known last. */
function makeSortable(table) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.classList.contains("number") || cell.textContent === "–" ? null : cell.textContent;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number"
    ? a - b : collator.compare(a, b));
  headings.forEach((heading, column) => {
    const button = html("button", { type: "button" }, heading.textContent);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => ({ row, key: keyOf(row, column) }));
      rows.sort((a, b) => (a.key === null || b.key === null
        ? (a.key === null) - (b.key === null) : compare(a.key, b.key) * (down ? -1 : 1)));
      body.append(...rows.map(({ row }) => row));
    });
  });
}

function addThemeButton() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const button = html("button", { type: "button", id: "theme" });
  const name = () => { button.textContent = isDark() ? "☀ Light" : "☾ Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();
  document.querySelector("header").append(button);
}

function addCopyButton(box) {
  const button = html("button", { type: "button" }, "Copy");
  const code = box.querySelector("code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // not allowed here: the reader copies what is selected
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  box.append(button);
}

function main() {
  addThemeButton();
  const drawn = JSON.parse(document.getElementById("chart-data").textContent);
  const charts = new Map();
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = charts.get(target);
      if (target.clientWidth && Math.max(240, target.clientWidth) !== chart.width) chart.draw();
    }
  });
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const data = drawn[figure.dataset.chart];
    const chart = new (data.kind === "heat" ? Heat : Chart)(figure, data);
    charts.set(chart.plot, chart);
    observer.observe(chart.plot);
    performance.mark("tolpack:chart");
  }
  document.querySelectorAll("table").forEach(makeSortable);
  document.querySelectorAll(".command").forEach(addCopyButton);
  performance.mark("tolpack:ready");
}

main();
