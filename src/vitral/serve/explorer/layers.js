// Views beside attention: rollout through all layers, likeness and length of the patches after each layer.

import { Latest, floats } from "./api.js";
import { $, percent, placeName, short, tell } from "./dom.js";
import { tokenName } from "./attention.js";
import { Stack } from "./stack.js";

export class Layers {
  constructor(page) {
    this.page = page;
    const pick = (patch) => page.set({ token: "patch", patch });
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
    const { model, id } = this.page;
    if (!model.can.includes("attention") || !id) return;
    for (const [name, view] of Object.entries(this.views)) {
      const params = view.params();
      const asked = JSON.stringify([model.name, id, params]);
      if (changed.has("image") || changed.has("model")) view.found = null;
      if (asked !== view.asked || changed.has("image")) this.#load(name, view, params, asked);
      else if (changed.has("layer") || changed.has("patch")) this.#draw(name, view);
    }
  }

  #load(name, view, params, asked) {
    view.asked = asked;
    view.latest.run(
      () => this.page.view(name, floats, params),
      (found) => {
        view.found = found;
        tell("layers-error");
        this.#draw(name, view);
      },
      (error) => {
        view.asked = null;
        tell("layers-error", error.message);
      },
    );
  }

  #draw(name, view) {
    if (!view.found) return;
    const { model, state } = this.page;
    const count = model.grid[0] * model.grid[1];
    const { data } = view.found;
    const start = name === "rollout" ? model.tokens.length : state.layer * count;
    const values = data.subarray(start, start + count);
    view.stack.mark(name === "rollout" && state.token !== "patch" ? null : state.patch, name === "norms");
    view.stack.show(values, name === "similarity" ? Math.min(0, ...values) : 0, name === "similarity" ? 1 : Math.max(...values));
    $(`${name}-title`).textContent = {
      rollout: `Rollout of ${state.token === "patch" ? placeName(state.patch) : tokenName(state.token)}`,
      similarity: `Like ${placeName(state.patch)}, after layer ${state.layer}`,
      norms: `Length of tokens, after layer ${state.layer}`,
    }[name];
  }
}
