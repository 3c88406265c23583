// One picture with a map over it, whose patches can be pointed at, chosen and read.

import { heat } from "./colors.js";
import { el, greatest, placeName } from "./dom.js";

export const SHARP = 64; // pixels; smaller pictures are enlarged without blur
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const stacks = [];

/** The patch under the pointer is outlined in every map, so that the eye finds it again. */
function pointAt(place) {
  for (const stack of stacks) stack.point(place);
}

export class Stack {
  /**
   * figure: where it goes, with the title in its heading. options.pick: what to do with a chosen patch; options.key:
   * with a key that moves no patch, true if it was used; options.format: a value as text; options.idle: what stands
   * below where no patch is meant, else the largest value; options.name: a place as text; options.onOutput: called with a value that is shown there,
   * or with null.
   */
  constructor(figure, { pick, key = null, format = String, idle = null, name = placeName, onOutput = null }) {
    Object.assign(this, { figure, pick, format, idle, name, onOutput, values: null, place: null, grid: [1, 1] });
    this.image = el("img", { alt: "" });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.lines = el("span", { class: "lines", "aria-hidden": "true" });
    this.chosen = el("span", { class: "mark chosen", hidden: "" });
    this.pointed = el("span", { class: "mark pointed", hidden: "" });
    this.box = el("div", { class: "stack" }, this.image, this.canvas, this.lines, this.pointed, this.chosen);
    figure.querySelector(".slot").replaceWith(this.box);
    this.scale = figure.querySelector(".scale");
    this.output = figure.querySelector(".value");
    this.box.addEventListener("pointermove", (event) => pointAt(this.#under(event)));
    this.box.addEventListener("pointerleave", () => pointAt(null));
    this.box.addEventListener("click", (event) => this.pick(this.#under(event)));
    if (key) this.#listen(key);
    else this.#describe();
    stacks.push(this);
  }

  /** The one in this figure. */
  static of(figure) {
    return stacks.find((stack) => stack.figure === figure);
  }

  /** Accessible names: a picture is named as its heading, described by the value below it. */
  #describe() {
    const heading = this.figure.querySelector("h3");
    heading.id ||= `${this.figure.id}-title`;
    this.output.id ||= `${this.figure.id}-value`;
    for (const [name, value] of [["role", "img"], ["aria-labelledby", heading.id], ["aria-describedby", this.output.id]])
      this.box.setAttribute(name, value);
  }

  /** Whether the keyboard comes here and moves a patch. */
  listens(does) {
    this.box.tabIndex = does ? 0 : -1;
    this.box.setAttribute("role", does ? "application" : "img");
  }

  #listen(key) {
    this.listens(true);
    this.box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const [rows, columns] = this.grid;
      let [row, column] = this.place ?? [0, 0];
      if (event.key in KEYS) {
        row = Math.min(rows - 1, Math.max(0, row + KEYS[event.key][0]));
        column = Math.min(columns - 1, Math.max(0, column + KEYS[event.key][1]));
      } else if (event.key === "Home") column = 0;
      else if (event.key === "End") column = columns - 1;
      else if (event.key === "PageUp") row = 0;
      else if (event.key === "PageDown") row = rows - 1;
      else {
        if (key(event.key)) event.preventDefault();
        return;
      }
      event.preventDefault();
      this.pick([row, column]);
    });
  }

  #under(event) {
    const box = this.box.getBoundingClientRect();
    const at = (place, start, size, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((count * (place - start)) / size)));
    return [at(event.clientY, box.top, box.height, this.grid[0]), at(event.clientX, box.left, box.width, this.grid[1])];
  }

  /** The picture below, [height, width] pixels, or null, in so many rows and columns of patches. */
  picture(url, size, grid) {
    this.grid = grid;
    this.clear();
    this.image.hidden = !url;
    if (url) this.image.src = url;
    this.box.classList.toggle("sharp", Math.max(...size) <= SHARP);
    this.box.style.aspectRatio = `${size[1]} / ${size[0]}`;
    this.lines.style.backgroundSize = `calc(100% / ${grid[1]}) calc(100% / ${grid[0]})`;
  }

  /** One color per patch; low and high are the ends of the scale. */
  show(values, low, high) {
    Object.assign(this, { values, low, high });
    [this.canvas.height, this.canvas.width] = this.grid;
    this.canvas.getContext("2d").putImageData(heat(values, ...this.grid, low, high), 0, 0);
    if (this.scale) {
      this.scale.querySelector(".low").textContent = this.format(low);
      this.scale.querySelector(".high").textContent = this.format(high);
    }
    this.#say(this.place);
  }

  /** Takes the colors, the value and the chosen patch away, as they are not of what is shown. */
  clear() {
    this.values = null;
    this.mark(null);
    this.canvas.width = this.canvas.height = 1; // which also empties it
    for (const line of this.figure.querySelectorAll(".low, .high, .value")) line.textContent = "";
  }

  /** Outlines the chosen patch; soft: it is not the one that the maps are about. */
  mark(place, soft = false) {
    this.place = place;
    this.chosen.classList.toggle("soft", soft);
    this.#outline(this.chosen, place);
    this.#say(place);
  }

  /** Outlines the patch under the pointer and says its value. */
  point(place) {
    const inside = place && place[0] < this.grid[0] && place[1] < this.grid[1] ? place : null;
    this.#outline(this.pointed, inside);
    this.#say(inside ?? this.place);
  }

  #outline(mark, place) {
    mark.hidden = !place;
    if (!place) return;
    const [rows, columns] = this.grid;
    Object.assign(mark.style, {
      top: `${(100 * place[0]) / rows}%`, left: `${(100 * place[1]) / columns}%`,
      height: `${100 / rows}%`, width: `${100 / columns}%`,
    });
  }

  at([row, column]) {
    return this.values[row * this.grid[1] + column];
  }

  /** Row and column of the largest value. */
  top() {
    const place = greatest(this.values);
    return [Math.floor(place / this.grid[1]), place % this.grid[1]];
  }

  #say(place) {
    if (!this.output || !this.values) return;
    this.onOutput?.(place ? this.at(place) : null);
    if (place) this.output.textContent = `${this.name(place)}: ${this.format(this.at(place))}`;
    else if (Number.isNaN(this.values[0])) this.output.textContent = "";
    else this.output.textContent = this.idle ?? `largest, ${this.name(this.top())}: ${this.format(this.at(this.top()))}`;
  }

  /** What is seen, as a data URL of a PNG. */
  async snapshot(side = 336) {
    await this.image.decode().catch(() => {});
    const scale = side / Math.max(this.box.clientWidth, this.box.clientHeight, 1);
    const drawn = el("canvas", {
      width: Math.max(1, Math.round(this.box.clientWidth * scale)),
      height: Math.max(1, Math.round(this.box.clientHeight * scale)),
    });
    const { width, height } = drawn;
    const context = drawn.getContext("2d");
    context.imageSmoothingEnabled = !this.box.classList.contains("sharp");
    if (this.image.complete && this.image.naturalWidth) context.drawImage(this.image, 0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = Number(getComputedStyle(this.canvas).opacity);
    context.drawImage(this.canvas, 0, 0, width, height);
    context.globalAlpha = 1;
    for (const { box, color } of this.boxes ?? []) {
      const [x0, y0, x1, y1] = box.map((share, i) => share * (i % 2 ? height : width));
      for (const [line, ink] of [[5, "#000"], [2, color]]) {
        Object.assign(context, { lineWidth: line, strokeStyle: ink });
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
    if (this.place) {
      const [rows, columns] = this.grid;
      const box = [(this.place[1] * width) / columns, (this.place[0] * height) / rows, width / columns, height / rows];
      for (const [line, ink] of [[5, "#000"], [2, "#fff"]]) {
        Object.assign(context, { lineWidth: line, strokeStyle: ink });
        context.strokeRect(...box);
      }
    }
    return drawn.toDataURL("image/png");
  }
}
