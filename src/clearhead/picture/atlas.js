// The atlas: one head in three views beside the dashboard of all, keys, and a link that brings all of it back

const atlasPlace = document.getElementById("atlas");
const VIEWS = { tokens: "Tokens", map: "Map", flow: "Flow" };
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
  markHead(state.layer, state.head);
  title.textContent = called(state.layer, state.head);
  path.textContent = layer.path;
  health.replaceChildren(...sentences(state.layer, state.head));
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

const help = keysDialog(KEYS, "The address of this page holds what you see: keep it, or send it with the file.");

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

function leads(layer, head, kept = {}) {
  const button = el("button", { type: "button" }, called(layer, head));
  button.addEventListener("click", () => {
    Object.assign(state, kept);
    choose(layer, head ?? 0);
    large.scrollIntoView({ block: "nearest" });
  });
  return button;
}

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
  const dashboard = el("section", {}, el("div", { class: "bar" }, el("h2", {}, "Heads"), el("label", { for: "statistic" }, "show ", choice)), meaning, overview, scaleBar, judged(leads), strongest());
  atlasPlace.replaceChildren(el("div", { class: "atlas" }, dashboard, el("section", {}, large)), help);
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
