// Attention from a token and to it: two maps, and the overview of every layer and head.

import { Latest, floats } from "./api.js";
import { heat } from "./colors.js";
import { $, el, fillTable, greatest, percent, placeName, showMessage } from "./dom.js";
import { Stack } from "./stack.js";

const CELL = 28; // pixels of an overview cell, at least
const GAP = 3;
const MOST_HIGH = 28; // rem

export const tokenName = (token) =>
  token === "patch" ? "one patch" : token === "cls" ? "class token" : token === "distill" ? "distillation token"
  : token === "mean" ? "all patches on average" : token.replace(":", " ");

const headCount = ({ heads }, { layer }) => `${heads[layer]} head${heads[layer] === 1 ? "" : "s"}`;

/** The chosen head of one layer, or the mean or the greatest of its heads: one number per token. */
export function fused({ data, shape }, direction, layer, head) {
  const [, layers, heads, tokens] = shape;
  const start = (direction * layers + layer) * heads * tokens;
  const rows = [];
  for (let h = 0; h < heads; h++) rows.push(data.subarray(start + h * tokens, start + (h + 1) * tokens));
  if (head !== "mean" && head !== "max") return rows[Number(head)];
  const there = rows.filter((row) => !Number.isNaN(row[0])); // pruned models have fewer heads in some layers
  return Float64Array.from({ length: tokens }, (_, t) => {
    const values = there.map((row) => row[t]);
    return head === "max" ? Math.max(...values) : values.reduce((sum, value) => sum + value, 0) / values.length;
  });
}

export class Attention {
  constructor(page) {
    this.page = page;
    this.latest = new Latest();
    const pick = (patch) => page.choose(patch);
    this.maps = ["from", "to"].map((id) => new Stack($(id), { pick, format: percent }));
    this.overview = $("overview");
    this.overview.addEventListener("click", (event) => this.#choose(event));
    this.overview.addEventListener("keydown", (event) => this.#move(event));
    page.on((changed) => this.update(changed));
  }

  update(changed) {
    if (!this.page.sees()) {
      this.found = this.asked = null;
      this.latest.drop();
      this.#done();
      return;
    }
    const token = this.page.token();
    const asked = `${this.page.turn} ${token}`;
    if (asked !== this.asked) this.#load(token, asked);
    else if (["layer", "head", "view"].some((name) => changed.has(name))) this.draw();
  }

  #load(token, asked) {
    Object.assign(this, { asked, found: null });
    $("attention").setAttribute("aria-busy", "true");
    this.latest.run(
      () => this.page.view("attention", floats, { token }),
      (found) => {
        this.found = found;
        this.#done();
        this.draw();
      },
      (error) => {
        this.asked = null;
        this.#done(error.message);
        this.#clear();
      },
    );
  }

  #done(message) {
    showMessage("attention-error", message);
    $("attention").removeAttribute("aria-busy");
  }

  /** Without numbers there are no pictures of them. */
  #clear() {
    for (const map of this.maps) map.clear();
    for (const id of ["from-rest", "to-rest", "status"]) $(id).textContent = "";
    fillTable($("attention-table"), []);
    const { canvas, mark } = this.#parts();
    canvas.width = canvas.width + 0; // empties it
    mark.hidden = true;
  }

  draw() {
    if (!this.found) return;
    const { model, state } = this.page;
    const prefix = model.tokens.length;
    this.maps.forEach((map, direction) => {
      const all = fused(this.found, direction, state.layer, state.head);
      const patches = all.slice(prefix);
      map.mark(state.token === "patch" ? state.patch : null);
      map.show(patches, 0, Math.max(...patches));
      const rest = Number.isNaN(all[0]) ? [] : model.tokens.map((name, i) => `${tokenName(name)} ${percent(all[i])}`);
      $(direction ? "to-rest" : "from-rest").textContent = rest.length ? `Not patches: ${rest.join(", ")}.` : "";
    });
    this.#table();
    this.#overview();
    this.#say();
  }

  /** The status line describes the maps, for screen readers. */
  #say() {
    const { model, state } = this.page;
    if (Number.isNaN(this.maps[0].values[0])) {
      $("status").textContent = `Layer ${state.layer + 1} has no head ${state.head}, but ${headCount(model, state)}.`;
      return;
    }
    const who = state.token === "patch" ? `Patch ${placeName(state.patch)}` : tokenName(state.token);
    const heads = { mean: `mean of ${headCount(model, state)}`, max: "maximum over the heads" };
    const [from, to] = this.maps;
    const parts = [
      `${who[0].toUpperCase()}${who.slice(1)}. Layer ${state.layer + 1}, ${heads[state.head] ?? `head ${state.head}`}.`,
      `Of the patches it attends most to ${placeName(from.top())}: ${percent(from.at(from.top()))}.`,
      `Most attention to it is from ${placeName(to.top())}: ${percent(to.at(to.top()))}.`,
    ];
    if (state.token === "patch") parts.push(`To itself: ${percent(from.at(state.patch))}.`);
    $("status").textContent = parts.join(" ");
  }

  /** The five patches that get and give the most, as text. */
  #table() {
    const most = this.maps.map((map) => Array.from(map.values, (value, place) => [value, place])
      .filter(([value]) => !Number.isNaN(value)).sort((a, b) => b[0] - a[0]).slice(0, 5));
    const name = (place) => placeName([Math.floor(place / this.maps[0].grid[1]), place % this.maps[0].grid[1]]);
    fillTable($("attention-table"), most[0].map(([value, place], i) =>
      [String(i + 1), name(place), percent(value), name(most[1][i][1]), percent(most[1][i][0])]));
  }

  #overview() {
    const { model, state } = this.page;
    const [rows, columns] = model.grid;
    const [, layers, heads, tokens] = this.found.shape;
    const scale = Math.max(1, Math.ceil(CELL / columns));
    this.cell = [rows * scale + GAP, columns * scale + GAP];
    const { canvas } = this.#parts();
    canvas.width = heads * this.cell[1] - GAP;
    canvas.height = layers * this.cell[0] - GAP;
    this.overview.style.maxWidth = `${(MOST_HIGH * canvas.width) / canvas.height}rem`;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    const small = el("canvas", { width: columns, height: rows });
    const direction = state.view === "to" ? 1 : 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const start = ((direction * layers + layer) * heads + head) * tokens + model.tokens.length;
        const values = this.found.data.subarray(start, start + rows * columns);
        small.getContext("2d").putImageData(heat(values, rows, columns, 0, values[greatest(values)]), 0, 0);
        context.drawImage(small, head * this.cell[1], layer * this.cell[0], columns * scale, rows * scale);
      }
    }
    this.#outline();
  }

  #parts() {
    return { canvas: this.overview.querySelector("canvas"), mark: this.overview.querySelector(".mark") };
  }

  /** The chosen head, or the whole layer where its heads are taken together. */
  #outline() {
    const { model, state } = this.page;
    const { canvas, mark } = this.#parts();
    const one = state.head !== "mean" && state.head !== "max";
    const [high, wide] = this.cell;
    Object.assign(mark.style, {
      top: `${(100 * state.layer * high) / canvas.height}%`, height: `${(100 * (high - GAP)) / canvas.height}%`,
      left: one ? `${(100 * Number(state.head) * wide) / canvas.width}%` : "0%",
      width: one ? `${(100 * (wide - GAP)) / canvas.width}%` : "100%",
    });
    mark.hidden = false;
    const head = one ? `head ${state.head}` : state.head === "max" ? "maximum over its heads" : "mean of its heads";
    this.overview.setAttribute("aria-label",
      `Overview of ${model.layers} layers and ${Math.max(...model.heads)} heads; chosen: layer ${state.layer + 1}, ${head}`);
  }

  #choose(event) {
    if (!this.found) return;
    const { canvas } = this.#parts();
    const box = canvas.getBoundingClientRect();
    const share = (place, start, size, count) => Math.min(count - 1, Math.floor((count * (place - start)) / size));
    const [, layers, heads] = this.found.shape;
    const layer = share(event.clientY, box.top, box.height, layers);
    const head = share(event.clientX, box.left, box.width, heads);
    if (head < this.page.model.heads[layer]) this.page.set({ layer, head: String(head) });
  }

  #move(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.page.step(...steps[event.key]);
  }
}
