// Theme, and the start of it all.

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
document.querySelectorAll(".table:not(.matrix) > table").forEach(makeCards);
for (const box of document.querySelectorAll(".command")) {
  const code = box.querySelector("code");
  addCopyButton(box, code.textContent, code);
}
for (const cell of document.querySelectorAll("[data-command]")) {
  addCopyButton(cell, cell.dataset.command, cell.querySelector("span"));
}
performance.mark("tolpack:ready");
