// The dashboard of a page about heads: all of them in the colours of a statistic, or as maps where the page holds those.
// The page has a `state` with the chosen statistic, layer and head, a `choose` that is told of clicks, and for maps `drawThumbnail`.

const { layers, axes, findings } = data;
const GROUPS = { "": "Attention", encoder: "Encoder", decoder: "Decoder", cross: "Cross-attention" };
const grids = new Map(); // the buttons of each layer

// ---- numbers

// What a head is called, with its stack where there are several.
const several = new Set(layers.map((layer) => layer.group)).size > 1;
const called = (i, head) => `${several ? `${GROUPS[layers[i].group]}, ` : ""}${layers[i].name}, ${head === null ? "all heads" : `head ${head}`}`;
const number = (value) => (value === null || value === undefined ? "not measured" : String(Number(value.toPrecision(4))));

// ---- the dashboard

const overview = el("div", { class: "overview", id: "overview" });
const choice = el("select", { id: "statistic" }, ...("numbers" in data ? [el("option", { value: "map" }, "maps")] : []),
  ...data.statistics.map((each) => el("option", { value: each.key }, each.title)));
const meaning = el("p", { class: "muted", id: "meaning" });
const scaleBar = el("div", { class: "colours" });
const unknown = { key: "", title: "not measured", words: "No statistics of rows were measured.", high: 1 };
const statistic = () => data.statistics.find((each) => each.key === state.statistic) ?? unknown;
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
    button.addEventListener("click", (event) => choose(i, head, event.shiftKey));
    return button;
  });
  grids.set(i, buttons);
  return buttons;
}

function limitsOf() {
  const known = layers.flatMap((layer) => layer.statistics[state.statistic] ?? []).filter((value) => value !== null);
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
  const value = layers[i].statistics[state.statistic]?.[head] ?? null;
  const shade = colour(value === null ? NaN : value, limits, unmeasured());
  button.replaceChildren(el("span", {}, value === null ? "" : brief(value)));
  button.style.backgroundColor = `rgb(${shade})`;
  button.style.color = inkOn(shade);
  named(button, i, head, `, ${statistic().title} ${number(value)}`);
}

const brief = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

function drawScale(maps, [low, high]) {
  const nodes = maps ? ["0", colourBar(), state.stretch ? "each head's largest weight" : "1"] : [number(low), colourBar(), number(high)];
  for (const [kind, words] of [["alarm", "alarm"], ["note", "note"]])
    if (findings.some((each) => (each.severity === "alarm") === (kind === "alarm"))) nodes.push(el("i", { class: `ring ${kind}` }), words);
  if (!maps && layers.some((layer) => layer.statistics[state.statistic]?.includes(null))) {
    const swatch = el("i");
    swatch.style.background = unmeasured();
    nodes.push(swatch, "not measured");
  }
  scaleBar.replaceChildren(...nodes);
}

// Which head is chosen, as it can be seen and as the Tab key finds it.
function markHead(layer, head) {
  for (const [i, buttons] of grids) buttons.forEach((button, at) => {
    const mine = i === layer && at === head;
    button.setAttribute("aria-pressed", mine);
    button.tabIndex = mine ? 0 : -1;
  });
}

// ---- lists that lead to heads

function listed(words, lines) {
  return lines.length ? el("details", { open: "" }, el("summary", {}, words), el("ul", { class: "alarms" }, ...lines)) : "";
}
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// What health found; `leads` makes the button that leads to a layer and head.
function judged(leads) {
  const loud = findings.filter((each) => each.severity === "alarm").length;
  const counts = [[loud, "alarm"], [findings.length - loud, "note"]].filter(([count]) => count);
  return listed(counts.map(([count, word]) => plural(count, word)).join(", "),
    findings.map((each) => el("li", { class: each.severity }, leads(each.layer, each.head), " ", each.sentence)));
}
const sentences = (layer, head) => healthOf(layer, head).map((each) => el("li", { class: each.severity }, el("b", {}, `${each.severity}: `), each.sentence));
