// The state of the page as text behind the # of a link.

/** All that a link restores. image: "sample:NAME" or the id of an image that was given; token: "patch" or a name. */
export const EMPTY = {
  model: null, image: null, token: null, patch: null, layer: null, head: "mean", view: "from", fuse: "mean", r: null,
  under: 0,
};
export const SAMPLE = "sample:";
const IMAGE = /^(sample:.+|[0-9a-f]{64})$/;
const NUMBERS = ["layer", "r", "under"];

/** What a link says; what it does not say is as in EMPTY. */
export function fromHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...EMPTY };
  for (const name of Object.keys(EMPTY)) {
    const value = given.get(name);
    if (value === null) continue;
    if (NUMBERS.includes(name)) state[name] = /^\d+$/.test(value) ? Number(value) : EMPTY[name];
    else if (name === "patch") state.patch = /^\d+,\d+$/.test(value) ? value.split(",").map(Number) : null;
    else if (name !== "image" || IMAGE.test(value)) state[name] = value;
  }
  return state;
}

export function toHash(state) {
  const parts = Object.entries(state).filter(([name, value]) => value !== null && value !== EMPTY[name]);
  return "#" + parts.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
}

/** The state as far as this model can show it. */
export function fitted(state, model) {
  const fit = { ...state, model: model.name };
  if (!model.can.includes("attention")) return fit;
  const [rows, columns] = model.grid;
  const names = ["patch", "mean", ...model.tokens];
  if (!names.includes(fit.token)) fit.token = model.default_token;
  const [row, column] = fit.patch ?? [rows >> 1, columns >> 1];
  fit.patch = [Math.min(row, rows - 1), Math.min(column, columns - 1)];
  fit.layer = Math.min(fit.layer ?? model.layers - 1, model.layers - 1);
  const heads = Math.max(...model.heads);
  if (!["mean", "max"].includes(fit.head) && !(/^\d+$/.test(fit.head) && Number(fit.head) < heads)) fit.head = "mean";
  if (!["from", "to"].includes(fit.view)) fit.view = "from";
  if (!["mean", "max"].includes(fit.fuse)) fit.fuse = "mean";
  fit.under = Math.min(fit.under, 1);
  fit.r = Math.min(fit.r ?? Math.max(1, model.most_merged >> 2), model.most_merged);
  return fit;
}
