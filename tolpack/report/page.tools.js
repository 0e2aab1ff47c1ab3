// What all parts of a report's script use: elements, numbers, colours, tooltips.
//
// The script draws the charts and makes tables sort. No library: the usual ones are megabytes in
// every report (plotly: 4.8 MB), and a report needs four kinds of marks and a heat map. page.py
// joins the parts in the order of its _SCRIPTS.
"use strict";

// --- Elements ------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** Give an element attributes and children; strings become text, never markup. */
function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
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

/** Ticks of an axis that is linear near zero: zero, then 1 and 3 of each power, of either sign. */
function bothTicks([low, high], count, unit) {
  const apart = (high - low) / count * 0.7;
  const farthest = Math.max(Math.abs(low), Math.abs(high));
  const ticks = [{ at: 0, text: "0" }];
  let last = 0;
  for (let exponent = Math.round(Math.log10(unit)); ; exponent += 1) {
    for (const value of [10 ** exponent, 3 * 10 ** exponent]) {
      const at = Math.asinh(value / unit);
      if (at > farthest) return ticks.filter((tick) => tick.at >= low && tick.at <= high);
      if (at - last < apart) continue;
      last = at;
      ticks.push({ at, text: shown(value) }, { at: -at, text: shown(-value) });
    }
  }
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

/** A series' colour; a front joins points of other series, and has none of its own. */
function colourOf(data, index) {
  if (data.series[index].style === "step") return "var(--ink-quiet)";
  const count = data.series.filter(({ style }) => style !== "step").length;
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
  if (style === "points" || (style === "line" && !data.ordered)) {
    picture.append(svg("path", {
      d: markOf(data, index)(4), transform: "translate(11 6)", class: "mark",
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
