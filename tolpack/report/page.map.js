// The map of the vocabulary: a place for each token and layer, drawn into the pixels of a canvas.
//
// A vocabulary has up to some hundred thousand tokens. Elements or canvas paths for each would take
// seconds; setting pixels of an ImageData takes a few milliseconds a frame. Layers are stored
// deflated and are unpacked when they are first shown.

const LABELS = 70; // texts of tokens on the map at once, and how many tokens are tried for them
const TRIED = 2500;
const HITS = 12;
const RINGS = 300;
const REACH = 14; // pixels from which a token is shown

/** Unpack a base64 text of zlib bytes. */
async function unpacked(id) {
  const packed = atob(document.getElementById(id).textContent.trim());
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Places in the unit square and clusters of a layer, from planes of bytes. */
function readLayer(bytes, count) {
  const plane = (n) => bytes.subarray(n * count, (n + 1) * count);
  const [xHigh, xLow, yHigh, yLow, labels] = [0, 1, 2, 3, 4].map(plane);
  const [x, y] = [new Float32Array(count), new Float32Array(count)];
  for (let n = 0; n < count; n += 1) {
    x[n] = (xHigh[n] * 256 + xLow[n]) / 65535;
    y[n] = (yHigh[n] * 256 + yLow[n]) / 65535;
  }
  return { x, y, labels, order: looseFirst(labels) };
}

/** Tokens in the order in which they are drawn: those of the closest clusters come last, on top. */
function looseFirst(labels) {
  const starts = new Uint32Array(257);
  for (const label of labels) starts[255 - label + 1] += 1;
  for (let n = 0; n < 256; n += 1) starts[n + 1] += starts[n];
  const order = new Uint32Array(labels.length);
  labels.forEach((label, token) => { order[starts[255 - label]++] = token; });
  return order;
}

const painter = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** A CSS colour as the number that a little-endian Uint32Array of pixels holds. */
function pixelOf(colour) {
  painter.fillStyle = colour;
  painter.fillRect(0, 0, 1, 1);
  const [r, g, b] = painter.getImageData(0, 0, 1, 1).data;
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

/** Offsets of the pixels of a disc in rows of a width. */
function disc(radius, width) {
  const offsets = [];
  const reach = Math.floor(radius);
  for (let dy = -reach; dy <= reach; dy += 1) {
    for (let dx = -reach; dx <= reach; dx += 1) {
      if (dx * dx + dy * dy <= radius * radius + 0.5) offsets.push(dy * width + dx);
    }
  }
  return Int32Array.from(offsets);
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

class TokenMap {
  constructor(root, index, texts) {
    this.index = index;
    this.texts = texts;
    this.lower = null;
    this.layers = new Map();
    this.isolated = null;
    this.chosen = null;
    this.hits = [];
    this.build(root);
    this.whole = { x: 0.5, y: 0.5, zoom: 1 };
    this.view = { ...this.whole };
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    const repaint = () => { this.paint(); this.listClusters(); this.later(); };
    new MutationObserver(repaint)
      .observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    listenToMap(this);
  }

  build(root) {
    const button = (name, label, act) => {
      const one = html("button", { type: "button", "aria-label": label, title: label }, name);
      one.addEventListener("click", act);
      return one;
    };
    this.layerButtons = this.index.layers.map(({ layer }, n) =>
      button(String(layer), `Layer ${layer}`, () => this.show(n)));
    this.input = html("input", {
      type: "search", placeholder: this.texts ? "Find a token, or #id" : "Find a token by #id",
      "aria-label": "Find a token", autocomplete: "off", spellcheck: "false",
    });
    this.found = html("div", { class: "map-found", role: "group", "aria-label": "Tokens found" });
    this.canvas = html("canvas", {
      tabindex: 0, role: "application", "aria-roledescription": "map",
      "aria-label": "Map of the vocabulary. Arrow keys move it, plus and minus zoom, 0 shows all, " +
        "Escape shows all clusters. Tokens can be found by the search field.",
    });
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.tooltip = html("div", { class: "tooltip" });
    this.clusters = html("ul", { class: "map-clusters", "aria-label": "Clusters", tabindex: -1 });
    this.status = html("p", { class: "map-status", role: "status" });
    const middle = (factor) => () => this.zoom(factor, this.width / 2, this.height / 2);
    root.replaceChildren(
      html("div", { class: "map-tools" },
        html("div", { class: "map-layers", role: "group", "aria-label": "Layer" },
          html("span", {}, "Layer"), ...this.layerButtons),
        html("div", { class: "map-search" }, this.input, this.found)),
      html("div", { class: "map-plot" }, this.canvas,
        html("div", { class: "map-zoom" }, button("+", "Zoom in", middle(1.6)),
          button("−", "Zoom out", middle(1 / 1.6)),
          button("All", "Show all", () => this.fly(this.whole))),
        this.tooltip),
      html("div", { class: "map-side" }, this.clusters),
      this.status);
  }

  /** Show a layer; a token that was chosen stays in the middle. */
  async show(number) {
    this.wanted = number;
    if (!this.layers.has(number)) {
      this.layers.set(number, readLayer(await unpacked(`map-layer-${number}`), this.index.tokens));
    }
    if (this.wanted !== number) return; // another one was asked for meanwhile
    this.number = number;
    this.layer = this.layers.get(number);
    this.info = this.index.layers[number].clusters;
    this.isolated = null;
    this.order = labelOrder(this.info, this.index.tokens);
    this.layerButtons.forEach((one, n) => one.setAttribute("aria-pressed", String(n === number)));
    this.point(null);
    this.paint();
    this.listClusters();
    if (this.chosen !== null && this.view.zoom > 1.01) {
      this.view.x = this.layer.x[this.chosen];
      this.view.y = this.layer.y[this.chosen];
    }
    this.say();
    this.draw();
  }

  name(token) {
    const text = this.texts?.[token];
    return text === undefined || text === null ? `#${token}` : `‘${text}’`;
  }

  /** Colours of all clusters in the theme that is on; the wider a cluster, the paler. */
  paint() {
    const style = getComputedStyle(this.canvas);
    this.paper = style.backgroundColor;
    this.ink = style.color;
    const background = pixelOf(this.paper);
    const dark = (background & 255) < 128;
    this.colours = (this.info ?? []).map((_, n) => {
      const pale = (n / Math.max(1, this.info.length - 1)) ** 2;
      const light = (dark ? 0.76 - 0.2 * pale : 0.6 + 0.2 * pale) + [0, 0.06, -0.06][n % 3];
      const chroma = (dark ? 0.14 : 0.17) * (1 - 0.6 * pale);
      return `oklch(${light} ${chroma} ${(n * 137.508 + 25) % 360})`;
    });
    this.pixels = Uint32Array.from(this.colours, pixelOf);
    this.background = background;
    this.faint = pixelOf(dark ? "#343a42" : "#dedbd4");
  }

  listClusters() {
    this.clusters.replaceChildren(...(this.info ?? []).map((cluster, n) => {
      const swatch = html("i", {});
      swatch.style.background = this.colours[n];
      const words = cluster.tokens.map((token) => this.texts?.[token]?.trim() || `#${token}`)
        .join(", ");
      const key = cluster.key === null ? "" : `key ${cluster.key[0]}, ${cluster.key[1]} %`;
      const label = html("span", {}, words);
      const button = html("button", {
        type: "button", "aria-pressed": String(this.isolated === n),
        title: `Cluster ${n}: ${cluster.size} tokens${key && `; of them use ${key}`}`,
      }, swatch, label, html("small", {}, String(cluster.size)));
      button.addEventListener("click", () => this.isolate(this.isolated === n ? null : n));
      return html("li", {}, button);
    }));
  }

  isolate(number) {
    this.isolated = number;
    [...this.clusters.querySelectorAll("button")].forEach((one, n) =>
      one.setAttribute("aria-pressed", String(n === number)));
    this.point(null);
    this.say();
    this.later();
  }

  say() {
    const { layer, clusters } = this.index.layers[this.number];
    const parts = [`Layer ${layer}`];
    const number = this.isolated ?? (this.chosen === null ? null : this.layer.labels[this.chosen]);
    if (this.chosen !== null) parts.push(`token ${this.name(this.chosen)} (#${this.chosen})`);
    if (number !== null) {
      const { size, key } = clusters[number];
      parts.push(`cluster ${number} with ${size} tokens`);
      if (key) parts.push(`${key[1]} % of them use key ${key[0]}, and ${key[2]} % of all tokens`);
    } else {
      parts.push(`${this.index.tokens.toLocaleString("en")} tokens in ${clusters.length} clusters`);
    }
    this.status.textContent = parts.join(", ") + ".";
  }

  // --- Drawing -----------------------------------------------------------------------------------

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return;
    this.dpr = Math.min(2, devicePixelRatio || 1);
    [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(clientWidth * this.dpr);
    this.canvas.height = Math.round(clientHeight * this.dpr);
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.buffer = new Uint32Array(this.image.data.buffer);
    if (this.layer) this.draw();
  }

  later() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  /** Pixels of the canvas, in CSS size, for a unit of the map. */
  get scale() { return Math.min(this.width, this.height) * 0.94 * this.view.zoom; }

  toScreen(token) {
    const { scale, view, layer } = this;
    return [(layer.x[token] - view.x) * scale + this.width / 2,
      (layer.y[token] - view.y) * scale + this.height / 2];
  }

  draw() {
    if (!this.layer || !this.buffer) return;
    const began = performance.now();
    const sparse = Math.sqrt(20000 / Math.max(2000, this.index.tokens));
    const radius = clamp(1.35 * sparse * this.view.zoom ** 0.4, 0.7, 5) * this.dpr;
    this.buffer.fill(this.background);
    if (this.isolated === null) {
      this.stamp(radius, null, null);
    } else {
      this.stamp(radius, null, this.faint);
      this.stamp(radius * 1.3, this.isolated, null);
    }
    this.context.putImageData(this.image, 0, 0);
    this.context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
    this.drawLabels();
    this.drawRings();
    this.drawMs = performance.now() - began;
    performance.mark("tolpack:map");
  }

  /** Set the pixels of the tokens of one cluster, or of all, in their colours, or in one. */
  stamp(radius, only, colour) {
    const { layer: { x, y, labels, order }, buffer, pixels, view, dpr } = this;
    const [w, h] = [this.canvas.width, this.canvas.height];
    const offsets = disc(Math.max(0.7, radius), w);
    const scale = this.scale * dpr;
    const [left, top] = [w / 2 - view.x * scale, h / 2 - view.y * scale];
    const edge = Math.ceil(radius) + 1;
    for (const n of order) {
      const label = labels[n];
      if (only !== null && label !== only) continue;
      const px = Math.round(x[n] * scale + left);
      const py = Math.round(y[n] * scale + top);
      if (px < edge || py < edge || px >= w - edge || py >= h - edge) continue;
      const at = py * w + px;
      const value = colour ?? pixels[label];
      for (let k = 0; k < offsets.length; k += 1) buffer[at + offsets[k]] = value;
    }
  }

  /** Write texts of tokens where they cover no other. */
  drawLabels() {
    if (!this.texts) return;
    const { context } = this;
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 3;
    const taken = new Uint8Array(Math.ceil(this.width / 8) * Math.ceil(this.height / 8));
    let [placed, tried] = [0, 0];
    const wanted = [...(this.chosen === null ? [] : [this.chosen]), ...this.hits.slice(0, RINGS)];
    for (const order of [wanted, this.order]) {
      for (const token of order) {
        if (this.isolated !== null && this.layer.labels[token] !== this.isolated) continue;
        const [x, y] = this.toScreen(token);
        if (order === this.order && (this.texts[token] ?? "").trim().length < 2) continue;
        if (x < 4 || y < 10 || x > this.width - 20 || y > this.height - 10) continue;
        tried += 1;
        if (placed >= LABELS || tried > TRIED) return;
        if (this.label(token, x + 6, y, taken)) placed += 1;
      }
    }
  }

  label(token, x, y, taken) {
    const text = this.texts[token]?.trim();
    if (!text) return false;
    const cut = text.length > 24 ? `${text.slice(0, 23)}…` : text;
    const columns = Math.ceil(this.width / 8);
    const [a, b] = [Math.floor(x / 8), Math.floor((x + cut.length * 7) / 8)];
    const [c, d] = [Math.floor((y - 7) / 8), Math.floor((y + 7) / 8)];
    if (b >= columns) return false;
    for (let row = c; row <= d; row += 1) {
      for (let column = a; column <= b; column += 1) {
        if (taken[row * columns + column]) return false;
      }
    }
    for (let row = c; row <= d; row += 1) taken.fill(1, row * columns + a, row * columns + b + 1);
    this.context.strokeStyle = this.paper;
    this.context.strokeText(cut, x, y);
    this.context.fillStyle = this.ink;
    this.context.fillText(cut, x, y);
    return true;
  }

  drawRings() {
    const { context } = this;
    context.strokeStyle = this.ink;
    const ring = (token, radius, width) => {
      const [x, y] = this.toScreen(token);
      context.lineWidth = width;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.stroke();
    };
    for (const token of this.hits.slice(0, RINGS)) ring(token, 5, 1.25);
    if (this.chosen !== null) ring(this.chosen, 8, 2.5);
    if (this.pointed !== null && this.pointed !== undefined) ring(this.pointed, 6, 1.5);
  }

  // --- View --------------------------------------------------------------------------------------

  look(view) {
    this.view = {
      x: clamp(view.x, 0, 1), y: clamp(view.y, 0, 1), zoom: clamp(view.zoom, 0.6, 400),
    };
    this.later();
  }

  /** Zoom by a factor about a place of the canvas. */
  zoom(factor, x, y) {
    this.flight = null;
    const zoom = clamp(this.view.zoom * factor, 0.6, 400);
    const change = 1 / this.scale - 1 / (this.scale / this.view.zoom * zoom);
    this.look({
      x: this.view.x + (x - this.width / 2) * change,
      y: this.view.y + (y - this.height / 2) * change,
      zoom,
    });
  }

  /** Move to a view in half a second; at once, if the reader wants no motion. */
  fly(to) {
    const from = { ...this.view };
    const began = performance.now();
    const flight = {};
    this.flight = flight;
    const step = () => {
      if (this.flight !== flight) return;
      const part = still.matches ? 1 : Math.min(1, (performance.now() - began) / 500);
      const eased = part * part * (3 - 2 * part);
      this.look({
        x: from.x + (to.x - from.x) * eased,
        y: from.y + (to.y - from.y) * eased,
        zoom: from.zoom * (to.zoom / from.zoom) ** eased,
      });
      if (part < 1) requestAnimationFrame(step);
      else this.flight = null;
    };
    step();
  }

  /** Choose a token, and fly to it. */
  choose(token) {
    this.chosen = token;
    if (this.isolated !== null && this.layer.labels[token] !== this.isolated) this.isolate(null);
    this.say();
    this.fly({ x: this.layer.x[token], y: this.layer.y[token], zoom: Math.max(8, this.view.zoom) });
  }

  // --- Tokens ------------------------------------------------------------------------------------

  nearest(x, y) {
    const { layer, scale, view } = this;
    const [mx, my] = [(x - this.width / 2) / scale + view.x, (y - this.height / 2) / scale + view.y];
    let [best, least] = [null, (REACH / scale) ** 2];
    for (let n = 0; n < layer.x.length; n += 1) {
      if (this.isolated !== null && layer.labels[n] !== this.isolated) continue;
      const [dx, dy] = [layer.x[n] - mx, layer.y[n] - my];
      const square = dx * dx + dy * dy;
      if (square < least) [best, least] = [n, square];
    }
    return best;
  }

  /** Show the tooltip of a token; of none with null. */
  point(token) {
    if (token === this.pointed) return;
    this.pointed = token;
    if (token === null) {
      this.tooltip.replaceChildren();
    } else {
      const number = this.layer.labels[token];
      const { size, key } = this.info[number];
      const lines = [["id", String(token)], ["cluster", `${number}, ${size} tokens`]];
      if (key) lines.push(["its key", `${key[0]}, of ${key[1]} %`]);
      showTooltip(this.tooltip, this.name(token), lines, ...this.toScreen(token));
    }
    this.later();
  }

  /** Tokens of a query: the same text first, then texts that begin with it, then others. */
  search(query) {
    const id = /^#(\d+)$/.exec(query);
    if (id) return Number(id[1]) < this.index.tokens ? [Number(id[1])] : [];
    const text = query.trim().toLowerCase();
    if (!text || !this.texts) return [];
    this.lower ??= this.texts.map((one) => (one ?? "").trim().toLowerCase());
    const ranked = [[], [], []];
    this.lower.forEach((one, token) => {
      if (one === text) ranked[0].push(token);
      else if (one.startsWith(text)) ranked[1].push(token);
      else if (one.includes(text)) ranked[2].push(token);
    });
    return ranked.flat();
  }

  find(query) {
    this.hits = this.search(query);
    const shown = this.hits.slice(0, HITS).map((token) => {
      const button = html("button", { type: "button" }, this.name(token),
        html("small", {}, `#${token}`));
      button.addEventListener("click", () => { this.choose(token); this.closeFound(); });
      return button;
    });
    const rest = this.hits.length - shown.length;
    if (rest > 0) shown.push(html("p", {}, `and ${rest.toLocaleString("en")} more`));
    if (query.trim() && !shown.length) shown.push(html("p", {}, "No such token"));
    this.found.replaceChildren(...shown);
    if (!query.trim()) {
      this.chosen = null;
      this.say();
    }
    this.later();
  }

  closeFound() { this.found.replaceChildren(); }
}

/** Tokens in the order in which they get a label: the middle of each cluster first. */
function* interleaved(clusters) {
  const most = Math.max(0, ...clusters.map(({ tokens }) => tokens.length));
  for (let n = 0; n < most; n += 1) {
    for (const { tokens } of clusters) if (n < tokens.length) yield tokens[n];
  }
}

function labelOrder(clusters, count) {
  const order = new Set(interleaved(clusters));
  for (let token = 0; token < count; token += 1) order.add(token);
  return [...order];
}

function listenToMap(map) {
  const { canvas } = map;
  const at = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };
  canvas.addEventListener("wheel", (event) => {
    // As on charts: a wheel scrolls the page until the reader has turned to the map.
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    map.zoom(1.0018 ** -event.deltaY, ...at(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => map.zoom(2, ...at(event)));
  canvas.addEventListener("keydown", (event) => mapKey(map, event));
  canvas.addEventListener("pointerleave", () => map.point(null));
  map.input.addEventListener("input", () => map.find(map.input.value));
  map.input.addEventListener("focus", () => { if (map.input.value) map.find(map.input.value); });
  map.input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && map.hits.length) {
      map.choose(map.hits[0]);
      map.closeFound();
    } else if (event.key === "Escape") {
      map.closeFound();
    }
  });
  document.addEventListener("pointerdown", (event) => {
    if (!map.input.parentElement.contains(event.target)) map.closeFound();
  });
  dragMap(map, at);
}

/** One pointer moves the map, two zoom it. */
function dragMap(map, at) {
  const { canvas } = map;
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return [Math.hypot(a[0] - b[0], a[1] - b[1]), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    map.flight = null;
    pointers.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    map.point(null);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!map.layer) return;
    const to = at(event);
    if (!pointers.has(event.pointerId)) {
      map.point(map.nearest(...to));
      return;
    }
    const from = pointers.get(event.pointerId);
    const [before] = pointers.size === 2 ? spread() : [0];
    pointers.set(event.pointerId, to);
    if (pointers.size === 2) {
      const [after, x, y] = spread();
      if (before && after) map.zoom(after / before, x, y);
    } else {
      map.look({
        ...map.view, x: map.view.x - (to[0] - from[0]) / map.scale,
        y: map.view.y - (to[1] - from[1]) / map.scale,
      });
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
}

function mapKey(map, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const zoom = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
  const way = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  }[event.key];
  if (zoom) map.zoom(zoom, map.width / 2, map.height / 2);
  else if (way) {
    const step = 60 / map.scale;
    map.look({ ...map.view, x: map.view.x + way[0] * step, y: map.view.y + way[1] * step });
  } else if (event.key === "0") map.fly(map.whole);
  else if (event.key === "Escape") map.isolate(null);
  else return;
  event.preventDefault();
}

async function startMap() {
  const index = JSON.parse(document.getElementById("map-index").textContent);
  const texts = index.named
    ? JSON.parse(new TextDecoder().decode(await unpacked("map-texts"))) : null;
  const map = new TokenMap(document.getElementById("map"), index, texts);
  await map.show(0);
  return map;
}

const tokenMap = startMap();
