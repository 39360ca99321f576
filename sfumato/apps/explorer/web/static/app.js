// The room: puts the parts together.

import { post, read, session } from "./api.js";
import { bar } from "./bar.js";
import * as detail from "./detail.js";
import { $, count, empty, h, icon, say, title } from "./dom.js";
import { facets, refresh } from "./facets.js";
import { groups, start as regroup } from "./groups.js";
import { Scatter } from "./map.js";
import { draw as redraw, off, pages } from "./pages.js";
import { Rows } from "./rows.js";
import { search } from "./search.js";
import { ask, clear, emit, narrowed, on, pending, recall, restoreSelection, show, state } from "./state.js";
import { Table } from "./table.js";
import { Wall } from "./wall.js";

const VIEWS = { pictures: "Pictures", table: "Table", duplicates: "Duplicates", outliers: "Outliers", map: "Map", captions: "Captions", health: "Health" };
const NEEDS = { duplicates: "duplicates", map: "map" };

let rows, wall, table, map;

async function begin() {
  history.replaceState(null, "", location.pathname + location.hash); // the key stays out of sight
  scheme();
  recall();
  try {
    state.session = await session();
    state.progress = await read("/api/progress");
    state.all = (await post("/api/page", { query: {}, first: 0, n: 1 })).total;
  } catch (error) {
    $("nothing").hidden = false;
    $("nothing").replaceChildren(empty("The data room cannot be reached.", error.message));
    return;
  }
  document.title = `${state.session.name} · data room`;
  $("name").textContent = state.session.name;
  restoreSelection(state.session.name);
  rows = new Rows((error) => changed(error));
  wall = new Wall($("view-pictures"), rows, (row, i) => detail.open(row, i));
  table = new Table($("view-table"), rows, (row, i) => detail.open(row, i));
  map = new Scatter($("view-map"), (row) => detail.open(row));
  groups((row) => detail.open(row));
  pages((row) => detail.open(row));
  detail.detail(step);
  search();
  bar(wall, rows);
  facets();
  on("query", again);
  on("view", view);
  on("total", total);
  on("alike", (id) => (ask({ like: id, sort: "", ids: null, group: null, cluster: null }), show("pictures")));
  on("cluster", (cluster) => (ask({ cluster, ids: null }), show("pictures")));
  on("columns", () => table.changed());
  on("opened", () => wall.draw());
  on("closed", () => (state.view === "table" ? $("view-table") : $("view-pictures")).focus({ preventScroll: true }));
  on("looped", (n) => say(`${count(n, "picture")} inside: the wall shows them.`));
  on("show-selected", () => (ask({ ids: [...state.selected] }), show("pictures")));
  document.addEventListener("keydown", keys);
  drawer();
  view();
  again();
  watch();
}

function again() {
  wall.restart();
  table.restart();
  rows.reset();
}

function changed(error) {
  wall.changed();
  table.changed();
  const none = $("nothing");
  const shown = ["pictures", "table"].includes(state.view);
  none.hidden = !(rows.known && rows.total === 0 && shown);
  if (none.hidden) return;
  const told = error ? [error.message] : narrowed() ? ["Loosen a filter, or begin anew."] : [state.progress?.stage ? "Pictures appear as they are read." : "The health view says what was left out."];
  none.replaceChildren(empty(error ? "That cannot be answered." : narrowed() ? "No picture fits." : "There are no pictures yet.", ...told, narrowed() ? h("button", { class: "button", onclick: clear }, "Show everything") : ""));
}

function total() {
  const all = state.all ?? state.total;
  if (!narrowed()) state.all = state.total;
  $("count").textContent = narrowed() && state.all !== undefined && state.total < state.all ? `${count(state.total)} of ${count(state.all, "picture")}` : count(all ?? 0, "picture");
}

// -- views ------------------------------------------------------------------------------------------------------------

function view() {
  if (!(state.view in VIEWS)) state.view = "pictures";
  for (const name of Object.keys(VIEWS)) $(`view-${name}`).hidden = name !== state.view;
  $("bar").classList.toggle("elsewhere", !["pictures", "table", "map"].includes(state.view));
  document.body.dataset.view = state.view;
  tabs();
  changed();
  wall.measure();
  table.changed();
}

/** What is not ready is grey, and says why. */
function tabs() {
  const { ready, stage } = state.progress;
  $("tabs").replaceChildren(...Object.entries(VIEWS).map(([name, words]) => {
    const part = NEEDS[name];
    const there = !part || ready[part] !== false;
    const why = there ? null : pending(part) ?? (stage ? `${words}: not computed yet` : off(part));
    const bad = name === "health" && state.progress.errors.length;
    return h("button", { class: there ? "tab" : "tab grey", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, "aria-selected": String(name === state.view), title: why, onclick: () => show(name) }, words, bad ? h("span", { class: "badge" }, count(state.progress.errors.length)) : "");
  }));
  $(`tab-${state.view}`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// -- work that goes on behind -----------------------------------------------------------------------------------------

async function watch() {
  let before = state.progress;
  for (;;) {
    working();
    await new Promise((done) => setTimeout(done, state.progress.stage || !state.progress.ready.table ? 1200 : 15_000));
    try {
      state.progress = await read("/api/progress");
    } catch (error) {
      say(error.message, { bad: true });
      await new Promise((done) => setTimeout(done, 10_000));
      continue;
    }
    emit("progress");
    news(before, state.progress);
    before = state.progress;
  }
}

function working() {
  const { stage, done, of } = state.progress;
  $("work").hidden = !stage;
  $("work").title = stage ? `${title(stage)}: ${count(done)} of ${count(of)}` : "";
  $("work-done").style.width = of ? `${(100 * done) / of}%` : "8%";
}

/** More is known than a moment ago: what shows it is drawn anew, nothing else. */
function news(before, now) {
  const ripe = Object.keys(now.ready).filter((part) => now.ready[part] && !before.ready[part]);
  const scanning = now.stage === before.stage && !now.ready.table && now.done !== before.done;
  if (JSON.stringify([before.ready, before.stage, before.errors.length]) !== JSON.stringify([now.ready, now.stage, now.errors.length])) tabs();
  if (ripe.length || scanning) {
    if (!narrowed() || ripe.length) rows.reset();
    refresh();
    emit("ripe", ripe);
  }
  if (ripe.includes("thumbnails") || before.stage) wall.retry();
  if (ripe.includes("duplicates") && state.view === "duplicates") regroup();
  if (ripe.includes("map")) map.visit(true);
  if (ripe.length) redraw(true);
  if (before.stage && !now.stage) say("Everything is computed.");
}

// -- keys -------------------------------------------------------------------------------------------------------------

function step(by) {
  const seen = detail.current();
  const from = seen?.index ?? (seen ? rows.where(seen.row.id) : -1);
  const to = from + by;
  if (from < 0 || to < 0 || to >= rows.total) return;
  const row = rows.get(to);
  if (!row) return rows.want(to, to + 1);
  (state.view === "table" ? table : wall).move(to);
  detail.open(row, to);
}

function keys(event) {
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (event.key === "Escape") {
    if (document.body.classList.contains("filtering")) document.body.classList.remove("filtering");
    else if (typing) event.target.blur();
    else detail.close();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
    $("search").select();
  } else if (detail.current() && !event.target.matches(".wall, .table, [role=slider], canvas, input")) {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  }
}

function drawer() {
  const open = (wanted) => () => document.body.classList.toggle("filtering", wanted);
  $("side-open").append(icon("filter"), h("span", {}, "Filter"));
  $("side-open").addEventListener("click", () => {
    if (matchMedia("(max-width: 760px)").matches) open(true)();
    else document.body.classList.toggle("unfiltered");
    wall.measure();
  });
  $("side-close").append(icon("close"));
  $("side-close").addEventListener("click", open(false));
}

function scheme() {
  const apply = (name) => {
    if (name) document.documentElement.dataset.scheme = name;
    else delete document.documentElement.dataset.scheme;
    emit("scheme");
  };
  apply(localStorage.getItem("sfumato:scheme"));
  $("scheme").append(icon("light"));
  $("scheme").setAttribute("aria-label", "light or dark");
  $("scheme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.scheme ? document.documentElement.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    localStorage.setItem("sfumato:scheme", dark ? "light" : "dark");
    apply(dark ? "light" : "dark");
  });
}

begin();
