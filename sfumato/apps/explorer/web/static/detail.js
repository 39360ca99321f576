// One picture: large, with every fact, its neighbours, and what a trained run thinks of it.

import { picture, post, read, thumbnail } from "./api.js";
import { $, count, h, icon, number, say, title, value } from "./dom.js";
import { ask, emit, on, show, state, toggle } from "./state.js";

const TECHNICAL = new Set(["sha256", "pixel_hash", "mode", "red", "green", "blue", "darkest", "lightest", "bits_per_pixel", "group", "cluster", "copies"]);
const ABOVE = new Set(["id", "name", "caption", "similarity"]);
let at = null; // {row, index}
let judged = new Map();
let stop = null;
let walk = () => {};

export function detail(step) {
  walk = step;
  on("selection", mark);
}

export const current = () => at;

export async function open(row, index = null) {
  const box = $("detail");
  if (row.name === undefined) {
    try {
      [row] = (await post("/api/page", { query: { ids: [row.id] }, first: 0, n: 1 })).rows;
    } catch (error) {
      return say(error.message, { bad: true });
    }
    if (!row) return say("that picture is not there any more.", { bad: true });
  }
  const fresh = box.hidden;
  at = { row, index };
  box.hidden = false;
  document.body.classList.add("looking");
  draw(row);
  box.scrollTop = 0;
  if (fresh && matchMedia("(max-width: 760px)").matches) box.querySelector(".close").focus();
  emit("opened");
  stop?.abort();
  stop = new AbortController();
  if (state.progress?.ready?.embeddings) alike(row, stop.signal);
}

export function close() {
  if ($("detail").hidden) return false;
  stop?.abort();
  $("detail").hidden = true;
  document.body.classList.remove("looking");
  at = null;
  emit("closed");
  return true;
}

function draw(row) {
  const image = h("img", { alt: row.caption || row.name, decoding: "async", class: "blurred", src: thumbnail(row.id) });
  const large = new Image();
  large.onload = () => {
    image.src = large.src;
    image.classList.remove("blurred");
  };
  large.onerror = () => image.classList.remove("blurred");
  large.src = picture(row.id);
  if (row.width && row.height) image.style.aspectRatio = `${row.width} / ${row.height}`;
  const features = state.progress?.ready?.embeddings;
  $("detail").replaceChildren(
    h("div", { class: "detail-head" },
      h("button", { class: "tool", onclick: () => walk(-1), title: "Previous (←)", "aria-label": "previous picture" }, icon("left")),
      h("button", { class: "tool", onclick: () => walk(1), title: "Next (→)", "aria-label": "next picture" }, icon("right")),
      h("span", { class: "grow" }),
      h("button", { class: "tool close", onclick: close, title: "Close (Esc)", "aria-label": "close" }, icon("close"))),
    h("div", { class: "large" }, image),
    row.caption ? h("p", { class: "caption" }, row.caption) : "",
    h("p", { class: "filename" }, row.name),
    h("div", { class: "acts" },
      h("button", { class: "button", id: "pick", onclick: () => toggle(row.id) }),
      h("button", { class: "button", disabled: !features, title: features ? null : "Features are not computed yet", onclick: () => emit("alike", row.id) }, icon("alike"), "More like this"),
      row.group !== null && row.group !== undefined && row.group >= 0 ? h("button", { class: "button", onclick: () => (ask({ group: row.group }), show("pictures")) }, "Its copies") : "",
      row.cluster !== null && row.cluster !== undefined && row.cluster >= 0 ? h("button", { class: "button", onclick: () => emit("cluster", row.cluster) }, "Its cluster") : ""),
    judgement(row),
    h("div", { class: "neighbours", id: "neighbours" }),
    facts(row));
  mark();
}

function mark() {
  const button = $("pick");
  if (!button || !at) return;
  const there = state.selected.has(at.row.id);
  button.replaceChildren(icon("check"), there ? "Selected" : "Select");
  button.setAttribute("aria-pressed", String(there));
}

function facts(row) {
  const names = Object.keys(row).filter((name) => !ABOVE.has(name) && row[name] !== null && row[name] !== "" && typeof row[name] !== "object");
  const list = (some) => h("dl", { class: "facts" }, some.map((name) => h("div", {}, h("dt", {}, title(name)), h("dd", {}, value(name, row[name])))));
  const technical = names.filter((name) => TECHNICAL.has(name));
  return h("section", {}, h("h3", {}, "Facts"), list(names.filter((name) => !TECHNICAL.has(name))), technical.length ? h("details", {}, h("summary", {}, "More"), list(technical)) : "");
}

async function alike(row, signal) {
  try {
    const found = await post("/api/page", { query: { like: row.id }, first: 0, n: 13 }, signal);
    const others = found.rows.filter((one) => one.id !== row.id).slice(0, 12);
    if (at?.row.id !== row.id || !others.length) return;
    $("neighbours").replaceChildren(h("h3", {}, "Nearest"), h("div", { class: "strip-of small" }, others.map((one) => h("button", { class: "mini", title: `${one.name}\nsimilarity ${one.similarity.toFixed(3)}`, onclick: () => open(one) }, h("span", { class: "mini-frame" }, h("img", { src: thumbnail(one.id), alt: one.caption || one.name, loading: "lazy" })), h("span", { class: "quiet" }, one.similarity.toFixed(2))))));
  } catch (error) {
    if (error.name !== "AbortError") $("neighbours")?.replaceChildren(h("p", { class: "quiet" }, error.message));
  }
}

// -- the run ----------------------------------------------------------------------------------------------------------

function judgement(row) {
  if (!state.session?.run) return "";
  const box = h("section", { class: "judged" });
  const told = (found) => {
    judged.set(row.id, found);
    box.replaceChildren(h("h3", {}, `What ${state.session.run} thinks`), h("dl", { class: "facts" }, h("div", {}, h("dt", {}, "Loss"), h("dd", {}, number(found.loss))), h("div", {}, h("dt", {}, "Bits/dim"), h("dd", {}, found.bits === null ? "–" : number(found.bits)))), h("p", { class: "quiet" }, [found.note, found.loss === null && "No loss: it needs a class that the run knows and this picture has, or more than a picture."].filter(Boolean).join(" ")));
  };
  const measure = async () => {
    button.disabled = true;
    button.textContent = "Measuring…";
    try {
      told(await read(`/api/judge/${row.id}`));
    } catch (error) {
      box.replaceChildren(h("p", { class: "quiet" }, error.message));
    }
  };
  const button = h("button", { class: "button", onclick: measure, id: "judge" }, "Measure loss and bits/dim");
  if (judged.has(row.id)) told(judged.get(row.id));
  else box.append(h("h3", {}, `What ${state.session.run} thinks`), button);
  return box;
}

/** The pictures nearest to one that was dropped: for a sample of a model, whether it was memorised. */
export function sample(bitmap, name, found) {
  at = null;
  const canvas = h("canvas", { class: "dropped" });
  const scale = Math.min(1, 480 / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const box = $("detail");
  box.hidden = false;
  document.body.classList.add("looking");
  box.replaceChildren(
    h("div", { class: "detail-head" }, h("h2", {}, "A picture of yours"), h("span", { class: "grow" }), h("button", { class: "tool close", onclick: close, "aria-label": "close" }, icon("close"))),
    h("div", { class: "large" }, canvas),
    h("p", { class: "filename" }, name),
    h("h3", {}, `The ${count(found.length, "picture")} nearest to it`),
    h("p", { class: "quiet" }, memorised(found[0])),
    h("div", { class: "strip-of small" }, found.map((one) => h("button", { class: "mini", title: one.name, onclick: () => open({ id: one.id }) }, h("span", { class: "mini-frame" }, h("img", { src: thumbnail(one.id), alt: one.name })), h("span", { class: "quiet" }, one.distance.toFixed(3))))));
}

function memorised(nearest) {
  if (!nearest) return "There is nothing to compare it with.";
  return `Distances are 1 - cosine of the features: 0 is the same. The nearest is ${nearest.distance.toFixed(3)} away. A sample that a model made and that is as near as copies are to each other was probably memorised: compare the two by eye.`;
}
