"use strict";
// Sorting by a click on a column's head, searching, choosing a comparison.  Without this script all rows are shown.

function sortTable(head) {
  const table = head.closest("table");
  const column = Array.prototype.indexOf.call(head.parentNode.children, head);
  const isNumber = head.classList.contains("n");
  const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : isNumber;
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.children[column];
    const text = cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
    return isNumber ? (text === "" || isNaN(text) ? null : Number(text)) : text.toLowerCase();
  };
  const keyed = Array.from(table.tBodies[0].rows, (row, place) => ({ row, place, value: value(row) }));
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place; // none: last
    const order = isNumber ? a.value - b.value : a.value.localeCompare(b.value);
    return (descending ? -order : order) || a.place - b.place;
  });
  table.tBodies[0].append(...keyed.map((item) => item.row));
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => sortTable(head));
}

const search = document.getElementById("search");
if (search) {
  const choice = document.getElementById("comparison");
  const only = document.getElementById("changed");
  const shown = document.getElementById("shown");
  const rows = Array.from(document.querySelectorAll("table.utterances tbody tr"), (row) => ({ row, text: row.textContent.toLowerCase() }));
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const { row, text } of rows) {
      const fits = (!choice.value || row.dataset.comparison === choice.value) && (!only.checked || row.dataset.changed === "1");
      row.hidden = !(fits && words.every((word) => text.includes(word)));
      visible += !row.hidden;
    }
    shown.textContent = visible + (visible === 1 ? " utterance" : " utterances");
  };
  for (const control of [search, choice, only]) control.addEventListener("input", filter);
  if (choice.options.length > 1) choice.selectedIndex = 1;
  filter();
}

// A link to a picture opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}
window.addEventListener("hashchange", openTarget);
openTarget();
document.documentElement.dataset.ready = "yes";
