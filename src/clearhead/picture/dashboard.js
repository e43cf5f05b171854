// The dashboard of the atlas: what it is about, its numbers, and all heads, as maps or in the colours of a statistic

const { layers, axes, findings } = data;
const GROUPS = { "": "Attention", encoder: "Encoder", decoder: "Decoder", cross: "Cross-attention" };
const THUMBNAIL = 56; // cells of a side; of longer maps a cell shows the largest weight below it
const state = {
  layer: 0, head: 0, statistic: "map", view: "tokens", token: null, key: null, cell: null,
  first: false, special: false, log: false, stretch: true, from: false, lines: null,
};
const grids = new Map(); // the buttons of each layer

// ---- numbers

function unpacked(codes) {
  let at = 0;
  const take = (count) => codes.subarray(at, (at += count));
  for (const layer of layers) {
    const [queries, keys] = [axes[layer.rows].names.length, axes[layer.columns].names.length];
    Object.assign(layer, { codes: take(layer.heads * queries * keys), queries, keys });
    for (const name of ["entropy", "received"]) layer[name] = take(layer.heads * layer[name === "entropy" ? "queries" : "keys"]);
  }
}
const countOf = (layer) => layer.heads * (axes[layer.rows].names.length * (axes[layer.columns].names.length + 1) + axes[layer.columns].names.length);
const weightsOf = (layer, head) => valuesOf(layer.codes.subarray(head * layer.queries * layer.keys, (head + 1) * layer.queries * layer.keys), layer.decimals);
const sumsOf = (layer, head, name, count) => valuesOf(layer[name].subarray(head * count, (head + 1) * count), data.sums);
// What a head is called, with its stack where there are several.
const several = new Set(layers.map((layer) => layer.group)).size > 1;
const called = (i, head) => `${several ? `${GROUPS[layers[i].group]}, ` : ""}${layers[i].name}, ${head === null ? "all heads" : `head ${head}`}`;
const number = (value) => (value === null || value === undefined ? "not measured" : String(Number(value.toPrecision(4))));

// The mean of a layer's heads, whose rows sum to 1 whatever was rounded; a row that sees nothing keeps what it has.
function meanOf(layer) {
  if (layer.mean) return layer.mean;
  const n = layer.keys;
  layer.mean = new Float64Array(n * n);
  for (let at = 0; at < layer.codes.length; at++) if (layer.codes[at] > 1) layer.mean[at % (n * n)] += layer.codes[at] - 1;
  for (let i = 0; i < n; i++) {
    const row = layer.mean.subarray(i * n, (i + 1) * n);
    const total = row.reduce((a, b) => a + b, 0);
    if (total) row.forEach((value, j) => (row[j] = value / total));
    else row[i] = 1;
  }
  return layer.mean;
}

// The first key that anything attends to.
function firstKey(layer) {
  for (let j = 0; j < layer.keys; j++)
    for (let at = j; at < layer.codes.length; at += layer.keys) if (layer.codes[at] > 1) return j;
  return 0;
}

function hiddenOf(layer) {
  const hidden = new Set(state.special ? axes[layer.columns].special : []);
  if (state.first) hidden.add(firstKey(layer));
  const hiddenRows = new Set(state.special ? axes[layer.rows].special : []);
  const all = hidden.size === layer.keys || hiddenRows.size === layer.queries; // then nothing would be left to see
  return all ? { hidden: new Set(), hiddenRows: new Set() } : { hidden, hiddenRows };
}

// ---- the dashboard

const overview = el("div", { class: "overview", id: "overview" });
const choice = el("select", { id: "statistic" }, el("option", { value: "map" }, "maps"),
  ...data.statistics.map((each) => el("option", { value: each.key }, each.title)));
const meaning = el("p", { class: "muted", id: "meaning" });
const scaleBar = el("div", { class: "colours" });
const statistic = () => data.statistics.find((each) => each.key === state.statistic);
const healthOf = (layer, head) => findings.filter((each) => each.layer === layer && (each.head === head || each.head === null));
const worst = (found) => (found.some((each) => each.severity === "alarm") ? "alarm" : found.length ? "note" : "");

function drawDashboard() {
  const groups = new Map();
  layers.forEach((layer, i) => groups.set(layer.group, [...(groups.get(layer.group) ?? []), i]));
  overview.replaceChildren(...[...groups].map(([group, members]) => {
    const most = Math.max(...members.map((i) => layers[i].heads));
    const numbers = el("div", { class: "layer numbers", "aria-hidden": "true" }, el("span"), across(most, Array.from({ length: most }, (_, head) => el("span", {}, head))));
    return el("div", { role: "group", "aria-label": GROUPS[group] }, el("h3", {}, GROUPS[group]),
      el("div", { class: "heads" }, numbers, ...members.map((i) => el("div", { class: "layer" }, el("span", { title: layers[i].path }, layers[i].name), across(most, heads(i))))));
  }));
}

function across(most, children) {
  const line = el("div", {}, ...children);
  line.style.setProperty("--heads", Math.max(most, 4));
  return line;
}

function heads(i) {
  const buttons = Array.from({ length: layers[i].heads }, (_, head) => {
    const button = el("button", { class: `head ${worst(healthOf(i, head))}`, type: "button", "data-layer": i, "data-head": head });
    button.addEventListener("click", () => choose(i, head));
    return button;
  });
  grids.set(i, buttons);
  return buttons;
}

function limitsOf() {
  const known = layers.flatMap((layer) => layer.statistics[state.statistic]).filter((value) => value !== null);
  if (statistic().high !== null || !known.length) return [0, statistic().high ?? 1];
  return [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
}

function drawHeads() {
  const maps = state.statistic === "map";
  const limits = maps ? [0, 1] : limitsOf();
  choice.value = state.statistic;
  meaning.textContent = maps ? "Every head as a picture: queries down, keys across." : statistic().words;
  overview.classList.toggle("cells", !maps);
  for (const [i, buttons] of grids) buttons.forEach((button, head) => (maps ? drawThumbnail : drawCell)(button, i, head, limits));
  drawScale(maps, limits);
}

function named(button, i, head, more) {
  const found = healthOf(i, head).map((each) => `${each.severity}: ${each.rule}`).join(", ");
  const text = `${called(i, head)}${more}${found ? `; ${found}` : ""}`;
  button.title = text;
  button.setAttribute("aria-label", text);
}

function drawCell(button, i, head, limits) {
  const value = layers[i].statistics[state.statistic][head] ?? null;
  const shade = colour(value === null ? NaN : value, limits, unmeasured());
  button.replaceChildren(el("span", {}, value === null ? "" : brief(value)));
  button.style.backgroundColor = `rgb(${shade})`;
  button.style.color = inkOn(shade);
  named(button, i, head, `, ${statistic().title} ${number(value)}`);
}

const brief = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

function drawThumbnail(button, i, head) {
  const { queries, keys, decimals } = layers[i];
  const codes = layers[i].codes.subarray(head * queries * keys, (head + 1) * queries * keys);
  const [high, wide] = [Math.min(queries, THUMBNAIL), Math.min(keys, THUMBNAIL)];
  const most = new Int32Array(high * wide);
  let [largest, broken] = [0, false];
  for (let row = 0, at = 0; row < queries; row++) {
    const line = Math.floor((row * high) / queries) * wide;
    for (let column = 0; column < keys; column++, at++) {
      const cell = line + Math.floor((column * wide) / keys);
      broken ||= codes[at] === 0;
      if (codes[at] > most[cell]) most[cell] = codes[at];
      if (codes[at] > largest) largest = codes[at];
    }
  }
  if (!broken) for (let at = 0; at < most.length; at++) most[at] ||= 1;
  const values = valuesOf(most, decimals);
  const top = state.stretch ? (largest - 1) / 10 ** decimals || 1 : 1;
  const canvas = el("canvas", { "aria-hidden": "true" });
  paint(canvas, wide, high, (at) => values[at], state.log ? [0, top, 10 ** -decimals] : [0, top]);
  button.replaceChildren(canvas);
  button.style.backgroundColor = "";
  named(button, i, head, "");
}

function drawScale(maps, [low, high]) {
  const nodes = maps ? ["0", colourBar(), state.stretch ? "each head's largest weight" : "1"] : [number(low), colourBar(), number(high)];
  for (const [kind, words] of [["alarm", "alarm"], ["note", "note"]])
    if (findings.some((each) => (each.severity === "alarm") === (kind === "alarm"))) nodes.push(el("i", { class: `ring ${kind}` }), words);
  if (!maps && layers.some((layer) => layer.statistics[state.statistic].includes(null))) {
    const swatch = el("i");
    swatch.style.background = unmeasured();
    nodes.push(swatch, "not measured");
  }
  scaleBar.replaceChildren(...nodes);
}
