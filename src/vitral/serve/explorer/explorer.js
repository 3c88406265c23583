// The page as a whole: its controls, and how images come in.

import { showAnswer, Lens } from "./answers.js";
import { Attack } from "./attack.js";
import { Attention, tokenName } from "./attention.js";
import { Boxes } from "./boxes.js";
import { copyLink, loadModels, pressSample, showModels, showSamples, takeFiles } from "./common.js";
import { $, el, placeName, showMessage } from "./dom.js";
import { Layers } from "./layers.js";
import { Merge } from "./merge.js";
import { Page } from "./page.js";
import { savePage } from "./save.js";
import { Stack } from "./stack.js";
import { SAMPLE, toHash } from "./state.js";

let page;
let picture;

async function start() {
  const found = await loadModels();
  if (!found) return;
  const { models } = found;
  page = new Page(models);
  page.busy = (busy, message = null) => {
    $("image-section").setAttribute("aria-busy", String(busy));
    if (message !== null) showMessage("image-error", message);
    if (message && page.model) $("model").value = page.model.name;
  };
  page.noImage = (model) => {
    $("model").value = model.name;
    showSamples(model, showSample);
  };
  showModels(models, found.writers);
  picture = new Stack($("picture"), { pick: (patch) => page.choose(patch), key: pressed });
  picture.box.id = "patches";
  page.on(show);
  new Boxes(page, picture);
  for (const Part of [Attack, Attention, Layers, Lens, Merge]) new Part(page);
  listen();
  await page.open(location.hash);
}

/** Keys beside the arrows, while the picture has the focus. */
function pressed(key) {
  const step = { ",": [-1, 0], ".": [1, 0], "[": [0, -1], "]": [0, 1] }[key];
  if (step) page.step(...step);
  return Boolean(step);
}

/** Brings the controls and the picture to the state. */
function show(changed) {
  const { model, state, answer } = page;
  $("link").hidden = true;
  if (changed.has("model")) showModel(model);
  if (changed.has("image") || changed.has("model")) {
    showAnswer(model, answer);
    const grid = model.grid ?? [1, 1];
    for (const stack of pictures()) stack.picture(answer.input, model.image_size, grid);
    $("main").hidden = false;
    pressSample(state.image.startsWith(SAMPLE) ? state.image.slice(SAMPLE.length) : null);
  }
  picture.listens(page.sees());
  if (!page.sees()) {
    picture.mark(null);
    picture.box.setAttribute("aria-label", "The picture as the model sees it");
    return;
  }
  picture.mark(state.patch, state.token !== "patch");
  picture.box.setAttribute("aria-label", `Patches of the picture; chosen: ${placeName(state.patch)}`);
  for (const name of ["token", "head", "view", "fuse", "layer", "r"]) $(name).value = state[name];
  [$("row").value, $("column").value] = state.patch;
  $("layer-value").textContent = `${state.layer + 1} of ${model.layers}`;
  $("r-value").textContent = `${state.r} of at most ${model.most_merged}`;
  $("under").checked = state.under === 1;
  $("main").classList.toggle("under", state.under === 1);
}

function* pictures() {
  yield picture;
  for (const id of ["from", "to", "rollout", "similarity", "norms", "groups"]) yield Stack.of($(id));
}

function showModel(model) {
  document.title = `${model.name} – Vitral explorer`;
  $("model").value = model.name;
  showSamples(model, showSample);
  const why = { attention: model.why.attention, lens: model.why.lens ?? model.why.attention,
    merge: model.why.merge ?? model.why.attention, attack: model.why.attack };
  for (const [name, section] of [["attack", "attack"], ["attention", "attention"], ["attention", "layers"], ["lens", "lens"], ["merge", "merge"]]) {
    const has = model.can.includes(name);
    $(section).querySelector(".body").hidden = !has;
    showMessage(`${section}-why`, has ? "" : why[name]);
  }
  const sees = model.can.includes("attention");
  for (const id of ["controls", "patch-inputs", "keys"]) $(id).hidden = !sees;
  $("reduced").hidden = !model.reduced;
  if (!sees) return;
  const option = (value, text) => el("option", { value }, text);
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  $("token").replaceChildren(...["patch", ...model.tokens, "mean"].map((name) => option(name, capital(tokenName(name)))));
  const heads = Math.max(...model.heads);
  $("head").replaceChildren(option("mean", "Mean over heads"), option("max", "Maximum over heads"),
    ...Array.from({ length: heads }, (_, head) => option(String(head), `Head ${head}`)));
  $("layer").max = model.layers - 1;
  $("r").max = model.most_merged;
  [$("row").max, $("column").max] = model.grid.map((count) => count - 1);
}

const showSample = (name) => page.show({ image: SAMPLE + name });

function listen() {
  takeFiles((file) => page.show({ given: file }));
  $("model").addEventListener("change", () => {
    if (page.model) page.change($("model").value);
    else page.open(`#model=${encodeURIComponent($("model").value)}`);
  });
  for (const name of ["token", "head", "view", "fuse"])
    $(name).addEventListener("change", () => page.set({ [name]: $(name).value }));
  for (const name of ["layer", "r"]) $(name).addEventListener("input", () => page.set({ [name]: Number($(name).value) }));
  $("under").addEventListener("change", () => page.set({ under: Number($("under").checked) }));
  for (const id of ["row", "column"])
    $(id).addEventListener("change", () => {
      const patch = [$("row"), $("column")].map((input) =>
        Math.min(Number(input.max), Math.max(0, Math.round(Number(input.value)) || 0)));
      [$("row").value, $("column").value] = patch;
      page.set({ token: "patch", patch });
    });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    (page.sees() ? picture.box : $("file")).focus();
  });
  $("copy").addEventListener("click", () => copyLink(page.state.image?.startsWith(SAMPLE) ? "Link copied."
    : "Link copied. It works as long as this server keeps the image."));
  $("save").addEventListener("click", () => page.answer && savePage(page));
  window.addEventListener("hashchange", () => {
    if (!page.model || location.hash !== toHash(page.state)) page.open(location.hash);
  });
}

start();
