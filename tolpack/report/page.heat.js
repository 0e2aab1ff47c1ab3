// Tables of numbers as colours.

class Heat {
  constructor(figure, data, width) {
    this.data = data;
    this.width = width;
    this.plot = figure.querySelector(".plot");
    this.tooltip = html("div", { class: "tooltip", role: "status" });
    this.svg = svg("svg", {
      role: "application", tabindex: 0, "aria-roledescription": "heat map",
      "aria-label": `${data.title}. Arrow keys go from cell to cell; the numbers follow as a table.`,
    });
    this.plot.replaceChildren(this.svg, this.tooltip);
    const values = data.values.flat().filter((value) => value !== null);
    const positive = values.filter((value) => value > 0);
    this.log = data.log && positive.length > 0;
    const scaled = this.log ? positive : values;
    this.range = scaled.length ? [Math.min(...scaled), Math.max(...scaled)] : [null, null];
    this.draw();
    this.svg.addEventListener("pointermove", (event) => this.select(this.cellAt(event)));
    this.svg.addEventListener("pointerdown", (event) => this.select(this.cellAt(event)));
    this.svg.addEventListener("pointerleave", () => this.select(null));
    this.svg.addEventListener("blur", () => this.select(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  /** Where a number is between the least and the largest, from 0 to 1. */
  share(value) {
    if (this.log && value <= this.range[0]) return 0;
    const [low, high, at] = [...this.range, value].map((one) => (this.log ? Math.log(one) : one));
    return high > low ? (at - low) / (high - low) : 0.5;
  }

  draw() {
    const { data } = this;
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
    const { rows, columns, rowLabel, columnLabel, label, unit } = this.data;
    showTooltip(this.tooltip, `${label}: ${shown(value)} ${unit}`, [
      [rowLabel || "row", rows[at.row]], [columnLabel || "column", columns[at.column]],
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
