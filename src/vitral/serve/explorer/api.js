// Requests to the server. Addresses are relative, so that it works behind a prefix too.

const STORED = "vitral-key";
let keyWaiting = null;
let askForKey = async () => null;

/** Something that did not work, with a sentence for people and a short code. */
export class Problem extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Sets the function that prompts for the API key: it gets whether a key was refused, and returns a key or null. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

let underWay = 0;

/** Counts what is under way, which the page shows as a cursor. */
async function send(path, params, options) {
  const { dataset } = document.documentElement;
  dataset.busy = String(++underWay);
  try {
    return await sendOnce(path, params, options);
  } finally {
    if (--underWay) dataset.busy = String(underWay);
    else delete dataset.busy;
  }
}

async function sendOnce(path, params, options) {
  const kept = Object.entries(params).filter(([, value]) => value !== null && value !== undefined);
  const key = sessionStorage.getItem(STORED);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(`v1/explore${path}?${new URLSearchParams(kept)}`, { ...options, headers });
  } catch {
    throw new Problem("unreachable", "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    keyWaiting ??= askForKey(key !== null).finally(() => (keyWaiting = null));
    const given = await keyWaiting;
    if (given === null) throw new Problem("unauthorized", "This server wants an API key.");
    sessionStorage.setItem(STORED, given);
    return sendOnce(path, params, options);
  }
  const answer = await response.json().catch(() => null);
  const message = answer?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  const wait = response.headers.get("Retry-After");
  throw new Problem(answer?.error?.code ?? String(response.status), wait ? `${message} Again in ${wait} s.` : message);
}

export const json = async (path, params = {}) => (await send(path, params, {})).json();
export const blob = async (path, params = {}) => (await send(path, params, {})).blob();

/** Gives the server an image, or a text; what it says of it. */
export async function post(params, source, path = "") {
  const isText = typeof source === "string";
  if (!isText && !source.size) throw new Problem("empty", "This file is empty.");
  const type = isText ? "application/json" : source.type.startsWith("image/") ? source.type : "application/octet-stream";
  const body = isText ? JSON.stringify({ text: source }) : source;
  return (await send(path, params, { method: "POST", body, headers: { "Content-Type": type } })).json();
}

/** Numbers, and how they are laid out. */
export async function floats(path, params = {}) {
  const response = await send(path, params, {});
  const shape = response.headers.get("X-Shape").split(",").map(Number);
  return { shape, data: new Float32Array(await response.arrayBuffer()) };
}

/** Runs one job at a time and only the newest of those that wait, so no older answer replaces a newer one. */
export class Latest {
  #busy = false;
  #next = null;
  #now = null;

  /** load: what to wait for; show: what to do with it, unless something newer has come; fail: with its error. */
  async run(load, show, fail) {
    this.#next = { load, show, fail };
    if (this.#busy) return;
    this.#busy = true;
    while (this.#next) {
      const job = (this.#now = this.#next);
      const isWanted = () => this.#now === job && !this.#next;
      this.#next = null;
      try {
        const found = await job.load();
        if (isWanted()) job.show(found);
      } catch (error) {
        if (!(error instanceof Problem)) console.error(error);
        if (isWanted()) job.fail(error);
      }
    }
    this.#busy = false;
  }

  /** What is under way or waits is not wanted any more. */
  drop() {
    this.#next = this.#now = null;
  }
}
