// Above and below the pictures: what narrows them, how they are sorted, how large they are, what is selected.

import { post, read, save, thumbnail } from "./api.js";
import { $, count, h, icon, later, number, say, title, value } from "./dom.js";
import { ask, clear, emit, filter, narrowed, on, select, state } from "./state.js";

const APART = new Set(["id", "sha256", "pixel_hash", "group", "mode"]);

export function bar(wall, rows) {
  chips();
  on("query", chips);
  on("query", sorting);
  on("ripe", columns);
  columns();
  sizes(wall);
  selection();
  on("selection", selection);
  on("total", selection);
  on("view", selection);
  on("select-all", () => all(rows));
  $("order").addEventListener("click", () => ask({ descending: !state.query.descending }));
  $("sort").addEventListener("change", () => ask({ sort: $("sort").value, descending: false }));
}

// -- what narrows -----------------------------------------------------------------------------------------------------

function chips() {
  const { query } = state;
  const chip = (words, undo, before) => h("span", { class: "chip" }, before, h("span", { class: "value" }, words), h("button", { onclick: undo, "aria-label": `without ${words}` }, icon("close")));
  const found = [];
  if (query.text) found.push(chip(`“${query.text}”`, () => ask({ text: "" })));
  if (query.meaning) found.push(chip(`about “${query.meaning}”`, () => ask({ meaning: "" })));
  if (query.like !== null) found.push(chip(query.like < 0 ? `like ${state.dropped?.name ?? "your picture"}` : "like", () => ask({ like: null }), query.like >= 0 && h("img", { src: thumbnail(query.like), alt: `picture ${query.like}` })));
  for (const one of query.where) found.push(chip(range(one), () => filter(one.column, null)));
  if (query.cluster !== null) found.push(chip(`cluster ${query.cluster + 1}`, () => ask({ cluster: null })));
  if (query.group !== null) found.push(chip("copies of each other", () => ask({ group: null })));
  if (query.ids) found.push(chip(count(query.ids.length, "chosen picture"), () => ask({ ids: null })));
  if (found.length > 1) found.push(h("button", { class: "link", onclick: clear }, "clear all"));
  $("chips").replaceChildren(...found);
}

function range({ column, low, high, values }) {
  if (values) return `${title(column)}: ${values.map((one) => (one === null || one === "" ? "(none)" : value(column, one))).join(", ")}`;
  const words = (v) => (column === "bytes" ? value(column, Math.round(v)) : number(Math.abs(v) > 20 ? Math.round(v) : v));
  if (low === null || low === undefined) return `${title(column)} ≤ ${words(high)}`;
  return high === null || high === undefined ? `${title(column)} ≥ ${words(low)}` : `${title(column)} ${words(low)} – ${words(high)}`;
}

// -- order and size ---------------------------------------------------------------------------------------------------

async function columns() {
  try {
    state.columns = await read("/api/columns");
  } catch {
    state.columns = null; // the rows say what there is
  }
  sorting();
  emit("columns");
}

function sorting() {
  const { sort, descending, like, meaning } = state.query;
  const names = Object.keys(state.columns ?? {}).filter((name) => !APART.has(name));
  $("sort").replaceChildren(h("option", { value: "" }, like !== null || meaning ? "Most alike" : "In order"), ...names.map((name) => h("option", { value: name }, title(name))));
  $("sort").value = sort;
  $("order").replaceChildren(descending ? "↓" : "↑");
  $("order").setAttribute("aria-label", descending ? "descending" : "ascending");
  $("order").disabled = !sort;
}

function sizes(wall) {
  const slider = $("size");
  const narrow = matchMedia("(max-width: 760px)").matches;
  slider.value = localStorage.getItem("sfumato:size") ?? (narrow ? 104 : 152);
  const apply = () => {
    document.documentElement.style.setProperty("--thumb", `${slider.value}px`);
    wall.measure();
  };
  slider.addEventListener("input", apply);
  slider.addEventListener("change", () => localStorage.setItem("sfumato:size", slider.value));
  apply();
}

// -- the selection ----------------------------------------------------------------------------------------------------

function selection() {
  const n = state.selected.size;
  const box = $("selection");
  const fewer = narrowed() && state.total !== null && state.total < (state.all ?? Infinity);
  box.hidden = n === 0 && !(fewer && ["pictures", "table", "map"].includes(state.view));
  if (box.hidden) return;
  const act = (words, work, rest) => h("button", { class: "link", onclick: work, ...rest }, words);
  const kinds = (query, id) => ["csv", "parquet", "txt"].map((kind) => act(kind === "txt" ? "names" : kind === "csv" ? "CSV" : "Parquet", () => exported(query(), kind), { id: `${id}-${kind}`, title: kind === "txt" ? "A list of file names" : null }));
  const parts = n
    ? [h("strong", {}, `${count(n)} selected`), act("show", () => emit("show-selected")), act("clear", () => select([...state.selected], false)), h("span", { class: "gap" }), h("span", { class: "quiet export" }, "Export"), ...kinds(() => ({ ids: [...state.selected] }), "export")]
    : [h("span", { class: "quiet" }, `${count(state.total ?? 0)} found`), act("select all", () => emit("select-all"), { id: "select-all" }), h("span", { class: "gap" }), h("span", { class: "quiet export" }, "Export"), ...kinds(() => state.query, "export-found")];
  if (n && fewer) parts.splice(1, 0, act("add all found", () => emit("select-all"), { id: "select-all" }));
  box.replaceChildren(...parts);
}

async function all() {
  try {
    const { ids } = await post("/api/ids", { query: state.query });
    select(ids);
    say(`${count(ids.length, "picture")} selected.`);
  } catch (error) {
    say(error.message, { bad: true });
  }
}

const exported = later(0, async (query, kind) => {
  try {
    say(`Saved as ${await save(query, kind)}.`);
  } catch (error) {
    say(error.message, { bad: true });
  }
});
