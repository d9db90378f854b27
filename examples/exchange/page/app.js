// What belongs to no part alone: who is signed in, what he can do, the language and
// the theme.

import { Clock } from "./latency.js";
import { Connection, channelNames } from "./connection.js";
import { Feed, element } from "./feed.js";
import { Identity, request } from "./identity.js";
import { Pinned } from "./pinned.js";
import { watch, draw } from "./overview.js";
import { t, code, speak, number, duration } from "./text.js";

const $ = (id) => document.getElementById(id);

const clock = new Clock();
const identity = new Identity(became, clock);
const feed = new Feed();
const pinned = new Pinned(title);
const connection = new Connection({
  check: () => identity.check().finally(place),
  notifications: take,
  mark: (text) => feed.mark(text),
  warn: banner,
});

// ---- What comes ----

// "u00042-trade-P1-17", "u00042.dk2f9-trade-P1-17", "all-system-P3-2"
const ownerOf = (id) => id.slice(0, id.search(/[.-]/));

function take(list, at, replayed) {
  // Whatever the server takes us for: nobody sees what is another's.
  if (list.some((n) => ![identity.user, "all"].includes(ownerOf(n.message_id)))) return void connection.again();
  for (const n of list) {
    if (!connection.subscribed.has(channelOf(n.message_id))) continue; // on its way when the filter changed
    connection.audit.take(n.message_id);
    const entry = { n, at, took: clock.took(n.timestamp, at), replayed };
    feed.add(entry);
    if (n.priority === 0) pinned.add(entry);
  }
}

const channelOf = (id) => id.split("-").at(-3);

setInterval(tell, 1000);

// tell writes, once a second and without a word aloud, what is worth a look.
function tell() {
  const { audit } = connection;
  $("integrity").textContent = !audit.checked ? "" :
    audit.whole ? t.integrity(number(audit.streams.size), number(audit.checked)) : t.broken(number(audit.missing), number(audit.twice));
  if (unsaved) keep();
  $("clocks").textContent = (!clock.known ? t.clocksUnknown :
    clock.difference ? t.apart(duration(Math.abs(clock.difference)), duration(clock.error)) : t.clocks(duration(clock.error))) + t.replays;
}

// ---- Who it is ----

const ownParts = ["feed-card", "actions", "who"];

// became is told by the identity, and shows nothing of who it was before.
function became(session, why) {
  const had = [$("sign-in"), $("pinned"), $("who"), ...ownParts.map($)].some((e) => e.contains(document.activeElement));
  connection.end();
  feed.clear();
  pinned.clear();
  $("urgent").textContent = "";
  $("sign-in-error").textContent = "";
  $("sign-in").querySelector("form").reset();
  for (const box of boxes()) box.checked = true;
  for (const id of ownParts) $(id).hidden = !session;
  $("sign-in").hidden = !!session;
  const user = session?.user;
  banner(why ? () => t.why[why](user) : null);
  translate();
  tell();
  if (had) (session ? $("feed-title") : $("name")).focus();
  if (session) connection.begin(restored(session.user));
  else sessionStorage.removeItem(kept);
}

$("sign-in").querySelector("form").onsubmit = async (e) => {
  e.preventDefault();
  $("sign-in-error").textContent = "";
  const status = await identity.signIn($("name").value.trim());
  if (status !== 200) $("sign-in-error").textContent = status === 403 ? t.noUser : status ? t.refusedFor(status) : t.unreachable;
};

$("sign-out").onclick = async () => {
  if (!await identity.signOut()) banner(() => t.why.kept());
};

// ---- A page that is loaded again goes on where it was ----

const kept = "exchange-page";
let unsaved = false;

// keep saves the position together with what is not acknowledged, so that one is
// never ahead of the other.
function keep() {
  if (!identity.user || !connection.cursor) return;
  unsaved = false;
  const urgent = pinned.entries.map(({ n, took }) => ({ n, took }));
  sessionStorage.setItem(kept, JSON.stringify({ user: identity.user, urgent, ...connection.position() },
    (_, v) => typeof v === "bigint" ? `bigint:${v}` : v));
}
addEventListener("pagehide", keep);

function restored(user) {
  const text = sessionStorage.getItem(kept);
  sessionStorage.removeItem(kept);
  if (!text) return null;
  const saved = JSON.parse(text, (_, v) => /^bigint:/.test(v) ? BigInt(v.slice(7)) : v);
  if (saved.user !== user) return null;
  for (const { n, took } of saved.urgent) pinned.add({ n, took, at: Number(n.timestamp / 1_000_000n) + took - performance.timeOrigin });
  return saved;
}

// title tells of what is urgent even a tab that is out of sight.
function title() {
  unsaved = true;
  document.title = (pinned.count ? `(${number(pinned.count)}) ` : "") + t.title;
}

// ---- The channels ----

const boxes = () => $("channels").querySelectorAll("input");
let asking = Promise.resolve(); // one after the other

for (const name of channelNames) {
  const box = element("input"), text = element("span");
  box.type = "checkbox";
  box.checked = true;
  box.value = name;
  text.dataset.channel = name;
  $("channels").append(element("label", "", box, text));
  box.onchange = () => {
    $("channels").setAttribute("aria-busy", true); // until the server has said so
    const asked = asking = asking.then(() => connection.subscribe(name, box.checked)).then(() => {
      if (asked !== asking) return;
      for (const b of boxes()) b.checked = connection.subscribed.has(b.value);
      $("channels").setAttribute("aria-busy", false);
    });
  };
}

// ---- Actions ----

// act does it as the one whom the page shows, and as nobody else.
async function act(path) {
  if (!connection.live || await identity.check() === false) return;
  try {
    const { ok, status } = await request(path, { method: "POST" });
    if (status === 401) identity.check();
    else banner(ok ? null : status === 429 ? () => t.tooOften : () => t.failed(status));
  } catch { banner(() => t.unreachable); }
}
$("margin-call").onclick = () => act("api/margin-call");
$("halt").onclick = () => act("api/halt");
$("kill").onclick = () => act("api/kill-edge");
$("cut").onclick = () => connection.live && connection.cut();

let bannerText = null;
function banner(text) {
  bannerText = text;
  const now = text?.() ?? "";
  if ($("banner-text").textContent !== now) $("banner-text").textContent = now;
  if (!text && $("banner").contains(document.activeElement)) $("title").focus();
  $("banner").hidden = !text;
}
$("dismiss").onclick = () => banner(null);

// ---- Language and theme ----

function translate() {
  document.documentElement.lang = code === "zh" ? "zh-CN" : "en";
  for (const e of document.querySelectorAll("[data-text]")) e.textContent = t[e.dataset.text];
  for (const e of document.querySelectorAll("[data-channel]")) e.textContent = t.channel[e.dataset.channel];
  $("intro").replaceChildren(...t.intro.map((text) => element("p", "", text)));
  $("language").textContent = t.other;
  $("language").lang = t.otherCode;
  $("theme").textContent = dark ? t.toLight : t.toDark;
  $("user").textContent = identity.user ?? "";
  place();
  banner(bannerText);
  feed.translate();
  pinned.translate();
  connection.translate();
  tell();
  title();
  draw();
}

// place tells at which edge of a cluster this is, which may be another one with each
// connection.
function place() {
  const { edge, canKill = false } = identity.session ?? {};
  $("edge").textContent = edge ? t.edge(edge) : "";
  $("kill").hidden = !canKill;
  $("kill").textContent = canKill ? t.kill(edge) : "";
  $("margin-call").hidden = $("halt").hidden = canKill; // the market of a cluster is elsewhere
}

$("language").onclick = async () => {
  try {
    await speak(t.otherCode);
    translate();
  } catch { banner(() => t.unreachable); }
};

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
watch(({ phase }) => { connection.phase = phase; });
if (await identity.check() === undefined) banner(() => t.unreachable);
if (!identity.user) $("sign-in").hidden = false;
