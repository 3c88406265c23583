// Small helpers around the document.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; text stays text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const percent = (share) => (Number.isNaN(share) ? "–" : `${(100 * share).toFixed(3)} %`);
export const short = (number) => number.toFixed(3);
/** A token with its blanks and line breaks shown. */
export const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
export const placeName = ([row, column]) => `row ${row}, column ${column}`;

/** A cell with a bar as long as the share, and the share in figures. */
export function barCell(share) {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  return el("td", { class: "share" }, el("span", { class: "bar", "aria-hidden": "true" }, fill),
    el("span", { class: "number" }, percent(share)));
}

/** Fills a table's body: each row an array of cells, the first of them its heading. */
export function fillTable(table, rows) {
  table.tBodies[0].replaceChildren(...rows.map(([first, ...cells]) =>
    el("tr", {}, el("th", { scope: "row" }, first),
      ...cells.map((cell) => (cell instanceof Node ? cell : el("td", {}, cell))))));
}

/** Shows a mistake beside what it belongs to, or takes it away. */
export function showMessage(id, message = "") {
  $(id).textContent = message;
  $(id).hidden = !message;
}

/** Where the largest number is. */
export function greatest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (!(values[i] <= values[best])) best = i;
  return best;
}
