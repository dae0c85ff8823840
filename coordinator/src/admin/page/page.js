// The page of a coordinator. It shows one view (api/view), follows it by server-sent events (api/events), and draws the
// numbers of a run (api/series). A saved page brings all of it along in `window.SAVED`. parts.js has what it shows.
"use strict";

const COLORS = ["var(--violet)", "var(--teal)", "var(--amber)", "var(--green)", "var(--red)", "var(--soft)"];
/** Points of a live run are merged above this, as the server does. */
const MOST_POINTS = 4000;
// Curves.

function curves() {
  const series = state.series;
  if (!series || $("curves").hidden) return;
  const axis = series[state.x];
  const of = (numbers, keys) => ({ x: numbers[state.x], y: numbers[keys] });
  const line = (numbers, key, color, name, more = {}) => {
    const { x, y } = of(numbers, key);
    const smooth = state.smooth > 0 && !more.raw ? smoothed(y, state.smooth) : y;
    return [...(state.smooth > 0 && !more.raw && !more.thin ? [{ x, y, color, faint: true }] : []), { x, y: smooth, color, name, ...more }];
  };
  const extra = [...state.overlays.entries()].map(([name, run], n) => ({ name, run, color: COLORS[n % COLORS.length] }));
  const marks = (state.view?.detail?.interruptions ?? []).filter((one) => one.step !== null).map((one) => {
    const at = series.step.findIndex((step) => step >= one.step);
    return { x: at < 0 ? Infinity : axis[at], text: `generation ${one.generation}: ${one.cause}` };
  });
  const xText = state.x === "seconds" ? (x) => duration(x) : state.x === "step" ? (x) => whole(Math.round(x)) : short;
  const draw = (id, lines, more = {}) => drawChart($(id), { lines, marks, xText, ...more });
  draw("loss", [
    ...extra.flatMap(({ name, run, color }) => line(run, "loss", color, name, { thin: true })),
    ...line(series, "loss", "var(--blue)", "loss"),
    ...line(series, "validation_loss", "var(--orange)", "validation", { dots: true, raw: true }),
  ], { log: state.log });
  for (const [id, key, color] of [["rate", "learning_rate", "var(--violet)"], ["norm", "grad_norm", "var(--teal)"], ["speed", "tokens_per_second", "var(--green)"]]) {
    const raw = key === "learning_rate";
    draw(id, [...extra.flatMap((one) => line(one.run, key, one.color, one.name, { thin: true, raw })), ...line(series, key, color, key.replaceAll("_", " "), { raw })]);
  }
  $("speed-title").textContent = `${job()?.unit ?? "token"}s a second`;
  const key = (color, text) => el("span", {}, svgLine(color), text);
  const legend = el("div", { class: "legend" }, key("var(--blue)", "training"), key("var(--orange)", "validation"), extra.map((one) => key(one.color, one.name)),
    marks.length ? key("var(--red)", "interrupted") : null, series.skipped ? el("span", {}, `${plural(series.skipped, "step")} skipped`) : null, series.width > 1 ? el("span", { class: "faint" }, `a point is ${series.width} steps`) : null);
  const before = $("curves").querySelector(".legend");
  if (before) before.replaceWith(legend);
  else $("loss").before(legend);
}

const svgLine = (color) => svg("svg", { viewBox: "0 0 14 10" }, svg("line", { x1: 0, x2: 14, y1: 5, y2: 5, stroke: color, "stroke-width": 2.5 }));

let drawing = false;
function drawCurves() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    curves();
  });
}

/** Takes in steps that were just taken; asks for the series again where some are missing. */
function takeSteps({ job: of, steps }) {
  const series = state.series;
  if (!series || state.seriesOf !== of) return;
  const last = () => series.step.at(-1) ?? 0;
  for (const one of steps) {
    if (one.step <= last()) continue;
    if (one.step > last() + Math.max(1, series.width)) return loadSeries(of);
    series.step.push(one.step);
    series.loss.push(one.loss);
    series.validation_loss.push(one.validation?.loss ?? null);
    series.learning_rate.push(one.learning_rate);
    series.grad_norm.push(one.grad_norm);
    series.tokens_per_second.push(one.tokens_per_second);
    series.seconds.push((series.seconds.at(-1) ?? 0) + (one.step_seconds ?? 0));
    series.tokens.push((series.tokens.at(-1) ?? 0) + one.tokens);
    if (one.skipped) series.skipped++;
  }
  if (series.step.length > MOST_POINTS) return loadSeries(of);
  drawCurves();
}

// Talking with the coordinator.

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

let loading = null;
async function loadSeries(of) {
  if (loading === of) return;
  loading = of;
  try {
    state.series = await (await ask(`api/series?job=${encodeURIComponent(of)}`)).json();
    state.seriesOf = of;
    drawCurves();
    show();
  } catch (error) {
    say(error.message);
  } finally {
    loading = null;
  }
}

async function loadText(of) {
  try {
    state.text = await (await ask(`api/job?job=${encodeURIComponent(of)}`)).text();
    show();
  } catch {
    state.text = null;
  }
}

function take(view) {
  state.view = view;
  const of = view.detail?.job;
  if (of && of !== state.seriesOf && loading !== of) {
    state.series = { width: 1, step: [], loss: [], validation_loss: [], learning_rate: [], grad_norm: [], tokens_per_second: [], seconds: [], tokens: [], skipped: 0 };
    state.seriesOf = of;
    state.overlays.clear();
    loadSeries(of);
    loadText(of);
  }
  show();
  drawCurves();
}

function say(text) {
  $("foot").textContent = text;
}

function linked(name, text) {
  state.link = name;
  $("link").className = `link ${name}`;
  $("link").textContent = text;
}

/** Follows the cluster; the browser connects again by itself where the connection breaks. */
function follow() {
  const source = new EventSource(`api/events?job=${encodeURIComponent(state.chosen)}`);
  source.addEventListener("open", () => linked("live", "live"));
  source.addEventListener("view", (event) => {
    linked("live", "live");
    take(JSON.parse(event.data));
  });
  source.addEventListener("steps", (event) => takeSteps(JSON.parse(event.data)));
  source.addEventListener("over", () => source.close());
  source.addEventListener("error", () => {
    linked("gone", state.view ? `not connected since ${clock(Date.now())}` : "not connected");
    if (source.readyState !== EventSource.CLOSED) return;
    fetch("api/view").then(async (answer) => {
      if (answer.status === 401) login(await answer.text());
      else setTimeout(follow, 2000);
    }, () => setTimeout(follow, 2000));
  });
}

/** Asks for a viewer's token, where no certificate was shown. */
function login(why) {
  const token = el("input", { type: "password", autocomplete: "off", "aria-label": "Viewer token", placeholder: "viewer token" });
  const note = el("p", { class: "reason faint" }, why);
  const enter = async (event) => {
    event.preventDefault();
    const headers = { "content-type": "application/json", "x-coxswain": "1" };
    const answer = await fetch("api/login", { method: "POST", headers, body: JSON.stringify({ token: token.value }) });
    if (answer.ok) location.reload();
    else note.textContent = await answer.text();
  };
  linked("gone", "not logged in");
  $("job").replaceChildren(el("h1", {}, "Who are you?"),
    el("p", { class: "reason" }, "Show a certificate of the cluster, or enter a viewer's token: ", el("code", {}, "coxswain token create --role viewer")),
    el("form", { class: "row", onsubmit: enter }, token, el("button", {}, "Enter")), note);
}

async function post(path, body) {
  const headers = { "content-type": "application/json", "x-coxswain": "1" };
  try {
    say(await (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).text());
  } catch (error) {
    alert(error.message);
  }
}

function cancel(it) {
  const text = it.state === "running" ? `${it.job} stops after the step at hand, which is saved. Stop it?` : `Cancel ${it.job}?`;
  if (confirm(text)) post("api/cancel", { job: it.job });
}

function drain(worker) {
  if (confirm(`${worker.worker} leaves after the step at hand, and its process ends. Drain it?`)) post("api/drain", { worker: worker.worker });
}

async function compare() {
  const box = $("runs");
  if (!box.hidden) {
    box.hidden = true;
    return;
  }
  box.hidden = false;
  if (!saved) {
    box.replaceChildren(el("p", { class: "faint" }, "looking through the folder …"));
    try {
      state.runs = await (await ask(`api/runs?job=${encodeURIComponent(state.seriesOf)}`)).json();
    } catch (error) {
      box.replaceChildren(el("p", { class: "faint" }, error.message));
      return;
    }
  }
  showRuns();
}

function showRuns() {
  const own = job()?.directory ?? "";
  const keys = [...new Set((state.runs ?? []).flatMap((row) => Object.keys(row.differs)))].filter((key) => key !== "name").slice(0, 8);
  const number = (n) => (n === null ? "–" : n.toFixed(4));
  const rows = (state.runs ?? []).map((row) => {
    const self = own.endsWith(`/${row.run}`);
    const box = el("input", { type: "checkbox", checked: state.overlays.has(row.run), disabled: self || saved, "aria-label": `overlay ${row.run}`, onchange: () => overlay(row.run, box.checked) });
    return el("tr", {}, el("td", {}, box), el("td", { class: "tight" }, self ? el("b", {}, row.run) : row.run), el("td", { class: "num" }, whole(row.steps)), el("td", { class: "num" }, short(row.tokens)),
      el("td", { class: "num tight" }, duration(row.seconds)), el("td", { class: "num" }, number(row.loss)), el("td", { class: "num" }, number(row.best_validation_loss)), keys.map((key) => el("td", { class: "tight" }, row.differs[key] ?? "–")));
  });
  const names = ["", "run", "steps", "tokens", "time", "loss", "best validation"];
  $("runs").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, names.map((text, n) => el("th", { class: n > 1 ? "num" : "" }, text)), keys.map((key) => el("th", {}, key)))), el("tbody", {}, rows)));
}

async function overlay(run, on) {
  if (!on) {
    state.overlays.delete(run);
    return drawCurves();
  }
  try {
    const path = `api/series?job=${encodeURIComponent(state.seriesOf)}&run=${encodeURIComponent(run)}`;
    state.overlays.set(run, await (await ask(path)).json());
    drawCurves();
  } catch (error) {
    alert(error.message);
  }
}

/** Shows the end of a worker's log below the grid, and keeps it new. */
async function showLog(worker) {
  if (saved) return;
  if (worker !== undefined) state.log_of = state.log_of === worker ? null : worker;
  const of = state.log_of, box = $("log-text");
  box.hidden = !of;
  if (!of) return;
  let text;
  try {
    text = await (await ask(`api/log?job=${encodeURIComponent(state.seriesOf)}&worker=${encodeURIComponent(of)}`)).text();
  } catch (error) {
    text = error.message;
  }
  if (state.log_of !== of) return;
  const pre = el("pre", {}, text || "nothing yet");
  box.replaceChildren(el("h3", {}, `log of ${of}`), pre);
  pre.scrollTop = pre.scrollHeight;
}

setInterval(() => state.log_of && !document.hidden && state.link === "live" && showLog(), 2000);

// Keeping what is shown as one file.

const files = {};
async function save() {
  for (const name of ["page.css", "chart.js", "parts.js", "page.js"]) files[name] ??= await (await ask(name)).text();
  const inside = (text) => text.replaceAll("<" + "/script", "<\\/script");
  const data = { view: state.view, series: state.series, overlays: [...state.overlays], runs: state.runs, text: state.text };
  const json = JSON.stringify(data).replaceAll("<", "\\u003c");
  const page = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Coxswain</title><style>${files["page.css"]}</style></head>` +
    `<body>${document.body.innerHTML.replace(/<script[\s\S]*?<\/script>/g, "").replace(/<img[^>]*>/, "")}<script>window.SAVED = ${json};<\/script>${["chart.js", "parts.js", "page.js"].map((name) => `<script>${inside(files[name])}<\/script>`).join("")}</body></html>`;
  const url = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  const link = el("a", { href: url, download: `${state.seriesOf ?? "coxswain"}.html` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Light and dark: as the system, unless the reader chose.

function theme(choice) {
  const dark = choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").textContent = { light: "Light", dark: "Dark" }[choice] ?? "Auto";
}

function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("theme", value);
    return localStorage.getItem("theme") ?? "auto";
  } catch {
    return value ?? "auto";
  }
}

function start() {
  theme(remembered());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(remembered()));
  $("theme").addEventListener("click", () => theme(remembered({ auto: "light", light: "dark", dark: "auto" }[remembered()])));
  $("save").addEventListener("click", () => save().catch((error) => alert(error.message)));
  $("compare").addEventListener("click", compare);
  $("chosen").addEventListener("change", () => (location.search = `?job=${encodeURIComponent($("chosen").value)}`));
  $("smooth").addEventListener("input", () => {
    state.smooth = +$("smooth").value;
    drawCurves();
  });
  $("log").addEventListener("change", () => {
    state.log = $("log").checked;
    drawCurves();
  });
  for (const button of $("axis").children) {
    button.addEventListener("click", () => {
      for (const other of $("axis").children) other.setAttribute("aria-pressed", other === button);
      state.x = button.dataset.x;
      drawCurves();
    });
  }
  new ResizeObserver(() => {
    drawCurves();
    parts.delete("grid");
    show();
  }).observe(document.querySelector("main"));
  if (!saved) return follow();
  Object.assign(state, { view: saved.view, series: saved.series, seriesOf: saved.view?.detail?.job, overlays: new Map(saved.overlays), runs: saved.runs, text: saved.text });
  linked("", `saved ${when(saved.view?.at_ms)}`);
  for (const id of ["save", "chosen"]) $(id).remove();
  show();
  drawCurves();
}

start();
