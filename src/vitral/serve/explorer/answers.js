// What the model says of the image, and what it would say after each layer.

import { Latest, json } from "./api.js";
import { $, barCell, fillTable, percent, showMessage } from "./dom.js";

/** The likeliest classes as bars. */
export function showAnswer(model, answer) {
  showMessage("answer-why", model.why.predict);
  $("answer-table").hidden = !answer.predictions.length;
  fillTable($("answer-table"), answer.predictions.map(({ label, score }) => [label, barCell(score)]));
  const [best] = answer.predictions;
  $("answer-status").textContent = best ? `${best.label}, ${percent(best.score)}.` : "";
  const [height, width] = answer.size;
  const [inside, across] = model.image_size;
  const cut = model.grid ? `, cut into ${model.grid[0]} × ${model.grid[1]} patches of ${model.patch_size} pixels` : "";
  $("seen").textContent = `Given: ${width} × ${height} pixels. The model sees ${across} × ${inside}${cut}.`;
  $("facts").textContent = answer.latency_ms === null ? "" :
    `Answered in ${answer.latency_ms.toFixed(1)} ms on ${answer.device}: reading the file, resizing and the model.`
    + (model.multi_label ? " An image may have several classes, so the numbers need not sum to 1." : "");
}

export class Lens {
  constructor(page) {
    this.page = page;
    this.latest = new Latest();
    page.on((changed) => this.update(changed));
  }

  update(changed) {
    if (!this.page.model.can.includes("lens")) {
      this.latest.drop();
      showMessage("lens-error");
    } else if (changed.has("image"))
      this.latest.run(
        () => this.page.view("lens", json, {}),
        (found) => this.#show(found),
        (error) => {
          showMessage("lens-error", error.message);
          fillTable($("lens-table"), []);
        },
      );
    else if (changed.has("layer")) this.#choose();
  }

  #show({ final, layers }) {
    showMessage("lens-error");
    $("lens-final").textContent = `Proba\u00adbility of “${final.label}”`;
    fillTable($("lens-table"), layers.map(({ predictions: [best, ...others], final_score: share }, layer) => {
      const cell = document.createElement("td");
      cell.append(best.label);
      cell.title = others.map(({ label, score }) => `then ${label} ${percent(score)}`).join(", ");
      return [String(layer + 1), cell, barCell(best.score), barCell(share)];
    }));
    this.#choose();
  }

  #choose() {
    [...$("lens-table").tBodies[0].rows].forEach((row, layer) => {
      const is = layer === this.page.state.layer;
      row.classList.toggle("chosen", is);
      row.setAttribute("aria-current", String(is));
    });
  }
}
