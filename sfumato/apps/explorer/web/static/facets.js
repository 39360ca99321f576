// What the pictures are, column by column: counts to click, histograms to brush.

import { post } from "./api.js";
import { $, count, h, later, number, svg, title, value } from "./dom.js";
import { filter, filtered, on, state } from "./state.js";

const WIDE = 220;
const HIGH = 44;
const SHOWN = 8;
const APART = new Set(["group", "cluster", "copies"]); // they have views of their own
const FIRST = ["label", "split", "source", "domain"];
const RARE = new Set(["width", "height", "format", "mode", "bits_per_pixel", "red", "green", "blue", "darkest", "lightest", "entropy", "alpha"]);
const open = new Set();
let stop = null;
let dragging = false;
let waiting = null;

export function facets() {
  on("query", refresh);
  refresh();
}

const soon = later(60, async () => {
  stop?.abort();
  const mine = (stop = new AbortController());
  try {
    const found = await post("/api/facets", { query: state.query }, mine.signal);
    if (dragging) waiting = found; // nobody's hand is taken off what it holds
    else draw(found);
  } catch (error) {
    if (error.name !== "AbortError") $("facets").replaceChildren(h("p", { class: "quiet" }, error.message));
  }
  if (stop === mine) $("facets").setAttribute("aria-busy", "false");
});

export function refresh() {
  $("facets").setAttribute("aria-busy", "true");
  soon();
}

function draw(found) {
  const box = $("facets");
  const focused = document.activeElement?.dataset?.facet;
  const top = box.parentElement.scrollTop;
  const drawn = (columns) => columns.map((column) => (found[column].kind === "histogram" ? histogram(column, found[column]) : counts(column, found[column]))).filter(Boolean);
  const columns = Object.keys(found).filter((column) => !APART.has(column));
  const rare = columns.filter((column) => RARE.has(column) && !filtered(column));
  const usual = [...FIRST.filter((column) => columns.includes(column)), ...columns.filter((column) => !FIRST.includes(column) && !rare.includes(column))];
  const [shown, more] = [drawn(usual), drawn(rare)];
  const rest = h("details", { class: "rest" }, h("summary", {}, "More filters"), more);
  rest.open = open.has("");
  rest.addEventListener("toggle", () => (rest.open ? open.add("") : open.delete("")));
  box.replaceChildren(...shown, more.length ? rest : "");
  if (!box.childElementCount) box.append(h("p", { class: "quiet" }, "Nothing to filter by yet."));
  box.parentElement.scrollTop = top;
  if (focused) box.querySelector(`[data-facet="${CSS.escape(focused)}"]`)?.focus();
}

function headed(column, ...rest) {
  const asked = filtered(column);
  const undo = asked && h("button", { class: "undo", onclick: () => filter(column, null), "aria-label": `no filter by ${title(column)}` }, "clear");
  return h("section", { class: asked ? "facet on" : "facet" }, h("h3", {}, title(column), undo), ...rest);
}

// -- counts -----------------------------------------------------------------------------------------------------------

function counts(column, facet) {
  const chosen = filtered(column)?.values ?? [];
  const values = facet.values.map(([one, n]) => ({ value: one, count: n }));
  if (facet.empty) values.push({ value: null, count: facet.empty });
  for (const one of chosen) if (!values.some((known) => known.value === one)) values.unshift({ value: one, count: 0 });
  if (values.length < 2 && !chosen.length) return null;
  const most = Math.max(1, ...values.map((one) => one.count));
  const few = open.has(column) ? values : values.slice(0, Math.max(SHOWN, chosen.length));
  const more = values.length > few.length && h("button", { class: "more", onclick: () => (open.add(column), refresh()) }, `${count(values.length - few.length)} more`);
  return headed(column, h("ul", { class: "counts" }, few.map((one) => line(column, one, most, chosen))), more || (facet.others ? h("p", { class: "quiet" }, `and ${count(facet.others)} others`) : null));
}

function line(column, one, most, chosen) {
  const box = h("input", { type: "checkbox", "data-facet": `${column} ${one.value}` });
  box.checked = chosen.includes(one.value);
  box.addEventListener("change", () => {
    const values = box.checked ? [...chosen, one.value] : chosen.filter((other) => other !== one.value);
    filter(column, values.length ? { values } : null);
  });
  const bar = h("i", { class: "share" });
  bar.style.width = `${(100 * one.count) / most}%`;
  const words = one.value === null || one.value === "" ? "(none)" : value(column, one.value);
  return h("li", {}, h("label", { title: words }, box, h("span", { class: "value" }, words), h("span", { class: "figure" }, count(one.count)), bar));
}

// -- histograms -------------------------------------------------------------------------------------------------------

/** Of a column's range, drag over what is wanted; arrow keys move the two handles. */
function histogram(column, facet) {
  const { edges } = facet;
  const bars = facet.counts;
  if (!bars.length) return null;
  const [least, most] = [edges[0], edges[edges.length - 1]];
  if (!(most > least)) return null;
  const asked = filtered(column);
  if (bars.filter((n) => n).length < 2 && !asked) return null;
  const range = [Math.max(least, asked?.low ?? least), Math.min(most, asked?.high ?? most)];
  const step = WIDE / bars.length;
  const x = (v) => { // bins are equally wide on the screen, whatever their edges
    const i = Math.max(0, Math.min(bars.length - 1, edges.findLastIndex((edge) => edge <= v)));
    return step * (i + Math.min(1, Math.max(0, (v - edges[i]) / (edges[i + 1] - edges[i] || 1))));
  };
  const v = (place) => {
    const i = Math.max(0, Math.min(bars.length - 1, Math.floor(place / step)));
    return edges[i] + (place / step - i) * (edges[i + 1] - edges[i]);
  };
  const tallest = Math.max(1, ...bars);
  const rects = bars.map((n, i) => svg("rect", { x: i * step + 0.5, width: Math.max(0.5, step - 1), y: HIGH - height(n, tallest), height: height(n, tallest), class: "bin" }));
  const shade = [svg("rect", { class: "out", y: 0, height: HIGH }), svg("rect", { class: "out", y: 0, height: HIGH })];
  const handles = [0, 1].map((i) => svg("rect", { class: "handle", y: 0, width: 3, height: HIGH, rx: 1.5, tabindex: 0, role: "slider", "aria-label": `${title(column)}, ${i ? "at most" : "at least"}`, "data-facet": `${column} ${i}`, "aria-valuemin": least, "aria-valuemax": most }));
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", class: "histogram" }, rects, shade, handles);
  const ends = h("p", { class: "ends" }, h("span", {}), h("span", {}));

  const shown = () => {
    const [low, high] = range.map(x);
    shade[0].setAttribute("x", 0);
    shade[0].setAttribute("width", Math.max(0, low));
    shade[1].setAttribute("x", high);
    shade[1].setAttribute("width", Math.max(0, WIDE - high));
    handles.forEach((handle, i) => {
      handle.setAttribute("x", Math.min(WIDE - 3, Math.max(0, x(range[i]) - 1.5)));
      handle.setAttribute("aria-valuenow", range[i]);
      handle.setAttribute("aria-valuetext", value(column, range[i]));
    });
    ends.firstChild.textContent = short(column, range[0], most);
    ends.lastChild.textContent = short(column, range[1], most);
  };
  const done = () => {
    const all = range[0] <= least && range[1] >= most;
    filter(column, all ? null : { low: range[0] <= least ? null : range[0], high: range[1] >= most ? null : range[1] });
  };
  brush(drawing, { x, v }, [least, most], range, shown, done);
  const settle = later(350, done);
  handles.forEach((handle, i) => handle.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const moved = v(Math.min(WIDE, Math.max(0, x(range[i]) + by * step)));
    range[i] = Math.min(i ? most : range[1], Math.max(i ? range[0] : least, moved));
    shown();
    settle();
  }));
  shown();
  return headed(column, drawing, ends);
}

/** Half way to a logarithm, so that rare values can be seen beside common ones. */
const height = (n, tallest) => (n ? Math.max(1.5, (HIGH - 2) * Math.sqrt(n / tallest)) : 0);

function brush(drawing, { x, v }, [least, most], range, shown, done) {
  let from = null;
  const at = (event) => {
    const box = drawing.getBoundingClientRect();
    return WIDE * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  drawing.addEventListener("pointerdown", (event) => {
    const near = range.findIndex((end) => Math.abs(x(end) - at(event)) < 0.03 * WIDE);
    from = near >= 0 ? x(range[1 - near]) : at(event); // a handle is moved, anything else begins anew
    dragging = true;
    drawing.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  drawing.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = at(event);
    [range[0], range[1]] = [v(Math.min(from, to)), v(Math.max(from, to))];
    shown();
  });
  const held = () => {
    dragging = false;
    if (waiting) draw(waiting);
    waiting = null;
  };
  drawing.addEventListener("pointercancel", () => ((from = null), held()));
  drawing.addEventListener("pointerup", () => {
    if (from === null) return;
    from = null;
    held();
    if (x(range[1]) - x(range[0]) < 0.01 * WIDE) [range[0], range[1]] = [least, most]; // a click undoes
    shown();
    done();
  });
}

const short = (column, v, most) => (column === "bytes" ? value(column, Math.round(v)) : most > 20 ? number(Math.round(v)) : number(v));
