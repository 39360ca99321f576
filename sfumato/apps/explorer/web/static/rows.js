// Rows of the query, fetched in blocks as they come into sight and forgotten when they are long out of it.

import { post } from "./api.js";
import { emit, state } from "./state.js";
import { say } from "./dom.js";

const BLOCK = 120;
const KEPT = 80; // blocks: about 10,000 rows

export class Rows {
  #blocks = new Map(); // number -> rows, the least lately used first
  #asked = new Map(); // number -> AbortController
  #of = "";

  constructor(changed) {
    this.changed = changed;
    this.total = 0;
    this.known = false;
  }

  /** Another query: nothing that was asked for the last one arrives any more. */
  reset() {
    for (const stop of this.#asked.values()) stop.abort();
    this.#asked.clear();
    this.#blocks.clear();
    this.#of = JSON.stringify(state.query);
    this.known = false;
    return this.#load(0);
  }

  get(i) {
    return this.#blocks.get(Math.floor(i / BLOCK))?.[i % BLOCK];
  }

  where(id) {
    for (const [number, rows] of this.#blocks) {
      const i = rows.findIndex((row) => row.id === id);
      if (i >= 0) return number * BLOCK + i;
    }
    return -1;
  }

  /** Asks for what is missing of [first, last), and for nothing that is no longer wanted. */
  want(first, last) {
    const from = Math.max(0, Math.floor(first / BLOCK));
    const to = Math.floor(Math.max(0, Math.min(last, this.total) - 1) / BLOCK);
    for (const [number, stop] of this.#asked) {
      if (number !== 0 && (number < from || number > to)) {
        stop.abort();
        this.#asked.delete(number);
      }
    }
    for (let number = from; number <= to; number += 1) {
      if (this.#blocks.has(number)) this.#touch(number);
      else if (!this.#asked.has(number)) this.#load(number);
    }
  }

  async #load(number) {
    const stop = new AbortController();
    this.#asked.set(number, stop);
    const of = this.#of;
    try {
      const found = await post("/api/page", { query: state.query, first: number * BLOCK, n: BLOCK }, stop.signal);
      if (of !== this.#of) return;
      this.#blocks.set(number, found.rows);
      this.#forget();
      this.#count(found.total);
      this.changed();
    } catch (error) {
      if (error.name === "AbortError" || of !== this.#of) return;
      this.#count(this.known ? this.total : 0);
      this.changed(error);
      say(error.message, { bad: true });
    } finally {
      if (this.#asked.get(number) === stop) this.#asked.delete(number);
    }
  }

  #count(total) {
    this.total = total;
    this.known = true;
    state.total = total;
    emit("total");
  }

  #touch(number) {
    const rows = this.#blocks.get(number);
    this.#blocks.delete(number);
    this.#blocks.set(number, rows);
  }

  #forget() {
    while (this.#blocks.size > KEPT) this.#blocks.delete(this.#blocks.keys().next().value);
  }
}
