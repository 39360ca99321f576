// What is asked for and what is selected: one object, and those who listen.

const NOTHING = { text: "", meaning: "", like: null, where: [], sort: "", descending: false, cluster: null, group: null, ids: null };

export const state = {
  query: { ...NOTHING },
  view: "pictures",
  total: null, // pictures that the query finds
  selected: new Set(),
  session: null,
  progress: null,
  dropped: null, // {like, name, bitmap}: a picture that was dropped or pasted
};

const WORK = { // what must have gone well for a part to be there, as the room calls it
  table: ["looking at pictures"],
  thumbnails: ["looking at pictures"],
  duplicates: ["looking for copies"],
  embeddings: ["computing features"],
  map: ["drawing the map", "computing features"],
  captions: ["understanding captions"],
  meaning: ["understanding captions"],
};

const heard = new Map();

export function on(event, listener) {
  if (!heard.has(event)) heard.set(event, new Set());
  heard.get(event).add(listener);
}

export function emit(event, detail) {
  for (const listener of heard.get(event) ?? []) listener(detail);
}

/** Changes the query; pages and facets follow. */
export function ask(change, { replace = false } = {}) {
  const before = state.query;
  state.query = { ...before, ...change };
  if (JSON.stringify(before) === JSON.stringify(state.query)) return;
  remember(replace);
  emit("query");
}

export const clear = () => ask({ ...NOTHING });

export function show(view) {
  if (state.view === view) return;
  state.view = view;
  remember(false);
  emit("view");
}

/** Only what narrows, never how it is sorted. */
export const narrowed = (query = state.query) =>
  Boolean(query.text || query.meaning || query.like !== null || query.where.length || query.cluster !== null || query.group !== null || query.ids);

/** A filter by column: {column, low, high} or {column, values}; null takes it away. */
export function filter(column, rest) {
  const others = state.query.where.filter((one) => one.column !== column);
  ask({ where: rest ? [...others, { column, ...rest }] : others });
}

export const filtered = (column) => state.query.where.find((one) => one.column === column) ?? null;

/** Why a part is not there: what failed in it, or null while it is still to come. */
export function pending(part) {
  const stages = WORK[part] ?? [];
  return state.progress?.errors?.find((one) => stages.includes(one.name))?.reason ?? null;
}

/** Files that were left out, apart from work that failed. */
export const leftOut = (progress) => progress.errors.filter((one) => !Object.values(WORK).flat().includes(one.name));

// -- selection --------------------------------------------------------------------------------------------------------

let kept = "";

export function restoreSelection(key) {
  kept = `sfumato:${key}`;
  try {
    state.selected = new Set(JSON.parse(sessionStorage.getItem(kept) ?? "[]"));
  } catch {
    state.selected = new Set();
  }
}

export function select(ids, wanted = true) {
  for (const id of ids) wanted ? state.selected.add(id) : state.selected.delete(id);
  try {
    sessionStorage.setItem(kept, JSON.stringify([...state.selected]));
  } catch {
    // a full store: the selection lives as long as the page
  }
  emit("selection");
}

export const toggle = (id) => select([id], !state.selected.has(id));

// -- the address: a view can be bookmarked, and the back button goes back ---------------------------------------------

function remember(replace) {
  const query = Object.fromEntries(Object.entries(state.query).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(NOTHING[name])));
  if (query.ids?.length > 200) delete query.ids; // an address is not a file
  if (query.like !== undefined && query.like === state.dropped?.like) delete query.like; // nor does it hold a picture
  const words = new URLSearchParams({ view: state.view });
  if (Object.keys(query).length) words.set("q", JSON.stringify(query));
  history[replace ? "replaceState" : "pushState"](null, "", `#${words}`);
}

export function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  state.view = words.get("view") ?? "pictures";
  let query = {};
  try {
    query = JSON.parse(words.get("q") ?? "{}");
  } catch {
    query = {};
  }
  state.query = { ...NOTHING, ...(query && typeof query === "object" && Array.isArray(query.where ?? []) ? query : {}) };
}

addEventListener("popstate", () => {
  recall();
  emit("view");
  emit("query");
});
