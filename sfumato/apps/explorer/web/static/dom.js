// Elements and words. Text only ever enters the page as textContent: a caption is never HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.setAttribute("class", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** h("p", {class: "quiet", onclick}, "text", node): strings become text nodes. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const $ = (id) => document.getElementById(id);

const PATHS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.3 15.3 20 20",
  close: "M6 6l12 12M18 6 6 18",
  left: "M14.5 5.5 8 12l6.5 6.5",
  right: "M9.5 5.5 16 12l-6.5 6.5",
  filter: "M4 6h16M7 12h10M10 18h4",
  check: "M5 12.5 10 17.5 19 7",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.2h.01",
  alike: "M4 4h10v10H4zM10 10h10v10H10z",
  warn: "M12 4 21 19.5H3zM12 10v4.5M12 17h.01",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
};

export const icon = (name) =>
  svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));

const whole = new Intl.NumberFormat("en");

export function count(n, noun) {
  if (noun === undefined) return whole.format(n);
  return `${whole.format(n)} ${n === 1 ? noun : noun + (noun.endsWith("s") ? "es" : "s")}`;
}

export function bytes(n) {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) if (n >= unit) return `${(n / unit).toPrecision(3)} ${name}`;
  return `${n} bytes`;
}

/** A number as people write it: three figures, no exponents where none is needed. */
export function number(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (typeof x !== "number") return String(x);
  if (Number.isInteger(x)) return Math.abs(x) < 1e15 ? whole.format(x) : x.toExponential(2);
  const size = Math.abs(x);
  if (size >= 1000) return whole.format(Math.round(x));
  return size >= 0.001 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
}

export function value(column, x) {
  if (x === null || x === undefined || x === "") return "–";
  if (column === "bytes") return bytes(x);
  if (column === "width" || column === "height") return `${x} px`;
  return typeof x === "number" ? number(x) : typeof x === "boolean" ? (x ? "yes" : "no") : String(x);
}

/** blur_score -> Blur score. */
export function title(column) {
  const words = column.replaceAll("_", " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export const empty = (head, ...rest) => h("div", { class: "empty" }, h("p", { class: "empty-head" }, head), ...rest.map((text) => (typeof text === "string" ? h("p", {}, text) : text)));

/** While an answer is awaited; seen only where that takes a moment. */
export const waiting = (words = "Looking…") => h("div", { class: "empty slow" }, h("p", {}, words));

export function later(wait, work) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait);
  };
}

/** The last word to people who cannot see it, and a line that fades for those who can. */
export function say(text, { bad = false } = {}) {
  const line = $("said");
  line.textContent = text;
  line.className = bad ? "said bad shown" : "said shown";
  clearTimeout(say.timer);
  say.timer = setTimeout(() => line.classList.remove("shown"), bad ? 9000 : 3500);
}
