"use strict";
// What a reader can do with a pointer; without this script the page says and shows the same.
const make = (name, kind, parent) => {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (parent) parent.append(element);
  return element;
};
const number = (v) => {
  const size = Math.abs(v);
  if (v === 0) return "0";
  if (size >= 1000) return Math.round(v).toLocaleString("en");
  return size >= 1e-4 ? String(Number(v.toPrecision(4))) : v.toExponential(2);
};

// Charts: the values at the step that is nearest to the pointer.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const told = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const tip = figure.querySelector(".tip");
  const cross = make("div", "cross", plot);
  const every = [...new Set(told.lines.flatMap((line) => line[2]))].sort((p, q) => p - q);
  const nearest = (steps, x) => {
    let low = 0;
    let high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= x) low = middle;
      else high = middle;
    }
    return x - steps[low] <= steps[high] - x ? low : high;
  };
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = every[nearest(every, share * told.x)];
    tip.replaceChildren();
    make("div", "", tip).textContent = "step " + step.toLocaleString("en");
    for (const [label, style, steps, values] of told.lines) {
      const i = nearest(steps, step);
      if (steps[i] !== step) continue;
      const row = make("div", "", tip);
      make("i", style, row);
      row.append(label + ": " + number(values[i]));
    }
    const at = (step / told.x) * box.width;
    cross.style.left = at + "px";
    cross.style.display = tip.style.display = "block";
    const room = box.width - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(room, at > box.width / 2 ? at - tip.offsetWidth - 12 : at + 12)) + "px";
    tip.style.top = "0";
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    cross.style.display = tip.style.display = "none";
  });
}

// Previews: one at a time, with a slider.
for (const reel of document.querySelectorAll("[data-reel]")) {
  const frames = [...reel.children];
  if (frames.length < 2) continue;
  reel.classList.add("one");
  reel.removeAttribute("tabindex");
  const bar = make("label", "slide");
  const range = make("input", "", bar);
  const said = make("output", "", bar);
  Object.assign(range, { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1 });
  range.setAttribute("aria-label", "step of the preview");
  const turn = () => {
    frames.forEach((frame, i) => (frame.hidden = i !== Number(range.value)));
    said.textContent = "step " + Number(frames[range.value].dataset.step).toLocaleString("en");
  };
  for (const frame of frames) {
    frame.querySelector("figcaption").hidden = true;
    frame.querySelector("img").loading = "eager";
  }
  range.addEventListener("input", turn);
  reel.after(bar);
  turn();
}

// Samples: a large view, arrow keys for the next.
const wall = document.querySelector("[data-wall]");
if (wall) {
  const all = [...wall.children];
  const view = make("dialog", "", document.body);
  const picture = make("img", "", view);
  const words = make("p", "", view);
  const back = make("button", "", words);
  const name = make("span", "", words);
  const next = make("button", "", words);
  Object.assign(back, { textContent: "\u2190", ariaLabel: "previous" });
  Object.assign(next, { textContent: "\u2192", ariaLabel: "next" });
  let at = 0;
  const open = (i) => {
    at = (i + all.length) % all.length;
    const of = all[at].querySelector("img");
    picture.src = of.src;
    picture.alt = of.alt;
    picture.className = of.className;
    name.textContent = all[at].dataset.name;
    if (!view.open) view.showModal();
  };
  all.forEach((figure, i) =>
    figure.querySelector("a").addEventListener("click", (event) => {
      event.preventDefault();
      open(i);
    }),
  );
  back.addEventListener("click", () => open(at - 1));
  next.addEventListener("click", () => open(at + 1));
  view.addEventListener("click", (event) => event.target === view && view.close());
  view.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(at - 1);
    if (event.key === "ArrowRight") open(at + 1);
  });
}
