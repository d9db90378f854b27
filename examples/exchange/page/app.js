import { connect } from "./notification-client.js";
import { Audit } from "./audit.js";
import { EventSocket } from "./events.js";
import { plot, nice } from "./plot.js";
import { t, code, speak, number, clock, millis, duration, describe } from "./text.js";

const $ = (id) => document.getElementById(id);
const body = document.body;
const channelNames = ["trade", "account", "position", "risk", "system"];
const keepRows = 300;
const cutFor = 5;

let user = null;          // who is signed in
let audit = new Audit();
let received = 0;
let subscribed = new Set(channelNames);

// ---- The connection ----

const overEvents = new URLSearchParams(location.search).has("events"); // in place of a WebSocket
let client = null;
let away = null;          // {since, received, missing, twice}: a cut whose resume is being watched
let timer = null;
let stateText = () => t.off;

function state(name, text) {
  body.dataset.connection = name;
  stateText = text;
  $("connection").textContent = text();
  for (const id of ["cut", "margin-call", "halt"]) $(id).disabled = name !== "live";
}

function begin(cursor) {
  const c = client = connect({
    url: overEvents ? "events" : "ws",
    WebSocket: overEvents ? EventSocket : undefined,
    channels: [...subscribed],
    cursor,
    credentials: admitted,
    snapshot: (reason) => c === client && startOver(reason),
    onNotifications: (notifications) => { if (c === client) notifications.forEach(take); },
    onState: (s) => { if (c === client) changed(s); },
  });
}

function disconnect() {
  clearTimeout(timer);
  const c = client;
  client = null;
  return c?.close();
}

// admitted finds out before each connection whether the exchange still takes
// anybody, and who is signed in by now: the cookie is that of all tabs.
async function admitted() {
  let answer;
  try {
    if (!over) await refresh();
    if (!over) answer = await fetch("api/session");
  } catch { return; } // it cannot be reached, and neither can a connection
  if (over) throw new Error("over");
  if (answer.status === 401) throw new Error("expired");
  const session = await answer.json();
  if (session.user !== user) throw Object.assign(new Error("somebody else"), { session });
}

function changed({ state: name, reason, code, retryMs, error }) {
  switch (name) {
    case "connecting": return state("connecting", () => t.connecting);
    case "replaying":
      state("connecting", () => t.replaying);
      if (away) back();
      return;
    case "live": return state("live", () => t.live);
    case "waiting":
      away ??= left();
      const seconds = Math.ceil(retryMs / 1000);
      return state("lost", () => over ? t.over : t.lost(seconds));
  }
  client = null;
  if (error?.session) {
    signedOut();
    return signedIn(error.session);
  }
  if (error?.message === "expired" || code === 4401) return signedOut(t.expired);
  if (error && error.message !== "over") console.error(error);
  state("lost", () => over ? t.over : code === 4409 ? t.replaced : t.refused);
}

// startOver forgets where we were: what happened meanwhile is in the snapshot that
// a real page loads here. This one learns where the streams of the session begin.
async function startOver(reason) {
  if (reason !== "start") banner(reason === "gap" ? t.gap : t.gone);
  away = null;
  audit = new Audit();
  const numbers = await streams();
  if (numbers) audit.settle(numbers, subscribed);
}

// back watches what a cut has cost.
async function back() {
  mark(t.isBack);
  const c = client;
  const numbers = await streams();
  if (c !== client || !away || !numbers) return;
  audit.settle(numbers, subscribed);
  resumed(numbers);
}

// left is where we were when the connection went.
function left() {
  return { since: Date.now(), missing: audit.missing, twice: audit.twice, positions: audit.positions() };
}

// resumed watches until all that was published up to now has arrived.
function resumed(numbers) {
  const gap = away;
  away = null;
  const seconds = ((Date.now() - gap.since) / 1000).toFixed(1);
  const published = audit.since(gap.positions, numbers, subscribed);
  const until = Date.now() + 8000;
  verdict(() => t.checking, "");
  const look = () => {
    const behind = audit.since(audit.positions(), numbers, subscribed);
    if (behind > 0 && Date.now() < until && client) return void setTimeout(look, 100);
    const missing = audit.missing - gap.missing + behind, twice = audit.twice - gap.twice;
    if (missing + twice) verdict(() => t.hole(seconds, missing, twice), "false");
    else verdict(() => t.whole(seconds, number(published)), "true");
  };
  look();
}

async function streams() {
  try {
    const answer = await fetch("api/streams");
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}

async function cut() {
  away = left();
  mark(t.wasCut);
  verdict(() => "", "");
  state("cut", () => t.isCut(cutFor));
  const { cursor } = await disconnect();
  let remaining = cutFor;
  const count = () => {
    if (remaining <= 0) return begin(cursor);
    state("cut", () => t.isCut(remaining));
    timer = setTimeout(() => { remaining--; count(); }, 1000);
  };
  if (user) count();
}

let verdictText = () => "";
function verdict(text, whole) {
  verdictText = text;
  $("verdict").textContent = text();
  $("verdict").dataset.whole = whole;
}

// ---- The feed ----

let paused = false;
let held = [];

function take(n) {
  const channel = channelOf(n.message_id);
  if (!subscribed.has(channel)) return; // on its way when the filter changed
  audit.take(n.message_id);
  received++;
  if (n.priority === 0) $("urgent").textContent = `${t.type[n.message_type]}: ${describe(n.payload)}`;
  if (paused) held = [...held.slice(1 - keepRows), n];
  else show(row(n));
  dirty = true;
}

const channelOf = (id) => id.split("-").at(-3);

const shown = new WeakMap(); // what a row shows, to show it in another language

function row(n) {
  const li = document.createElement("li");
  shown.set(li, n);
  li.className = `p${n.priority}`;
  li.dataset.id = n.message_id;
  li.dataset.type = n.message_type;
  const cells = [["time", clock(millis(n.timestamp))], ["b", `P${n.priority}`, "lane"],
    ["span", t.type[n.message_type], "what"], ["span", describe(n.payload), "detail"]];
  for (const [tag, text, name] of cells) {
    const e = document.createElement(tag);
    e.textContent = text;
    if (name) e.className = name;
    li.append(e);
  }
  li.title = `${n.message_id} · ${n.source}`;
  return li;
}

function mark(text) {
  const li = document.createElement("li");
  li.className = "mark";
  const time = document.createElement("time"), span = document.createElement("span");
  time.textContent = clock(Date.now());
  span.textContent = text;
  li.append(time, span);
  show(li);
}

function show(li) {
  const feed = $("feed");
  feed.prepend(li);
  while (feed.childElementCount > keepRows) feed.lastElementChild.remove();
  $("empty").hidden = true;
}

let dirty = true;
setInterval(() => {
  if (!dirty) return;
  dirty = false;
  $("received").textContent = t.received(number(received));
  $("pause").textContent = paused ? t.resume(held.length) : t.pause;
  $("integrity").textContent = audit.whole ? t.integrity(audit.streams.size, number(audit.checked)) : t.broken(audit.missing, audit.twice);
}, 200);

$("pause").onclick = () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  if (!paused) for (const n of held.splice(0)) show(row(n));
  dirty = true;
};

// ---- The filter ----

for (const name of channelNames) {
  const label = document.createElement("label"), box = document.createElement("input"), span = document.createElement("span");
  box.type = "checkbox";
  box.checked = true;
  box.value = name;
  span.dataset.channel = name;
  label.append(box, span);
  $("channels").append(label);
  box.onchange = async () => {
    if (!box.checked) subscribed.delete(name);
    if (!client) { // told to the next one
      if (box.checked) subscribed.add(name);
      audit.begin(new Set([name]));
      return;
    }
    for (const b of boxes()) b.disabled = true; // until the server has confirmed
    try {
      confirmed(new Set(await (box.checked ? client.subscribe(name) : client.unsubscribe(name))));
    } catch { // the connection has come to its end
      confirmed(new Set([...boxes()].filter((b) => b.checked).map((b) => b.value)));
    }
  };
}

function boxes() { return $("channels").querySelectorAll("input"); }

// confirmed takes what the server says the filter is. Streams of a channel that
// is new begin anew.
async function confirmed(channels) {
  const added = channels.difference(subscribed);
  audit.begin(channels.symmetricDifference(subscribed));
  subscribed = channels;
  for (const b of boxes()) {
    b.checked = channels.has(b.value);
    b.disabled = false;
  }
  for (const name of channelNames) {
    if (!channels.has(name)) audit.begin(new Set([name]));
  }
  dirty = true;
  if (added.size) {
    const numbers = await streams();
    if (numbers) audit.settle(numbers, added);
  }
}

// ---- Actions ----

async function act(path) {
  try {
    const answer = await fetch(path, { method: "POST" });
    if (answer.status === 401) return signedOut(t.expired);
    banner(answer.ok ? "" : (await answer.json()).error);
  } catch { banner(t.unreachable); }
}
$("margin-call").onclick = () => act("api/margin-call");
$("halt").onclick = () => act("api/halt");
$("cut").onclick = cut;

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

// ---- Signing in and out ----

function signedIn(session) {
  user = session.user;
  $("user").textContent = user;
  for (const [id, hidden] of [["sign-in", true], ["feed-card", false], ["actions", false], ["sign-out", false]]) $(id).hidden = hidden;
  banner("");
  begin();
}

function signedOut(why = "") {
  disconnect();
  user = away = null;
  audit = new Audit();
  received = 0;
  held = [];
  $("feed").replaceChildren();
  $("empty").hidden = false;
  $("user").textContent = "";
  verdict(() => "", "");
  for (const [id, hidden] of [["sign-in", false], ["feed-card", true], ["actions", true], ["sign-out", true]]) $(id).hidden = hidden;
  state("off", () => t.off);
  banner(why);
}

$("sign-in").querySelector("form").onsubmit = async (e) => {
  e.preventDefault();
  $("sign-in-error").textContent = "";
  try {
    const answer = await fetch("api/session", { method: "POST", body: JSON.stringify({ user: $("name").value.trim() }) });
    if (answer.ok) signedIn(await answer.json());
    else $("sign-in-error").textContent = t.noUser;
  } catch { $("sign-in-error").textContent = t.unreachable; }
};

$("sign-out").onclick = async () => {
  try { await fetch("api/session", { method: "DELETE" }); } catch { /* the cookie expires by itself */ }
  signedOut();
  $("name").focus();
};

// ---- Plots and table ----

let samples = [];
let stats = null;
let over = false;

async function refresh() {
  const last = samples.at(-1)?.number ?? 0;
  const answer = await fetch(`api/stats?since=${last}`);
  stats = await answer.json();
  if ((samples.at(-1)?.number ?? 0) === last) samples = [...samples, ...stats.samples].slice(-180);
  over = stats.phase !== "running";
  draw();
}

async function poll() {
  if (stats?.phase === "finished") return;
  try { await refresh(); } catch { /* the connection's state tells */ }
  setTimeout(poll, 1000);
}

const lanes = [0, 1, 2, 3];

function draw() {
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
  if (stats.phase === "draining") banner(t.draining);
  if (stats.phase === "finished") banner("");
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

// ---- Language and theme ----

function translate() {
  document.documentElement.lang = code === "zh" ? "zh-CN" : "en";
  document.title = t.title;
  for (const e of document.querySelectorAll("[data-text]")) e.textContent = t[e.dataset.text];
  for (const e of document.querySelectorAll("[data-channel]")) e.textContent = t.channel[e.dataset.channel];
  for (const li of document.querySelectorAll("#feed li[data-id]")) li.replaceWith(row(shown.get(li)));
  $("language").textContent = t.other;
  $("language").lang = t.otherCode;
  $("theme").textContent = dark ? t.toLight : t.toDark;
  $("connection").textContent = stateText();
  $("verdict").textContent = verdictText();
  for (const svg of ["latency", "rate", "queue"]) $(svg).setAttribute("aria-label", t[svg]);
  dirty = true;
  draw();
}

$("language").onclick = () => { speak(t.otherCode); translate(); };

const system = matchMedia("(prefers-color-scheme: dark)");
let dark;
function theme() {
  dark = (localStorage.getItem("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? t.toLight : t.toDark;
}
system.onchange = theme;
$("theme").onclick = () => { localStorage.setItem("theme", dark ? "light" : "dark"); theme(); };

theme();
translate();
state("off", () => t.off);
addEventListener("resize", draw);
poll();
try {
  const answer = await fetch("api/session");
  if (answer.ok) signedIn(await answer.json());
  else signedOut();
} catch { signedOut(t.unreachable); }
