// Views beside attention: rollout through all layers, likeness and length of the patches after each layer.

import { Latest, floats } from "./api.js";
import { $, percent, placeName, short, showMessage } from "./dom.js";
import { tokenName } from "./attention.js";
import { Stack } from "./stack.js";

export class Layers {
  constructor(page) {
    this.page = page;
    const pick = (patch) => page.choose(patch);
    this.views = {
      rollout: { format: percent, needs: ["token", "fuse"], params: () => ({ token: page.token(), fuse: page.state.fuse }) },
      similarity: { format: short, needs: ["patch"], params: () => ({ patch: page.state.patch.join(",") }) },
      norms: { format: short, needs: [], params: () => ({}) },
    };
    for (const [name, view] of Object.entries(this.views))
      Object.assign(view, { latest: new Latest(), stack: new Stack($(name), { pick, format: view.format }) });
    page.on((changed) => this.update(changed));
  }

  update(changed) {
    for (const [name, view] of Object.entries(this.views)) {
      if (!this.page.sees()) {
        Object.assign(view, { found: null, asked: null });
        view.latest.drop();
        this.#done(view);
        continue;
      }
      const params = view.params();
      const asked = JSON.stringify([this.page.turn, params]);
      if (asked !== view.asked) this.#load(name, view, params, asked);
      else if (changed.has("layer") || changed.has("patch")) this.#draw(name, view);
    }
  }

  #load(name, view, params, asked) {
    Object.assign(view, { asked, found: null });
    view.latest.run(
      () => this.page.view(name, floats, params),
      (found) => {
        view.found = found;
        this.#done(view);
        this.#draw(name, view);
      },
      (error) => {
        view.asked = null;
        this.#done(view, error.message);
        view.stack.clear();
        this.#title(name);
      },
    );
  }

  #done(view, message = "") {
    view.error = message;
    const errors = Object.values(this.views).map(({ error }) => error).filter(Boolean);
    showMessage("layers-error", [...new Set(errors)].join("\n"));
  }

  #draw(name, view) {
    if (!view.found) return;
    const { model, state } = this.page;
    const count = model.grid[0] * model.grid[1];
    const { data } = view.found;
    const start = name === "rollout" ? model.tokens.length : state.layer * count;
    const values = data.subarray(start, start + count);
    const place = name === "rollout" && state.token !== "patch" ? null : state.patch;
    view.stack.mark(place, name === "norms");
    view.stack.show(values, name === "similarity" ? Math.min(0, ...values) : 0, name === "similarity" ? 1 : Math.max(...values));
    this.#title(name);
  }

  #title(name) {
    const { state } = this.page;
    $(`${name}-title`).textContent = {
      rollout: `Rollout of ${state.token === "patch" ? placeName(state.patch) : tokenName(state.token)}`,
      similarity: `Similarity to ${placeName(state.patch)}, after layer ${state.layer + 1}`,
      norms: `Token norm, after layer ${state.layer + 1}`,
    }[name];
  }
}
