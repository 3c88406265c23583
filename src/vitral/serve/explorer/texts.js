// The page of models that write text: the source, what is written, and each token's scores.

import { Alignment } from "./alignment.js";
import { Latest, blob as fileOf, post } from "./api.js";
import { copyLink, loadModels, pressSample, showModels, showSamples, takeFiles } from "./common.js";
import { $, barCell, el, fillTable, percent, showMessage, visible } from "./dom.js";
import { SHARP } from "./stack.js";
import { SAMPLE } from "./state.js";

const NONE = { model: null, text: null, image: null, beams: null, rank: null, token: null, layer: null, head: null };
const NUMBERS = ["beams", "rank", "token", "layer", "head"];
const EMPTY = "(an empty text)";
const latest = new Latest();

let models;
let alignment;
let model = null; // whose answer is shown, and
let answer = null;
let given = null; // the file that was given, without which a link cannot restore it
let state = { ...NONE };

async function start() {
  const found = await loadModels();
  if (!found) return;
  models = found.writers;
  if (!models.length) return showMessage("image-error", "No served model writes text.");
  showModels(models, found.models);
  alignment = new Alignment((changes) => set(changes));
  listen();
  open();
}

/** What the address says; without a text or an image, of a model that reads images the first sample. */
function open() {
  const params = new URLSearchParams(location.hash.slice(1));
  const wanted = { ...NONE };
  for (const name of Object.keys(NONE)) {
    const value = params.get(name);
    if (value !== null) wanted[name] = NUMBERS.includes(name) ? (/^\d{1,6}$/.test(value) ? Number(value) : null) : value;
  }
  const next = models.find(({ name }) => name === wanted.model) ?? models[0];
  showModel(next);
  const image = wanted.image?.startsWith(SAMPLE) ? wanted.image : SAMPLE + next.samples[0]?.id;
  $("beams").value = Math.min(next.most_beams, Math.max(1, wanted.beams ?? next.beams));
  if (next.reads === "image") write({ ...wanted, text: null, image });
  else if (wanted.text) write({ ...wanted, image: null });
}

/** The inputs of this model; what another one wrote goes away. */
function showModel(next) {
  document.title = `${next.name} – Vitral explorer`;
  $("model").value = next.name;
  const readsImages = next.reads === "image";
  $("text-label").hidden = readsImages;
  $("image-inputs").hidden = !readsImages;
  $("beams").max = next.most_beams;
  $("beams").value ||= next.beams;
  $("caveat").hidden = next.kind !== "attention";
  showSamples(next, (name) => write({ image: SAMPLE + name }));
  if (next !== model) $("main").hidden = true;
}

const current = () => models.find(({ name }) => name === $("model").value);

/** Has the source written: `wanted` is the state to be seen then. */
function write(wanted, file = null) {
  const next = current();
  const beams = Math.min(next.most_beams, Math.max(1, Math.round(Number($("beams").value)) || 1));
  $("beams").value = beams;
  const { "search.early_stopping": _, ...greedy } = next.search;
  const search = beams === 1 ? { ...greedy, "search.search": "greedy" }
    : { ...next.search, "search.search": "beam", "search.beams": beams, "search.n_best": beams };
  const rank = Math.min(beams, Math.max(1, wanted.rank ?? 1));
  const { image } = wanted;
  if (wanted.text) $("text").value = wanted.text;
  $("image-section").setAttribute("aria-busy", "true");
  return latest.run(
    async () => {
      const sample = image?.startsWith(SAMPLE) ? await fileOf(`/samples/${encodeURIComponent(image.slice(SAMPLE.length))}`) : null;
      const source = next.reads === "image" ? (file ?? sample) : wanted.text;
      return { source, found: await post({ model: next.name, rank, ...search }, source, "/text") };
    },
    ({ source, found }) => {
      [model, answer, given] = [next, found, image || typeof source === "string" ? null : source];
      done();
      const text = typeof source === "string" ? source : null;
      state = { ...NONE, ...wanted, model: next.name, text, beams, rank };
      show();
    },
    (error) => done(error.message),
  );
}

function done(message = "") {
  $("image-section").removeAttribute("aria-busy");
  showMessage("image-error", message);
}

/** Changes what is seen of the answer. */
function set(changes) {
  state = { ...state, ...changes };
  draw();
}

/** The whole answer. */
function show() {
  $("main").hidden = false;
  $("link").hidden = true;
  pressSample(state.image?.slice(SAMPLE.length) ?? null);
  showSeen();
  const chosen = answer.texts[answer.rank - 1];
  $("written").textContent = `Written: ${chosen.text || EMPTY}`;
  fillTable($("texts-table"), answer.texts.map((each, place) => {
    const button = el("button", { type: "button", "aria-pressed": String(place + 1 === answer.rank), "aria-label": `Text ${place + 1}` },
      String(place + 1));
    button.addEventListener("click", () => write({ ...state, rank: place + 1, token: null }, given));
    return [button, each.text || EMPTY, each.score.toFixed(4), each.log_prob.toFixed(4)];
  }));
  $("unfinished").hidden = chosen.finished;
  $("steps").hidden = !answer.steps.length;
  showSteps();
  alignment.show(model, answer);
  showColumns();
  draw();
}

function showSeen() {
  $("seen").hidden = !answer.input;
  if (!answer.input) return;
  const [height, width] = model.image_size;
  const image = $("seen").querySelector("img");
  Object.assign(image, { src: answer.input, width, height, className: Math.max(height, width) <= SHARP ? "sharp" : "" });
  $("seen").querySelector("p").textContent = `The model sees ${width} × ${height} pixels.`;
}

function showSteps() {
  $("tokens").replaceChildren(...answer.steps.map(({ token, probability }, place) => {
    const button = el("button", { type: "button", "aria-label": `Token ${place + 1}: ${visible(token)}, ${percent(probability)}` },
      el("span", { class: "token" }, visible(token)), el("span", { class: "chance" }, percent(probability)));
    button.addEventListener("click", () => set({ token: place }));
    return button;
  }));
  const hasFrames = answer.steps.some(({ frame }) => frame !== undefined);
  const count = answer.steps[0]?.top.length ?? 0;
  const heads = ["Step", "Written", ...(hasFrames ? ["Frame"] : []), ...Array.from({ length: count }, (_, i) => `${i + 1}.`)];
  $("steps-table").tHead.replaceChildren(el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head))));
  $("steps-caption").textContent = hasFrames ? "The most probable outputs in the frame of each token"
    : "The most probable tokens at each step";
  fillTable($("steps-table"), answer.steps.map(({ token, frame, top }, place) => [
    String(place + 1), visible(token), ...(hasFrames ? [String(frame)] : []),
    ...top.map((each) => `${visible(each.token)} ${percent(each.probability)}`)]));
}

function showColumns() {
  $("columns").hidden = !answer.columns;
  if (!answer.columns) return;
  const tokenOf = new Map(answer.steps.map(({ token, frame }, place) => [frame, `${place + 1}: ${visible(token)}`]));
  fillTable($("columns-table"), answer.columns.map(({ token, probability }, frame) =>
    [String(frame), token === "<blank>" ? el("td", { class: "soft" }, "blank") : visible(token), barCell(probability), tokenOf.get(frame) ?? ""]));
}

/** What depends on the chosen token, layer and head. */
function draw() {
  state.token = Math.min(state.token ?? 0, Math.max(0, answer.steps.length - 1));
  [...$("tokens").children].forEach((button, place) => button.setAttribute("aria-pressed", String(place === state.token)));
  Object.assign(state, alignment.draw(state));
  const kept = Object.entries(state).filter(([, value]) => value !== null);
  history.replaceState(null, "", "#" + kept.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&"));
}

function listen() {
  $("source-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (current().reads === "text") write({ text: $("text").value });
    else if (answer && current() === model) write({ image: state.image }, given);
  });
  $("write").disabled = false; // before, the browser itself would submit the form, and load the page again
  takeFiles((file) => {
    if (current().reads === "image") write({}, file);
    else showMessage("image-error", "This model reads texts, not images.");
  });
  $("model").addEventListener("change", () => {
    const next = current();
    latest.drop();
    done();
    $("beams").value = next.beams;
    showModel(next);
    if (next.reads === "image") write(given ? {} : { image: state.image ?? SAMPLE + next.samples[0].id }, given);
    else if ($("text").value) write({ text: $("text").value });
  });
  $("tokens").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const place = [...$("tokens").children].indexOf(document.activeElement);
    const next = $("tokens").children[place + step];
    if (!step || place < 0 || !next) return;
    event.preventDefault();
    next.focus();
    next.click();
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    ($("tokens").children[state.token] ?? (current()?.reads === "image" ? $("file") : $("text"))).focus();
  });
  $("copy").addEventListener("click", () =>
    copyLink(given ? "Link copied, without your image: give it there again." : "Link copied."));
  window.addEventListener("hashchange", open);
}

start();
