// The boxes that a detector finds, over what it sees, from a score on.

import { $, barCell, el, fillTable, percent } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const colorOf = (index) => `hsl(${Math.round(index * 137.5) % 360} 90% 65%)`;

/** Styles are set by script: the server allows none in attributes. */
function colored(element, { index }) {
  element.style.setProperty("--class", colorOf(index));
  return element;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export class Boxes {
  /** stack: the picture that they lie on. */
  constructor(page, stack) {
    Object.assign(this, { page, stack, of: null });
    this.layer = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    stack.box.append(this.layer);
    $("least").addEventListener("input", () => this.#show());
    page.on((changed) => changed.has("image") && this.update());
  }

  update() {
    const { model, answer } = this.page;
    const has = model.can.includes("boxes");
    for (const id of ["boxes", "boxes-table"]) $(id).hidden = !has;
    if (has && this.of !== model.name) $("least").value = model.threshold;
    this.of = model.name;
    this.found = has ? answer.detections : [];
    this.#show();
  }

  #show() {
    const least = Number($("least").value);
    const [height, width] = this.page.model.image_size;
    const shown = this.found.filter(({ score }) => score >= least);
    $("least-value").textContent = `${Math.round(100 * least)} %`;
    this.stack.boxes = shown.map(({ box, index }) => ({
      box: box.map((edge, i) => edge / (i % 2 ? height : width)), color: colorOf(index) }));
    this.layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
    // The best ones above the others, so that the pointer finds them first.
    this.layer.replaceChildren(...shown.map((each) => this.#box(each)).reverse());
    fillTable($("boxes-table"), shown.map((each) => {
      const swatch = colored(el("span", { class: "swatch", "aria-hidden": "true" }), each);
      return [el("span", {}, swatch, each.label), barCell(each.score)];
    }));
    [...$("boxes-table").tBodies[0].rows].forEach((row, i) => this.#follow(row, i, shown));
    this.#say(null, shown);
  }

  #box(each) {
    const [x0, y0, x1, y1] = each.box;
    const place = { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) };
    const rect = colored(svg("rect", place, svg("title", {}, `${each.label}, ${percent(each.score)}`)), each);
    return svg("g", {}, svg("rect", { ...place, class: "under" }), rect);
  }

  /** Pointing at a row or at its box shows both. */
  #follow(row, i, shown) {
    const rect = this.layer.children[shown.length - 1 - i].lastChild;
    for (const part of [row, rect]) {
      for (const [name, is] of [["pointerenter", true], ["pointerleave", false]])
        part.addEventListener(name, () => {
          row.classList.toggle("chosen", is);
          rect.classList.toggle("chosen", is);
          this.#say(is ? shown[i] : null, shown);
        });
    }
  }

  #say(each, shown) {
    const count = `${shown.length} of ${this.found.length} boxes`;
    const places = each?.box.map((edge) => edge.toFixed(1));
    $("box-value").textContent = each
      ? `${each.label}, ${percent(each.score)}: x ${places[0]} to ${places[2]}, y ${places[1]} to ${places[3]}` : count;
  }
}
