// What /api/stats tells: the headline, the plots and the table.

import { plot, nice } from "./plot.js";
import { t, number, duration } from "./text.js";

const $ = (id) => document.getElementById(id);

let samples = [];
let stats = null;
let onStats = () => {};

// over says that the exchange takes nobody new.
export let over = false;

// refresh asks what has happened since the last time.
export async function refresh() {
  const last = samples.at(-1)?.number ?? 0;
  const answer = await fetch(`api/stats?since=${last}`);
  stats = await answer.json();
  if ((samples.at(-1)?.number ?? 0) === last) samples = [...samples, ...stats.samples].slice(-180);
  over = stats.phase !== "running";
  draw();
}

// watch asks once a second until the exchange has ended, and calls told with what
// it says.
export function watch(told) {
  onStats = told;
  addEventListener("resize", draw);
  poll();
}

async function poll() {
  if (stats?.phase === "finished") return;
  try { await refresh(); } catch { /* the connection's state tells */ }
  setTimeout(poll, 1000);
}

const lanes = [0, 1, 2, 3];

// draw shows the last stats, in the language and at the width of now.
export function draw() {
  for (const svg of ["latency", "rate", "queue"]) $(svg).setAttribute("aria-label", t[svg]);
  if (!stats) return;
  const now = samples.at(-1)?.at ?? Date.now();
  const last = samples.at(-1);
  const targets = (stats.table ?? []).map((r) => r.target / 1e6);
  const series = (of) => samples.map((s) => [s.at, of(s)]);

  plot($("latency"), {
    now, scale: (ms) => (Math.log10(ms) + 2) / 5.5, ticks: [0.01, 0.1, 1, 10, 100, 1000, 10000], format: duration,
    lines: lanes.map((p) => ({ points: series((s) => s.p99[p] || null), lane: `p${p}`, label: `P${p}`, target: targets[p] })),
  });
  const rate = nice(Math.max(...samples.map((s) => Math.max(s.published, s.delivered)), 1));
  plot($("rate"), {
    now, scale: (v) => v / rate, ticks: [0, rate / 2, rate], format: compact,
    lines: [{ points: series((s) => s.delivered), lane: "delivered" }, { points: series((s) => s.published), lane: "published" }],
  });
  const queue = nice(Math.max(...samples.flatMap((s) => s.queued), 1));
  plot($("queue"), {
    now, scale: (v) => v / queue, ticks: [0, queue / 2, queue], format: compact,
    lines: lanes.toReversed().map((p) => ({ points: series((s) => s.queued[p]), lane: `p${p}` })),
  });
  if (last) {
    key("latency-key", lanes.map((p) => [`p${p}`, `P${p}`, duration(last.p99[p]), last.p99[p] > targets[p]]));
    key("rate-key", [["published", t.published, number(last.published)], ["delivered", t.delivered, number(last.delivered)]]);
    key("queue-key", lanes.map((p) => [`p${p}`, `P${p}`, number(last.queued[p])]));
    $("headline").textContent = t.headline(number(last.sessions), uptime((last.at - stats.started) / 1000));
  }
  table();
  $("range").textContent = t.range(`u${String(stats.users).padStart(5, "0")}`);
  onStats(stats);
}

function key(id, entries) {
  $(id).replaceChildren(...entries.map(([lane, name, value, over]) => {
    const span = document.createElement("span"), i = document.createElement("i"), b = document.createElement("span");
    span.className = lane;
    i.textContent = name;
    b.textContent = value;
    if (over) b.className = "over";
    span.append(i, " ", b);
    return span;
  }));
}

function table() {
  $("table-title").textContent = stats.phase === "finished" ? t.final : t.soFar;
  $("columns").replaceChildren(...t.columns.map((name) => {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = name;
    return th;
  }));
  $("lanes").replaceChildren(...(stats.table ?? []).map((r, p) => {
    const tr = document.createElement("tr");
    tr.className = `p${p}`;
    const ms = (ns) => duration(ns / 1e6);
    const cells = [[r.lane, "lane"], [number(r.published)], [number(r.delivered)],
      [number(r.lost), r.lost ? "bad" : ""], [ms(r.p50)], [ms(r.p99), r.held ? "" : "bad"], [ms(r.max)], [ms(r.target)],
      [r.published ? (r.held ? t.yes : t.no) : "–", r.held ? "good" : "bad"]];
    for (const [text, name] of cells) {
      const td = document.createElement("td");
      td.textContent = text;
      if (name) td.className = name;
      tr.append(td);
    }
    if (r.reasons) tr.title = r.reasons.join(", ");
    return tr;
  }));
  $("final").textContent = stats.verdict;
}

const compact = (v) => v >= 1e6 ? `${v / 1e6} M` : v >= 1e4 ? `${v / 1e3} k` : String(v);

function uptime(s) {
  const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return (h ? `${h} ${t.h} ` : "") + (h || m ? `${m} ${t.min} ` : "") + `${Math.floor(s) % 60} ${t.s}`;
}
