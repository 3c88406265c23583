// What both pages do alike: the API key, the served models, samples, files and links.

import { blob as fileOf, json, onKeyWanted } from "./api.js";
import { $, el, showMessage } from "./dom.js";

const RETRY = 2000; // ms

// From the first moment: else a browser leaves the page for a file that is dropped on it.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

$("key-cancel").addEventListener("click", () => $("key-dialog").close(""));

onKeyWanted((refused) => new Promise((resolve) => {
  const dialog = $("key-dialog");
  $("key-refused").hidden = !refused;
  $("key").value = "";
  dialog.returnValue = "";
  dialog.addEventListener("close", () => resolve(dialog.returnValue === "give" ? $("key").value : null), { once: true });
  dialog.showModal();
}));

/** The served models; null where the server wants a key and gets none. */
export async function loadModels() {
  for (;;) {
    try {
      return await json("/models");
    } catch (error) {
      showMessage("image-error", `${error.message} ${error.code === "unauthorized" ? "Load the page again to give it." : "Trying again."}`);
      if (error.code === "unauthorized") return null;
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
}

/** The choice of models, and the way to the other page where that has some. */
export function showModels(models, others) {
  $("model").replaceChildren(...models.map(({ name }) => el("option", { value: name }, name)));
  $("others").hidden = !others.length;
}

/** Pictures to try, once per model; choose: takes the name of one. */
export function showSamples(model, choose) {
  if ($("samples").dataset.of === model.name) return;
  $("samples").dataset.of = model.name;
  $("samples").replaceChildren(...model.samples.map(({ id, title }) => {
    const image = el("img", { alt: title, width: 48, height: 48 });
    const button = el("button", { type: "button", value: id, title, "aria-pressed": "false" }, image);
    button.addEventListener("click", () => choose(id));
    fileOf(`/samples/${encodeURIComponent(id)}`).then((file) => {
      image.src = URL.createObjectURL(file);
      image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    }, () => {});
    return button;
  }));
}

/** Marks the sample that is shown, if one is. */
export function pressSample(name) {
  for (const button of $("samples").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === name));
}

/** Files that are chosen, dropped or pasted; give: takes one. */
export function takeFiles(give) {
  $("file").addEventListener("change", () => {
    if ($("file").files.length) give($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) give(event.dataTransfer.files[0]);
    else showMessage("image-error", "What was dropped is no file. Save the picture first, then drop the file.");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) give(event.clipboardData.files[0]);
  });
}

/** Copies the page's address, or shows it to be copied; note: what the notice says. */
export async function copyLink(note) {
  const link = location.href;
  try {
    await navigator.clipboard.writeText(link);
    $("notice").textContent = note;
  } catch {
    $("link").hidden = false;
    $("link-text").value = link;
    $("link-text").select();
    $("notice").textContent = "Copy this link.";
  }
}
