// Copies side by side, and leaks between splits.

import { post, thumbnail } from "./api.js";
import { $, count, empty, h, say, value, waiting } from "./dom.js";
import { on, pending, select, state } from "./state.js";

const AT_ONCE = 40;
const MEMBERS = 60; // of a group that are shown
let kind = "all";
let shown = 0;
let opened = () => {};

export function groups(open) {
  opened = open;
  on("view", () => state.view === "duplicates" && start());
}

export async function start() {
  const box = $("view-duplicates");
    if (!state.progress?.ready?.duplicates) {
    box.replaceChildren(empty("Copies are not compared yet.", pending("duplicates") ?? "They are found once every picture has been looked at; the other views work meanwhile."));
    return;
  }
  shown = 0;
  box.replaceChildren(h("header", { class: "page-head" }, h("h2", {}, "Duplicates"), h("p", { class: "lead", id: "groups-said" }), h("div", { class: "page-acts" }, h("div", { class: "choices", role: "group", "aria-label": "Which copies" }, ["all", "leaks"].map(choice)), h("button", { class: "button", id: "all-but-one", onclick: allButOne }, "Select all but one of each group"))), h("ol", { class: "groups", id: "groups" }), h("button", { class: "button", id: "groups-more", onclick: more, hidden: true }, "More"));
  $("groups").append(waiting());
  await more();
}

const choice = (name) => h("button", { class: "choice", "aria-pressed": String(kind === name), onclick: () => ((kind = name), start()) }, name === "all" ? "All copies" : "Leaks between splits");

const path = () => (kind === "leaks" ? "/api/leaks" : "/api/duplicates");

async function more() {
  try {
    const found = await post(path(), { first: shown, n: AT_ONCE });
    if (!$("groups")) return;
    const rows = await rowsOf(found.groups.flatMap((one) => one.ids.slice(0, MEMBERS)));
    if (!$("groups")) return;
    $("groups").querySelector(".slow")?.remove();
    shown += found.groups.length;
    $("groups").append(...found.groups.map((one) => group(one, one.ids.map((id) => rows.get(id)).filter(Boolean))));
    $("groups-more").hidden = shown >= found.total;
    $("all-but-one").hidden = !found.total;
    $("groups-said").textContent = found.total ? told(found) : "";
    if (!found.total) $("groups").replaceChildren(empty(kind === "leaks" ? "Nothing leaks." : "There are no copies.", kind === "leaks" ? "No picture has a copy in another split." : "Every picture is there once, exactly and nearly."));
  } catch (error) {
    say(error.message, { bad: true });
  }
}

function told({ total, exact, near, extra, splits }) {
  if (kind === "leaks") {
    const shares = Object.entries(splits ?? {}).map(([split, n]) => `${count(n)} in ${split}`).join(", ");
    return `${count(total, "group")} with copies in more than one split${shares ? ` (${shares})` : ""}: what a model is tested on, it has seen.`;
  }
  return `${count(total, "group")}, ${count(exact)} exact (the same pixels) and ${count(near)} near (resized, recompressed, cropped a little, mirrored): ${count(extra, "picture")} more than one of each.`;
}

/** The first stays: the one with the most pixels, then the one that came first. */
const best = (rows) => [...rows].sort((a, b) => (b.width ?? 0) * (b.height ?? 0) - (a.width ?? 0) * (a.height ?? 0) || (b.bytes ?? 0) - (a.bytes ?? 0) || a.id - b.id);

function group(one, members) {
  const rows = best(members);
  const others = () => select([...rows.slice(1).map((row) => row.id), ...one.ids.slice(MEMBERS)]);
  return h("li", { class: one.leak ? "group leak" : "group" },
    h("div", { class: "group-head" }, h("span", { class: `tag ${one.kind}` }, one.kind), one.leak && h("span", { class: "tag leaks" }, "leak"), h("span", { class: "quiet" }, count(one.ids.length, "picture")), h("button", { class: "link", onclick: others }, "select all but one")),
    h("div", { class: "members" }, rows.map((row, i) => member(row, i === 0)), one.ids.length > rows.length && h("p", { class: "quiet" }, `and ${count(one.ids.length - rows.length)} more`)));
}

function member(row, stays) {
  const box = h("button", { class: state.selected.has(row.id) ? "member selected" : "member", "data-id": row.id, title: row.name, onclick: () => opened(row) },
    h("span", { class: "member-frame" }, h("img", { src: thumbnail(row.id), alt: row.caption || row.name, loading: "lazy" })),
    h("span", { class: "member-name" }, row.name),
    h("span", { class: "quiet" }, `${row.width} × ${row.height}, ${value("bytes", row.bytes)}`),
    row.split ? h("span", { class: "tag split" }, row.split) : null,
    stays ? h("span", { class: "quiet stays" }, "stays") : null);
  return box;
}

on("selection", () => {
  for (const box of document.querySelectorAll(".member")) box.classList.toggle("selected", state.selected.has(Number(box.dataset.id)));
});

/** Of every group, also of those not shown: which stays is the same choice. */
async function allButOne() {
  try {
    const chosen = [];
    for (let first = 0, total = 1; first < total; ) {
      const found = await post(path(), { first, n: 500 });
      total = found.total;
      if (!found.groups.length) break;
      first += found.groups.length;
      const rows = await rowsOf(found.groups.flatMap((one) => one.ids));
      for (const one of found.groups) chosen.push(...best(one.ids.map((id) => rows.get(id)).filter(Boolean)).slice(1).map((row) => row.id));
    }
    select(chosen);
    say(`${count(chosen.length, "picture")} selected: all but the largest of each group.`);
  } catch (error) {
    say(error.message, { bad: true });
  }
}

async function rowsOf(ids) {
  const rows = new Map();
  for (let first = 0; first < ids.length; first += 500) {
    const found = await post("/api/page", { query: { ids: ids.slice(first, first + 500) }, first: 0, n: 500 });
    for (const row of found.rows) rows.set(row.id, row);
  }
  return rows;
}
