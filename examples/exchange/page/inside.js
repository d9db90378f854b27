// The picture of the inside: the parts that a message passes, what waits in each, and
// how much goes from one to the next. It changes with the stats, once a second, and
// does not move in between.

import { element, say } from "./plot.js";
import { t, code, number, brief } from "./text.js";

const $ = (id) => document.getElementById(id);
const row = 18, head = 28, pad = 8, arrow = 58, down = 30;
const wide = 900; // px from which the parts stand side by side

// Each part has rows: bars of what waits there, or lines of text; and what leaves it.
const parts = [
  { name: "publishers", rows: 4, lines: () => t.sources, out: (s) => s.published },
  { name: "lanes", rows: 4, depths: (s) => s.lanes, out: (s) => s.handed },
  { name: "inbox", rows: 1, depths: (s) => [s.inbox], out: (s) => s.enqueued },
  { name: "sessions", rows: 4, depths: (s) => s.pending, out: (s) => s.pushes },
  { name: "pushers", rows: 2, lines: (s) => t.perPush(perPush(s)), out: (s) => s.delivered },
  { name: "sinks", rows: 2, lines: (s) => t.sessions(number(s.sessions)) },
];

const perPush = (s) => s.pushes ? number(s.delivered / s.pushes, 1) : "–";

// A bar's length is the logarithm of what waits: one is to be seen, 100,000 to fit.
const length = (n) => Math.min(1, Math.log10(1 + n) / 5);

let drawn = "";    // the width and the language that stand
let updates = [];  // what to call with the last sample and those of the last two minutes

// inside shows s, the last sample, and with it the most of the window.
export function inside(s, window, stats) {
  const width = $("inside").clientWidth;
  if (!width) return;
  if (drawn !== `${width} ${code}`) {
    drawn = `${width} ${code}`;
    build(width);
  }
  for (const update of updates) update(s, window);
  list(s, stats);
}

function build(width) {
  const svg = $("inside"), flat = width >= wide;
  const each = (width - (parts.length - 1) * arrow) / parts.length;
  const full = head + 4 * row + pad;
  let at = 0;
  updates = [];
  const drawings = parts.map((part, i) => {
    const box = flat
      ? { x: i * (each + arrow), y: 0, w: each, h: full }
      : { x: 0, y: at, w: width, h: head + part.rows * row + pad };
    at += box.h + down;
    const g = element("g");
    g.append(element("rect", { class: "box", x: box.x + 1, y: box.y + 1, width: box.w - 2, height: box.h - 2, rx: 8 }));
    g.append(element("text", { class: "name", x: box.x + pad, y: box.y + 18 }, `${i + 1} ${t.parts[part.name].name}`));
    for (let k = 0; k < part.rows; k++) g.append(...(part.depths ? bar : line)(part, k, box));
    if (part.out) g.append(...leaving(part, box, flat));
    return g;
  });
  const height = flat ? full : at - down;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.replaceChildren(...drawings);
}

// bar is how much waits, with a mark where the most of the window was.
function bar(part, k, box) {
  const y = box.y + head + k * row, named = part.rows > 1;
  const x = box.x + pad + (named ? 24 : 0), room = box.x + box.w - pad - 44 - x;
  const g = element("g", { class: named ? `p${k}` : "all" });
  const fill = element("rect", { class: "depth", x, y: y + 4, height: 9, rx: 2 });
  const most = element("rect", { class: "most", y: y + 1, width: 2, height: 15 });
  const value = element("text", { class: "value", x: box.x + box.w - pad, y: y + 13, "text-anchor": "end" });
  g.append(element("rect", { class: "room", x, y: y + 4, width: room, height: 9, rx: 2 }), fill, most, value);
  if (named) g.append(element("text", { class: "label", x: box.x + pad, y: y + 13 }, `P${k}`));
  updates.push((s, window) => {
    const n = part.depths(s)[k];
    fill.setAttribute("width", room * length(n));
    most.setAttribute("x", x + (room - 2) * length(Math.max(...window.map((s) => part.depths(s)[k]))));
    value.textContent = brief(n);
  });
  return [g];
}

function line(part, k, box) {
  const text = element("text", { x: box.x + pad, y: box.y + head + k * row + 13 });
  updates.push((s) => { text.textContent = part.lines(s)[k]; });
  return [text];
}

// leaving is the arrow to the next part: the more goes there, the thicker.
function leaving(part, box, flat) {
  const [x, y] = flat ? [box.x + box.w + 6, box.y + box.h / 2] : [box.x + box.w / 2, box.y + box.h + 4];
  const long = flat ? arrow - 20 : down - 16;
  const shaft = element("path", { class: "flow", d: flat ? `M${x} ${y}h${long}` : `M${x} ${y}v${long}` });
  const tip = element("path", { class: "tip", d: flat ? `M${x + long} ${y - 6}l8 6l-8 6z` : `M${x - 6} ${y + long}l6 8l6 -8z` });
  const rate = flat
    ? element("text", { class: "value", x: x + long / 2 + 4, y: y - 12, "text-anchor": "middle" })
    : element("text", { class: "value", x: x + 14, y: y + long / 2 + 6 });
  updates.push((s) => {
    const n = part.out(s);
    shaft.setAttribute("stroke-width", n ? 1.5 + Math.log10(1 + n) : 1);
    rate.textContent = t.perSecond(brief(n));
  });
  return [shaft, tip, rate];
}

// list says in words what the picture shows, and what each part is for.
function list(s, { table, durable }) {
  const byLane = (depths) => depths.map((n, p) => `P${p} ${number(n)}`).join(t.comma);
  const now = {
    publishers: t.perSecond(number(s.published)),
    lanes: s.lanes.map((n, p) => t.outOf(`P${p} ${number(n)}`, number(table?.[p]?.capacity ?? 0))).join(t.comma),
    inbox: t.inInbox(number(s.inbox)),
    sessions: byLane(s.pending),
    pushers: t.pushes(number(s.pushes), perPush(s)),
    sinks: t.sinks(number(s.sessions), number(s.delivered)),
  };
  const ol = $("parts");
  for (const { name } of parts) {
    let li = ol.querySelector(`[data-part=${name}]`);
    if (!li) {
      li = document.createElement("li");
      li.dataset.part = name;
      li.append(document.createElement("b"), " ", document.createElement("span"), document.createElement("p"));
      ol.append(li);
    }
    const [title, , value, what] = li.childNodes;
    say(title, t.parts[name].name);
    say(value, now[name]);
    say(what, t.parts[name].what);
  }
  say($("inside-note"), durable ? t.insideDurable + t.between + t.insideNote : t.insideNote);
}
