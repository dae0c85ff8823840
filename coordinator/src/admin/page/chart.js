// Charts of lines over steps, tokens or time, as SVG. Nothing here knows what the numbers mean.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** About `count` round numbers between two values. */
function ticks(low, high, count) {
  const rough = Math.max(high - low, Number.MIN_VALUE) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * (1 - 1e-9)) || 10 * power;
  const all = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9 && all.length < 40; n++) all.push(n * step);
  return { all, step };
}

function decimals(step) {
  for (let d = 0; d < 8; d++) if (Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) return d;
  return 8;
}

/** A number as people read it: `1.2k`, `3.4M`, `2e-4`. */
function short(value, step = 0) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * (unit === 1e3 ? 10 : 1)) return trim((value / unit).toFixed(Math.min(decimals((step || size / 100) / unit), 2))) + letter;
  }
  if (size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return step ? value.toFixed(decimals(step)) : trim(value.toPrecision(4));
}

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** A moving mean in which older values fade by `keep`; it starts without a bias towards zero. */
function smoothed(values, keep) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

/**
 * Draws lines into `box`. A line has x, y, color, and perhaps `dots`, `faint`, `name`; `marks` are vertical lines with a
 * text. What lies under the pointer is told by `tell(rows)`.
 */
function drawChart(box, { lines, marks = [], xText = short, yText = short, log = false, empty = "no numbers yet" }) {
  const width = Math.max(box.clientWidth, 60), height = Math.max(box.clientHeight, 60);
  const edge = { left: 46, right: 10, top: 10, bottom: 22 };
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  box.replaceChildren(root);
  let low = Infinity, high = -Infinity, first = Infinity, last = -Infinity;
  for (const line of lines) {
    line.x.forEach((x, n) => {
      const y = line.y[n];
      if (y === null || y === undefined || (log && y <= 0)) return;
      if (y < low) low = y;
      if (y > high) high = y;
      if (x < first) first = x;
      if (x > last) last = x;
    });
  }
  if (low > high) {
    root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, empty));
    return;
  }
  const scale = log ? Math.log10 : (y) => y;
  let bottom = scale(low), top = scale(high);
  const pad = (top - bottom) * 0.06 || Math.abs(top) * 0.05 || 1;
  bottom = low >= 0 && !log ? Math.max(bottom - pad, Math.min(0, bottom)) : bottom - pad;
  top += pad;
  if (last === first) last = first + 1;
  const atX = (x) => edge.left + ((x - first) / (last - first)) * (width - edge.left - edge.right);
  const atY = (y) => height - edge.bottom - ((scale(y) - bottom) / (top - bottom)) * (height - edge.top - edge.bottom);
  const rows = log
    ? { all: logTicks(bottom, top), step: 0 }
    : ticks(bottom, top, Math.max(3, Math.floor((height - 30) / 44)));
  for (const y of rows.all) {
    const at = atY(y).toFixed(1);
    root.append(svg("line", { class: "rule", x1: edge.left, x2: width - edge.right, y1: at, y2: at }));
    root.append(svg("text", { x: edge.left - 7, y: +at + 4, "text-anchor": "end" }, yText(y, rows.step)));
  }
  const columns = ticks(first, last, Math.max(3, Math.floor(width / 110)));
  for (const x of columns.all) {
    root.append(svg("text", { x: atX(x).toFixed(1), y: height - 5, "text-anchor": "middle" }, xText(x, columns.step)));
  }
  for (const mark of marks.filter((mark) => mark.x >= first && mark.x <= last)) {
    const at = atX(mark.x).toFixed(1);
    root.append(svg("line", { class: "broke", x1: at, x2: at, y1: edge.top, y2: height - edge.bottom }));
  }
  for (const line of lines) root.append(drawn(line, atX, atY, log));
  listen(root, { lines, marks, atX, first, last, edge, width, height, xText, yText, atY });
}

function logTicks(bottom, top) {
  const all = [];
  for (let power = Math.floor(bottom); power <= top; power++) {
    for (const f of top - bottom > 2 ? [1] : [1, 2, 5]) {
      const value = f * 10 ** power;
      if (Math.log10(value) >= bottom && Math.log10(value) <= top) all.push(value);
    }
  }
  return all;
}

function drawn(line, atX, atY, log) {
  const group = svg("g");
  const shows = (y) => y !== null && y !== undefined && !(log && y <= 0);
  if (line.dots) {
    line.x.forEach((x, n) => {
      if (!shows(line.y[n])) return;
      group.append(svg("circle", { cx: atX(x).toFixed(1), cy: atY(line.y[n]).toFixed(1), r: 3.2, fill: line.color, stroke: "var(--card)" }));
    });
  }
  let path = "", pen = false;
  line.x.forEach((x, n) => {
    if (!shows(line.y[n])) {
      // Dots are joined over the steps that have none.
      if (!line.dots) pen = false;
      return;
    }
    path += `${pen ? "L" : "M"}${atX(x).toFixed(1)} ${atY(line.y[n]).toFixed(1)}`;
    pen = true;
  });
  group.append(svg("path", {
    d: path, fill: "none", stroke: line.color, "stroke-width": line.faint ? 1 : line.thin ? 1.4 : 1.9,
    "stroke-linejoin": "round", "stroke-linecap": "round", opacity: line.faint ? 0.28 : 1,
    ...(line.dash ? { "stroke-dasharray": "5 4" } : {}),
  }));
  return group;
}

/** The values below the pointer, in a box beside it. */
function listen(root, at) {
  const tip = document.getElementById("tip");
  const cross = svg("line", { class: "cross", y1: at.edge.top, y2: at.height - at.edge.bottom, visibility: "hidden" });
  root.append(cross);
  const hide = () => {
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
  };
  root.addEventListener("pointermove", (event) => {
    const frame = root.getBoundingClientRect();
    const px = ((event.clientX - frame.left) / frame.width) * at.width;
    const x = at.first + ((px - at.edge.left) / (at.width - at.edge.left - at.edge.right)) * (at.last - at.first);
    if (x < at.first || x > at.last) return hide();
    const told = at.lines.filter((line) => line.name).map((line) => [line, nearest(line, x)]).filter(([, n]) => n >= 0);
    if (!told.length) return hide();
    const spot = told[0][0].x[told[0][1]];
    cross.setAttribute("x1", at.atX(spot));
    cross.setAttribute("x2", at.atX(spot));
    cross.setAttribute("visibility", "visible");
    const near = at.marks.filter((mark) => Math.abs(at.atX(mark.x) - at.atX(spot)) < 8).map((mark) => `⚡ ${mark.text}`);
    tip.textContent = [at.xText(spot), ...told.map(([line, n]) => `${line.name}: ${short(line.y[n])}`), ...near].join("\n");
    tip.hidden = false;
    const room = window.innerWidth - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(6, Math.min(event.clientX + 14, room))}px`;
    tip.style.top = `${Math.max(6, event.clientY - tip.offsetHeight - 12)}px`;
  });
  root.addEventListener("pointerleave", hide);
}

function nearest(line, x) {
  let best = -1, far = Infinity;
  line.x.forEach((at, n) => {
    if (line.y[n] === null || line.y[n] === undefined) return;
    const away = Math.abs(at - x);
    if (away < far) [best, far] = [n, away];
  });
  return best;
}
