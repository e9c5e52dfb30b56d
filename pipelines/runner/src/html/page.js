"use strict";
// Errors are shown on the page and counted where a test can read them.
document.documentElement.dataset.errors = "0";
window.addEventListener("error", (event) => {
  const root = document.documentElement;
  root.dataset.errors = String(Number(root.dataset.errors) + 1);
  const note = document.createElement("pre");
  note.textContent = `This page has an error: ${event.message}`;
  document.body.prepend(note);
});

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f6fde", "#e07b2f", "#2f9e62", "#b6429a", "#c9a227", "#3aa6b9", "#d1495b", "#6a5acd", "#7a8793"];

/** An element with attributes and children; texts are never read as HTML. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const number = (value, digits = 4) =>
  value === null || value === undefined ? "" : Number(Number(value).toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 6 });
const count = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en-US"));
const time = (seconds) => (seconds ? new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "");

function bytes(value) {
  if (value === null || value === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at += 1) value /= 1000;
  return `${at === 0 ? value : value.toFixed(1)} ${units[at]}`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 100 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Columns: [title, row => text or element, is a number]. */
function table(columns, rows) {
  const cell = (tag, column, content) => element(tag, column[2] ? { class: "n" } : {}, content);
  const head = element("tr", {}, ...columns.map((column) => cell("th", column, column[0])));
  const body = rows.map((row) => element("tr", {}, ...columns.map((column) => cell("td", column, column[1](row) ?? ""))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function section(id, title, ...children) {
  document.getElementById("nav").append(element("a", { href: `#${id}` }, title));
  const made = element("section", { id }, element("h2", {}, title), ...children);
  document.getElementById("sections").append(made);
  return made;
}

/** Draws when it comes into view: a report may have hundreds of curves. */
const waiting = new Map();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    observer.unobserve(entry.target);
    waiting.get(entry.target)();
    waiting.delete(entry.target);
  }
}, { rootMargin: "400px" });

function chart(height, option) {
  const box = element("div", { class: "chart", style: `height: ${height}px` });
  waiting.set(box, () => {
    const drawn = echarts.init(box, null, { renderer: "svg" });
    const draw = () => drawn.setOption({ animation: false, color: COLORS, ...(typeof option === "function" ? option() : option) }, true);
    draw();
    box.redraw = draw;
    window.addEventListener("resize", () => drawn.resize());
  });
  observer.observe(box);
  return box;
}

const plain = { type: "value", axisLine: { show: true }, splitLine: { lineStyle: { color: "#edf0f4" } } };

// The head.
const done = data.jobs.filter((job) => job.state === "done");
const sum = (of) => done.reduce((total, job) => total + (of(job) || 0), 0);
document.title = `${data.pipeline} · smelt report`;
document.getElementById("title").textContent = data.pipeline;
document.getElementById("made").textContent = `${data.file} in ${data.store}, told ${time(data.time)} by smelt ${data.version}`;
for (const [value, what] of [
  [`${done.length} of ${data.jobs.length}`, "jobs done"],
  [duration(sum((job) => job.seconds)), "time of all jobs"],
  [bytes(Math.max(0, ...done.map((job) => job.peak_memory_bytes || 0))), "largest job's memory"],
  [bytes(sum((job) => job.bytes)), "artifacts"],
]) {
  document.getElementById("facts").append(element("span", {}, element("b", {}, value), what));
}

// The graph of jobs: columns by the longest way from a source.
(function graph() {
  const at = new Map(data.jobs.map((job, i) => [job.name, i]));
  const inputs = data.jobs.map((job) => job.inputs.map((name) => at.get(name)).filter((i) => i !== undefined));
  const level = [];
  data.jobs.forEach((_, i) => { level[i] = Math.max(0, ...inputs[i].map((from) => level[from] + 1)); });
  const columns = [];
  level.forEach((l, i) => (columns[l] ||= []).push(i));
  const tallest = Math.max(1, ...columns.map((column) => column.length));
  const colors = { done: "#2f9e62", running: "#c9a227", failed: "#d1495b" };
  const place = new Map();
  columns.forEach((column, x) => column.forEach((i, y) => place.set(i, [x * 150, ((y + 0.5) * tallest * 60) / column.length])));
  section("graph", "Jobs and what they read", chart(Math.min(900, 80 + tallest * 46), {
    tooltip: { formatter: (item) => (item.dataType === "edge" ? "" : data.jobs[item.dataIndex].tip) },
    series: [{
      type: "graph", layout: "none", roam: true, symbol: "roundRect", symbolSize: [12, 12], edgeSymbol: ["none", "arrow"], edgeSymbolSize: 6,
      label: { show: true, position: "bottom", fontSize: 11, color: "#17202a" },
      lineStyle: { color: "#9aa7b5", curveness: 0.12, opacity: 0.8 },
      data: data.jobs.map((job, i) => ({
        name: job.name, x: place.get(i)[0], y: place.get(i)[1], itemStyle: { color: colors[job.state] || "#7a8793" },
      })),
      links: inputs.flatMap((from, i) => from.map((source) => ({ source, target: i }))),
    }],
  }));
  data.jobs.forEach((job) => {
    job.tip = `${job.name} (${job.stage}): ${job.state}${job.seconds ? `, ${duration(job.seconds)}` : ""}`.replace(/[<&]/g, " ");
  });
})();

// Times and memory.
(function timings() {
  const rows = [...done].reverse();
  section("times", "Times and memory",
    chart(40 + 24 * Math.max(1, rows.length), {
      grid: { left: 10, right: 30, top: 10, bottom: 30, containLabel: true },
      tooltip: { valueFormatter: duration },
      xAxis: { ...plain, name: "s", nameLocation: "end" },
      yAxis: { type: "category", data: rows.map((job) => job.name), axisTick: { show: false } },
      series: [{ type: "bar", data: rows.map((job) => job.seconds), barMaxWidth: 14 }],
    }),
    table([
      ["job", (job) => job.name], ["stage", (job) => job.stage],
      ["state", (job) => element("span", { class: `state ${job.state}` }, job.state)],
      ["started", (job) => time(job.started)], ["took", (job) => duration(job.seconds), true],
      ["memory", (job) => bytes(job.peak_memory_bytes), true], ["threads", (job) => count(job.threads), true],
      ["resumed", (job) => count(job.resumed), true],
      ["read", (job) => count(job.read), true], ["derived", (job) => count(job.derived), true],
      ["written", (job) => count(job.written), true], ["dropped", (job) => count(job.dropped), true],
      ["size", (job) => bytes(job.bytes), true],
    ], data.jobs));
})();

// What was dropped, and why.
(function drops() {
  const jobs = data.jobs.filter((job) => Object.keys(job.drops).length > 0);
  if (jobs.length === 0) return;
  const rules = [...new Set(jobs.flatMap((job) => Object.keys(job.drops)))];
  const rows = jobs.flatMap((job) => Object.entries(job.drops).map(([rule, rows]) => ({ job, rule, rows })));
  section("drops", "Dropped rows, by rule",
    chart(70 + 34 * jobs.length, {
      grid: { left: 10, right: 30, top: 40, bottom: 30, containLabel: true },
      legend: { type: "scroll", top: 0 },
      tooltip: { trigger: "item", valueFormatter: (share) => `${number(share, 3)} %` },
      xAxis: { ...plain, name: "% of read", nameLocation: "middle", nameGap: 24 },
      yAxis: { type: "category", data: jobs.map((job) => job.name).reverse(), axisTick: { show: false } },
      series: rules.map((rule) => ({
        name: rule, type: "bar", stack: "all", barMaxWidth: 18,
        data: jobs.map((job) => (job.drops[rule] ? (100 * job.drops[rule]) / Math.max(1, job.read + job.derived) : null)).reverse(),
      })),
    }),
    table([
      ["job", (row) => row.job.name], ["rule", (row) => row.rule], ["rows", (row) => count(row.rows), true],
      ["% of read", (row) => number((100 * row.rows) / Math.max(1, row.job.read + row.job.derived), 3), true],
    ], rows));
})();

// Curves: losses and rewards first, the others where somebody asks for them.
(function curves() {
  if (data.curves.length === 0) return;
  const names = [...new Set(data.curves.map((curve) => curve.name))];
  const first = names.filter((name) => /loss|reward|accuracy/.test(name));
  const draw = (name) => {
    const lines = data.curves.filter((curve) => curve.name === name);
    return element("figure", {}, element("figcaption", {}, name), chart(300, {
      grid: { left: 10, right: 20, top: 34, bottom: 56, containLabel: true },
      legend: { type: "scroll", top: 0 },
      tooltip: { trigger: "axis", valueFormatter: (value) => number(value, 5) },
      dataZoom: [{ type: "inside" }, { type: "slider", height: 16, bottom: 8 }],
      xAxis: { ...plain, name: "step", nameLocation: "middle", nameGap: 22, min: "dataMin", max: "dataMax" },
      yAxis: { ...plain, scale: true },
      series: lines.map((line) => ({
        name: line.job, type: "line", showSymbol: line.points.length < 3, lineStyle: { width: 1.5 }, data: line.points,
      })),
    }));
  };
  const shown = first.length > 0 ? first : names.slice(0, 4);
  const others = names.filter((name) => !shown.includes(name));
  const made = section("curves", "Curves", element("div", { class: "grid" }, ...shown.map(draw)));
  if (others.length > 0) {
    const grid = element("div", { class: "grid" });
    const details = element("details", {}, element("summary", {}, `${others.length} other curves`), grid);
    details.addEventListener("toggle", () => { if (grid.childElementCount === 0) grid.append(...others.map(draw)); });
    made.append(details);
  }
})();

// How the experts of a layer are used over the steps.
(function experts() {
  if (data.expert_load.length === 0) return;
  const choice = element("select", { "aria-label": "layer" },
    ...data.expert_load.map((load, i) => element("option", { value: String(i) }, `${load.job}, layer ${load.layer}`)));
  const heat = chart(360, () => {
    const load = data.expert_load[Number(choice.value)];
    const rows = 1 + Math.max(...load.cells.map((cell) => cell[1]));
    return {
      grid: { left: 10, right: 90, top: 14, bottom: 30, containLabel: true },
      tooltip: { formatter: (item) => `step ${load.steps[item.value[0]]}, expert ${item.value[1]}: ${number(item.value[2], 3)} of the mean` },
      xAxis: { type: "category", data: load.steps, name: "step", nameLocation: "middle", nameGap: 22 },
      yAxis: { type: "category", data: [...Array(rows).keys()], name: "expert" },
      visualMap: { min: 0, max: 2, calculable: true, right: 0, top: "center", precision: 1, inRange: { color: ["#214e9b", "#f7f7f7", "#b2182b"] } },
      series: [{ type: "heatmap", data: load.cells }],
    };
  });
  choice.addEventListener("change", () => heat.redraw?.());
  section("experts", "Load of the experts", element("p", { class: "soft" },
    "Tokens of an expert as a share of the layer's mean: 1 is balanced, 0 is never used."), choice, heat);
})();

// Scores, with their standard errors.
(function scores() {
  if (data.scores.length === 0) return;
  /** An axis that shows every value with its error; from 0 where that is not far. */
  const range = (rows) => {
    const low = Math.min(...rows.map((score) => score.value - (score.standard_error || 0)));
    const high = Math.max(...rows.map((score) => score.value + (score.standard_error || 0)));
    const margin = 0.05 * (high - low || Math.abs(high) || 1);
    const short = (value) => Number(value.toPrecision(4));
    return { min: low >= 0 && low < high / 2 ? 0 : short(low - margin), max: short(high + margin) };
  };
  const key = (score) => `${score.benchmark}: ${score.metric}`;
  const charts = [...new Set(data.scores.map(key))].map((name) => {
    const rows = data.scores.filter((score) => key(score) === name);
    const models = rows.map((score) => score.model);
    return element("figure", {}, element("figcaption", {}, name), chart(80 + 26 * rows.length, {
      grid: { left: 10, right: 30, top: 8, bottom: 26, containLabel: true },
      tooltip: { formatter: (item) => `${models[item.dataIndex]}: ${number(rows[item.dataIndex].value)}`.replace(/[<&]/g, " ") },
      xAxis: { ...plain, ...range(rows) }, yAxis: { type: "category", data: models, inverse: true, axisTick: { show: false } },
      series: [
        { type: "bar", data: rows.map((score) => score.value), barMaxWidth: 12 },
        {
          type: "custom", silent: true, z: 5, clip: true, data: rows.map((score, i) => [i, score.value, score.standard_error || 0]),
          renderItem: (_, api) => {
            const [value, error] = [api.value(1), api.value(2)];
            const [x0, y] = api.coord([value - error, api.value(0)]);
            const [x1] = api.coord([value + error, api.value(0)]);
            const line = (a, b, c, d) => ({ type: "line", shape: { x1: a, y1: b, x2: c, y2: d }, style: { stroke: "#17202a", lineWidth: 1.2 } });
            return { type: "group", children: error > 0 ? [line(x0, y, x1, y), line(x0, y - 4, x0, y + 4), line(x1, y - 4, x1, y + 4)] : [] };
          },
          encode: { x: 1, y: 0 },
        },
      ],
    }));
  });
  section("scores", "Evaluation", element("div", { class: "grid" }, ...charts), table([
    ["job", (row) => row.job], ["model", (row) => row.model], ["benchmark", (row) => row.benchmark], ["metric", (row) => row.metric],
    ["value", (row) => number(row.value), true], ["± standard error", (row) => number(row.standard_error, 2), true],
    ["n", (row) => count(row.n), true],
  ], data.scores));
})();

// What jobs noted when they ended.
(function results() {
  const rows = data.jobs.flatMap((job) => Object.entries(job.results).map(([name, value]) => ({ job: job.name, name, value })));
  if (rows.length === 0) return;
  section("results", "Results", table(
    [["job", (row) => row.job], ["name", (row) => row.name], ["value", (row) => number(row.value, 6), true]], rows));
})();

// What was made of what.
section("lineage", "Lineage", table([
  ["job", (job) => job.name],
  ["artifact", (job) => (job.fingerprint ? element("code", {}, `${job.stage} ${job.fingerprint.slice(0, 12)}/${job.edition}`) : "")],
  ["reads", (job) => job.inputs.join(", ")],
  ["ports", (job) => element("code", {}, job.ports.map((port) => `${port.name} ${port.digest.slice(0, 12)}`).join("  "))],
], data.jobs));

// Where it ran.
section("environment", "Environment", table([
  ["job", (job) => job.name], ["run", (job) => job.run], ["smelt", (job) => job.smelt], ["stage version", (job) => count(job.version), true],
  ["program", (job) => element("code", {}, (job.binary || "").slice(0, 12))], ["host", (job) => job.host],
  ["CPU level", (job) => job.cpu], ["computed on", (job) => job.device],
], done), element("h2", { style: "margin-top: 18px" }, "Runs"), table([
  ["run", (run) => run.run], ["state", (run) => element("span", { class: `state ${run.state}` }, run.state)],
  ["started", (run) => time(run.started)], ["took", (run) => duration(run.ended ? run.ended - run.started : null), true],
], data.runs));
