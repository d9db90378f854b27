import { connect } from "./notification-client.js";
import { Audit } from "./audit.js";
import { EventSocket } from "./events.js";
import { watch, refresh, draw, over } from "./overview.js";
import { t, code, speak, number, clock, millis, describe } from "./text.js";

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

// ---- The exchange's phase ----

watch((stats) => {
  if (stats.phase === "draining") banner(t.draining);
  if (stats.phase === "finished") banner("");
});

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
try {
  const answer = await fetch("api/session");
  if (answer.ok) signedIn(await answer.json());
  else signedOut();
} catch { signedOut(t.unreachable); }
