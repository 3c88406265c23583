// State that all parts of the page share: the model, the image, the view, and the listeners to changes.

import { Latest, blob as fileOf, json, post } from "./api.js";
import { EMPTY, SAMPLE, fitted, fromHash, toHash } from "./state.js";

const FEW = 10; // classes that are all shown

export class Page {
  #listeners = [];
  #latest = new Latest();
  #renewal = null;
  #renewed = false;

  /** turn: counts the answers, so that a late response to an old one is recognized. */
  constructor(models) {
    Object.assign(this, { models, model: null, answer: null, clean: null, id: null, blob: null, turn: 0, state: { ...EMPTY } });
    this.wanted = { model: models[0], image: null, given: null };
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

  /** A patch that maps are about from now on, where the model has any. */
  choose(patch) {
    if (this.sees()) this.set({ token: "patch", patch });
  }

  /** Whether the model's attention can be seen. */
  sees() {
    return Boolean(this.model?.can.includes("attention"));
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
    if (!this.sees()) return;
    const { head, layer } = this.state;
    const order = ["mean", "max", ...Array(Math.max(...this.model.heads)).keys()].map(String);
    const next = order[Math.min(order.length - 1, Math.max(0, order.indexOf(head) + heads))];
    this.set({ layer: Math.min(this.model.layers - 1, Math.max(0, layer + layers)), head: next });
  }

  /** What a link says, or where it says nothing the first model and its first sample. */
  open(hash) {
    const wanted = fromHash(hash);
    const model = this.models.find(({ name }) => name === wanted.model) ?? this.models[0];
    const state = fitted(wanted, model);
    if (!this.model) this.state = state; // where its image is gone, the next one is seen so
    return this.show({ model, image: state.image ?? SAMPLE + model.samples[0].id, state });
  }

  /** The same image with another model; a sample that this one has not, by its own first one. */
  change(name) {
    const model = this.models.find((each) => each.name === name);
    const { image, given } = this.wanted;
    const lost = image?.startsWith(SAMPLE) && !model.samples.some(({ id }) => SAMPLE + id === image);
    return this.show({ model, image: lost || !(image || given) ? SAMPLE + model.samples[0].id : image, given });
  }

  /** Requests the answer to an image: a sample, one that the server knows by its id, or one that was given. state:
   * what is seen of it then; without it, what is seen now. */
  show({ model = this.wanted.model, image = null, given = null, state = null }) {
    const topk = model.classes && model.classes <= FEW ? FEW : 5;
    this.wanted = { model, image, given };
    this.busy(true);
    return this.#latest.run(
      async () => {
        const sample = image?.startsWith(SAMPLE);
        const file = sample ? await fileOf(`/samples/${encodeURIComponent(image.slice(SAMPLE.length))}`) : given;
        const params = { model: model.name, ...(model.can.includes("boxes") ? {} : { topk }) };
        return { file, answer: file ? await post(params, file) : await json(`/${image}`, params) };
      },
      ({ file, answer }) => {
        const name = image?.startsWith(SAMPLE) ? image : answer.id;
        Object.assign(this, { model, answer, clean: answer, id: answer.id, blob: file, turn: this.turn + 1 });
        this.wanted = { model, image: name, given: name === answer.id ? file : null };
        this.state = fitted({ ...(state ?? this.state), image: name }, model);
        this.busy(false, "");
        this.#publish(Object.keys(EMPTY));
      },
      (error) => {
        if (this.model) {
          const { image: shown } = this.state;
          this.wanted = { model: this.model, image: shown, given: shown.startsWith(SAMPLE) ? null : this.blob };
          history.replaceState(null, "", toHash(this.state));
        } else {
          this.wanted = { model, image: null, given: null };
          this.noImage(model);
        }
        this.busy(false, error.message);
      },
    );
  }

  /** Attacks the picture, not one that is attacked already; all views then show the attacked one. fail: takes the error. */
  attack(params, fail) {
    const { model, clean } = this;
    const topk = model.classes <= FEW ? FEW : 5;
    this.busy(true);
    return this.#latest.run(
      () => json(`/${clean.id}/attack`, { model: model.name, topk, ...params }),
      (found) => {
        Object.assign(this, { answer: { ...clean, ...found }, id: found.id, turn: this.turn + 1 });
        this.busy(false, "");
        this.#publish(Object.keys(EMPTY));
      },
      (error) => {
        this.busy(false);
        fail(error);
      },
    );
  }

  /** The numbers of a view. Where the server has let go of the image, or has another model by now, everything is loaded again. */
  async view(kind, read, params) {
    try {
      const found = await read(`/${this.id}/${kind}`, { model: this.model.name, ...params });
      this.#renewed = false;
      return found;
    } catch (error) {
      if (error.code !== "gone") throw error;
      if (!this.#renewed) {
        this.#renewed = true; // once, until a view is there again
        this.#renewal = this.#renew();
      }
      await this.#renewal; // every view has been requested again then, this one too
      throw error;
    }
  }

  async #renew() {
    ({ models: this.models } = await json("/models"));
    const model = this.models.find(({ name }) => name === this.model.name) ?? this.models[0];
    const { image } = this.state;
    await this.show({ model, image, given: image.startsWith(SAMPLE) ? null : this.blob });
  }
}
