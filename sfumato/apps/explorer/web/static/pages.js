// The quieter views: outliers, captions, health.

import { read, thumbnail } from "./api.js";
import { $, count, empty, h, later, number, svg, title, value, waiting } from "./dom.js";
import { ask, leftOut, on, pending, show, state } from "./state.js";

let opened = () => {};
const shown = {};

export function pages(open) {
  opened = open;
  on("view", draw);
  on("progress", later(0, () => state.view === "health" && list()));
}

/** Draws the view that is looked at; `again` where more is known. */
export async function draw(again = false) {
  const work = { outliers, captions, health }[state.view];
  if (!work || (shown[state.view] && again !== true && state.view !== "health")) return;
  if (!shown[state.view]) $(`view-${state.view}`).replaceChildren(waiting());
  shown[state.view] = true;
  try {
    await work();
  } catch (error) {
    shown[state.view] = false;
    $(`view-${state.view}`)?.replaceChildren(empty("This cannot be shown yet.", error.message));
  }
}

const head = (name, lead) => h("header", { class: "page-head" }, h("h2", {}, name), lead && h("p", { class: "lead" }, lead));

const cell = (id, words) => h("button", { class: "mini", onclick: () => opened({ id }) }, h("span", { class: "mini-frame" }, h("img", { src: thumbnail(id), alt: "", loading: "lazy" })), words && h("span", { class: "quiet" }, words));

// -- outliers ---------------------------------------------------------------------------------------------------------

async function outliers() {
  const found = Object.entries(await read("/api/outliers"));
  const some = found.filter(([, one]) => one.rows.length);
  const none = found.filter(([, one]) => !one.rows.length).map(([name]) => title(name).toLowerCase());
  $("view-outliers").replaceChildren(
    head("Outliers", "Pictures far from the others in one respect, the strangest first. A click looks at one; Filter keeps them all."),
    ...some.map(([name, one]) => check(name, one)),
    none.length ? h("p", { class: "quiet" }, `Nothing strange in: ${none.join(", ")}.`) : "",
    found.length ? "" : empty("Nothing to compare yet.", "Pictures are still being looked at."));
}

function check(name, { says, column, rows, total }) {
  const keep = () => {
    ask({ ids: rows.map((row) => row.id), sort: "" });
    show("pictures");
  };
  return h("section", { class: "check" },
    h("div", { class: "check-head" }, h("h3", {}, title(name)), h("span", { class: "figure" }, count(total ?? rows.length)), h("button", { class: "link", onclick: keep }, "filter")),
    h("p", { class: "quiet" }, says),
    h("div", { class: "strip-of" }, rows.slice(0, 24).map((row) => cell(row.id, row.value === null ? "" : value(column ?? "", row.value)))));
}

// -- captions ---------------------------------------------------------------------------------------------------------

async function captions() {
  const [found, where] = await Promise.all([read("/api/captions"), read("/api/sources").catch(() => null)]);
  const box = $("view-captions");
  if (!found.captioned) {
    box.replaceChildren(empty("No picture has a caption.", "Captions come from a column, from picture.txt beside picture.png, or from file names: see --captions."), domains(where));
    return;
  }
  const facts = [["captioned", `${count(found.captioned)} of ${count(found.pictures, "picture")}`], ["distinct", count(found.distinct)], ["empty", count(found.empty)], ["words, median", number(found.length.words[1])], ["longest", `${count(found.length.words[2], "word")}`]];
  box.replaceChildren(
    head("Captions"),
    h("dl", { class: "facts-row" }, facts.map(([name, words]) => h("div", {}, h("dt", {}, name), h("dd", {}, words)))),
    h("div", { class: "columns" },
      ranked("Words", found.words, (word) => search(word)),
      ranked("Phrases", found.phrases, (phrase) => search(`"${phrase}"`)),
      ranked("Repeated", found.repeated.map(([text, n]) => [text, n]), (text) => search(`"${text.replaceAll('"', " ").slice(0, 200)}"`)),
      lengths(found.length.histogram),
      (found.scripts?.length ?? 0) > 1 && ranked("Scripts", found.scripts)),
    domains(where));
}

function search(text) {
  ask({ text, meaning: "" });
  show("pictures");
}

function ranked(name, pairs, act) {
  if (!pairs?.length) return null;
  const most = pairs[0][1];
  return h("section", { class: "ranked" }, h("h3", {}, name), h("ol", {}, pairs.slice(0, 20).map(([words, n]) => {
    const bar = h("i", { class: "share" });
    bar.style.width = `${(100 * n) / most}%`;
    const line = [h("span", { class: "value" }, words), h("span", { class: "figure" }, count(n)), bar];
    return h("li", {}, act ? h("button", { onclick: () => act(words), title: words }, line) : h("span", {}, line));
  })));
}

function lengths({ edges, counts }) {
  const tallest = Math.max(1, ...counts);
  const wide = 240 / counts.length;
  return h("section", { class: "ranked" }, h("h3", {}, "Length in characters"),
    svg("svg", { viewBox: "0 0 240 80", class: "histogram still", preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of lengths" }, counts.map((n, i) => svg("rect", { class: "bin", x: i * wide + 0.5, width: Math.max(0.5, wide - 1), y: 80 - (76 * n) / tallest, height: (76 * n) / tallest }))),
    h("p", { class: "ends" }, h("span", {}, number(Math.round(edges[0]))), h("span", {}, number(Math.round(edges[edges.length - 1])))));
}

function domains(where) {
  if (!where?.domains?.length) return "";
  return h("div", { class: "columns" }, ranked(`Domains of ${where.column}`, where.domains.map(([name, n]) => [name, n])));
}

// -- health -----------------------------------------------------------------------------------------------------------

const PARTS = { table: "Facts of every picture", thumbnails: "Thumbnails", duplicates: "Copies and leaks", embeddings: "Features: search by picture", map: "Map and clusters", captions: "Caption statistics", meaning: "Search captions by meaning" };

let changes = [];

/** Files that were written anew since the room was opened are looked for when somebody wants to know. */
async function health() {
  list();
  changes = await read("/api/changed").catch(() => []);
  if (changes.length) list();
}

function list() {
  const found = state.progress;
  const bad = leftOut(found);
  const working = found.stage !== "";
  $("view-health").replaceChildren(
    head("Health", working ? `Now: ${found.stage}, ${count(found.done)} of ${count(found.of)}.` : "Everything is computed."),
    h("ul", { class: "parts" }, Object.entries(PARTS).filter(([part]) => part in found.ready).map(([part, words]) => stateOf(part, words, found, working))),
    found.notes?.length ? h("section", {}, h("h3", {}, "Notes"), h("ul", { class: "notes" }, found.notes.map((note) => h("li", {}, note)))) : "",
    changes.length ? h("section", {}, h("h3", {}, `${count(changes.length, "file")} changed since the room was opened`), reasons(changes)) : "",
    h("section", {}, h("h3", {}, bad.length ? `${count(bad.length, "file")} left out` : "Nothing was left out"), bad.length ? reasons(bad) : h("p", { class: "quiet" }, working ? "So far." : "Every file was read.")));
}

const reasons = (files) => h("table", { class: "reasons" }, h("tbody", {}, files.slice(0, 1000).map((one) => h("tr", {}, h("td", {}, one.name), h("td", {}, one.reason)))));

function stateOf(part, words, found, working) {
  const failed = pending(part);
  const [name, told] = found.ready[part] ? ["ready", "ready"] : failed ? ["failed", failed] : working ? ["waiting", "to come"] : ["off", off(part)];
  return h("li", { class: name }, h("i", { class: "lamp" }), h("span", {}, words), h("span", { class: "quiet" }, told));
}

export function off(part) {
  if (part === "meaning") return "needs a sentence encoder: --text FOLDER, or --clip FOLDER for the pictures themselves";
  if (part === "captions") return "there are none";
  return "left out: features are off (--no-embed), or there are too few pictures";
}

