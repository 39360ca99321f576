// Searching by words, by meaning, by a picture that is dropped, pasted or chosen.

import { upload } from "./api.js";
import * as detail from "./detail.js";
import { $, h, icon, later, say } from "./dom.js";
import { ask, on, pending, show, state } from "./state.js";

const MODES = { text: ["Words", "Captions and names"], meaning: ["Meaning", "What it is about"] };
let mode = "text";

export function search() {
  mode = state.query.meaning ? "meaning" : "text";
  modes();
  const box = $("search");
  box.value = state.query[mode];
  $("search-box").prepend(icon("search"));
  $("drop").prepend(icon("picture"));
  const asked = later(220, () => mode === "text" && now());
  box.addEventListener("input", () => (box.value === "" ? now() : asked()));
  box.addEventListener("keydown", (event) => event.key === "Enter" && now());
  on("query", () => {
    if (document.activeElement !== box) box.value = state.query[mode];
  });
  on("ripe", modes);
  on("progress", () => $("modes").dataset.ready !== String(state.progress.ready.meaning) && modes());
  pictures();
}

function now() {
  const words = $("search").value.trim();
  ask(mode === "text" ? { text: words, meaning: "" } : { text: "", meaning: words, sort: "" }, { replace: true });
  if (words && !["pictures", "table"].includes(state.view)) show("pictures");
}

function modes() {
  const ready = state.progress.ready.meaning === true;
  $("modes").dataset.ready = String(state.progress.ready.meaning);
  if (!ready && mode === "meaning" && !state.query.meaning) mode = "text";
  const why = ready ? "Finds what a sentence is about" : pending("meaning") ?? (state.progress.stage ? "Not computed yet" : "Needs captions with a sentence encoder (--text FOLDER), or --clip FOLDER");
  $("modes").replaceChildren(...Object.entries(MODES).map(([name, [words]]) => h("button", { class: "mode", "aria-pressed": String(mode === name), disabled: name === "meaning" && !ready, title: name === "meaning" ? why : "All words, \"a phrase\", begin*, -without", onclick: () => turn(name) }, words)));
  $("search").placeholder = MODES[mode][1];
}

function turn(name) {
  mode = name;
  modes();
  if ($("search").value.trim()) now();
  $("search").focus();
}

// -- by picture -------------------------------------------------------------------------------------------------------

function pictures() {
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) by($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    const found = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (found) by(found);
  });
  let depth = 0;
  const landing = (there) => ($("landing").hidden = !there);
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => files(event) && (event.preventDefault(), (depth += 1), landing(true)));
  document.addEventListener("dragover", (event) => files(event) && event.preventDefault());
  document.addEventListener("dragleave", (event) => files(event) && ((depth -= 1), depth <= 0 && landing(false)));
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    landing(false);
    if (event.dataTransfer.files[0]) by(event.dataTransfer.files[0]);
  });
}

async function by(file) {
  say("Looking for pictures like it…");
  try {
    const [found, nearest, bitmap] = await Promise.all([upload("/api/like", file), upload("/api/nearest", file), createImageBitmap(file).catch(() => null)]);
    state.dropped = { like: found.like, name: file.name || "pasted", bitmap };
    ask({ like: found.like, sort: "", ids: null, group: null, cluster: null, meaning: "" });
    show("pictures");
    if (bitmap) detail.sample(bitmap, state.dropped.name, nearest);
    say("The most alike come first.");
  } catch (error) {
    say(error.message, { bad: true });
  }
}
