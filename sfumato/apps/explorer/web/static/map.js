// Pictures on a plane, alike ones near each other: hover to see, click a cluster, drag a loop to keep what is inside.

import { post, read, thumbnail } from "./api.js";
import { count, empty, h, waiting } from "./dom.js";
import { ask, emit, on, pending, state } from "./state.js";

const BINS = 64;
const HUES = 12;

export class Scatter {
  #view = { x: 0, y: 0, scale: 1 };
  #loop = null;
  #fingers = new Map();
  #frame = 0;

  constructor(box, opened) {
    Object.assign(this, { box, opened });
    this.points = null;
    on("view", () => this.visit());
    on("selection", () => this.draw());
    on("query", () => this.#matching());
    on("scheme", () => this.draw());
  }

  /** Fetched when it is first looked at, and again when more is known. */
  async visit(again = false) {
    if (state.view !== "map") return;
    if (this.points && !again) return this.#matching();
    if (!state.progress?.ready?.map) {
      this.box.replaceChildren(empty("The map is not drawn yet.", pending("map") ?? "It follows when every picture has its features; the other views work meanwhile."));
      return;
    }
    try {
      if (!this.points) this.box.replaceChildren(waiting());
      const found = await read("/api/map");
      this.points = found.points;
      this.clusters = found.clusters;
      this.#build();
      this.#matching();
    } catch (error) {
      this.box.replaceChildren(empty("There is no map.", error.message));
    }
  }

  /** Points that the query leaves out are dimmed. */
  async #matching() {
    this.kept = null;
    if (!this.points) return;
    this.draw();
    const { where, text, meaning, group, ids } = state.query;
    if (state.view !== "map" || !(where.length || text || meaning || group !== null || ids)) return;
    const asked = JSON.stringify(state.query);
    const found = ids && !where.length && !text ? { ids } : await post("/api/ids", { query: { ...state.query, like: null, cluster: null } }).catch(() => null);
    if (asked !== JSON.stringify(state.query)) return;
    this.kept = found && new Set(found.ids);
    this.draw();
  }

  #build() {
    if (!this.points.length) {
      this.box.replaceChildren(empty("There is no map.", "It needs features of at least a few pictures."));
      return;
    }
    this.canvas = h("canvas", { tabindex: "0", "aria-label": "Map of the pictures; the list of clusters beside it does the same" });
    this.tip = h("figure", { class: "tip", hidden: true }, h("img", { alt: "" }), h("figcaption", {}));
    const list = h("div", { class: "clusters" }, h("p", { class: "quiet" }, `${count(this.points.length, "picture")} in ${count(this.clusters.length, "cluster")}. Drag a loop around pictures to keep them; hold Shift and drag to move, turn the wheel to zoom.`), h("ul", {}, this.clusters.map((one) => this.#entry(one))));
    this.box.replaceChildren(h("div", { class: "plane" }, this.canvas, this.tip), list);
    this.#bounds();
    this.#index();
    this.#listen();
    new ResizeObserver(() => this.#fit()).observe(this.canvas.parentElement);
  }

  #entry(one) {
    const words = one.words?.length ? one.words.slice(0, 4).join(", ") : one.id < 0 ? "scattered" : `cluster ${one.id + 1}`;
    const dot = h("i", { class: "dot" });
    dot.style.background = colour(one.id);
    return h("li", {}, h("button", { onclick: () => emit("cluster", one.id), onmouseenter: () => this.draw(one.id), onmouseleave: () => this.draw() }, h("span", { class: "cluster-head" }, dot, h("span", { class: "value" }, words), h("span", { class: "figure" }, count(one.size))), h("span", { class: "strip" }, one.examples.slice(0, 6).map((id) => h("img", { src: thumbnail(id), alt: "", loading: "lazy" })))));
  }

  #bounds() {
    const [xs, ys] = [this.points.map((p) => p[0]), this.points.map((p) => p[1])];
    const ends = (v) => v.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
    [this.left, this.right] = ends(xs);
    [this.top, this.bottom] = ends(ys);
    const size = Math.max(this.right - this.left, this.bottom - this.top) || 1;
    this.size = size * 1.06;
    this.middle = [(this.left + this.right) / 2, (this.top + this.bottom) / 2];
  }

  /** Points by square of the plane, to find the nearest one under the pointer. */
  #index() {
    this.bins = new Map();
    this.points.forEach((p, i) => {
      const key = this.#bin(p[0], p[1]);
      if (!this.bins.has(key)) this.bins.set(key, []);
      this.bins.get(key).push(i);
    });
  }

  #square = (v, from) => Math.floor(((v - from) / this.size) * BINS);
  #bin = (x, y) => this.#square(x, this.left) * 4096 + this.#square(y, this.top);

  #fit() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    const dense = devicePixelRatio || 1;
    this.canvas.width = clientWidth * dense;
    this.canvas.height = clientHeight * dense;
    this.draw();
  }

  // -- plane and screen -----------------------------------------------------------------------------------------------

  get #unit() {
    return (Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / this.size) * this.#view.scale;
  }

  #toScreen(x, y) {
    return [this.canvas.clientWidth / 2 + (x - this.middle[0]) * this.#unit + this.#view.x, this.canvas.clientHeight / 2 + (y - this.middle[1]) * this.#unit + this.#view.y];
  }

  #toPlane(x, y) {
    return [(x - this.canvas.clientWidth / 2 - this.#view.x) / this.#unit + this.middle[0], (y - this.canvas.clientHeight / 2 - this.#view.y) / this.#unit + this.middle[1]];
  }

  draw(lit = null) {
    if (!this.canvas) return;
    this.lit = lit;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    const pen = this.canvas.getContext("2d");
    const dense = devicePixelRatio || 1;
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    const side = Math.min(9, Math.max(2, (1.1 * Math.sqrt((this.canvas.clientWidth * this.canvas.clientHeight) / this.points.length)) / 12) * Math.sqrt(this.#view.scale));
    const kept = this.kept;
    const only = this.lit ?? state.query.cluster;
    for (const [x, y, cluster, id] of this.points) {
      const [sx, sy] = this.#toScreen(x, y);
      if (sx < -9 || sy < -9 || sx > this.canvas.clientWidth + 9 || sy > this.canvas.clientHeight + 9) continue;
      const dim = (only !== null && cluster !== only) || (kept && !kept.has(id));
      pen.globalAlpha = dim ? 0.12 : cluster < 0 ? 0.45 : 0.8;
      pen.fillStyle = colour(cluster);
      pen.fillRect(sx - side / 2, sy - side / 2, side, side);
      if (state.selected.has(id)) {
        pen.globalAlpha = 1;
        pen.strokeStyle = ink();
        pen.strokeRect(sx - side / 2 - 1.5, sy - side / 2 - 1.5, side + 3, side + 3);
      }
    }
    if (this.#loop) this.#paintLoop(pen);
  }

  #paintLoop(pen) {
    pen.globalAlpha = 1;
    pen.strokeStyle = ink();
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    pen.beginPath();
    for (const [x, y] of this.#loop) pen.lineTo(x, y);
    pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
    pen.lineWidth = 1;
  }

  // -- hands ----------------------------------------------------------------------------------------------------------

  #listen() {
    const canvas = this.canvas;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(Math.exp(-event.deltaY / 400), ...place(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#fingers.set(event.pointerId, place(event));
      this.moving = event.shiftKey || event.button === 1 || this.#fingers.size > 1;
      this.#loop = this.moving ? null : [place(event)];
    });
    canvas.addEventListener("pointermove", (event) => this.#moved(event, place(event)));
    const up = (event) => {
      this.#fingers.delete(event.pointerId);
      if (!this.moving && this.#loop) this.#released(place(event));
      this.#loop = null;
      this.draw();
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", () => (this.#fingers.clear(), (this.#loop = null), this.draw()));
    canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    const middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    if (moves[event.key]) {
      this.#view.x += moves[event.key][0];
      this.#view.y += moves[event.key][1];
      this.draw();
    } else if (event.key === "+" || event.key === "=") this.#zoom(1.4, ...middle);
    else if (event.key === "-") this.#zoom(1 / 1.4, ...middle);
    else if (event.key === "0") (this.#view = { x: 0, y: 0, scale: 1 }), this.draw();
    else return;
    event.preventDefault();
  }

  #zoom(by, x, y) {
    const before = this.#toPlane(x, y);
    this.#view.scale = Math.min(60, Math.max(0.5, this.#view.scale * by));
    const [nx, ny] = this.#toScreen(...before);
    this.#view.x += x - nx;
    this.#view.y += y - ny;
    this.draw();
  }

  #moved(event, [x, y]) {
    const last = this.#fingers.get(event.pointerId);
    if (!last) return this.#hover(x, y);
    if (this.moving) {
      const others = [...this.#fingers.entries()].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      if (others.length) this.#zoom(Math.hypot(x - others[0][0], y - others[0][1]) / Math.max(1, Math.hypot(last[0] - others[0][0], last[1] - others[0][1])), ...others[0]);
      else {
        this.#view.x += x - last[0];
        this.#view.y += y - last[1];
      }
    } else this.#loop?.push([x, y]);
    this.#fingers.set(event.pointerId, [x, y]);
    this.tip.hidden = true;
    this.draw();
  }

  #nearest(x, y) {
    const [px, py] = this.#toPlane(x, y);
    const reach = 12 / this.#unit;
    let [best, least] = [null, reach];
    const spread = Math.max(1, Math.ceil((reach / this.size) * BINS));
    const [bx, by] = [this.#square(px, this.left), this.#square(py, this.top)];
    for (let i = -spread; i <= spread; i += 1)
      for (let j = -spread; j <= spread; j += 1)
        for (const k of this.bins.get((bx + i) * 4096 + by + j) ?? []) {
          const far = Math.hypot(this.points[k][0] - px, this.points[k][1] - py);
          if (far < least) [best, least] = [k, far];
        }
    return best === null ? null : this.points[best];
  }

  #hover(x, y) {
    const found = this.#nearest(x, y);
    this.tip.hidden = !found;
    this.canvas.classList.toggle("over", Boolean(found));
    if (!found) return;
    const [image, words] = this.tip.children;
    const source = thumbnail(found[3]);
    if (image.getAttribute("src") !== source) image.src = source;
    words.textContent = this.clusters.find((one) => one.id === found[2])?.words?.slice(0, 3).join(", ") ?? "";
    this.tip.style.left = `${Math.min(x + 14, this.canvas.clientWidth - 150)}px`;
    this.tip.style.top = `${Math.min(y + 14, this.canvas.clientHeight - 170)}px`;
  }

  #released([x, y]) {
    const loop = this.#loop;
    const far = loop.reduce((most, [a, b]) => Math.max(most, Math.hypot(a - loop[0][0], b - loop[0][1])), 0);
    if (far < 8) {
      const found = this.#nearest(x, y);
      if (found) this.opened({ id: found[3] });
      return;
    }
    const ids = this.points.filter((p) => inside(loop, this.#toScreen(p[0], p[1]))).map((p) => p[3]);
    if (!ids.length) return;
    ask({ ids, cluster: null });
    emit("looped", ids.length);
  }
}

function inside(loop, [x, y]) {
  let odd = false;
  for (let i = 0, j = loop.length - 1; i < loop.length; j = i, i += 1) {
    const [[ax, ay], [bx, by]] = [loop[i], loop[j]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

const dark = () => getComputedStyle(document.documentElement).getPropertyValue("color-scheme").trim() === "dark" || (!document.documentElement.dataset.scheme && matchMedia("(prefers-color-scheme: dark)").matches);
const ink = () => (dark() ? "#f3efe8" : "#1d1b18");

/** Clusters next to each other in number get hues far apart. */
function colour(cluster) {
  if (cluster < 0) return dark() ? "#8a857c" : "#9a948a";
  const hue = (cluster * 360 * 0.381966) % 360;
  const light = dark() ? 68 : 46 + (Math.floor(cluster / HUES) % 2) * 10;
  return `hsl(${hue.toFixed(0)} 52% ${light}%)`;
}

