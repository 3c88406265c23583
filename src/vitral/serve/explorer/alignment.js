// Attention of each written token over the source: a matrix of tokens, or a map over the picture.

import { $, el, fillTable, greatest, percent, placeName, showMessage, visible } from "./dom.js";
import { Stack } from "./stack.js";

/** Float32 numbers in base64, with their shape. */
function unpacked({ shape, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return { shape, data: new Float32Array(bytes.buffer) };
}

/** The mean over the chosen layers and heads (null: all of them), one number per written token and place. */
export function meanOf({ data, shape: [layers, heads, ...rest] }, layer, head) {
  const size = rest.reduce((product, count) => product * count, 1);
  const sum = new Float64Array(size);
  const all = (chosen, count) => (chosen === null ? [...Array(count).keys()] : [chosen]);
  const maps = all(layer, layers).flatMap((l) => all(head, heads).map((h) => (l * heads + h) * size));
  for (const start of maps) for (let i = 0; i < size; i++) sum[i] += data[start + i] / maps.length;
  return sum;
}

export class Alignment {
  /** set: takes changes of the state. */
  constructor(set) {
    this.set = set;
    this.stack = new Stack($("map"), {
      pick: (place) => this.#pick(place), key: () => false, format: percent, name: (place) => this.#name(place),
    });
    this.stack.box.id = "cells";
    for (const name of ["layer", "head"])
      $(name).addEventListener("change", () => set({ [name]: $(name).value === "" ? null : Number($(name).value) }));
    $("overlay").addEventListener("change", () => $("map").classList.toggle("overlay", $("overlay").checked));
    $("map").classList.toggle("overlay", $("overlay").checked);
  }

  /** A new answer: its picture, labels and choices. */
  show(model, answer) {
    Object.assign(this, { model, answer, place: null, map: answer.attention && unpacked(answer.attention) });
    const isPicture = (this.isPicture = Boolean(answer.input));
    this.isCTC = model.kind === "ctc";
    $("where").querySelector(".body").hidden = !this.map;
    showMessage("where-why", this.map ? "" : model.why ?? "Nothing was written, so there is nothing to see here.");
    if (!this.map) return;
    const { shape } = this.map;
    const grid = (this.grid = isPicture ? shape.slice(3) : shape.slice(2));
    this.stack.picture(answer.input, isPicture ? model.image_size : grid, grid);
    $("map").classList.toggle("tokens", !isPicture);
    $("map").style.setProperty("--columns", grid[1]);
    const labels = (names) => names.map((name) => el("span", {}, visible(name)));
    $("map").querySelector(".across").replaceChildren(...(isPicture ? [] : labels(answer.source)));
    $("map").querySelector(".down").replaceChildren(...(isPicture ? [] : labels(answer.steps.map(({ token }) => token))));
    $("layer-head").hidden = this.isCTC;
    $("overlay-label").hidden = !isPicture;
    for (const part of [$("top-table"), ...$("map").querySelectorAll(".scale, .value")]) part.hidden = this.isCTC;
    const options = (all, names) => [el("option", { value: "" }, all), ...names.map((name, i) => el("option", { value: String(i) }, name))];
    $("layer").replaceChildren(...options("mean of all", Array.from({ length: shape[0] }, (_, i) => `${i + 1} of ${shape[0]}`)));
    $("head").replaceChildren(...options("mean of all", Array.from({ length: shape[1] }, (_, i) => `${i}`)));
  }

  /** Draws the chosen token, layer and head; returns the two last as far as this model has them. */
  draw({ token, layer, head }) {
    if (!this.map) return {};
    const [layers, heads] = this.map.shape;
    this.token = token;
    const fit = { layer: layer < layers ? layer : null, head: head < heads ? head : null };
    const values = meanOf(this.map, fit.layer, fit.head);
    [$("layer").value, $("head").value] = [fit.layer ?? "", fit.head ?? ""];
    const size = this.isPicture ? this.grid[0] * this.grid[1] : this.grid[1];
    this.row = values.slice(token * size, (token + 1) * size);
    const written = `“${visible(this.answer.steps[token].token)}”`;
    $("map-title").textContent = !this.isPicture ? "Written tokens downwards, the source across"
      : this.isCTC ? `The frame of token ${token + 1}, ${written}` : `Attention as token ${token + 1}, ${written}, is written`;
    if (this.isPicture) this.stack.mark(this.isCTC ? null : this.place);
    else this.stack.mark([token, this.place?.[1] ?? greatest(this.row)]);
    this.stack.show(this.isPicture ? this.row : values, 0, this.isPicture ? Math.max(...this.row) : 1);
    [...$("map").querySelector(".down").children].forEach((label, place) => label.classList.toggle("chosen", place === token));
    this.stack.box.setAttribute("aria-label", this.isPicture ? `Patches of the picture, under ${$("map-title").textContent}`
      : "Matrix of attention; arrow keys move along written tokens and the source");
    this.#say(written, fit);
    this.#table();
    return fit;
  }

  #pick(place) {
    this.place = place;
    this.set(this.isPicture ? {} : { token: place[0] });
  }

  #name([row, column]) {
    if (this.isPicture) return placeName([row, column]);
    return `written “${visible(this.answer.steps[row].token)}” (${row + 1}), source “${visible(this.answer.source[column])}” (${column + 1})`;
  }

  /** A place of the source by its number. */
  #sourceName(place) {
    if (this.isPicture) return placeName([Math.floor(place / this.grid[1]), place % this.grid[1]]);
    return `“${visible(this.answer.source[place])}”, token ${place + 1}`;
  }

  #say(written, { layer, head }) {
    const top = greatest(this.row);
    if (this.isCTC) {
      const { frame } = this.answer.steps[this.token];
      $("status").textContent = `Token ${this.token + 1}, ${written}: frame ${frame} of the most probable alignment.`;
      return;
    }
    const [layers, heads] = this.map.shape;
    const which = [
      layer === null ? (layers === 1 ? "The one layer" : `Mean of ${layers} layers`) : `Layer ${layer + 1}`,
      head === null ? (heads === 1 ? "one head" : `mean of ${heads} heads`) : `head ${head}`,
    ];
    const elsewhere = 1 - this.row.reduce((sum, value) => sum + value, 0);
    $("status").textContent = `Token ${this.token + 1}, ${written}. ${which.join(", ")}. Most attention goes to `
      + `${this.#sourceName(top)}: ${percent(this.row[top])}.`
      + (this.isPicture && elsewhere > 1e-4 ? ` Not patches: class token ${percent(elsewhere)}.` : "");
  }

  #table() {
    const most = Array.from(this.row, (value, place) => [value, place]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    fillTable($("top-table"), most.map(([value, place], i) => [String(i + 1), this.#sourceName(place), percent(value)]));
  }
}
