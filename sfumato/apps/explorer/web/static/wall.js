// The wall of thumbnails: only what is in sight exists, so 100,000 pictures scroll as 100 do.

import { thumbnail } from "./api.js";
import { h, icon, title, value } from "./dom.js";
import { emit, on, select, state, toggle } from "./state.js";

const GAP = 6;
const TALLEST = 8_000_000; // px; browsers stop near 17 million
const AHEAD = 0.75; // of a screen, above and below
const CAPTION = 22;

export class Wall {
  #cells = new Map(); // index -> element
  #spare = [];
  #columns = 1;
  #side = 160;
  #row = 166;
  #frame = 0;
  #settled = 0;
  #still = true;

  constructor(box, rows, opened) {
    Object.assign(this, { box, rows, opened });
    this.focus = 0;
    this.anchor = 0;
    this.sheet = h("div", { class: "sheet", role: "presentation" });
    box.append(this.sheet);
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("click", (event) => this.#click(event));
    box.addEventListener("focus", () => this.draw());
    box.addEventListener("contextmenu", (event) => this.#pressed(event));
    new ResizeObserver(() => this.measure()).observe(box);
    on("selection", () => this.draw());
  }

  get wanted() {
    return Number(document.documentElement.style.getPropertyValue("--thumb").replace("px", "")) || 160;
  }

  get named() {
    return this.#side >= 132;
  }

  /** Columns and rows for the size of the window; what was at the top stays there. */
  measure() {
    if (!this.box.clientWidth) return;
    const top = this.#first();
    const style = getComputedStyle(this.box);
    this.width = this.box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    this.#columns = Math.max(2, Math.floor((this.width + GAP) / (this.wanted + GAP)));
    this.#side = Math.floor((this.width + GAP) / this.#columns) - GAP;
    this.#row = this.#side + GAP + (this.named ? CAPTION : 0);
    this.box.classList.toggle("named", this.named);
    this.#stretch();
    if (this.rows.total) this.box.scrollTop = this.#toScroll(Math.floor(top / this.#columns) * this.#row);
    this.draw(true);
  }

  changed() {
    this.#stretch();
    this.draw();
  }

  restart() {
    this.focus = this.anchor = 0;
    this.box.scrollTop = 0;
  }

  // -- a wall taller than a browser can scroll is scrolled in larger steps --------------------------------------------

  get #height() {
    return Math.ceil(this.rows.total / this.#columns) * this.#row;
  }

  #stretch() {
    this.sheet.style.height = `${Math.min(this.#height, TALLEST)}px`;
  }

  get #ratio() {
    const view = this.box.clientHeight;
    return this.#height > TALLEST ? (this.#height - view) / (TALLEST - view) : 1;
  }

  #toScroll = (y) => y / this.#ratio;

  #first() {
    return Math.floor((this.box.scrollTop * this.#ratio) / this.#row) * this.#columns;
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  #scrolled() {
    this.#still = false;
    clearTimeout(this.#settled);
    this.#settled = setTimeout(() => {
      this.#still = true;
      this.draw();
    }, 70);
    this.draw();
  }

  draw(again = false) {
    if (again) for (const i of [...this.#cells.keys()]) this.#drop(i);
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    if (this.box.hidden || !this.width) return;
    const view = this.box.clientHeight;
    const y = this.box.scrollTop * this.#ratio;
    const shift = this.box.scrollTop - y; // 0 unless the wall is too tall
    const from = Math.max(0, Math.floor((y - AHEAD * view) / this.#row)) * this.#columns;
    const to = Math.min(this.rows.total, Math.ceil((y + (1 + AHEAD) * view) / this.#row) * this.#columns);
    for (const i of [...this.#cells.keys()]) if (i < from || i >= to) this.#drop(i);
    if (this.#still) this.rows.want(from, to);
    for (let i = from; i < to; i += 1) this.#cell(i, shift);
    this.box.setAttribute("aria-activedescendant", this.#cells.has(this.focus) ? `cell-${this.focus}` : "");
  }

  #drop(i) {
    const cell = this.#cells.get(i);
    this.#cells.delete(i);
    cell.remove();
    cell.image.removeAttribute("src"); // what is still loading stops
    cell.of = null;
    if (this.#spare.length < 200) this.#spare.push(cell);
  }

  #new() {
    const cell = h("div", { class: "cell", role: "option" });
    cell.image = h("img", { alt: "", decoding: "async", draggable: "false" });
    cell.image.addEventListener("load", () => cell.classList.add("loaded"));
    cell.image.addEventListener("error", () => cell.image.hasAttribute("src") && cell.classList.add("broken"));
    cell.name = h("span", { class: "cell-name" });
    cell.mark = h("button", { class: "mark", tabindex: "-1", "aria-hidden": "true" }, icon("check"));
    cell.append(h("span", { class: "cell-frame" }, cell.image), cell.mark, cell.name);
    return cell;
  }

  #cell(i, shift) {
    let cell = this.#cells.get(i);
    if (!cell) {
      cell = this.#spare.pop() ?? this.#new();
      cell.index = i;
      cell.id = `cell-${i}`;
      this.#cells.set(i, cell);
      this.sheet.append(cell);
    }
    const column = i % this.#columns;
    cell.style.transform = `translate(${column * (this.#side + GAP)}px, ${Math.floor(i / this.#columns) * this.#row + shift}px)`;
    cell.style.width = `${this.#side}px`;
    cell.style.height = `${this.#row - GAP}px`;
    this.#show(cell, this.rows.get(i));
  }

  #show(cell, row) {
    const selected = row !== undefined && state.selected.has(row.id);
    cell.classList.toggle("selected", selected);
    cell.classList.toggle("focused", cell.index === this.focus && document.activeElement === this.box);
    cell.setAttribute("aria-selected", String(selected));
    cell.setAttribute("aria-posinset", String(cell.index + 1));
    cell.setAttribute("aria-setsize", String(this.rows.total));
    if (cell.of === (row?.id ?? null) && (cell.image.hasAttribute("src") || !this.#still)) return;
    if (cell.of !== (row?.id ?? null)) {
      cell.of = row?.id ?? null;
      cell.classList.remove("loaded", "broken");
      cell.image.removeAttribute("src");
      cell.name.textContent = row ? words(row) : "";
      cell.title = row ? told(row) : "";
      cell.image.alt = row ? row.caption || row.name : "";
    }
    if (row && this.#still) cell.image.src = thumbnail(row.id);
  }

  /** The same pictures, asked for again: their thumbnails were not made yet. */
  retry() {
    for (const cell of this.#cells.values()) {
      if (!cell.classList.contains("broken")) continue;
      cell.classList.remove("broken");
      cell.image.removeAttribute("src");
    }
    this.draw();
  }

  // -- hands ----------------------------------------------------------------------------------------------------------

  #click(event) {
    const cell = event.target.closest(".cell");
    const row = cell && this.rows.get(cell.index);
    if (!row) return;
    this.box.focus({ preventScroll: true });
    this.focus = cell.index;
    if (event.shiftKey) this.#range();
    else if (event.target.closest(".mark") || event.ctrlKey || event.metaKey || (event.pointerType === "touch" && state.selected.size)) toggle(row.id);
    else this.opened(row, cell.index);
    if (!event.shiftKey) this.anchor = this.focus;
    this.draw();
  }

  /** A long press selects; then a touch does, as long as anything is selected. */
  #pressed(event) {
    const row = event.pointerType === "touch" && this.rows.get(event.target.closest(".cell")?.index);
    if (!row) return;
    event.preventDefault();
    toggle(row.id);
  }

  #range() {
    const [first, last] = [Math.min(this.anchor, this.focus), Math.max(this.anchor, this.focus)];
    const ids = [];
    for (let i = first; i <= last; i += 1) {
      const row = this.rows.get(i);
      if (row) ids.push(row.id);
    }
    select(ids);
  }

  #key(event) {
    if (event.target !== this.box || event.altKey) return;
    const screen = Math.max(1, Math.floor(this.box.clientHeight / this.#row) - 1) * this.#columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.#columns, ArrowUp: -this.#columns, PageDown: screen, PageUp: -screen, Home: -Infinity, End: Infinity };
    const row = this.rows.get(this.focus);
    if (event.key in steps && !event.ctrlKey) {
      this.move(Math.min(this.rows.total - 1, Math.max(0, this.focus + steps[event.key])));
      if (event.shiftKey) this.#range();
      else this.anchor = this.focus;
    } else if (event.key === "Enter" && row) this.opened(row, this.focus);
    else if ((event.key === " " || event.key === "x") && row) toggle(row.id);
    else if (event.key === "m" && row) emit("alike", row.id);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) emit("select-all");
    else return;
    event.preventDefault();
    this.draw();
  }

  /** Brings a picture into sight. */
  move(i) {
    this.focus = i;
    const y = Math.floor(i / this.#columns) * this.#row;
    const top = this.box.scrollTop * this.#ratio;
    const view = this.box.clientHeight - 2 * GAP;
    if (y < top) this.box.scrollTop = this.#toScroll(y);
    else if (y + this.#row > top + view) this.box.scrollTop = this.#toScroll(y + this.#row - view);
    this.draw();
  }
}

/** Under a picture: what it is sorted by, else its caption, else its name. */
function words(row) {
  const by = state.query.sort;
  if (by && !["name", "caption"].includes(by) && by in row) return value(by, row[by]);
  if (row.similarity !== undefined && row.similarity !== null) return `${row.similarity.toFixed(2)}  ${row.caption || row.name}`;
  return row.caption || row.name;
}

function told(row) {
  const by = state.query.sort;
  return [row.name, row.caption, row.label, by && by in row && `${title(by)} ${value(by, row[by])}`].filter(Boolean).join("\n");
}
