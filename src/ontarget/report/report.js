"use strict";
// Without this script the page is complete: tooltips are then the browser's own, and tables stay in their order.

// Tooltips: a mark's <title>, or data-tip, shown at once and also for the keyboard.
const tip = document.getElementById("tip");
const saying = target => {
  const mark = target.closest("[data-tip], svg *");
  if (!mark) return null;
  for (let node = mark; node && node.nodeType === 1 && node.tagName !== "svg"; node = node.parentElement) {
    const title = node.namespaceURI.endsWith("svg") ? [...node.children].find(child => child.tagName === "title") : null;
    if (title) { node.dataset.tip = title.textContent; title.remove(); }
    if (node.dataset.tip) return node;
  }
  return null;
};
const show = (node, x, y) => {
  tip.textContent = node.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + "px";
};
const hide = () => { tip.hidden = true; };
document.addEventListener("pointermove", event => {
  const node = event.target instanceof Element && saying(event.target);
  if (node) show(node, event.clientX, event.clientY); else hide();
});
document.addEventListener("focusin", event => {
  const node = event.target instanceof Element && saying(event.target);
  if (!node) return hide();
  const box = node.getBoundingClientRect();
  show(node, box.right, box.top);
});
document.addEventListener("focusout", hide);
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
addEventListener("scroll", hide, { passive: true });
for (const plot of document.querySelectorAll("#pareto .plot, #calibration .plot")) {
  plot.setAttribute("role", "group");
  for (const mark of plot.querySelectorAll(".mark")) {
    mark.setAttribute("tabindex", "0");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", mark.textContent.replaceAll("\n", ", "));
  }
}

// Sorting: numbers by data-sort, text by its words; what is missing stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = head.classList.contains("n");
      const key = row => {
        const cell = row.cells[column];
        return numeric ? (cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort)) : cell.textContent.trim();
      };
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (!numeric) return (up ? 1 : -1) * x.localeCompare(y);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return up ? x - y : y - x;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

// Filtering: rows that hold all the words.
for (const table of document.querySelectorAll("table.filterable")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 6) continue;
  const bar = document.createElement("div"), input = document.createElement("input"), count = document.createElement("span");
  bar.className = "filter";
  count.className = "soft";
  count.setAttribute("aria-live", "polite");
  input.type = "search";
  input.placeholder = "Filter rows";
  input.setAttribute("aria-label", "Filter rows by words");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
  bar.append(input, count);
  (table.closest(".scroll") || table).before(bar);
}

// On paper everything is open.
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
