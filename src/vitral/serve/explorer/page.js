// What all parts of the page share: the model, the image, the state, and who wants to know when one changes.

import { Latest, blob as fileOf, json, post } from "./api.js";
import { EMPTY, fitted, fromHash, toHash } from "./state.js";

const FEW = 10; // classes that are all shown
const SAMPLE = "sample:";

export class Page {
  #listeners = [];
  #latest = new Latest();
  #again = null;

  constructor(models) {
    Object.assign(this, { models, model: null, answer: null, id: null, blob: null, state: { ...EMPTY } });
  }

  on(listener) {
    this.#listeners.push(listener);
  }

  /** Changes a part of the state; nothing happens where it stays the same or no model is there to show it. */
  set(changes) {
    if (!this.model) return;
    const before = this.state;
    this.state = fitted({ ...before, ...changes }, this.model);
    this.#publish(Object.keys(this.state).filter((name) => String(this.state[name]) !== String(before[name])));
  }

  #publish(names) {
    if (!names.length) return;
    history.replaceState(null, "", toHash(this.state));
    const changed = new Set(names);
    for (const listener of this.#listeners) listener(changed);
  }

  /** The token that maps are about, as the server calls it. */
  token() {
    return this.state.token === "patch" ? this.state.patch.join(",") : this.state.token;
  }

  /** One layer or head further, up to the last one. */
  step(layers, heads) {
    const { head, layer } = this.state;
    const order = ["mean", "max", ...Array(Math.max(...this.model.heads)).keys()].map(String);
    const next = order[Math.min(order.length - 1, Math.max(0, order.indexOf(head) + heads))];
    this.set({ layer: Math.min(this.model.layers - 1, Math.max(0, layer + layers)), head: next });
  }

  /** What a link says, or where it says nothing the first model and its first sample. */
  open(hash) {
    const state = fromHash(hash);
    const model = this.models.find(({ name }) => name === state.model) ?? this.models[0];
    this.state = fitted(state, model);
    return this.show({ model, image: state.image ?? SAMPLE + model.samples[0].id });
  }

  /** The same image with another model; a sample that this one has not, by its own first one. */
  change(name) {
    const model = this.models.find((each) => each.name === name);
    const { image } = this.state;
    const lost = image?.startsWith(SAMPLE) && !model.samples.some(({ id }) => SAMPLE + id === image);
    const mine = !lost && image && !image.startsWith(SAMPLE) ? this.blob : null;
    return this.show({ model, image: lost || !image ? SAMPLE + model.samples[0].id : image, given: mine });
  }

  /** Asks for the answer to an image: a sample, one that the server knows by its id, or one that was given. */
  show({ model = this.model, image = null, given = null }) {
    const topk = model.classes && model.classes <= FEW ? FEW : 5;
    this.busy(true);
    return this.#latest.run(
      async () => {
        const sample = image?.startsWith(SAMPLE) && !given;
        const file = sample ? await fileOf(`/samples/${encodeURIComponent(image.slice(SAMPLE.length))}`) : given;
        const params = { model: model.name, topk };
        return { file, answer: file ? await post(params, file) : await json(`/${image}`, params) };
      },
      ({ file, answer }) => {
        Object.assign(this, { model, answer, id: answer.id, blob: file });
        const name = image?.startsWith(SAMPLE) ? image : answer.id;
        this.state = fitted({ ...this.state, image: name }, model);
        this.busy(false, "");
        this.#publish(Object.keys(EMPTY));
      },
      (error) => {
        if (!this.model) this.noImage(model);
        this.busy(false, error.message);
      },
    );
  }

  /** The numbers of a view. An image that the server has let go of is given again, if it is still here. */
  async view(kind, read, params) {
    const ask = () => read(`/${this.id}/${kind}`, { model: this.model.name, ...params });
    try {
      return await ask();
    } catch (error) {
      if (error.code !== "gone" || !this.blob) throw error;
      this.#again ??= post({ model: this.model.name }, this.blob).finally(() => (this.#again = null));
      await this.#again;
      return ask();
    }
  }
}
