// The explorer: a word, all of its heads, and one of them large

const explorer = document.getElementById("explorer");
const state = { example: 0, path: null, head: 0, stretch: false, log: false, cell: null };
const tabs = el("div", { role: "tablist", "aria-label": "Examples" });
const overview = el("div", { class: "overview", role: "tabpanel", id: "overview" });
const name = el("h3", { id: "head-name" });
const map = headMap(state, "head-name", draw);

const groups = () => attention.examples[state.example].groups;
const layers = () => groups().flatMap((group) => group.layers);
const layer = () => layers().find((each) => each.path === state.path);
const kind = (group) => (group.name === "Attention" ? group.name : `${group.name} attention`);

function choose(path, head) {
  if (path !== state.path || head !== state.head) state.cell = null;
  Object.assign(state, { path, head });
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
    map.enter();
  } else if (down !== undefined) {
    const next = all[clamp(line + down, 0, all.length - 1)];
    choose(next.path, clamp(Number(button.dataset.head) + across, 0, next.heads.length - 1));
    overview.querySelector('[aria-pressed="true"]').focus();
  } else return;
  event.preventDefault();
});

// ---- one head, large

function drawLarge() {
  const each = layer();
  name.textContent = `${state.path}, head ${state.head}`;
  map.show({ rows: each.rows, columns: each.columns, weights: unpack(each, state.head), decimals: 4 });
}

map.node.addEventListener("keydown", (event) => {
  if (event.key === "Escape") overview.querySelector('[aria-pressed="true"]').focus();
});

// ---- tabs, and the first picture

function open(index) {
  if (index !== state.example) state.cell = null;
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

const large = el("div", { class: "large" }, name, map.node);
const shown = el("div", { class: "explorer" }, overview, large);

function drawTabs() {
  const titles = attention.examples.map((example) => example.title);
  if (titles.join("\n") === [...tabs.children].map((tab) => tab.textContent).join("\n")) return;
  tabs.replaceChildren(...titles.map((title, i) => {
    const tab = el("button", { role: "tab", type: "button", "aria-controls": "overview" }, title);
    tab.addEventListener("click", () => open(i));
    return tab;
  }));
}

tabs.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!move) return;
  event.preventDefault();
  open((state.example + move + tabs.children.length) % tabs.children.length);
  tabs.children[state.example].focus();
});

let wide = 0;
new ResizeObserver(() => {
  if (large.clientWidth === wide || !large.clientWidth) return;
  wide = large.clientWidth;
  drawLarge();
}).observe(large);

// The examples, with the same one and the same head chosen as before where they are there.
function drawExamples(examples) {
  attention.examples = examples;
  if (!examples.length || !examples.every((example) => example.groups.length)) {
    explorer.replaceChildren(el("p", { class: "absent" }, "none was kept"));
    return;
  }
  drawTabs();
  if (!shown.isConnected) explorer.replaceChildren(tabs, shown);
  wide = large.clientWidth;
  keepingFocus(shown, () => open(Math.min(state.example, examples.length - 1)));
}
redraws.push(() => shown.isConnected && draw());
drawExamples(attention.examples);
