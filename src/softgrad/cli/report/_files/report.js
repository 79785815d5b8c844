"use strict";
// Headers become buttons that sort; without the script the tables are tables.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    const numeric = header.classList.contains("n");
    const value = (row) => (numeric ? Number(row.cells[column].dataset.value) : row.cells[column].textContent.trim());
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      // Numbers begin with the largest, words with A; the third click is the order of the file.
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const next = before === null ? first : before === first ? second : null;
      for (const other of headers) other.removeAttribute("aria-sort");
      if (next === null) {
        body.append(...rows);
        return;
      }
      header.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!numeric) return sign * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // no number: last either way
        return sign * (x - y || 0);
      };
      body.append(...[...rows].sort(compare));
    });
  });
}
// Paper has no summary to click on.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
