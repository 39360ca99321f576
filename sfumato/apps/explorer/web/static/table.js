// The same pictures as a table: one line each, as many lines as are in sight.

import { thumbnail } from "./api.js";
import { h, title, value } from "./dom.js";
import { ask, on, state, toggle } from "./state.js";

const ROW = 44;
const TALLEST = 8_000_000;
const WORDS = new Set(["name", "label", "split", "caption", "source"]);
const FIRST = ["name", "caption", "label", "split", "width", "height", "bytes"];
const HIDDEN = new Set(["id", "sha256", "pixel_hash"]);

export class Table {
  #frame = 0;
  #columns = [];
  #lines = new Map();

  constructor(box, rows, opened) {
    Object.assign(this, { box, rows, opened });
    this.focus = 0;
    this.head = h("div", { class: "line head", role: "row" });
    this.sheet = h("div", { class: "sheet", role: "presentation" });
    box.append(this.head, this.sheet);
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    box.addEventListener("click", (event) => this.#click(event));
    box.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(box);
    on("selection", () => this.draw(true));
  }

  changed() {
    const row = this.rows.get(0);
    if (row) this.#titles(row);
    this.sheet.style.height = `${Math.min(this.rows.total * ROW, TALLEST)}px`;
    this.draw(true);
  }

  restart() {
    this.focus = 0;
    this.box.scrollTop = 0;
  }

  #titles(row) {
    const there = Object.keys(state.columns ?? row);
    this.#columns = [...FIRST.filter((column) => there.includes(column)), ...there.filter((column) => !FIRST.includes(column) && !HIDDEN.has(column))];
    const wide = (column) => (column === "caption" ? 300 : column === "name" ? 190 : typeof row[column] === "number" ? 104 : 130);
    this.box.style.setProperty("--columns", `32px 52px ${this.#columns.map((column) => `${wide(column)}px`).join(" ")}`);
    this.head.replaceChildren(h("span", {}), h("span", {}), ...this.#columns.map((column) => this.#title(column)));
  }

  #title(column) {
    const sorted = state.query.sort === column;
    const order = sorted ? (state.query.descending ? "descending" : "ascending") : "none";
    const again = () => ask(sorted && state.query.descending ? { sort: "", descending: false } : { sort: column, descending: sorted });
    return h("button", { class: WORDS.has(column) ? "by" : "by figure", role: "columnheader", "aria-sort": order, onclick: again }, title(column), h("span", { class: "arrow" }, sorted ? (state.query.descending ? " ↓" : " ↑") : ""));
  }

  get #ratio() {
    const height = this.rows.total * ROW;
    const view = this.box.clientHeight;
    return height > TALLEST ? (height - view) / (TALLEST - view) : 1;
  }

  draw(again = false) {
    if (again) {
      for (const line of this.#lines.values()) line.remove();
      this.#lines.clear();
    }
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    if (this.box.hidden || !this.box.clientHeight) return;
    const y = this.box.scrollTop * this.#ratio;
    const shift = this.box.scrollTop - y;
    const from = Math.max(0, Math.floor(y / ROW) - 10);
    const to = Math.min(this.rows.total, Math.ceil((y + this.box.clientHeight) / ROW) + 10);
    this.rows.want(from, to);
    for (const [i, line] of this.#lines) {
      if (i < from || i >= to) {
        line.remove();
        this.#lines.delete(i);
      }
    }
    for (let i = from; i < to; i += 1) {
      const row = this.rows.get(i);
      if (!row) continue;
      let line = this.#lines.get(i);
      if (!line) {
        line = this.#line(row, i);
        this.#lines.set(i, line);
        this.sheet.append(line);
      }
      line.style.transform = `translateY(${i * ROW + shift}px)`;
      line.classList.toggle("focused", i === this.focus && document.activeElement === this.box);
    }
  }

  #line(row, i) {
    const selected = state.selected.has(row.id);
    const tick = h("input", { type: "checkbox", "aria-label": `select ${row.name}`, tabindex: "-1" });
    tick.checked = selected;
    const line = h("div", { class: selected ? "line selected" : "line", role: "row", "aria-rowindex": i + 1 },
      h("span", { class: "tick" }, tick),
      h("img", { src: thumbnail(row.id), alt: "", loading: "lazy", decoding: "async" }),
      ...this.#columns.map((column) => h("span", { class: WORDS.has(column) ? "text" : "figure", title: WORDS.has(column) ? row[column] : null }, value(column, row[column]))));
    line.index = i;
    return line;
  }

  #click(event) {
    const line = event.target.closest(".line");
    const row = line && this.rows.get(line.index);
    if (!row) return;
    this.focus = line.index;
    if (event.target.closest(".tick") || event.ctrlKey || event.metaKey) toggle(row.id);
    else this.opened(row, line.index);
  }

  #key(event) {
    if (event.target !== this.box) return;
    const screen = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: screen, PageUp: -screen, Home: -Infinity, End: Infinity };
    const row = this.rows.get(this.focus);
    if (event.key in steps) this.move(Math.min(this.rows.total - 1, Math.max(0, this.focus + steps[event.key])));
    else if (event.key === "Enter" && row) this.opened(row, this.focus);
    else if ((event.key === " " || event.key === "x") && row) toggle(row.id);
    else return;
    event.preventDefault();
  }

  move(i) {
    this.focus = i;
    const [y, top, view] = [i * ROW, this.box.scrollTop * this.#ratio, this.box.clientHeight - ROW];
    if (y < top) this.box.scrollTop = y / this.#ratio;
    else if (y + ROW > top + view) this.box.scrollTop = (y + ROW - view) / this.#ratio;
    this.draw();
  }
}
