// What is seen as one file that needs no server, no network and no script.

import { $, percent, short } from "./dom.js";
import { Stack } from "./stack.js";
import { tokenName } from "./attention.js";

const STYLE = `body{max-width:60rem;margin:auto;padding:1.5rem 1rem;font:1rem/1.5 system-ui,sans-serif;color:#1b1f24;
background:#fff;overflow-wrap:anywhere}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}figure{margin:0;max-width:21rem}
.row{display:flex;flex-wrap:wrap;gap:1rem}img{max-width:100%;display:block}table{border-collapse:collapse;
font-variant-numeric:tabular-nums}th,td{padding:.2rem .5rem;border-bottom:1px solid #d5d9de;text-align:right}
caption,.soft,figcaption{color:#57606a;font-size:.9rem;text-align:left}.wide{overflow-x:auto}
@media(prefers-color-scheme:dark){body{color:#e8eaed;background:#15181c}th,td{border-color:#3a4048}
caption,.soft,figcaption{color:#a8b0b9}}`;

const escape = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const shown = (element) => !element.closest("[hidden]");

/** A table of the page as it stands, without bars. */
function tableOf(table) {
  const cells = (row) => [...row.cells].map((cell) => {
    const text = cell.querySelector(".number")?.textContent ?? cell.textContent;
    return cell.tagName === "TH" ? `<th>${escape(text)}</th>` : `<td>${escape(text)}</td>`;
  }).join("");
  const rows = [...table.rows].map((row) => `<tr>${cells(row)}</tr>`).join("");
  return `<table><caption>${escape(table.caption.textContent)}</caption>${rows}</table>`;
}

/** All numbers of a map, patch by patch. */
function numbersOf(title, { values, grid: [rows, columns] }, format) {
  const row = (r) => Array.from({ length: columns }, (_, c) => `<td>${escape(format(values[r * columns + c]))}</td>`).join("");
  const head = Array.from({ length: columns }, (_, c) => `<th>${c}</th>`).join("");
  const body = Array.from({ length: rows }, (_, r) => `<tr><th>${r}</th>${row(r)}</tr>`).join("");
  return `<details><summary>${escape(title)}: all numbers, rows and columns of patches</summary>`
    + `<div class="wide"><table><tr><th></th>${head}</tr>${body}</table></div></details>`;
}

async function figureOf(id) {
  const figure = $(id);
  const title = figure.querySelector("h3").textContent;
  const caption = [...figure.querySelectorAll(".value, .rest")].map((line) => line.textContent).join(" ");
  return `<figure><h3>${escape(title)}</h3><img alt="${escape(title)}" src="${await Stack.of(figure).snapshot()}">`
    + `<figcaption>${escape(caption)}</figcaption></figure>`;
}

async function sections(page) {
  const { model, state } = page;
  const parts = [`<h2>The image</h2><div class="row">${await figureOf("picture")}<div>`
    + `${page.answer.predictions.length ? tableOf($("answer-table")) : ""}`
    + `${model.can.includes("boxes") ? tableOf($("boxes-table")) : ""}<p class="soft">${escape($("seen").textContent)}</p></div></div>`];
  if (model.can.includes("attention")) {
    const format = { from: percent, to: percent, rollout: percent, similarity: short, norms: short };
    const about = state.token === "patch" ? `patch ${page.token()} (row, column)` : tokenName(state.token);
    parts.push(`<h2>Attention of ${escape(about)}, layer ${state.layer + 1}, ${escape($("head").selectedOptions[0].text)}</h2>`
      + `<p>${escape($("status").textContent)}</p><div class="row">${await figureOf("from")}${await figureOf("to")}</div>`
      + tableOf($("attention-table"))
      + `<h3>Attention ${state.view}: layers downwards, heads across</h3><img alt="Every layer and head" src="`
      + `${$("overview").querySelector("canvas").toDataURL("image/png")}">`);
    parts.push(`<h2>Through the layers</h2><div class="row">${await figureOf("rollout")}${await figureOf("similarity")}`
      + `${await figureOf("norms")}</div>`);
    for (const [id, each] of Object.entries(format))
      if (Stack.of($(id)).values) parts.push(numbersOf($(id).querySelector("h3").textContent, Stack.of($(id)), each));
  }
  if (model.can.includes("lens")) parts.push(`<h2>The answer after each layer</h2>${tableOf($("lens-table"))}`);
  if (model.can.includes("merge"))
    parts.push(`<h2>Token merging, ${state.r} in each block</h2><div class="row">${await figureOf("groups")}<div>`
      + `${shown($("merge-table")) ? tableOf($("merge-table")) : ""}<p>${escape($("merge-counts").textContent)} `
      + `${escape($("merge-speed").textContent)}</p></div></div>`);
  return parts;
}

/** Makes the file in the browser and hands it to the visitor. */
export async function savePage(page) {
  const name = page.model.name;
  const html = `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><title>${escape(name)}: how it sees an image</title><style>${STYLE}</style></head><body>
<h1>How ${escape(name)} sees an image</h1><p><strong>Attention is not an explanation.</strong> ${escape($("caveat").textContent)}</p>
${(await sections(page)).join("\n")}
<p class="soft">Rows, columns and heads are counted from 0, layers from 1. Made by Vitral's explorer.</p></body></html>`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  link.download = `${name.replace(/[^\w.-]+/g, "_")}-explored.html`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  $("notice").textContent = "Page saved.";
}
