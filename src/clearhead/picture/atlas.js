// The atlas: a dashboard of all heads, one of them in three views, keys, and a link that brings all of it back

const atlasPlace = document.getElementById("atlas");
const { layers, axes, findings } = data;
const VIEWS = { tokens: "Tokens", map: "Map", flow: "Flow" };
const GROUPS = { "": "Attention", encoder: "Encoder", decoder: "Decoder", cross: "Cross-attention" };
const THUMBNAIL = 56; // cells of a side; of longer maps a cell shows the largest weight below it
const KEYS = [
  ["← → ↑ ↓", "another head; in the map another cell, in the flow another token"],
  ["Enter", "go into the head that is chosen"],
  ["Esc", "let go of the token; then back to the heads"],
  ["1 2 3", "tokens, map, flow"],
  ["l", "linear or logarithmic colours"],
  ["f", "hide the first key, on which attention often rests when it has nothing to look at"],
  ["s", "hide tokens that stand for no text"],
  ["d", "dark or light"],
  ["?", "these keys"],
];
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

// ---- one head

const title = el("h2", { id: "head-name" });
const path = el("p", { class: "muted path" });
const health = el("ul", { class: "alarms" });
const facts = el("dl", { class: "facts" });
const tabs = el("div", { role: "tablist", "aria-label": "Views" }, ...Object.entries(VIEWS).map(([view, words]) => {
  const tab = el("button", { role: "tab", type: "button", "data-view": view, "aria-controls": "view" }, words);
  tab.addEventListener("click", () => turnTo(view));
  return tab;
}));
const first = checkbox("first", "first key");
const special = checkbox("special", "special tokens");
const hiding = el("div", { class: "hiding" }, "hide", first, special);
const share = el("span", { class: "muted", id: "share" });
const links = headLinks(state, remember);
const map = headMap(state, "head-name", () => { drawHeads(); drawView(); remember(); }, (row, column) => {
  Object.assign(state, { token: row, key: column });
  remember();
});
const flow = flowOf(state, remember);
const views = { tokens: links, map, flow };
const view = el("div", { role: "tabpanel", id: "view" });

function checkbox(key, words) {
  const box = el("input", { type: "checkbox", id: `hide-${key}` });
  box.addEventListener("change", () => hide(key, box.checked));
  return el("label", {}, box, ` ${words}`);
}

function hide(key, on) {
  state[key] = on;
  drawView();
  remember();
}

function turnTo(name) {
  state.view = name;
  drawView();
  remember();
}

function choose(i, head) {
  Object.assign(state, { layer: clamp(i, 0, layers.length - 1), cell: null });
  const layer = layers[state.layer];
  state.head = clamp(head, 0, layer.heads - 1);
  if (state.token >= layer.queries) state.token = null;
  if (state.key >= layer.keys) state.key = null;
  drawHead();
  course?.show(layer.path, state.head);
  remember();
}

function drawHead() {
  const layer = layers[state.layer];
  for (const [i, buttons] of grids) buttons.forEach((button, head) => {
    const mine = i === state.layer && head === state.head;
    button.setAttribute("aria-pressed", mine);
    button.tabIndex = mine ? 0 : -1;
  });
  title.textContent = called(state.layer, state.head);
  path.textContent = layer.path;
  health.replaceChildren(...healthOf(state.layer, state.head).map((each) => el("li", { class: each.severity }, el("b", {}, `${each.severity}: `), each.sentence)));
  facts.replaceChildren(...data.statistics.flatMap((each) => [el("div", { title: each.words }, el("dt", {}, each.title), fact(layer.statistics[each.key][state.head]))]));
  drawView();
}

const fact = (value) => el("dd", value === null ? { class: "absent" } : {}, number(value));

function drawView() {
  const layer = layers[state.layer];
  for (const tab of tabs.children) tab.setAttribute("aria-selected", tab.dataset.view === state.view);
  for (const [box, key] of [[first, "first"], [special, "special"]]) box.firstChild.checked = state[key];
  special.hidden = ![layer.rows, layer.columns].some((axis) => axes[axis].special.length);
  hiding.hidden = state.view === "flow";
  if (view.firstChild !== views[state.view].node) view.replaceChildren(views[state.view].node);
  if (state.view === "flow") return flow.show(stackOf(layer));
  const hidden = hiddenOf(layer);
  const weights = weightsOf(layer, state.head);
  share.textContent = hidden.hidden.size ? `the hidden keys hold ${percentIn(weights, layer, hidden)} of all weight` : "";
  if (state.token !== null) state.cell = [state.token, state.key ?? 0];
  views[state.view].show({
    rows: axes[layer.rows].names, columns: axes[layer.columns].names, same: layer.rows === layer.columns, weights, ...hidden,
    decimals: layer.decimals, sums: data.sums,
    entropy: sumsOf(layer, state.head, "entropy", layer.queries), received: sumsOf(layer, state.head, "received", layer.keys),
  });
}

function percentIn(weights, layer, { hidden, hiddenRows }) {
  let [inside, all] = [0, 0];
  weights.forEach((weight, at) => {
    if (Number.isNaN(weight) || hiddenRows.has(Math.floor(at / layer.keys))) return;
    all += weight;
    if (hidden.has(at % layer.keys)) inside += weight;
  });
  return `${Math.round((100 * inside) / (all || 1))} %`;
}

// The layers that a token's output has passed through, where that can be followed.
function stackOf(layer) {
  const stack = layers.filter((each) => each.group === layer.group);
  if (layer.group === "cross") return { why: "Cross-attention is no stack of its own: choose a head of the encoder or the decoder to follow a token through its layers." };
  if (!data.whole) return { why: "What an output rests on needs all layers, and some were left out." };
  if (stack.some((each) => each.queries !== each.keys || each.keys !== layer.keys)) return { why: "The layers have different numbers of tokens, so that none can be followed through them." };
  return { names: axes[layer.columns].names, layers: stack.map((each) => each.name), means: stack.map(meanOf) };
}

// ---- a link that brings it all back

function remember() {
  const kept = { layer: layers[state.layer].path, head: state.head, statistic: state.statistic, view: state.view };
  for (const key of ["token", "key"]) if (state[key] !== null) kept[key] = state[key];
  if (state.log) kept.scale = "log";
  if (state.lines !== null) kept.tokens = state.lines ? "lines" : "text";
  const hidden = ["first", "special"].filter((key) => state[key]);
  if (hidden.length) kept.hide = hidden.join(" ");
  if (!state.stretch) kept.range = "one";
  if (state.from) kept.from = 1;
  if (root.dataset.theme) kept.theme = root.dataset.theme;
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

// What a link says, as far as it fits; true where it says anything.
function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const layer = layers.findIndex((each) => each.path === kept.get("layer"));
  if (layer < 0) return false;
  const whole = (key, count) => (/^\d+$/.test(kept.get(key) ?? "") && Number(kept.get(key)) < count ? Number(kept.get(key)) : null);
  const one = (key, known, other) => (known.includes(kept.get(key)) ? kept.get(key) : other);
  const hidden = (kept.get("hide") ?? "").split(" ");
  Object.assign(state, {
    layer, head: whole("head", layers[layer].heads) ?? 0, token: whole("token", layers[layer].queries), key: whole("key", layers[layer].keys), cell: null,
    statistic: one("statistic", ["map", ...data.statistics.map((each) => each.key)], "map"), view: one("view", Object.keys(VIEWS), "tokens"),
    log: kept.get("scale") === "log", lines: kept.has("tokens") ? kept.get("tokens") === "lines" : null, stretch: kept.get("range") !== "one", from: kept.has("from"),
    first: hidden.includes("first"), special: hidden.includes("special"),
  });
  if (["light", "dark"].includes(kept.get("theme"))) root.dataset.theme = kept.get("theme");
  return true;
}

// ---- keys

const help = el("dialog", { "aria-labelledby": "keys-title" }, el("h2", { id: "keys-title" }, "Keys"),
  el("dl", {}, ...KEYS.flatMap(([key, words]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, words)])),
  el("p", { class: "muted" }, "The address of this page holds what you see: keep it, or send it with the file."),
  el("form", { method: "dialog" }, el("button", {}, "close")));
const opener = document.getElementById("help");

const walk = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const acts = {
  l: () => { state.log = !state.log; drawHeads(); drawView(); remember(); },
  f: () => hide("first", !state.first),
  s: () => hide("special", !state.special),
  d: () => toggle.click(),
  "?": () => help.showModal(),
  1: () => turnTo("tokens"),
  2: () => turnTo("map"),
  3: () => turnTo("flow"),
  Escape: () => (state.token === null && state.key === null ? chosenHead().focus() : letGo()),
};
const chosenHead = () => grids.get(state.layer)[state.head];

function letGo() {
  Object.assign(state, { token: null, key: null, cell: null });
  drawView();
  remember();
}

function enter() {
  if (state.view === "map") map.enter();
  else view.querySelector(".token, svg[tabindex]")?.focus();
}

document.addEventListener("keydown", (event) => {
  const inside = event.target instanceof Element ? event.target.closest("select, input, textarea, .strips, [role=tablist], dialog, [data-chart]") : null;
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || (inside && (walk[event.key] || inside.matches("select")))) return;
  if (walk[event.key]) {
    const [down, right] = walk[event.key];
    choose(state.layer + down, state.head + right);
    if (document.activeElement?.matches(".head, body")) chosenHead().focus();
  } else if (event.key === "Enter" && event.target.matches?.(".head")) enter();
  else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
});

tabs.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!move) return;
  event.preventDefault();
  const names = Object.keys(VIEWS);
  turnTo(names[(names.indexOf(state.view) + move + names.length) % names.length]);
  tabs.querySelector('[aria-selected="true"]').focus();
});

// ---- lists that lead to heads

function listed(words, lines) {
  return lines.length ? el("details", { open: "" }, el("summary", {}, words), el("ul", { class: "alarms" }, ...lines)) : "";
}

function leads(layer, head, kept = {}) {
  const button = el("button", { type: "button" }, called(layer, head));
  button.addEventListener("click", () => {
    Object.assign(state, kept);
    choose(layer, head ?? 0);
    large.scrollIntoView({ block: "nearest" });
  });
  return button;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const judged = () => {
  const loud = findings.filter((each) => each.severity === "alarm").length;
  const counts = [[loud, "alarm"], [findings.length - loud, "note"]].filter(([count]) => count);
  return listed(counts.map(([count, word]) => plural(count, word)).join(", "),
    findings.map((each) => el("li", { class: each.severity }, leads(each.layer, each.head), " ", each.sentence)));
};
const strongest = () => listed("Strongest pairs", data.pairs.map(({ layer, head, query, key }) => {
  const each = layers[layer];
  const weight = valuesOf([each.codes[(head * each.queries + query) * each.keys + key]], each.decimals)[0].toFixed(4);
  return el("li", {}, leads(layer, head, { token: query, key: null }), " ", el("b", {}, weight), ` ${quoted(axes[each.rows].names[query])} → ${quoted(axes[each.columns].names[key])}`);
}));

// ---- the first picture

const large = el("div", { class: "large" }, title, path, health, facts, el("div", { class: "bar" }, tabs, hiding, share), view);

function drawAll() {
  drawHeads();
  drawHead();
  course?.show(layers[state.layer].path, state.head);
}

function begin() {
  const loud = findings.find((each) => each.head !== null) ?? data.pairs[0];
  const [layer, head] = data.opened ?? (loud ? [loud.layer, loud.head] : [0, 0]);
  if (!recall()) Object.assign(state, { layer, head });
  const dashboard = el("section", {}, el("div", { class: "bar" }, el("h2", {}, "Heads"), el("label", { for: "statistic" }, "show ", choice)), meaning, overview, scaleBar, judged(), strongest());
  atlasPlace.replaceChildren(el("div", { class: "atlas" }, dashboard, el("section", {}, large)), help);
  opener.hidden = false;
  opener.addEventListener("click", () => help.showModal());
  choice.addEventListener("change", () => {
    state.statistic = choice.value;
    drawHeads();
    remember();
  });
  toggle.addEventListener("click", remember);
  addEventListener("hashchange", () => recall() && redraw());
  drawDashboard();
  redraws.push(drawAll);
  redraw();
  let width = large.clientWidth;
  new ResizeObserver(() => {
    if (large.clientWidth === width) return;
    width = large.clientWidth;
    drawView();
  }).observe(large);
  root.dataset.ready = "";
}

inflated(bytesOf(data.numbers)).then((bytes) => {
  unpacked(codesOf(bytes, layers.reduce((sum, layer) => sum + countOf(layer), 0)));
  begin();
});
