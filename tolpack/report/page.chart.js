// Series on axes. A chart keeps its view as two intervals in the space of its scale (the logarithm
// on a logarithmic axis), so zooming and moving are linear, and draws itself again for every view.

const NEAR = 40; // pixels from which a point is shown
const HINT = "Drag to zoom, Shift-drag to move, wheel after a click; double-click for all";

class Chart {
  constructor(figure, data, width) {
    this.data = data;
    this.width = width;
    this.plot = figure.querySelector(".plot");
    this.title = `${data.y.title} against ${data.x.title}`;
    this.hidden = new Set();
    this.tooltip = html("div", { class: "tooltip", role: "status" });
    this.reset = html("button", { type: "button", class: "reset", hidden: "" }, "Show all");
    this.svg = svg("svg", {
      role: "application", tabindex: 0, "aria-roledescription": "chart",
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
    this.key = html("ol", { class: "key", hidden: "" });
    this.plot.after(this.key);
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

  /** Show a part; one that is far smaller or larger than the whole is not shown. */
  look(view) {
    for (const [name, [low, high]] of Object.entries(view)) {
      const [least, most] = extent(this, name);
      const share = (high - low) / (most - least);
      if (!(share > 1e-6 && share < 20)) return;
    }
    this.view = view;
    this.reset.hidden = false;
    this.draw();
  }

  draw() {
    this.height = Math.round(clamp(this.width * 0.56, 300, 560));
    this.box = layout(this);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.active = svg("path", { class: "active", visibility: "hidden" });
    const clip = `clip-${this.plot.parentElement.dataset.chart}`;
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    this.spots = [];
    this.marks = [];
    for (const series of this.visible) inside.append(drawSeries(this, series));
    showCovered(this.marks);
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
  if (axis.linearBelow) return Math.asinh(value / axis.linearBelow);
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
  if (axis.log) return [low - room, high + room];
  return [low === 0 ? 0 : low - room, high === 0 && low < 0 ? 0 : high + room];
}

function ticksFor(axis) {
  if (axis.linearBelow) return (interval, count) => bothTicks(interval, count, axis.linearBelow);
  return axis.log ? logTicks : linearTicks;
}

/** Edges of the area inside the axes, with the ticks that decide them. */
function layout(chart) {
  const { data, view, width, height } = chart;
  const ticksOf = (axis, interval, count) =>
    ticksFor(axis)(interval, Math.max(2, Math.floor(count)));
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
  if (series.style === "points" && data.categories.length) standApart(chart, series, spots);
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
  if (series.style === "points" || (series.style === "line" && spots.length <= 40)) {
    const outline = markOf(data, series.index)(series.style === "line" ? 4 : markSize(chart));
    for (const { x, y } of spots) {
      const transform = `translate(${x.toFixed(1)} ${y.toFixed(1)})`;
      const mark = svg("path", { d: outline, transform, class: "mark" });
      group.append(mark);
      if (series.style === "points") chart.marks.push({ x, y, mark, scale: 1 });
    }
  }
  const { left, right, top, bottom } = chart.box;
  chart.spots.push(...spots.filter(({ x, y }) =>
    x >= left - 1 && x <= right + 1 && y >= top - 1 && y <= bottom + 1));
  return group;
}

/** Enlarge a marker that others are drawn over, so that its edge shows around them. */
function showCovered(marks) {
  if (marks.length > 400) return;
  marks.forEach((one, n) => {
    const over = marks.slice(n + 1)
      .filter(({ x, y }) => Math.hypot(one.x - x, one.y - y) < 6).length;
    if (!over) return;
    one.scale = 1 + 0.5 * Math.min(over, 2);
    const place = one.mark.getAttribute("transform");
    one.mark.setAttribute("transform", `${place} scale(${one.scale})`);
  });
}

/** Half the width of markers: less where there are many. */
function markSize(chart) {
  const count = chart.visible.reduce((sum, { points }) => sum + points.length, 0);
  return count > 80 ? 4 : 5.5;
}

/** Points of several series stand side by side in their category. */
function standApart(chart, series, spots) {
  const groups = chart.visible.filter(({ style }) => style === "points");
  const at = groups.findIndex(({ index }) => index === series.index);
  const apart = Math.min((chart.px(1) - chart.px(0)) * 0.5 / groups.length, 28);
  for (const spot of spots) spot.x += (at - (groups.length - 1) / 2) * apart;
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
  spot.whisker = [high, low];
  const x = spot.x.toFixed(1);
  group.append(svg("path", {
    d: `M${x} ${high.toFixed(1)}V${low.toFixed(1)}m-3 0h6M${x - 3} ${high.toFixed(1)}h6`,
    class: "whisker",
  }));
}
