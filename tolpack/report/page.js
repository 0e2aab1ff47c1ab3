// Tables, theme, commands, and the start of it all.

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

/** Draw all charts, and again when their width changes. */
function drawCharts() {
  const drawn = JSON.parse(document.getElementById("chart-data").textContent);
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const widthOf = (figure) => Math.max(240, figure.clientWidth);
  const widths = figures.map(widthOf); // all before the first change: one layout, not one a chart
  const charts = new Map();
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = charts.get(target);
      if (!target.clientWidth || widthOf(target) === chart.width) continue;
      chart.width = widthOf(target);
      chart.draw();
    }
  });
  figures.forEach((figure, n) => {
    const data = drawn[figure.dataset.chart];
    charts.set(figure, new (data.kind === "heat" ? Heat : Chart)(figure, data, widths[n]));
    observer.observe(figure);
    performance.mark("tolpack:chart");
  });
}

addThemeButton();
drawCharts();
document.querySelectorAll("table").forEach(makeSortable);
document.querySelectorAll(".command").forEach(addCopyButton);
performance.mark("tolpack:ready");
