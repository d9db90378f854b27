// What /api/stats tells: the headline, the plots, the picture of the inside and the
// table; and since when nothing was heard.

import { plot, nice, gaps, span, timeAt, say } from "./plot.js";
import { inside } from "./inside.js";
import { request } from "./identity.js";
import { t, number, brief, clock, duration } from "./text.js";

const $ = (id) => document.getElementById(id);
const lanes = [0, 1, 2, 3];
const keep = 180;
const answerWithin = 5000; // ms

let samples = [];         // of a second each, over restarts of the exchange
let stats = null;         // the last answer
let seen = 0;             // the number of the last sample of this run of the exchange
let ahead = 0;            // how far the exchange's clock is ahead of ours, in ms
let heard = Date.now();   // when it answered last, by its clock
let away = false;         // it did not answer when it was last asked
let told = () => {};

async function ask() {
  let next;
  try {
    next = await get(seen);
    if (stats && next.started !== stats.started) next = await get(seen = 0); // it was started again
  } catch {
    away = true;
    return;
  }
  const first = next.samples[0];
  if (first) {
    seen = next.samples.at(-1).number;
    samples = [...samples.filter((s) => s.at < first.at), ...next.samples].slice(-keep);
  }
  stats = next;
  ahead = stats.now - Date.now();
  heard = stats.now;
  away = false;
  told(stats);
}

async function get(since) {
  const answer = await request(`api/stats?since=${since}`, {}, answerWithin);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

// watch asks once a second, and calls onStats with what the exchange says. It goes on
// when the exchange has ended: it may be started again.
export function watch(onStats) {
  told = onStats;
  addEventListener("resize", draw);
  poll();
}

async function poll() {
  await ask();
  setTimeout(poll, 1000);
  draw();
}

// draw shows the last stats, in the language and at the width of now.
export function draw() {
  say($("away"), away ? (finished() ? t.statsEnded : t.statsAway)(clock(heard)) : "");
  const last = samples.at(-1);
  say($("headline"), last && !away ? t.headline(number(last.sessions), uptime((last.at - stats.started) / 1000)) : "");
  plots();
  // Several processes have no one inside, and no table before their end.
  $("inside").closest("section").hidden = !inOne();
  $("lanes").closest("section").hidden = !stats?.table;
  if (last && inOne()) inside(last, samples.filter((s) => last.at - s.at < span), stats);
  if (stats?.table) table();
  if (stats) say($("range"), t.range(`u${String(stats.users).padStart(5, "0")}`));
}

// inOne is whether it is one process, of which all depths are known.
const inOne = () => !samples.length || samples.at(-1).lanes !== undefined;

const finished = () => stats?.phase === "finished";

// ---- Plots ----

const caption = { latency: () => t.latency, rate: () => t.rate, queue: () => inOne() ? t.queue : t.underWay };
const series = {
  latency: lanes.map((p) => ({ lane: `p${p}`, label: () => `P${p}`, of: (s) => s.p99[p] || null, format: duration })),
  rate: [
    { lane: "published", label: () => t.published, of: (s) => s.published, format: number },
    { lane: "delivered", label: () => t.delivered, of: (s) => s.delivered, format: number },
  ],
  queue: lanes.map((p) => ({ lane: `p${p}`, label: () => `P${p}`, of: (s) => (s.lanes?.[p] ?? 0) + s.pending[p], format: number })),
};
const names = Object.keys(series);

let now = 0; // at the right edge

function plots() {
  const last = samples.at(-1), current = last && finished() ? last.at : Date.now() + ahead;
  const silent = gaps(samples.map((s) => s.at), current);
  // While all is well the newest sample is now: the plots stand still in between.
  now = last && silent.at(-1)?.[1] !== current ? last.at : current;
  const read = reading();
  const targets = stats?.table?.map((r) => r.target / 1e6) ?? [];
  const lines = (name) => series[name].map(({ lane, of }) => ({ lane, points: samples.map((s) => [s.at, of(s)]) }));
  const top = (name) => nice(Math.max(1, ...samples.flatMap((s) => series[name].map(({ of }) => of(s)))));
  const common = { now, silent, read, words: { now: t.atNow, ago: t.ago, silent: t.notHeard } };

  plot($("latency"), {
    ...common, scale: (ms) => (Math.log10(ms) + 2) / 5.5, ticks: [0.01, 0.1, 1, 10, 100, 1000, 10000], format: duration,
    lines: lines("latency").map((line, p) => ({ ...line, label: `P${p}`, target: targets[p] })),
  });
  const rate = top("rate"), queue = top("queue");
  plot($("rate"), {
    ...common, scale: (v) => v / rate, ticks: [0, rate / 2, rate], format: brief, lines: lines("rate").toReversed(),
    marks: samples.filter((s) => s.broadcasts).map((s) => s.at),
  });
  plot($("queue"), {
    ...common, scale: (v) => v / queue, ticks: [0, queue / 2, queue], format: brief, lines: lines("queue").toReversed(),
  });

  const shown = read ? sampleAt(read) : away ? null : last;
  for (const name of names) {
    say($(`${name}-caption`), caption[name]());
    keys(name, shown, targets);
    $(name).setAttribute("aria-label", alternative(name, silent));
  }
  slider(read, shown);
}

// keys shows the values of one second beside the plot's name.
function keys(name, s, targets) {
  const entries = series[name].map(({ lane, label, of, format }, p) => {
    const late = s && name === "latency" && of(s) > targets[p];
    return [lane, label(), s ? format(of(s)) + (late ? t.overTarget(duration(targets[p])) : "") : "–", late];
  });
  if (name === "rate") entries.push(["broadcast", t.broadcast(number(stats?.users ?? 0)), s ? number(s.broadcasts) : "–"]);
  fill($(`${name}-key`), entries, () => {
    const span = document.createElement("span");
    span.append(document.createElement("i"), " ", document.createElement("b"));
    return span;
  }, (span, [lane, label, value, late]) => {
    span.className = lane;
    say(span.firstChild, label);
    say(span.lastChild, value);
    span.lastChild.className = late ? "over" : "";
  });
}

// alternative says in words what a plot shows.
function alternative(name, silent) {
  const window = samples.filter((s) => now - s.at <= span), last = window.at(-1);
  if (!last) return t.alternative(caption[name](), [t.notHeard]);
  const values = series[name].map(({ label, of, format }) =>
    t.values(label(), format(of(last)), format(Math.max(...window.map(of)))));
  if (name === "rate") values.push(t.broadcasts(number(window.reduce((n, s) => n + s.broadcasts, 0))));
  const quiet = silent.reduce((ms, [from, to]) => ms + to - from, 0);
  if (quiet) values.push(t.notHeardFor(number(Math.round(quiet / 1000))));
  return t.alternative(caption[name](), values);
}

// ---- Reading the values at a time ----

let pointed = null; // under the pointer
let pinned = null;  // by the slider; both are Unix seconds

function reading() {
  if (pinned * 1000 <= now - span) pinned = null;
  const at = pointed ?? pinned;
  return at === null ? null : at * 1000;
}

// sampleAt is the second that was being counted at a time, if it was.
function sampleAt(at) {
  const near = samples.toSorted((a, b) => Math.abs(a.at - at) - Math.abs(b.at - at))[0];
  return near && Math.abs(near.at - at) <= 1000 ? near : null;
}

// The slider has the time itself as its value: while the plots move on, what was
// chosen stays what it is.
function slider(read, shown) {
  const input = $("moment"), end = Math.floor(now / 1000);
  input.min = end - span / 1000 + 1;
  input.max = end;
  input.value = read === null ? end : read / 1000;
  const when = read === null ? t.atNow : clock(read);
  const values = (name) => series[name].map(({ label, of, format }) => `${label()} ${format(of(shown))}`).join(", ");
  say($("moment-text"), when);
  input.setAttribute("aria-valuetext", read === null ? when : t.reading(when,
    shown ? [...names.map((name) => `${caption[name]()}: ${values(name)}`), t.broadcasts(number(shown.broadcasts))] : [t.notHeard]));
}

$("moment").oninput = (e) => {
  pinned = e.target.value === e.target.max ? null : Number(e.target.value);
  plots();
};
for (const name of names) {
  $(name).onpointermove = $(name).onpointerdown = (e) => {
    const at = Math.round(timeAt(e.currentTarget, e.clientX, now) / 1000);
    if (at !== pointed) { pointed = at; plots(); }
  };
  $(name).onpointerleave = $(name).onpointercancel = () => { pointed = null; plots(); };
}

// ---- Table ----

function table() {
  say($("table-title"), finished() ? t.final : away ? t.asOf(clock(heard)) : t.soFar);
  const make = (tag, scope) => () => {
    const cell = document.createElement(tag);
    if (scope) cell.scope = scope;
    return cell;
  };
  fill($("columns"), t.columns, make("th", "col"), say);
  const rows = stats.table ?? [];
  fill($("lanes"), rows, () => document.createElement("tr"), (tr, r) => {
    tr.className = r.lane.toLowerCase();
    const ms = (ns) => duration(ns / 1e6);
    if (!tr.firstChild) tr.append(make("th", "row")());
    const cells = [[r.lane, "lane"], [number(r.published)], [number(r.delivered)],
      [number(r.lost), r.lost ? "bad" : ""], [ms(r.p50)], [ms(r.p99), r.held ? "" : "bad"], [ms(r.max)], [ms(r.target)],
      [r.published ? (r.held ? t.yes : t.missed(number(r.p99 / r.target, 1))) : "–", r.held ? "good" : "bad"]];
    fill(tr, cells, make("td"), (cell, [text, name = ""]) => {
      cell.className = name;
      say(cell, text);
    });
  });
  const why = rows.filter((r) => !r.held || r.reasons).map((r) => [r.lane, reasons(r)]);
  if (rows.some((r) => !r.held) && stats.load !== undefined) {
    why.push(["", (stats.load > stats.cpus ? t.busy : t.idle)(stats.cpus, number(stats.load, 1))]);
  }
  fill($("reasons"), why, () => {
    const li = document.createElement("li");
    li.append(document.createElement("b"), " ", document.createElement("span"));
    return li;
  }, (li, [lane, text]) => {
    li.className = lane.toLowerCase();
    li.firstChild.className = "lane";
    say(li.firstChild, lane);
    say(li.lastChild, text);
  });
  say($("final"), stats.verdict && (t.verdicts[stats.verdict] ?? stats.verdict));
  const scroll = $("table-scroll"), wide = scroll.scrollWidth > scroll.clientWidth + 1;
  $("table-hint").hidden = !wide;
  if (wide) scroll.tabIndex = 0; // or nobody without a pointer would get there
  else scroll.removeAttribute("tabindex");
}

// reasons says in words why a lane's p99 is over its target, and what was lost of it.
function reasons(r) {
  const said = [];
  if (!r.held) {
    const ms = (ns) => duration(ns / 1e6), p = lanes.find((p) => r.lane === `P${p}`);
    const window = samples.slice(-span / 1000);
    said.push(t.late(ms(r.p99), ms(r.target)), t.lateIn(window.filter((s) => s.p99[p] * 1e6 > r.target).length, window.length));
    if (stats.durable) said.push(t.lateDisk(ms(r.handed)));
    else if (r.handed) said.push((r.handed > r.p99 / 2 ? t.lateBefore : t.lateBehind)(ms(r.handed)));
  }
  if (r.reasons) said.push(t.lostParts(r.reasons.map(({ n, what }) => `${t.loss[what] ?? what} ${number(n)}`)));
  return said.join(t.between);
}

// fill gives parent a child for each item and has show write it. What is there
// stays: a reader's place and a selection with it.
function fill(parent, items, make, show) {
  while (parent.childElementCount > items.length) parent.lastElementChild.remove();
  items.forEach((item, i) => {
    if (!parent.children[i]) parent.append(make());
    show(parent.children[i], item);
  });
}

function uptime(s) {
  const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return (h ? `${h} ${t.h} ` : "") + (h || m ? `${m} ${t.min} ` : "") + `${Math.floor(s) % 60} ${t.s}`;
}
