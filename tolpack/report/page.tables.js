// Tables that sort and become cards, and buttons that copy commands.

const collator = new Intl.Collator("en", { numeric: true });

/** Let each heading of a table sort its rows: numbers by value, what is not known last. */
function makeSortable(table) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = (cell.querySelector("span") ?? cell).textContent; // not that of a button
    return cell.classList.contains("number") || text === "–" ? null : text;
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

/** Name each cell after its column, for the cards that a narrow window shows in place of rows. */
function makeCards(table) {
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const row of table.tBodies[0].rows) {
    names.forEach((name, n) => { row.cells[n].dataset.label = name; });
  }
  table.classList.add("cards");
}

/** Copy a text; without a secure context there is no clipboard object, only the older command. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // there is none, or it is not allowed
    const area = html("textarea", { readonly: "", class: "copied", "aria-hidden": "true" });
    area.value = text;
    const focus = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focus?.focus({ preventScroll: true });
    return done;
  }
}

/** Add a button that copies a command, or selects what is shown where copying is not allowed. */
function addCopyButton(box, command, shown) {
  const button = html("button", { type: "button", class: "copy", title: command }, "Copy");
  button.addEventListener("click", async () => {
    if (await copied(command)) button.textContent = "Copied";
    else {
      getSelection().selectAllChildren(shown);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  shown.parentElement === box ? shown.after(button) : box.append(button); // above a note
}
