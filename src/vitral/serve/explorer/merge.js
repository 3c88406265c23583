// Token merging: which patches end in one token, what the model says then, and what it saves.

import { Latest, json } from "./api.js";
import { paint } from "./colors.js";
import { $, fillTable, percent, showMessage } from "./dom.js";
import { Stack } from "./stack.js";

const SIDE = 336; // pixels of the drawing's width, about
const EDGE = 4; // pixels
const WAIT = 200; // ms that the slider has to rest

export class Merge {
  constructor(page) {
    this.page = page;
    this.latest = new Latest();
    const pick = (patch) => page.choose(patch);
    const format = (group) => this.#companions(group);
    const onOutput = (group) => this.#draw(group);
    this.stack = new Stack($("groups"), { pick, format, onOutput, idle: "Point at a patch, or choose one." });
    page.on((changed) => this.update(changed));
  }

  update(changed) {
    const { model, state, turn } = this.page;
    if (!model.can.includes("merge")) {
      clearTimeout(this.waiting);
      this.asked = null;
      this.latest.drop();
      this.#done();
      return;
    }
    if (changed.has("patch") || changed.has("token")) this.stack.mark(state.token === "patch" ? state.patch : null);
    const asked = `${turn} ${state.r}`;
    if (asked === this.asked) return;
    this.asked = asked;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.#load(), changed.has("image") ? 0 : WAIT);
  }

  #done(message) {
    showMessage("merge-error", message);
    $("merge").removeAttribute("aria-busy");
  }

  #load() {
    $("merge").setAttribute("aria-busy", "true");
    this.latest.run(
      () => this.page.view("merge", json, { r: this.page.state.r }),
      (found) => {
        this.#done();
        this.#show(found);
      },
      (error) => {
        this.asked = null;
        this.#done(error.message);
        this.stack.clear();
      },
    );
  }

  #show(found) {
    const patches = found.groups.length;
    const left = found.counts.at(-1);
    this.sizes = new Map();
    for (const group of found.groups) this.sizes.set(group, (this.sizes.get(group) ?? 0) + 1);
    const several = [...this.sizes.keys()].filter((group) => this.sizes.get(group) > 1);
    this.colors = new Map(several.map((group, number) => [group, paint(number)]));
    this.stack.values = found.groups;
    this.stack.mark(this.page.state.token === "patch" ? this.page.state.patch : null);
    $("merge-counts").textContent = `Patch tokens after each block: ${found.counts.join(", ")}.`;
    const times = found.ms.whole / found.ms.merged;
    $("merge-speed").textContent = found.r === 0 ? "Nothing is merged." :
      `${left} of ${patches} patch tokens are left. One pass takes ${found.ms.merged} ms instead of ${found.ms.whole} ms: `
      + `${times.toFixed(2)} times as fast${times < 1 ? ", as merging costs more here than it saves" : ""} `
      + `(one image on ${this.page.answer.device}, median of ${found.ms.n} pairs in turn). `
      + `The image's vector has a cosine of ${found.cosine.toFixed(4)} with that of all tokens.`;
    $("merge-table").hidden = !found.whole.length;
    fillTable($("merge-table"), found.whole.map((best, i) =>
      [String(i + 1), best.label, percent(best.score), found.merged[i].label, percent(found.merged[i].score)]));
    $("merge-status").textContent = `${found.r} merged in each block: ${left} of ${patches} patch tokens left.`;
  }

  /** Groups of several patches get a color, lines stand where groups meet, and the one that is pointed at has a dark
   * edge. */
  #draw(shown) {
    const { canvas, values: groups, grid: [rows, columns] } = this.stack;
    const cell = Math.max(4, Math.round(SIDE / columns));
    Object.assign(canvas, { width: columns * cell, height: rows * cell });
    const context = canvas.getContext("2d");
    groups.forEach((group, place) => {
      const [row, column] = [Math.floor(place / columns), place % columns];
      const [x, y] = [column * cell, row * cell];
      if (this.colors.has(group)) {
        context.fillStyle = this.colors.get(group);
        context.fillRect(x, y, cell, cell);
      }
      context.fillStyle = "#fff";
      if (column && groups[place - 1] !== group) context.fillRect(x - 1, y, 2, cell);
      if (row && groups[place - columns] !== group) context.fillRect(x, y - 1, cell, 2);
      if (group !== shown || !this.colors.has(group)) return;
      context.fillStyle = "#000";
      if (!column || groups[place - 1] !== group) context.fillRect(x, y, EDGE, cell);
      if (column === columns - 1 || groups[place + 1] !== group) context.fillRect(x + cell - EDGE, y, EDGE, cell);
      if (groups[place - columns] !== group) context.fillRect(x, y, cell, EDGE);
      if (groups[place + columns] !== group) context.fillRect(x, y + cell - EDGE, cell, EDGE);
    });
  }

  #companions(group) {
    const others = this.sizes.get(group) - 1;
    return others ? `one token with ${others} other${others > 1 ? "s" : ""}` : "a token of its own";
  }
}
