// Small line plots in SVG: the last two minutes of one value a second per line.

export const span = 120_000; // ms
const left = 52, right = 40, top = 12, bottom = 18;

// Somebody who was heard every second and then not for so long was away.
const silence = 2500, silenceNow = 3500; // ms; the last answer is up to a second old

export function element(name, attributes = {}, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

// say changes a text only if it is another one: whoever listens, or has selected it,
// is left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// gaps lists from when to when nothing was heard, given when something was.
export function gaps(times, now) {
  const list = [];
  for (let i = 1; i < times.length; i++) {
    if (times[i] - times[i - 1] > silence) list.push([times[i - 1], times[i]]);
  }
  if (times.length && now - times.at(-1) > silenceNow) list.push([times.at(-1), now]);
  return list.filter(([, to]) => to > now - span).map(([from, to]) => [Math.max(from, now - span), to]);
}

// timeAt is the time under a pointer.
export function timeAt(svg, clientX, now) {
  const box = svg.getBoundingClientRect();
  const share = (clientX - box.left - left) / (box.width - left - right);
  return now - span * (1 - Math.min(1, Math.max(0, share)));
}

// plot draws lines into svg. scale maps a value to 0…1 from the bottom; ticks
// are values with a grid line; each line is {points: [[at, value], …], lane,
// label, target}; marks are times; silent is what gaps has found; read is a time that
// is being read, if any; words are {now, ago, silent} in the page's language.
export function plot(svg, { scale, ticks, format, lines, now, marks = [], silent, read, words }) {
  const width = svg.clientWidth, height = svg.clientHeight;
  if (!width) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const x = (at) => left + (width - left - right) * (1 - (now - at) / span);
  const y = (v) => height - bottom - (height - top - bottom) * Math.min(1, Math.max(0, scale(v)));
  const parts = [];
  for (const [from, to] of silent) {
    const band = element("g", { class: "silent" });
    band.append(element("rect", { x: x(from), y: top, width: x(to) - x(from), height: height - top - bottom }));
    if (x(to) - x(from) > 110) {
      band.append(element("text", { x: (x(from) + x(to)) / 2, y: (top + height - bottom) / 2, "text-anchor": "middle" }, words.silent));
    }
    parts.push(band);
  }
  for (const tick of ticks) {
    parts.push(element("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    parts.push(element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  for (const back of [120, 60, 0]) {
    parts.push(element("text", { class: back ? "time" : "time now", x: x(now - back * 1000), y: height - 3, "text-anchor": back === 120 ? "start" : "middle" }, back ? words.ago(back) : words.now));
  }
  for (const at of marks) {
    if (now - at <= span) parts.push(element("path", { class: "mark", d: `M${x(at).toFixed(1)} ${top - 2}v-9` }));
  }
  // Labels at the right edge must not cover each other.
  const labels = [];
  for (const { points, lane, label, target } of lines) {
    const group = element("g", { class: lane });
    if (target !== undefined) {
      group.append(element("path", { class: "target", d: `M${left} ${y(target)}H${width - right}` }));
    }
    let d = "", before = 0, last;
    for (const [at, value] of points) {
      if (now - at > span) continue;
      if (value === null) { before = 0; continue; }
      last = value;
      const place = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      d += at - before > silence ? `M${place}l.01 0` : `L${place}`; // a single point is a dot
      before = at;
    }
    group.append(element("path", { class: "line", d, "stroke-linecap": "round" }));
    const at = target ?? last;
    if (label && at !== undefined) labels.push({ group, label, y: y(at) + 4 });
    parts.push(group);
  }
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 12);
  for (const l of labels) l.group.append(element("text", { class: "label", x: width - right + 6, y: l.y }, l.label));
  if (read) parts.push(element("line", { class: "read", x1: x(read), x2: x(read), y1: top - 6, y2: height - bottom }));
  svg.replaceChildren(...parts);
}

// nice returns the top of a linear axis that holds max.
export function nice(max) {
  const power = 10 ** Math.floor(Math.log10(Math.max(max, 10)));
  return [1, 2, 5, 10].map((f) => f * power).find((v) => v >= max);
}
