// The explorer: a word, all of its heads, and one of them large

const explorer = document.getElementById("explorer");
const state = { example: 0, path: null, head: 0, stretch: false, cell: null };
const tabs = el("div", { role: "tablist", "aria-label": "Examples" });
const overview = el("div", { class: "overview", role: "tabpanel", id: "overview" });
const name = el("h3", { id: "head-name" });
const read = el("output", { class: "read", "aria-live": "polite" });
const picture = svg("svg", { tabindex: 0, role: "application", "aria-roledescription": "heatmap", "aria-labelledby": "head-name" });
const legend = el("div", { class: "colours" });

const groups = () => attention.examples[state.example].groups;
const layers = () => groups().flatMap((group) => group.layers);
const layer = () => layers().find((each) => each.path === state.path);
const kind = (group) => (group.name === "Attention" ? group.name : `${group.name} attention`);
const quoted = (text) => `'${text}'`;

function choose(path, head) {
  Object.assign(state, { path, head, cell: null });
  for (const button of overview.querySelectorAll(".head")) {
    const mine = button.dataset.path === path && Number(button.dataset.head) === head;
    button.setAttribute("aria-pressed", mine);
    button.tabIndex = mine ? 0 : -1;
  }
  drawLarge();
}

function thumbnail(group, each, head) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const title = `${kind(group)}, ${each.name}, head ${head}`;
  const button = el("button", { class: "head", type: "button", title, "aria-label": title, "data-path": each.path, "data-head": head }, canvas);
  const weights = unpack(each, head);
  paint(canvas, each.columns.length, each.rows.length, (i) => weights[i], range(weights, state.stretch));
  button.addEventListener("click", () => {
    choose(each.path, head);
    large.scrollIntoView({ block: "nearest" });
  });
  return button;
}

// The heads of a layer, side by side, as small as their number asks for.
function strip(buttons) {
  const line = el("div", {}, ...buttons);
  line.style.setProperty("--heads", Math.max(buttons.length, 4));
  return line;
}

function drawOverview() {
  const row = (group, each) => el("div", { class: "layer" }, el("span", { title: each.path }, each.name),
    strip(each.heads.map((_, head) => thumbnail(group, each, head))));
  overview.replaceChildren(...groups().map((group) => el("div", { role: "group", "aria-label": kind(group) },
    el("h3", {}, kind(group)), el("div", { class: "heads" }, ...group.layers.map((each) => row(group, each))))));
}

// Arrow keys walk over the heads as they stand on the page; Enter goes into the large picture.
overview.addEventListener("keydown", (event) => {
  const button = event.target.closest(".head");
  const all = layers();
  const line = button ? all.findIndex((each) => each.path === button.dataset.path) : -1;
  if (line < 0) return;
  const [down, across] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [];
  if (event.key === "Enter") {
    choose(button.dataset.path, Number(button.dataset.head));
    picture.focus();
    pick(0, 0);
  } else if (down !== undefined) {
    const next = all[clamp(line + down, 0, all.length - 1)];
    choose(next.path, clamp(Number(button.dataset.head) + across, 0, next.heads.length - 1));
    overview.querySelector('[aria-pressed="true"]').focus();
  } else return;
  event.preventDefault();
});

// ---- one head, large

let shown = null; // what the large picture holds: its weights, and where its cells are

function drawLarge() {
  const each = layer();
  const weights = unpack(each, state.head);
  const limits = range(weights, state.stretch);
  const [rows, columns] = [each.rows.length, each.columns.length];
  const longest = (labels) => Math.min(Math.max(...labels.map((text) => text.length)), 16);
  const left = 30 + 8 * longest(each.rows);
  const room = Math.max(large.clientWidth, 240) - left - 6;
  const cell = clamp(Math.floor(Math.min(room / columns, 560 / rows)), 3, 46);
  const wide = each.columns.map((text) => Math.min(text.length, 16) * 8 + 3 > cell);
  const many = wide.filter(Boolean).length > columns / 4; // where many names are too wide, all are turned
  const below = (wide.includes(true) ? 8 * longest(each.columns) + 10 : 18) + 22;
  shown = { each, weights, left, cell, rows, columns };

  const [width, height] = [columns * cell, rows * cell];
  picture.replaceChildren();
  picture.setAttribute("width", left + width + 6);
  picture.setAttribute("height", height + below + 4);
  picture.setAttribute("viewBox", `0 -2 ${left + width + 6} ${height + below + 4}`);
  for (let i = 0; i < weights.length; i++) {
    const at = { x: left + (i % columns) * cell, y: Math.floor(i / columns) * cell, width: cell, height: cell };
    picture.append(svg("rect", { ...at, fill: `rgb(${colour(weights[i], limits)})`, "shape-rendering": "crispEdges" }));
  }
  picture.append(svg("rect", { class: "frame", x: left, y: 0, width, height }));
  each.rows.forEach((text, i) => put(text, i, "row", { x: left - 7, y: (i + 0.5) * cell + 4.5, class: "end" }));
  each.columns.forEach((text, j) => {
    const x = left + (j + 0.5) * cell;
    put(text, j, "column", many || wide[j]
      ? { transform: `translate(${x + 4.5} ${height + 7}) rotate(-90)`, class: "end" }
      : { x, y: height + 16, class: "middle" });
  });
  picture.append(
    svg("text", { class: "axis middle", transform: `translate(12 ${height / 2}) rotate(-90)` }, height < 110 ? "query" : "query (attends)"),
    svg("text", { class: "axis middle", x: left + width / 2, y: height + below - 4 }, width < 130 ? "key" : "key (attended to)"),
    svg("rect", { class: "pick", visibility: "hidden", rx: 2 }),
  );
  name.textContent = `${state.path}, head ${state.head}`;
  drawLegend(limits, weights);
  if (state.cell) pick(...state.cell);
  else read.replaceChildren("Point at a cell to read it; on the keyboard, Enter and the arrow keys.");

  // Names of an axis are thinned where they would touch.
  function put(text, i, axis, attributes) {
    if (i % Math.ceil(13 / cell) === 0) {
      const cut = text.length > 16 ? `${text.slice(0, 15)}…` : text;
      picture.append(svg("text", { ...attributes, [`data-${axis}`]: i }, cut.trim() ? cut : "␣"));
    }
  }
}

function drawLegend([low, high], weights) {
  const [bar, stretch] = [colourBar(), stretchBox("stretch", state, draw)];
  const nodes = [String(Number(low.toFixed(4))), bar, `${Number(high.toFixed(4))} attention weight`];
  if (weights.some(Number.isNaN)) {
    const swatch = el("i");
    swatch.style.background = attention.notFinite;
    nodes.push(swatch, "NaN or infinite");
  }
  legend.replaceChildren(...nodes, el("label", { for: "stretch" }, stretch, " each head up to its own largest"));
}

function pick(row, column) {
  const { each, weights, left, cell, rows, columns } = shown;
  [row, column] = [clamp(row, 0, rows - 1), clamp(column, 0, columns - 1)];
  state.cell = [row, column];
  const mark = picture.querySelector(".pick");
  const at = { x: left + column * cell, y: row * cell, width: cell, height: cell, visibility: "visible" };
  for (const [key, value] of Object.entries(at)) mark.setAttribute(key, value);
  picture.querySelectorAll("[data-row], [data-column]").forEach((text) => {
    text.classList.toggle("here", Number(text.dataset.row) === row || Number(text.dataset.column) === column);
  });
  const line = weights.slice(row * columns, (row + 1) * columns);
  const said = (value) => (Number.isNaN(value) ? "NaN or infinity" : value.toFixed(4));
  const most = [...line.keys()].filter((j) => !Number.isNaN(line[j])).sort((a, b) => line[b] - line[a]).slice(0, 3);
  read.replaceChildren(
    `query ${quoted(each.rows[row])} gives `, el("b", {}, said(line[column])), ` to key ${quoted(each.columns[column])}`,
    el("small", {}, `most: ${most.map((j) => `${quoted(each.columns[j])} ${said(line[j])}`).join(", ")}`),
  );
}

picture.addEventListener("pointermove", (event) => {
  const area = picture.getBoundingClientRect();
  const scale = picture.viewBox.baseVal.width / area.width;
  const column = Math.floor(((event.clientX - area.left) * scale - shown.left) / shown.cell);
  const row = Math.floor(((event.clientY - area.top) * scale - 2) / shown.cell);
  if (row >= 0 && row < shown.rows && column >= 0 && column < shown.columns) pick(row, column);
});
picture.addEventListener("focus", () => picture.matches(":focus-visible") && pick(...(state.cell || [0, 0])));
picture.addEventListener("keydown", (event) => {
  const [row, column] = state.cell || [0, 0];
  const to = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1], Home: [row, 0], End: [row, Infinity],
  }[event.key];
  if (to) pick(...to);
  else if (event.key === "Escape") overview.querySelector('[aria-pressed="true"]').focus();
  else return;
  event.preventDefault();
});

// ---- tabs, and the first picture

function open(index) {
  state.example = index;
  [...tabs.children].forEach((tab, i) => {
    tab.setAttribute("aria-selected", i === index);
    tab.tabIndex = i === index ? 0 : -1;
  });
  draw();
}

function draw() {
  const cross = groups().find((group) => group.name === "Cross") || groups()[0];
  const kept = layer() || cross.layers[0];
  drawOverview();
  choose(kept.path, Math.min(state.head, kept.heads.length - 1));
}

const large = el("div", { class: "large" }, name, read, picture, legend);
if (attention.examples.length && attention.examples.every((example) => example.groups.length)) {
  attention.examples.forEach((example, i) => {
    const tab = el("button", { role: "tab", type: "button", "aria-controls": "overview" }, example.title);
    tab.addEventListener("click", () => open(i));
    tabs.append(tab);
  });
  tabs.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    open((state.example + move + tabs.children.length) % tabs.children.length);
    tabs.children[state.example].focus();
  });
  explorer.replaceChildren(tabs, el("div", { class: "explorer" }, overview, large));
  open(0);
  redraws.push(draw);
  let width = large.clientWidth;
  new ResizeObserver(() => {
    if (large.clientWidth !== width) {
      width = large.clientWidth;
      drawLarge();
    }
  }).observe(large);
} else {
  explorer.replaceChildren(el("p", { class: "absent" }, "none was kept"));
}
