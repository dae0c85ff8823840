// What the page shows, part by part, as elements: pure functions of the view, but for what keeps a reader's place.
"use strict";

const saved = window.SAVED || null;
const $ = (id) => document.getElementById(id);
const state = {
  view: null, series: null, seriesOf: null, unit: "token", overlays: new Map(), runs: null, text: null,
  chosen: new URLSearchParams(location.search).get("job") || "", x: "step", smooth: 0.6, log: false, link: "connecting",
};

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Words for numbers.

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return seconds < 10 && seconds % 1 ? `${seconds.toFixed(1)} s` : `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${String(Math.floor(s / 3600) % 24).padStart(2, "0")} h`;
}

function bytes(n) {
  if (n === null || n === undefined) return "–";
  const mib = n / 2 ** 20;
  return mib < 1024 ? `${mib.toFixed(mib < 10 ? 1 : 0)} MiB` : `${(mib / 1024).toFixed(2)} GiB`;
}

const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`);
const whole = (n) => n.toLocaleString("en").replaceAll(",", " ");
const plural = (n, one) => `${whole(n)} ${one}${n === 1 ? "" : "s"}`;
const clock = (ms) => (ms ? new Date(ms).toLocaleTimeString([], { hour12: false }) : "–");
const when = (ms) => (ms ? new Date(ms).toLocaleString([], { hour12: false }) : "–");
const TONES = { running: "good", done: "info", failed: "bad", cancelled: "warn", gathering: "warn", preparing: "info", queued: "" };

// What is shown, part by part. A part whose text has not changed is left alone, so that what a reader marked stays.

const parts = new Map();
const PRESSED = "button, summary, [tabindex]";
/** Whether a button is being pressed: what stands below the pointer stays until it is let go. */
let held = false;
addEventListener("pointerdown", () => (held = true), true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (held = false), true);

function part(id, key, make) {
  const text = JSON.stringify(key), box = $(id);
  if (held || parts.get(id) === text) return;
  parts.set(id, text);
  const made = make();
  box.hidden = made === null;
  if (made === null) return;
  const focus = [...box.querySelectorAll(PRESSED)].indexOf(document.activeElement);
  box.replaceChildren(...[made].flat());
  if (focus >= 0) box.querySelectorAll(PRESSED)[focus]?.focus({ preventScroll: true });
}

function job() {
  return state.view?.jobs.find((one) => one.job === state.view.detail?.job) || null;
}

function show() {
  const view = state.view;
  if (!view) return;
  const it = job(), detail = view.detail;
  document.title = it ? `${it.job} ${it.state} · Coxswain` : "Coxswain";
  if (!saved) choice(view);
  part("job", [it, view.caller.may_cancel], () => hero(it, view.caller));
  part("numbers", [it && { ...it, reason: 0 }, detail?.lost], () => tiles(it, detail));
  $("curves").hidden = !it;
  part("grid", detail?.grid, () => (detail?.grid ? grid(detail.grid) : null));
  part("happened", [detail?.interruptions, detail?.events, detail?.lost], () => (detail ? happened(detail) : null));
  part("planned", [detail?.planned, it?.step_seconds], () => (detail?.planned?.rows.length ? planned(detail.planned, it) : null));
  part("saves", [detail?.checkpoints.map((one) => [one, validationAt(one.step)]), it?.job], () => (detail ? checkpoints(detail, it) : null));
  part("workers", [view.workers, view.caller.may_drain], () => workers(view));
  part("jobs", view.jobs.length > 1 && [view.jobs, it?.job], () => (view.jobs.length > 1 ? jobs(view, it) : null));
  part("text", [state.text, state.runs?.length], () => (state.text ? jobText() : null));
  $("foot").textContent = `coxswain ${view.coordinator.version} · coordinator up for ${duration(view.coordinator.uptime_s)} · you are ${view.caller.who}` +
    (saved ? ` · saved ${when(view.at_ms)}` : "");
}

function choice(view) {
  const select = $("chosen");
  select.hidden = view.jobs.length < 2;
  const names = view.jobs.map((one) => one.job);
  if (select.dataset.names !== names.join()) {
    select.dataset.names = names.join();
    select.replaceChildren(...view.jobs.map((one) => el("option", { value: one.job }, `${one.job} · ${one.state}`)));
  }
  if (view.detail) select.value = view.detail.job;
}

function hero(it, caller) {
  if (!it) return [el("h1", {}, "No job yet"), el("p", { class: "reason" }, "Submit one: ", el("code", {}, "coxswain submit job.yaml --directory DIR"))];
  const tone = TONES[it.state] ?? "";
  const share = it.steps ? Math.min(1, it.step / it.steps) : 0;
  const bar = svg("svg", { viewBox: "0 0 1000 9", preserveAspectRatio: "none" },
    svg("rect", { width: 1000 * share, height: 9, rx: 4, fill: it.state === "failed" ? "var(--red)" : "var(--blue)" }));
  const times = [it.left_s !== null ? `${duration(it.left_s)} left` : null, it.elapsed_s !== null ? `${duration(it.elapsed_s)} so far` : null];
  const stops = caller.may_cancel && !it.over && !saved;
  return [
    el("div", { class: "row" }, el("h1", {}, it.job), el("span", { class: `pill ${tone}`, "data-state": it.state }, it.cancelling ? "cancelling" : it.state),
      el("span", { class: "spacer" }),
      stops && el("button", { class: "danger", onclick: () => cancel(it) }, it.state === "running" ? "Stop after this step" : "Cancel")),
    el("p", { class: `reason ${tone === "bad" ? "bad" : ""}` }, it.reason),
    el("div", { class: "progress" }, el("div", { class: "track", role: "progressbar", "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100 }, bar),
      el("div", { class: "words" }, el("span", {}, `step ${whole(it.step)} of ${whole(it.steps)}`), el("span", {}, times.filter(Boolean).join(" · ")))),
  ];
}

function tiles(it, detail) {
  if (!it) return null;
  const tile = (what, value, note) => el("div", { class: "tile" }, el("div", { class: "what" }, what), el("div", { class: "value" }, value), note ? el("div", { class: "note" }, note) : "");
  const number = (n, digits) => (n === null ? "–" : n.toFixed(digits));
  const lost = detail?.lost;
  const speed = it.tokens_per_second === null ? "–" : short(it.tokens_per_second, it.tokens_per_second >= 1000 ? 0 : 1);
  return [
    tile("loss", number(it.loss, 4)),
    tile("validation loss", number(it.validation_loss, 4), it.validation_loss === null ? "none yet" : it.unit === "token" ? `perplexity ${Math.exp(it.validation_loss).toPrecision(4)}` : ""),
    tile("speed", [speed, el("small", {}, ` ${it.unit}s/s`)], it.step_seconds === null ? "" : `${duration(it.step_seconds < 10 ? +it.step_seconds.toPrecision(2) : it.step_seconds)} a step`),
    tile("workers", String(it.workers), `generation ${it.generation}`),
    tile("checkpoint", it.checkpoint === null ? "–" : [el("small", {}, "step "), whole(it.checkpoint)], it.checkpoint === null ? "none yet" : it.step === it.checkpoint ? "up to date" : `${plural(it.step - it.checkpoint, "step")} ago`),
    tile("interruptions", String(lost?.interruptions ?? 0), lost?.interruptions ? `${duration(lost.seconds)} and ${plural(lost.steps, "step")} lost` : "nothing lost"),
  ];
}

// The grid of ranks.

const STATES = { starting: "starting", preparing: "preparing", working: "computing", waiting: "waiting", silent: "silent", done: "done", failed: "failed", lost: "lost", free: "idle" };
/** Above this number a rank is a square. */
const MANY = 96;

function grid(it) {
  const shape = [plural(it.pipeline, "pipeline stage"), plural(it.tensor, "tensor shard"), plural(it.data, "data replica")].join(" × ");
  const bad = it.ranks.filter((rank) => ["lost", "failed", "silent"].includes(rank.state));
  const head = el("div", { class: "head" }, el("h2", {}, "Ranks"), el("span", { class: "aside" }, `${shape} · generation ${it.generation}`));
  const keys = el("div", { class: "keys" }, ...[["working", "computing"], ["waiting", "waiting for a peer"], ["done", "done"], ["lost", "lost or silent"], ["", "idle or starting"]].map(([name, text]) => el("span", {}, el("i", { class: name }), text)));
  const box = el("div", { class: "ranks" });
  if (it.ranks.length > MANY) {
    const dots = it.ranks.map((rank) => el("i", { class: rank.state, title: `rank ${rank.rank} · ${rank.worker} · ${doing(rank)}` }));
    box.append(el("div", { class: "dots" }, dots));
  } else {
    for (let data = 0; data < it.data; data++) box.append(replica(it, data));
    requestAnimationFrame(() => arrows(box, it));
  }
  const words = bad.length ? el("p", { class: "reason" }, bad.slice(0, 6).map((rank) => `rank ${rank.rank} (${rank.worker}) ${rank.doing}`).join(" · ")) : it.waiting ? el("p", { class: "reason faint" }, it.waiting) : null;
  return [head, el("div", { class: "scroll" }, box), words, keys].filter(Boolean);
}

function replica(it, data) {
  const lanes = [];
  for (let tensor = 0; tensor < it.tensor; tensor++) {
    const lane = it.ranks.filter((rank) => rank.data === data && rank.tensor === tensor).sort((a, b) => a.pipeline - b.pipeline);
    lanes.push(el("div", { class: "lane" }, lane.map((rank) => cell(it, rank))));
  }
  const title = it.data > 1 ? el("h3", {}, `data replica ${data}`) : null;
  return el("div", { class: "replica" }, title, lanes);
}

function doing(rank) {
  const time = rank.for_ms >= 1000 ? ` for ${duration(rank.for_ms / 1000)}` : "";
  if (rank.state === "waiting") return `waits for rank ${rank.waits_for}${time}`;
  if (rank.state === "silent") return `silent${time}`;
  return rank.doing + (rank.state === "working" ? time : "");
}

function meter(what, share, text, color) {
  const bar = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none" }, svg("rect", { width: 100 * Math.min(1, share), height: 6, fill: color }));
  return el("div", { class: "meter" }, el("span", {}, what), bar, el("span", {}, text));
}

function cell(it, rank) {
  const where = [it.pipeline > 1 ? `stage ${rank.pipeline}` : "", it.tensor > 1 ? `shard ${rank.tensor}` : ""].filter(Boolean).join(" · ");
  const peak = rank.peak_tensor_bytes, plan = rank.planned?.tensor_bytes;
  const slow = rank.slow ? el("span", { class: "pill warn" }, `${rank.slow.toFixed(1)}× slower`) : null;
  return el("div", { class: `rank ${rank.state} ${rank.slow ? "slow" : ""}`, "data-rank": rank.rank, "data-state": rank.state, title: `pid ${rank.pid} on ${rank.host}; click for its log`, tabindex: 0, onclick: () => showLog(rank.worker), onkeydown: (event) => event.key === "Enter" && showLog(rank.worker) },
    el("div", { class: "name" }, el("span", {}, `rank ${rank.rank}`), el("span", { class: "faint" }, rank.worker)),
    el("div", { class: "doing" }, `${STATES[rank.state]}${rank.state === "done" ? "" : ` · ${doing(rank)}`}`),
    rank.busy !== null && it.at_work ? meter("busy", rank.busy, percent(rank.busy), "var(--green)") : null,
    peak && plan ? meter("memory", peak / plan, `${bytes(peak)} of ${bytes(plan)}`, peak > plan * 1.05 ? "var(--red)" : "var(--blue)") : peak ? meter("memory", 0, bytes(peak), "var(--blue)") : null,
    el("div", { class: "holds" }, [where, rank.planned?.holds].filter(Boolean).join(" · "), slow && " ", slow));
}

/** An arrow from each rank that has waited for a while to the one that it waits for. */
function arrows(box, it) {
  const frame = box.getBoundingClientRect();
  const layer = svg("svg", {}, svg("defs", {}, svg("marker", { id: "tipmark", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, svg("path", { d: "M0 0 8 4 0 8z", fill: "var(--amber)" }))));
  for (const rank of it.ranks) {
    if (rank.state !== "waiting" || rank.for_ms < 250) continue;
    const from = box.querySelector(`[data-rank="${rank.rank}"]`), to = box.querySelector(`[data-rank="${rank.waits_for}"]`);
    if (!from || !to) continue;
    const a = from.getBoundingClientRect(), b = to.getBoundingClientRect();
    const right = b.left > a.left, same = Math.abs(b.left - a.left) < 4;
    const x1 = (same ? a.left + a.width / 2 : right ? a.right : a.left) - frame.left, y1 = (same ? (b.top > a.top ? a.bottom : a.top) : a.top + a.height / 2) - frame.top;
    const x2 = (same ? b.left + b.width / 2 : right ? b.left : b.right) - frame.left, y2 = (same ? (b.top > a.top ? b.top : b.bottom) : b.top + b.height / 2) - frame.top;
    const bend = (x1 + x2) / 2;
    layer.append(svg("path", { d: same ? `M${x1} ${y1}L${x2} ${y2}` : `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}`, fill: "none", stroke: "var(--amber)", "stroke-width": 2, "marker-end": "url(#tipmark)" }));
  }
  box.append(layer);
}

// What happened, the plan, checkpoints, workers, jobs.

function happened(detail) {
  const { lost, interruptions, events } = detail;
  const head = el("div", { class: "head" }, el("h2", {}, "What happened"),
    el("span", { class: "aside" }, lost.interruptions ? `${plural(lost.interruptions, "interruption")} · ${duration(lost.seconds)} and ${plural(lost.steps, "step")} lost` : "no interruption"));
  const rows = interruptions.map((one) => el("tr", {},
    el("td", { class: "tight faint", title: when(one.at_ms) }, clock(one.at_ms)),
    el("td", { class: "tight" }, el("span", { class: `pill ${one.planned ? "info" : "warn"}` }, one.planned ? "regrouped" : "interrupted")),
    el("td", {}, one.cause),
    el("td", { class: "num tight" }, one.step === null ? "–" : `step ${whole(one.step)}`),
    el("td", { class: "num tight" }, one.lost_s === null ? "still out" : duration(one.lost_s)),
    el("td", { class: "num tight" }, one.again === null ? "–" : plural(one.again, "step")),
    el("td", { class: "tight faint" }, one.origin ?? "")));
  const table = rows.length ? el("div", { class: "scroll" }, el("table", { class: "broken" },
    el("thead", {}, el("tr", {}, ["when", "", "cause"].map((text) => el("th", {}, text)), ["after", "lost", "taken again"].map((text) => el("th", { class: "num" }, text)), el("th", {}, "from"))), el("tbody", {}, rows))) : null;
  const lines = events.map((event) => el("tr", {}, el("td", { class: "tight faint", title: when(event.at_ms) }, clock(event.at_ms)),
    el("td", { class: "tight" }, event.kind), el("td", {}, event.text)));
  const open = $("happened").querySelector("details")?.open ?? interruptions.length === 0;
  const log = events.length ? el("details", { open }, el("summary", {}, `all events (${events.length})`), el("div", { class: "scroll events" }, el("table", {}, el("tbody", {}, lines)))) : null;
  return [head, table, log].filter(Boolean);
}

function planned(step, it) {
  const left = 74, lane = 24, gap = 5, width = 1120, unit = (width - left) / step.makespan;
  const height = step.rows.length * (lane + gap) + 20;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": step.caption });
  step.rows.forEach((row, at) => {
    const y = at * (lane + gap);
    root.append(svg("text", { x: left - 10, y: y + 16, "text-anchor": "end" }, `stage ${at}`), svg("rect", { class: "idle", x: left, y, width: width - left, height: lane, rx: 3 }));
    for (const span of row) {
      const x = left + span.start * unit, w = (span.end - span.start) * unit;
      root.append(svg("rect", { class: span.kind, x: x + 0.5, y, width: Math.max(0.5, w - 1), height: lane, rx: 2 }, svg("title", {}, `${span.kind} of micro-batch ${span.micro_batch}, stage ${span.stage}`)));
      if (w > 15) root.append(svg("text", { class: "n", x: x + w / 2, y: y + 16 }, String(span.micro_batch)));
    }
  });
  const seconds = it?.step_seconds;
  for (const tick of ticks(0, step.makespan, 8).all) {
    root.append(svg("text", { x: left + tick * unit, y: height - 3, "text-anchor": "middle" }, short(tick)));
  }
  const kinds = [["F", "forward"], ["B", "backward"], ["I", "input gradients"], ["W", "weight gradients"]].filter(([kind]) => step.rows.some((row) => row.some((span) => span.kind === kind)));
  return [el("div", { class: "head" }, el("h2", {}, "Planned step"), el("span", { class: "aside" }, seconds ? `a step takes ${duration(+seconds.toPrecision(2))} now` : "")),
    el("div", { class: "scroll" }, el("div", { class: "gantt" }, root)),
    el("div", { class: "keys" }, kinds.map(([kind, text]) => el("span", {}, el("i", { class: kind }), text)), el("span", { class: "faint" }, step.caption.replace(/; a column.*/, "")))];
}

/** A path or a word as a shell reads it. */
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

function copied(command) {
  const button = el("button", { onclick: async () => {
    await navigator.clipboard?.writeText(command);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  } }, "copy");
  return el("span", { class: "copy" }, el("code", {}, command), button);
}

/** The validation loss of a step, where it was computed. */
function validationAt(step) {
  const at = state.series?.step.indexOf(step) ?? -1;
  return at >= 0 ? state.series.validation_loss[at]?.toFixed(4) ?? "–" : "–";
}

function checkpoints(detail, it) {
  const list = detail.checkpoints;
  if (!list.length) return null;
  const rows = list.map((one) => el("tr", {}, el("td", { class: "num" }, whole(one.step)), el("td", { class: "num tight" }, bytes(one.bytes)), el("td", { class: "num" }, validationAt(one.step)),
    el("td", {}, copied(`coxswain generate --checkpoint ${quoted(one.path)} --prompt 'It was '`))));
  return [el("div", { class: "head" }, el("h2", {}, "Checkpoints"), el("span", { class: "aside mono" }, it?.directory ?? "")),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["step", "size", "validation"].map((text) => el("th", { class: "num" }, text)), el("th", {}, "generate from it"))), el("tbody", {}, rows)))];
}

function workers(view) {
  const head = el("div", { class: "head" }, el("h2", {}, "Workers"), el("span", { class: "aside" }, `${plural(view.workers.length, "worker")} here, ${view.workers.filter((one) => one.phase === "idle").length} idle`));
  if (!view.workers.length) return [head, el("p", { class: "reason faint" }, "No worker is here.")];
  const may = view.caller.may_drain && !saved;
  const rows = view.workers.slice(0, 500).map((one) => el("tr", { "data-worker": one.worker }, el("td", { class: "tight" }, el("b", {}, one.worker)),
    el("td", {}, el("span", { class: `pill ${one.leaving ? "warn" : one.phase === "running" ? "good" : one.phase === "failed" ? "bad" : ""}`, title: one.leaving ?? "" }, one.leaving ? "draining" : one.phase)),
    el("td", {}, one.job ?? "–"), el("td", { class: "num" }, one.step ? whole(one.step) : "–"), el("td", { class: "num tight" }, one.peak_tensor_bytes ? bytes(one.peak_tensor_bytes) : "–"),
    el("td", { class: "tight" }, one.device), el("td", { class: "faint tight" }, `pid ${one.pid} on ${one.host}`),
    may ? el("td", { class: "num" }, one.leaving ? "" : el("button", { class: "quiet", onclick: () => drain(one) }, "Drain")) : null));
  const names = [["worker"], ["phase"], ["job"], ["step", 1], ["peak tensors", 1], ["device"], ["where"]].concat(may ? [["", 1]] : []);
  return [head, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, names.map(([text, num]) => el("th", { class: num ? "num" : "" }, text)))), el("tbody", {}, rows)))];
}

function jobs(view, chosen) {
  const rows = view.jobs.slice(0, 200).map((one) => el("tr", {},
    el("td", { class: "tight" }, one.job === chosen?.job ? el("b", {}, one.job) : el("a", { href: `?job=${encodeURIComponent(one.job)}` }, one.job)),
    el("td", {}, el("span", { class: `pill ${TONES[one.state] ?? ""}` }, one.state)), el("td", { class: "num tight" }, `${whole(one.step)} / ${whole(one.steps)}`),
    el("td", { class: "num" }, one.loss === null ? "–" : one.loss.toFixed(4)), el("td", { class: "num" }, String(one.priority)), el("td", { class: "faint" }, one.reason)));
  return [el("h2", {}, "Jobs"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, [["job"], ["state"], ["step", 1], ["loss", 1], ["priority", 1], ["why"]].map(([text, num]) => el("th", { class: num ? "num" : "" }, text)))), el("tbody", {}, rows)))];
}

function jobText() {
  const open = $("text").querySelector("details")?.open ?? false;
  return [el("h2", {}, "Job"), el("details", { open }, el("summary", {}, "every value of the job"), el("pre", {}, state.text))];
}
