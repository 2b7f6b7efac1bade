// Without this script the page is whole; with it tables sort and filter.
"use strict";

function key(cell) {
  if (cell.dataset.value === undefined) return cell.textContent.trim().toLocaleLowerCase();
  return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, place) => ({ row, place, key: key(row.cells[column]) }));
  const sign = descending ? -1 : 1;
  rows.sort((a, b) => {
    const absent = Number.isNaN(a.key) - Number.isNaN(b.key);
    if (absent) return absent;  // rows without a number stay last
    const order = typeof a.key === "string" ? a.key.localeCompare(b.key, undefined, { numeric: true }) : a.key - b.key;
    return Number.isNaN(order) || order === 0 ? a.place - b.place : sign * order;
  });
  body.append(...rows.map((one) => one.row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    // No button element: in print browsers leave those out where a table's head is repeated.
    const button = document.createElement("span");
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    const act = () => {
      const before = head.getAttribute("aria-sort");
      // Numbers begin with the largest, names with the first.
      sort(table, column, before ? before === "ascending" : head.classList.contains("num"));
    };
    button.addEventListener("click", act);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act();
    });
  });
}

for (const table of document.querySelectorAll("table[data-filterable]")) {
  const label = document.createElement("label");
  const field = document.createElement("input");
  label.className = "filter";
  field.type = "search";
  label.append("Show only names with", field);
  table.parentElement.before(label);
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLocaleLowerCase();
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLocaleLowerCase().includes(wanted);
    }
  });
}
