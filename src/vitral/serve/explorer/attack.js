// An attack on the answer: the attacked picture takes the place of the picture in all views.

import { $, percent, showMessage } from "./dom.js";

const LEVELS = 255;

export class Attack {
  constructor(page) {
    this.page = page;
    for (const kind of ["fgsm", "pgd"]) $(kind).addEventListener("click", () => this.#start(kind));
    $("unattack").addEventListener("click", () => this.#remove());
    $("eps").addEventListener("input", () => this.#label());
    page.on((changed) => {
      if (changed.has("image") || changed.has("model")) this.#show(page.answer.change ? page.answer : null);
    });
  }

  #label() {
    const level = Number($("eps").value);
    $("eps-value").textContent = level ? `${level}/${LEVELS}` : "0";
    for (const kind of ["fgsm", "pgd"]) $(kind).disabled = !level;
  }

  #start(kind) {
    showMessage("attack-error");
    this.page.attack({ kind, eps: Number($("eps").value) / LEVELS }, (error) => showMessage("attack-error", error.message));
  }

  #remove() {
    const { image, given } = this.page.wanted;
    this.page.show({ image, given });
  }

  #show(found) {
    showMessage("attack-error");
    $("unattack").disabled = !found;
    $("attack-change").hidden = !found;
    $("attack-status").textContent = "";
    if (!found) return;
    const [[before], [after]] = [found.before, found.predictions];
    const eps = `${Math.round(found.eps * LEVELS)}/${LEVELS}`;
    const text = ({ label, score }) => `${label}, ${percent(score)}`;
    $("attack-status").textContent = `${found.kind.toUpperCase()}, eps ${eps}: ${text(before)} `
      + (before.label === after.label ? `stays ${text(after)}.` : `became ${text(after)}.`);
    const image = $("attack-change").querySelector("img");
    image.src = found.change;
    [image.height, image.width] = this.page.model.image_size;
  }
}
