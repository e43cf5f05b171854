// The page: the dashboard of heads beside their maps, keys, and a link that brings all of it back

const KEYS = [
  ["← → ↑ ↓", "in the heads another head; on a map another cell; in the text another token"],
  ["Enter", "on a map: pick its query and key; in the heads: go to the map"],
  ["shift + ← → ↑ ↓", "on a map: move along"],
  ["+ −", "nearer, farther"],
  ["Home", "the whole map"],
  ["shift + click, b", "a head beside the others"],
  ["1 … 6", "another of the maps"],
  ["x", "close a map"],
  ["/", "search"],
  ["t", "what the query attends to, or who attends to the key"],
  ["l", "linear or logarithmic colours"],
  ["f", "hide the first key, on which attention often rests when it has nothing to look at"],
  ["s", "hide tokens that stand for no text"],
  ["d", "dark or light"],
  ["Esc", "let go of the tokens; then back to the heads"],
  ["?", "these keys"],
];
const state = {
  statistic: data.statistics[0]?.key ?? "", active: 0, top: 0, left: 0, span: 0, log: true, first: false, special: false,
  margin: "entropy", query: null, key: null, from: "query",
};
const explorer = document.getElementById("explorer");
const help = keysDialog(KEYS, "The address of this page holds what you see: keep it, or open it again while the server runs.");
const active = () => maps[state.active];

// ---- which heads are shown

function choose(layer, head, beside = false) {
  layer = clamp(layer, 0, layers.length - 1);
  head = clamp(head, 0, layers[layer].heads - 1);
  const before = shapeOf(active()).join();
  if (beside && maps.length < MOST) {
    maps.push(mapOf(layer, head));
    state.active = maps.length - 1;
    showMaps();
  } else {
    Object.assign(active(), { layer, head });
  }
  chosen();
  if (shapeOf(active()).join() !== before && !beside) whole();
  else stay();
}

// What depends on which head is chosen.
function chosen() {
  const { layer, head } = active();
  maps.forEach((map, i) => map.node.classList.toggle("active", i === state.active && maps.length > 1));
  markHead(layer, head);
  health.replaceChildren(...sentences(layer, head));
  about.textContent = called(layer, head);
  about.title = layers[layer].path;
  facts.replaceChildren(...data.statistics.map((each) => el("div", { title: each.words }, el("dt", {}, each.title), el("dd", {}, number(layers[layer].statistics[each.key][head])))));
  special.hidden = !data.special[layers[layer].axes[1]].length;
  course?.show(layers[layer].path, head);
  showPicked();
}

function activate(map) {
  const i = maps.indexOf(map);
  if (i < 0 || i === state.active) return;
  state.active = i;
  chosen();
  draw();
}

function closeMap(map) {
  if (maps.length === 1) return;
  maps.splice(maps.indexOf(map), 1);
  state.active = clamp(state.active, 0, maps.length - 1);
  showMaps();
  chosen();
  stay();
}

// ---- switches

const switches = {};
function box(key, words, title) {
  const input = el("input", { type: "checkbox", id: key });
  input.addEventListener("change", () => turned(key, input.checked));
  switches[key] = input;
  return el("label", { title }, input, ` ${words}`);
}

function turned(key, on) {
  state[key] = on;
  drawAll();
  if (key !== "log") showPicked();
}

const margin = el("select", { id: "margin" }, ...Object.entries(MARGINS).map(([key, [title]]) => el("option", { value: key }, title)));
margin.addEventListener("change", () => { state.margin = margin.value; draw(); });
const special = box("special", "special tokens", "tokens that stand for no text");
const hiding = el("div", { class: "hiding" }, "hide", box("first", "first key", "on which attention often rests when it has nothing to look at"), special);
const beside = el("button", { type: "button", id: "beside", title: "the chosen head once more, to compare (b)" }, "+ beside");
beside.addEventListener("click", () => besides());
const [csv, png] = ["CSV", "PNG"].map((kind) => el("a", { id: kind.toLowerCase(), href: "#", download: "", title: `what the active map shows, as ${kind}` }, kind));
const tools = el("div", { class: "bar tools" }, box("log", "logarithmic", "colours over five powers of ten"), hiding,
  el("label", {}, "rows: ", margin), el("span", {}, beside, " ", csv, " ", png));

// The next head that is not shown yet.
function besides() {
  if (maps.length >= MOST) return;
  const { layer, head } = active(), shown = new Set(maps.map((map) => address(map.layer, map.head)));
  for (let step = 1; step <= layers[layer].heads; step++) {
    const next = (head + step) % layers[layer].heads;
    if (!shown.has(address(layer, next)) || step === layers[layer].heads) return choose(layer, next, true);
  }
}

function drawAll() {
  for (const [key, input] of Object.entries(switches)) input.checked = state[key];
  margin.value = state.margin;
  drawHeads();
  markHead(active().layer, active().head);
  draw();
  excerpt.redraw?.();
  drawFlow();
}

// ---- a link that brings it all back

let remembering = null;

function remember() {
  clearTimeout(remembering); // a browser refuses to be told of every frame
  remembering = setTimeout(() => history.replaceState(null, "", `#${new URLSearchParams(kept())}`), 120);
  exports();
}

function kept() {
  const link = { maps: maps.map((map) => `${map.layer}.${map.head}`).join(" "), top: state.top.toFixed(2), left: state.left.toFixed(2), span: state.span.toPrecision(6) };
  if (state.active) link.active = state.active;
  if (!state.log) link.scale = "linear";
  for (const key of ["query", "key"]) if (state[key] !== null) link[key] = state[key];
  if (state.from !== "query") link.from = state.from;
  const hide = ["first", "special"].filter((key) => state[key]).join(" ");
  if (hide) link.hide = hide;
  if (state.statistic !== data.statistics[0]?.key) link.statistic = state.statistic;
  if (state.margin !== "entropy") link.rows = state.margin;
  if (root.dataset.theme) link.theme = root.dataset.theme;
  return link;
}

// What a link says, as far as it fits; true where it says where to look.
function recall() {
  const given = new URLSearchParams(location.hash.slice(1)), hide = (given.get("hide") ?? "").split(" ");
  const heads = (given.get("maps") ?? "").split(" ").map((each) => /^(\d+)\.(\d+)$/.exec(each)?.slice(1).map(Number)).filter((each) => each && each[0] < layers.length && each[1] < layers[each[0]].heads);
  const whole = (key) => (/^\d{1,9}$/.test(given.get(key) ?? "") ? Number(given.get(key)) : null);
  const number = (key) => (Number.isFinite(Number(given.get(key) ?? NaN)) ? Number(given.get(key)) : null);
  const first = findings.find((each) => each.head !== null);
  maps.splice(0, maps.length, ...(heads.length ? heads.slice(0, MOST) : [first ? [first.layer, first.head] : [0, 0]]).map(([layer, head]) => mapOf(layer, head)));
  Object.assign(state, {
    active: clamp(whole("active") ?? 0, 0, maps.length - 1), top: number("top") ?? 0, left: number("left") ?? 0, span: Math.max(0, number("span") ?? 0),
    log: given.get("scale") !== "linear", first: hide.includes("first"), special: hide.includes("special"), query: whole("query"), key: whole("key"),
    from: given.get("from") === "key" ? "key" : "query", margin: given.get("rows") in MARGINS ? given.get("rows") : "entropy",
    statistic: data.statistics.some((each) => each.key === given.get("statistic")) ? given.get("statistic") : data.statistics[0]?.key ?? "",
  });
  if (["light", "dark"].includes(given.get("theme"))) root.dataset.theme = given.get("theme");
  return state.span > 0;
}

// What is seen of the active map, to keep.
function exports() {
  const map = active(), level = levelOf(map), cell = 2 ** level, [queries, keys] = shapeOf(map), place = placeOf(map);
  const range = (start, length, n) => [Math.max(0, Math.floor(start / cell)), Math.ceil(Math.min(n, start + length * place.span) / cell)];
  const [row, to_row] = range(place.top, map.box.height, queries), [column, to_column] = range(place.left, map.box.width, keys);
  const parts = { layer: map.layer, head: map.head, level, row, to_row, column, to_column };
  csv.href = `api/export.csv?${new URLSearchParams(parts)}`;
  png.href = `api/export.png?${new URLSearchParams({ ...parts, scale: state.log ? "log" : "linear", theme: isDark() ? "dark" : "light" })}`;
}

// ---- keys

const walk = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const chosenHead = () => grids.get(active().layer)[active().head];
const acts = {
  l: () => turned("log", !state.log),
  f: () => turned("first", !state.first),
  s: () => turned("special", !state.special),
  d: () => toggle.click(),
  t: () => turnTo(state.from === "query" ? "key" : "query"),
  b: () => besides(),
  x: () => { closeMap(active()); active().canvas.focus(); },
  "/": () => document.getElementById("text").focus(),
  "?": () => help.showModal(),
  Escape: () => (state.query === null && state.key === null ? chosenHead().focus() : letGo()),
};
for (let i = 1; i <= MOST; i++) acts[i] = () => maps[i - 1]?.canvas.focus();

document.addEventListener("keydown", (event) => {
  const inside = event.target instanceof Element ? event.target.closest("select, input, .strips, dialog, canvas") : null;
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (inside?.matches("select, input") && !(event.key === "Escape" && inside.matches("input"))) return;
  if (walk[event.key] && event.target.matches?.(".head, body")) {
    const [down, right] = walk[event.key];
    choose(active().layer + down, active().head + right, false);
    chosenHead().focus();
  } else if (event.key === "Enter" && event.target.matches?.(".head")) {
    choose(Number(event.target.dataset.layer), Number(event.target.dataset.head), event.shiftKey);
    active().canvas.focus();
  } else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
});

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  search(document.getElementById("text").value);
});

// ---- the first picture

const about = el("p", { id: "head-name" });
const health = el("ul", { class: "alarms" }), facts = el("dl", { class: "facts" });

function leads(layer, head) {
  const button = el("button", { type: "button" }, called(layer, head));
  button.addEventListener("click", (event) => choose(layer, head ?? 0, event.shiftKey));
  return button;
}

function summary() {
  const counted = (side) => [...new Set(layers.map((layer) => layer.shape[side]))].map((n) => n.toLocaleString("en")).join(" and ");
  return `${plural(layers.length, "layer")}, ${plural(layers.reduce((sum, layer) => sum + layer.heads, 0), "head")} · ${counted(1)} tokens`;
}

function begin() {
  const restored = recall();
  const unseen = Object.entries(data.unseen).map(([path, why]) => el("li", {}, el("b", {}, path), ` ${why}`));
  const dashboard = el("section", { id: "heads" }, el("div", { class: "bar" }, el("h2", {}, "Heads"), el("label", {}, "show ", choice)), meaning, overview, scaleBar,
    el("div", { class: "chosen" }, about, facts, health), judged(leads), unseen.length ? listed("Not seen", unseen) : "");
  const mapsPlace = el("section", { id: "maps" }, el("div", { class: "bar" }, el("h2", {}, "Maps"), tools), pointed, stage);
  explorer.replaceChildren(trouble, foundPlace, el("div", { class: "atlas" }, dashboard, el("div", { class: "looked" }, mapsPlace, tokensPlace, flowPlace)), help);
  document.getElementById("about").textContent = summary();
  choice.addEventListener("change", () => { state.statistic = choice.value; drawAll(); });
  toggle.addEventListener("click", remember);
  addEventListener("hashchange", () => { recall() ? showMaps() : whole(); chosen(); redraw(); });
  drawDashboard();
  showMaps();
  if (!restored) whole();
  chosen();
  redraws.push(drawAll);
  redraw();
  new ResizeObserver(() => drawFlow()).observe(flowPlace);
  root.dataset.ready = "";
}

begin();
