// The server's answers. Reads carry the session's cookie; everything sent carries its token as well.

let token = "";
let stamp = "";

export class Refused extends Error {}

async function answer(response) {
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(told.error ?? `the data room answered ${response.status}: reload the page.`);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the data room has stopped: start it again in the terminal.");
  }
  return answer(response);
}

export const read = async (path, signal) => (await ask(path, { signal })).json();

function send(path, body, { signal, type = "application/json" } = {}) {
  const content = type === "application/json" ? JSON.stringify(body) : body;
  return ask(path, { method: "POST", body: content, signal, headers: { "Content-Type": type, "X-Sfumato-Token": token } });
}

export const post = async (path, body, signal) => (await send(path, body, { signal })).json();
export const upload = async (path, blob) => (await send(path, blob, { type: "application/octet-stream" })).json();

export async function session() {
  const found = await read("/api/session");
  ({ token, stamp } = found);
  return found;
}

/** Addresses change with the session, so that a browser never shows the pictures of another one. */
export const thumbnail = (id) => `/api/thumbnail/${id}?v=${stamp}`;
export const picture = (id) => `/api/picture/${id}?v=${stamp}`;

export async function save(query, kind) {
  const response = await send("/api/export", { query, kind });
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? `pictures.${kind}`;
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  return name;
}
