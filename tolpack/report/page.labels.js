// Names beside points. Each point of a front gets one: its name where all names have room, else a
// number, and a list below the chart says what the numbers mean. Other points are named where
// there is room.

const LETTER = 0.92; // labels are of 11 pixels, measured at 12
const HIGH = 13;
// How far a name stands from its point, in pixels; a number may stand further away than a name.
const NAME_AWAY = 14;
const NUMBER_AWAY = 70;

/** Places for a label of a width beside a point, the best first: [left, top]. */
function* placesFor({ x, y }, width, farthest) {
  for (let away = 0; away <= farthest; away += 14) {
    const [side, up] = [9 + away, away];
    // No point of a chart is below and to the left of its front.
    yield [x - width - side, y + up - 2];
    yield [x - width / 2, y + side];
    yield [x + side, y - up - 11];
    yield [x + side, y + up - 2];
    yield [x - width - side, y - up - 11];
    yield [x - width / 2, y - side - HIGH];
    yield [x - width - side, y - HIGH / 2];
    yield [x + side, y - HIGH / 2];
  }
}

/** Boxes that labels must not cover: markers, whiskers, and the lines of fronts. */
function coveredBoxes(chart) {
  const around = ({ x, y, scale = 1 }) => {
    const half = 1.2 * scale * markSize(chart) + 1;
    return [x - half, y - half, x + half, y + half];
  };
  const boxes = [...chart.marks, ...chart.spots].map(around);
  for (const { x, whisker } of chart.spots) {
    if (whisker) boxes.push([x - 1, whisker[0], x + 1, whisker[1]]);
  }
  chart.spots.forEach(({ series, x, y }, n) => {
    const { x: a, y: b, series: same } = chart.spots[n - 1] ?? {};
    if (same !== series || series.style !== "step") return;
    boxes.push([Math.min(a, x), b - 1, Math.max(a, x), b + 1]);
    boxes.push([x - 1, Math.min(b, y), x + 1, Math.max(b, y)]);
  });
  return boxes;
}

const overlap = ([a, b, c, d], [e, f, g, h]) => a < g && e < c && b < h && f < d;

/** The first place for a label that is inside the axes and covers nothing. */
function freePlace(chart, spot, width, taken, farthest) {
  const { left, right, top, bottom } = chart.box;
  for (const [a, b] of placesFor(spot, width, farthest)) {
    const box = [a - 2, b, a + width + 2, b + HIGH];
    const inside = box[0] >= left && box[2] <= right && b >= top && box[3] <= bottom;
    if (inside && !taken.some((other) => overlap(box, other))) return box;
  }
  return null;
}

/** Boxes for all texts, or null if one has no room. */
function placeAll(chart, spots, texts, taken, farthest) {
  const own = [...taken];
  const boxes = [];
  for (const [n, spot] of spots.entries()) {
    const box = freePlace(chart, spot, measure(texts[n]) * LETTER, own, farthest);
    if (box === null) return null;
    own.push(box);
    boxes.push(box);
  }
  return boxes;
}

/** A label, and a line from its point where it stands away from it. */
function labelAt(spot, [a, b, c, d], text, kind) {
  const group = svg("g", {});
  const [x, y] = [clamp(spot.x, a, c), clamp(spot.y, b, d)];
  if (Math.hypot(x - spot.x, y - spot.y) > 16) {
    group.append(svg("path", { d: `M${spot.x} ${spot.y}L${x} ${y}`, class: "leader" }));
  }
  group.append(svg("text", { x: a + 2, y: b + 10, class: `label ${kind}` }, text));
  return group;
}

/** Name every point of a front; returns the boxes of the names. */
function drawFront(chart, group, taken) {
  const spots = chart.spots.filter(({ series, point }) => series.style === "step" && point[3]);
  const names = spots.map(({ point }) => point[3]);
  const numbers = names.map((_, n) => String(n + 1));
  let texts = names;
  let boxes = chart.width < 480 ? null : placeAll(chart, spots, names, taken, NAME_AWAY);
  if (boxes === null) {
    texts = numbers;
    boxes = placeAll(chart, spots, numbers, taken, NUMBER_AWAY) ?? spots.map(({ x, y }, n) =>
      [x - 4 - 7 * numbers[n].length, y + 6, x - 4, y + 6 + HIGH]);
  }
  spots.forEach((spot, n) => group.append(labelAt(spot, boxes[n], texts[n], "front")));
  chart.key.replaceChildren(...(texts === names ? [] : names.map((name) => html("li", {}, name))));
  chart.key.hidden = texts === names || !names.length;
  return boxes;
}

/** Write names beside points and lines where they cover nothing. */
function drawLabels(chart) {
  const group = svg("g", { "aria-hidden": "true" });
  const taken = coveredBoxes(chart);
  const front = drawFront(chart, group, taken);
  taken.push(...front);
  const places = new Set(chart.spots.filter(({ series }) => series.style === "step")
    .map(({ x, y }) => `${x} ${y}`));
  const few = ({ style, points }) => style === "points" && points.length <= 12;
  const named = chart.width < 480 || chart.data.categories.length ? []
    : chart.spots.filter(({ series, point, x, y }) =>
      point[3] && few(series) && !places.has(`${x} ${y}`));
  for (const spot of named.slice(0, 60)) {
    const width = measure(spot.point[3]) * LETTER;
    const found = width > 240 ? null : freePlace(chart, spot, width, taken, 0);
    if (!found) continue;
    taken.push(found);
    group.append(labelAt(spot, found, spot.point[3], ""));
  }
  if (chart.box.ends) drawEnds(chart, group);
  return group;
}

/** Write the names of lines at their right ends, moved apart. */
function drawEnds(chart, group) {
  const ends = chart.visible.filter(({ style }) => style === "line").map((series) => {
    const spot = chart.spots.findLast((one) => one.series.index === series.index);
    return spot && { name: series.name, x: spot.x, y: spot.y };
  }).filter(Boolean).sort((a, b) => a.y - b.y);
  ends.forEach((end, n) => {
    if (n) end.y = Math.max(end.y, ends[n - 1].y + 14);
  });
  const over = ends.length ? Math.max(0, ends.at(-1).y - chart.box.bottom) : 0;
  for (const { name, x, y } of ends) {
    group.append(svg("text", { x: x + 8, y: y - over + 4, class: "label" }, name));
  }
}
