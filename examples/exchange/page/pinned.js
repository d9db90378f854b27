// What is urgent stays above the list until somebody has acknowledged it, whatever
// else comes, and whatever the filter says. The oldest stands on top, so that nothing
// moves under the pointer when another one comes.

import { element, fill, typeOf } from "./feed.js";
import { t, describe, number } from "./text.js";

const shown = 5;
const keep = 1_000;
const speakEvery = 3_000; // milliseconds

const $ = (id) => document.getElementById(id);

export class Pinned {
  #entries = []; // oldest first
  #beyond = 0;   // more than are kept
  #ids = new Set();
  #rows = new Map(); // of entries that are shown
  #timer = null;
  #latest = null; // the last that came
  #unspoken = 0;
  #spoken = -Infinity;
  #seen = []; // what "all" means: those that were counted when the button was written
  #changed;

  // changed is called when there are more or fewer.
  constructor(changed) {
    this.#changed = changed;
    $("acknowledge-all").onclick = () => this.#acknowledge(this.#seen, true);
  }

  get count() { return this.#entries.length + this.#beyond; }
  get entries() { return this.#entries; }

  add(entry) {
    const id = entry.n.message_id;
    if (this.#ids.has(id)) return; // an earlier page has kept it
    if (this.#entries.length === keep) {
      this.#beyond++;
    } else {
      this.#ids.add(id);
      this.#entries.push(entry);
    }
    this.#latest = entry.n;
    this.#unspoken++;
    this.#timer ??= setTimeout(() => this.#write(), 100);
  }

  clear() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#entries = [];
    this.#ids.clear();
    this.#beyond = this.#unspoken = 0;
    this.#latest = null;
    $("urgent").textContent = "";
    this.#write();
  }

  translate() {
    for (const [entry, li] of this.#rows) this.#label(entry, li);
    this.#write();
  }

  #write() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const top = this.#entries.slice(0, shown);
    for (const [entry, li] of this.#rows) {
      if (top.includes(entry)) continue;
      li.remove();
      this.#rows.delete(entry);
    }
    for (const entry of top) {
      if (!this.#rows.has(entry)) $("pinned-list").append(this.#row(entry));
    }
    this.#seen = [...this.#entries];
    const more = this.#entries.length - top.length;
    $("pinned").hidden = this.count === 0;
    $("pinned-count").textContent = number(this.count);
    const { n } = this.#entries.at(-1) ?? {};
    $("pinned-more").textContent = [
      more ? t.more(number(more), typeOf(n), describe(n.payload)) : "",
      this.#beyond ? t.beyond(number(this.#beyond)) : "",
    ].join(" ");
    $("acknowledge-all").textContent = t.acknowledgeAll(number(this.count));
    this.#speak();
    this.#changed();
  }

  // #speak does not interrupt itself with each of a burst.
  #speak() {
    if (!this.#unspoken) return;
    const left = this.#spoken + speakEvery - performance.now();
    if (left > 0) {
      this.#timer ??= setTimeout(() => this.#write(), left);
      return;
    }
    this.#spoken = performance.now();
    const n = this.#latest;
    $("urgent").textContent = t.spoken(this.#unspoken, number(this.#unspoken), typeOf(n), describe(n.payload));
    this.#unspoken = 0;
  }

  #row(entry) {
    const cells = {};
    const button = element("button");
    const li = element("li", "p0", ...["time", "lane", "what", "detail", "took"].map((name) => cells[name] = element("span", name)), button);
    li.dataset.id = entry.n.message_id;
    li.dataset.type = entry.n.message_type;
    li.cells = cells;
    button.onclick = () => this.#acknowledge([entry]);
    this.#rows.set(entry, li);
    this.#label(entry, li);
    return li;
  }

  #label(entry, li) {
    fill(li.cells, entry);
    const button = li.querySelector("button");
    button.textContent = t.acknowledge;
    button.setAttribute("aria-label", `${t.acknowledge}: ${typeOf(entry.n)}, ${describe(entry.n.payload)}`);
  }

  // #acknowledge leaves the focus where the next one can be acknowledged, and with none
  // left at the list of everything.
  #acknowledge(entries, all = false) {
    const index = [...$("pinned-list").children].findIndex((li) => li.contains(document.activeElement));
    const had = $("pinned").contains(document.activeElement);
    const gone = new Set(entries);
    this.#entries = this.#entries.filter((e) => !gone.has(e));
    if (all) this.#beyond = 0;
    for (const e of entries) this.#ids.delete(e.n.message_id);
    this.#write();
    if (!had) return;
    const rows = $("pinned-list").children;
    if (!rows.length) $("feed-title").focus();
    else if (index >= 0) rows[Math.min(index, rows.length - 1)].querySelector("button").focus();
  }
}
