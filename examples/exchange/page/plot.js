// Small line plots in SVG: two minutes of one value a second per line.

const seconds = 120;
const left = 52, right = 34, top = 6, bottom = 16;

function element(name, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

// plot draws lines into svg. scale maps a value to 0…1 from the bottom; ticks
// are values with a grid line; each line is {points: [[at, value], …], lane,
// label, target}.
export function plot(svg, { scale, ticks, format, lines, now }) {
  const width = svg.clientWidth, height = svg.clientHeight;
  if (!width) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const x = (at) => left + (width - left - right) * (1 - (now - at) / 1000 / seconds);
  const y = (v) => height - bottom - (height - top - bottom) * Math.min(1, Math.max(0, scale(v)));
  const parts = [];
  for (const tick of ticks) {
    parts.push(element("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    parts.push(element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  for (const back of [120, 60, 0]) {
    parts.push(element("text", { x: x(now - back * 1000), y: height - 2, "text-anchor": ["end", "middle", "start"][back / 60] }, back ? `−${back} s` : ""));
  }
  // Labels at the right edge must not cover each other.
  const labels = [];
  for (const { points, lane, label, target } of lines) {
    const group = element("g", { class: lane });
    if (target !== undefined) {
      group.append(element("path", { class: "target", d: `M${left} ${y(target)}H${width - right}` }));
    }
    let d = "";
    let open = false, last;
    for (const [at, value] of points) {
      if (now - at > seconds * 1000) continue;
      if (value === null) { open = false; continue; }
      last = value;
      d += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      if (!open) d += `l.01 0`; // a single point is a dot
      open = true;
    }
    group.append(element("path", { d, "stroke-linecap": "round" }));
    const at = target ?? last;
    if (label && at !== undefined) labels.push({ group, label, y: y(at) + 4 });
    parts.push(group);
  }
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 12);
  for (const l of labels) l.group.append(element("text", { class: "label", x: width - right + 6, y: l.y }, l.label));
  svg.replaceChildren(...parts);
}

// nice returns the top of a linear axis that holds max.
export function nice(max) {
  const power = 10 ** Math.floor(Math.log10(Math.max(max, 10)));
  return [1, 2, 5, 10].map((f) => f * power).find((v) => v >= max);
}
