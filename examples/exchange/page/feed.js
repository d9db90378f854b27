// The list of what has come: grouped, filtered, bounded, and written a few times a
// second, however much comes.

import { t, exactly, duration, describe, number } from "./text.js";

const keep = 2_000;        // messages
const keepRows = 300;
const perRow = 1_000;      // messages
const listed = 100;        // of a row that is open
const together = 1_000;    // milliseconds from one message of a row to the next
const longest = 10_000;    // milliseconds of a row
const writeEvery = 200;    // milliseconds

const $ = (id) => document.getElementById(id);

export function element(name, className, ...children) {
  const e = document.createElement(name);
  if (className) e.className = className;
  e.append(...children);
  return e;
}

const instrumentOf = (n) => n.payload.instrument_id ?? "";

export const typeOf = (n) => t.type[n.message_type] ?? n.message_type;

// story is what messages have in common that are shown in one row: a lane, and either
// the orders in one instrument, or a kind of message.
const story = (n) => `${n.priority} ${n.payload.order_id ? "order" : n.message_type} ${instrumentOf(n)}`;

export class Feed {
  received = 0;
  #kept = [];     // entries, newest last: {n, at, took, replayed} or {mark, at}
  #pending = [];  // entries that are not in the list yet
  #skipped = 0;   // entries that gave way to newer ones before anybody saw them
  #rows = [];     // newest first: {entries, key, li, cells, details, list}
  #open = new Map(); // the row of each story that the next message may join
  #instruments = new Set();
  #filter = { lanes: new Set([0, 1, 2, 3]), instrument: "", text: "" };
  #paused = false;
  #timer = null;
  #took = [];     // milliseconds of the last messages

  constructor() {
    for (const lane of [0, 1, 2, 3]) {
      const box = element("input");
      box.type = "checkbox";
      box.checked = true;
      box.value = lane;
      box.onchange = () => this.#narrow(() => this.#filter.lanes[box.checked ? "add" : "delete"](lane));
      $("lane-filter").append(element("label", `p${lane}`, box, element("b", "lane", `P${lane}`)));
    }
    $("instrument").onchange = () => this.#narrow(() => { this.#filter.instrument = $("instrument").value; });
    $("text").oninput = () => this.#narrow(() => { this.#filter.text = $("text").value.trim().toLowerCase(); });
    $("pause").onclick = () => {
      this.#paused = !this.#paused;
      $("pause").setAttribute("aria-pressed", this.#paused);
      this.#write();
    };
    document.addEventListener("visibilitychange", () => this.#write());
  }

  // add takes a notification that arrived at a time of performance.now.
  add(entry) {
    this.received++;
    if (!entry.replayed) this.#took.push(entry.took);
    if (this.#took.length > keep) this.#took.splice(0, keep / 2);
    this.#append(entry);
  }

  // mark puts a line between what was before and what follows.
  mark(text) { this.#append({ mark: text, at: performance.now() }); }

  clear() {
    this.received = this.#skipped = 0;
    this.#kept = [];
    this.#pending = [];
    this.#took = [];
    this.#instruments.clear();
    this.#filter = { lanes: new Set([0, 1, 2, 3]), instrument: "", text: "" };
    for (const box of $("lane-filter").querySelectorAll("input")) box.checked = true;
    $("text").value = "";
    this.#paused = false;
    $("pause").setAttribute("aria-pressed", false);
    this.#rebuild();
    this.translate();
  }

  translate() {
    const chosen = $("instrument").value;
    $("instrument").replaceChildren(new Option(t.anyInstrument, ""), ...[...this.#instruments].sort().map((i) => new Option(i === "ALL" ? t.allInstruments : i, i)));
    $("instrument").value = chosen;
    for (const e of this.#kept) e.text = undefined;
    if (this.#filter.text) this.#rebuild();
    for (const row of this.#rows) this.#draw(row);
    this.#write();
  }

  #append(entry) {
    this.#pending.push(entry);
    if (this.#pending.length > 2 * keep) this.#skipped += this.#pending.splice(0, keep).length;
    this.#timer ??= setTimeout(() => this.#write(), writeEvery);
  }

  // #write brings the page up to date. What nobody sees waits.
  #write() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (document.hidden) return;
    if (!this.#paused && this.#pending.length) {
      const pending = this.#pending.splice(0);
      if (this.#skipped) pending.unshift({ mark: ((n) => () => t.skipped(n))(number(this.#skipped)), at: pending[0].at });
      this.#skipped = 0;
      this.#kept.push(...pending);
      if (this.#kept.length > keep) this.#kept.splice(0, this.#kept.length - keep);
      this.#learn(pending);
      this.#place(pending);
    }
    const waiting = this.#pending.length + this.#skipped;
    $("received").textContent = t.received(number(this.received));
    $("pause").textContent = this.#paused ? t.resume(waiting, number(waiting)) : t.pause;
    const narrowed = this.#filter.lanes.size < 4 || this.#filter.instrument || this.#filter.text;
    $("shown").textContent = narrowed ? t.shown(number(this.#rows.reduce((n, row) => n + row.entries.length, 0)), number(this.#kept.length)) : "";
    $("empty").hidden = this.#rows.length > 0;
    $("empty").textContent = this.#kept.length ? t.nothingMatches : t.waiting;
    const last = this.#took.slice(-keep / 2).sort((a, b) => a - b);
    const rank = (q) => spent(last[Math.min(last.length - 1, Math.floor(last.length * q))]);
    $("took").textContent = last.length ? t.tookLast(number(last.length), rank(.5), rank(.99)) : "";
  }

  #learn(entries) {
    const before = this.#instruments.size;
    for (const { n } of entries) {
      if (n && instrumentOf(n) && this.#instruments.size < 200) this.#instruments.add(instrumentOf(n));
    }
    if (this.#instruments.size > before) {
      const known = new Set([...$("instrument").options].map((o) => o.value));
      for (const i of this.#instruments) {
        if (!known.has(i)) $("instrument").add(new Option(i === "ALL" ? t.allInstruments : i, i));
      }
    }
  }

  // ---- The filter ----

  #narrow(change) {
    change();
    this.#rebuild();
    this.#write();
  }

  #matches(e) {
    if (e.mark) return true;
    const { lanes, instrument, text } = this.#filter;
    if (!lanes.has(e.n.priority)) return false;
    if (instrument && ![instrument, "ALL"].includes(instrumentOf(e.n))) return false;
    if (!text) return true;
    e.text ??= `${e.n.message_id} ${typeOf(e.n)} ${describe(e.n.payload)}`.toLowerCase();
    return e.text.includes(text);
  }

  #rebuild() {
    this.#rows = [];
    this.#open.clear();
    $("feed").replaceChildren();
    this.#place(this.#kept);
  }

  // ---- Rows ----

  // #place puts entries on top, each in the row of its story if there is one. Only what
  // has changed is written.
  #place(entries) {
    const fresh = [], changed = new Set();
    for (const e of entries) {
      if (!this.#matches(e)) continue;
      const key = e.mark ? null : story(e.n);
      let row = this.#open.get(key);
      if (!row || e.at - row.entries.at(-1).at > together || e.at - row.entries[0].at > longest || row.entries.length >= perRow) {
        row = { key, entries: [], li: element("li") };
        fresh.unshift(row);
        if (key) this.#open.set(key, row);
      }
      row.entries.push(e);
      changed.add(row);
    }
    this.#rows.unshift(...fresh);
    this.#bound();
    for (const row of changed) this.#draw(row);
    $("feed").prepend(...fresh.map((row) => row.li).filter((li) => li.firstChild)); // others are gone already
  }

  #bound() {
    let messages = 0, end = 0;
    while (end < this.#rows.length && end < keepRows && messages < keep) messages += this.#rows[end++].entries.length;
    for (const row of this.#rows.splice(end)) {
      if (this.#open.get(row.key) === row) this.#open.delete(row.key);
      if (row.li.contains(document.activeElement)) $("feed").focus();
      row.li.remove();
      row.gone = true;
    }
  }

  #draw(row) {
    if (row.gone) return;
    const { li, entries } = row, { n, mark } = entries.at(-1);
    if (!row.cells) {
      row.cells = {};
      for (const name of mark ? ["time", "what"] : ["time", "lane", "what", "detail", "took"]) li.append(row.cells[name] = element("span", name));
      li.className = mark ? "mark" : `p${n.priority}`;
    }
    const { time, lane, what, detail, took } = row.cells;
    time.textContent = exactly(performance.timeOrigin + entries[0].at); // rows are in the order in which they began
    if (mark) {
      what.textContent = mark();
      return;
    }
    li.dataset.id = n.message_id;
    li.dataset.type = n.message_type;
    li.dataset.count = entries.length;
    lane.textContent = `P${n.priority}`;
    if (entries.length === 1) {
      fill(row.cells, entries[0]);
      return;
    }
    if (!row.details) {
      row.list = element("ol");
      row.details = element("details", "", element("summary", "", ...li.childNodes), row.list);
      row.details.ontoggle = () => this.#list(row);
      li.append(row.details);
      li.classList.add("group");
      li.title = "";
    }
    const kinds = Map.groupBy(entries, (e) => typeOf(e.n));
    what.textContent = [...kinds].map(([type, list]) => `${type} ×${number(list.length)}`).join(t.comma);
    const orders = new Set(entries.map((e) => e.n.payload.order_id));
    detail.textContent = kinds.size === 1 && !n.payload.order_id ? describe(n.payload)
      : `${instrumentOf(n)} · ${orders.size === 1 ? n.payload.order_id : t.orders(number(orders.size))}`;
    const times = entries.map((e) => e.took);
    took.textContent = between(Math.min(...times), Math.max(...times));
    this.#list(row);
  }

  // #list shows the messages of a row that is open, newest first.
  #list(row) {
    if (!row.details.open) return row.list.replaceChildren();
    const shown = row.entries.slice(-listed).reverse().map((e) => {
      const cells = {};
      const li = element("li", "", ...["time", "what", "detail", "took"].map((name) => cells[name] = element("span", name)));
      fill(cells, e);
      return li;
    });
    if (row.entries.length > listed) shown.push(element("li", "hint", t.earlier(number(row.entries.length - listed))));
    row.list.replaceChildren(...shown);
  }
}

// fill writes what one message says.
export function fill({ time, lane, what, detail, took }, { n, at, took: ms }) {
  time.textContent = exactly(performance.timeOrigin + at);
  if (lane) lane.textContent = `P${n.priority}`;
  what.textContent = typeOf(n);
  detail.textContent = describe(n.payload);
  took.textContent = spent(ms);
  time.parentElement.title = `${n.message_id} · ${n.source}`;
}

// spent is a duration as far as a browser's clock can tell.
const spent = (ms) => ms < 0.1 ? `< ${duration(0.1)}` : duration(ms);

function between(least, most) {
  const low = spent(least), high = spent(most);
  return low === high ? low : `${low} – ${high}`;
}
