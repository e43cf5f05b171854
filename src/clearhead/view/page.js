// The map of one head, drawn from tiles that the server computes when they are asked for.
// Pairs are measured in tokens: the view shows `span` tokens in each pixel, from query `top` and key `left` on.

const $ = (id) => document.getElementById(id);
const canvas = $("map"), context = canvas.getContext("2d");
const LIGHT = ["#ffffff", "#c6f5e5", "#87e8dd", "#3ed5dd", "#00bed8", "#07a4cc", "#008cc0", "#0073b4", "#0f5aa6", "#24448a", "#26306c", "#211e4e"];
const DARK = ["#1e1d27", "#2c2851", "#33367a", "#2b4aa0", "#0066b7", "#0082b5", "#049db8", "#07b8b9", "#4bd0ae", "#a1deaa", "#dbe9be", "#fcf9ea"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const POWERS = 5; // of ten, on the logarithmic scale
const KEPT = 400; // tiles, at most

const view = { layer: 0, head: 0, top: 0, left: 0, span: 1 };
const tiles = new Map(); // by address: {values, rows, columns, exact, error, picture} or {waiting}
let model, pointer = null, drawing = false;

const layer = () => model.layers[view.layer];
const query = (parts) => new URLSearchParams(parts).toString();

async function ask(path, parts, options) {
  const answer = await fetch(`/api/${path}?${query(parts)}`, options);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

const json = async (path, parts) => (await ask(path, parts)).json();

// Tiles

function levels() {
  return Math.max(1, 1 + Math.ceil(Math.log2(Math.max(...layer().shape) / model.tile)));
}

// The level whose cells are about a pixel wide, or the finest or coarsest there is.
function level() {
  return Math.min(levels() - 1, Math.max(0, Math.floor(Math.log2(view.span) + 0.001)));
}

const address = (at, row, column) => [view.layer, view.head, at, row, column].join("/");

async function load(at, row, column) {
  const key = address(at, row, column), { layer: l, head: h } = view;
  const stopped = new AbortController();
  const old = tiles.get(key);
  tiles.set(key, { ...old, waiting: true, stop: () => stopped.abort() });
  try {
    const parts = { layer: l, head: h, level: at, row, column };
    const answer = await ask("tile", parts, { signal: stopped.signal });
    const values = floats(await answer.arrayBuffer()), header = (name) => Number(answer.headers.get(name));
    const found = { values, rows: header("X-Rows"), columns: header("X-Columns"), exact: header("X-Exact") === 1,
                    error: header("X-Error"), progress: header("X-Progress") };
    tiles.delete(key); // to the end: the first ones are dropped first
    tiles.set(key, found);
    if (pointer) tell();
    if (!found.exact) setTimeout(() => again(key, at, row, column), 1000);
  } catch (error) {
    const gone = error.name !== "AbortError"; // and is not asked for again
    if (gone) say(error.message);
    old && !old.waiting ? tiles.set(key, old) : gone ? tiles.set(key, { failed: true }) : tiles.delete(key);
  }
  for (const first of tiles.keys()) {
    if (tiles.size <= KEPT) break;
    tiles.delete(first);
  }
  draw();
}

// Sampled tiles are asked for again until the exact ones are there, while they are looked at.
function again(key, at, row, column) {
  const known = tiles.get(key);
  if (known && !known.waiting && !known.exact && shown.has(key)) load(at, row, column);
}

function floats(buffer) {
  const bytes = new DataView(buffer);
  return Float32Array.from({ length: buffer.byteLength / 4 }, (_, i) => bytes.getFloat32(4 * i, true));
}

// Colours

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function strength(value, most) {
  if (!(value > 0)) return 0;
  const share = Math.min(1, value / most);
  return $("log").checked ? Math.max(0, 1 + Math.log10(share) / POWERS) : share;
}

function table() {
  const scale = (dark.matches ? DARK : LIGHT).map(channels), found = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (scale.length - 1), below = Math.min(Math.floor(at), scale.length - 2);
    for (let c = 0; c < 3; c++) found[3 * i + c] = scale[below][c] + (scale[below + 1][c] - scale[below][c]) * (at - below);
  }
  return found;
}

function picture(tile, most, colours, look) {
  if (tile.look === look) return tile.picture;
  const pixels = new ImageData(tile.columns, tile.rows);
  for (let i = 0; i < tile.values.length; i++) {
    const at = 3 * Math.round(255 * strength(tile.values[i], most));
    pixels.data.set([colours[at], colours[at + 1], colours[at + 2], 255], 4 * i);
  }
  tile.picture = new OffscreenCanvas(tile.columns, tile.rows);
  tile.picture.getContext("2d").putImageData(pixels, 0, 0);
  tile.look = look;
  return tile.picture;
}

// Drawing

let shown = new Set();

function size() {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return [width, height];
}

// The tiles of a level that the view meets: [row, column].
function inView(at) {
  const [width, height] = size(), step = model.tile * 2 ** at, [queries, keys] = layer().shape;
  const range = (start, length, n) => {
    const first = Math.max(0, Math.floor(start / step)), last = Math.min(Math.ceil(n / step), Math.ceil((start + length) / step));
    return Array.from({ length: Math.max(0, last - first) }, (_, i) => first + i);
  };
  return range(view.top, height * view.span, queries).flatMap((row) => range(view.left, width * view.span, keys).map((column) => [row, column]));
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    paint();
  });
}

function paint() {
  const [width, height] = size(), at = level(), wanted = inView(at);
  shown = new Set(wanted.map(([row, column]) => address(at, row, column)));
  for (const [key, tile] of tiles) if (tile.waiting && !shown.has(key)) tile.stop();
  for (const [row, column] of wanted) if (!tiles.has(address(at, row, column))) load(at, row, column);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  const known = wanted.map(([row, column]) => tiles.get(address(at, row, column))).filter((tile) => tile?.values);
  const most = Math.max(...known.map((tile) => tile.most ??= tile.values.reduce((a, b) => Math.max(a, b), 0)), 1e-30);
  for (let above = levels() - 1; above >= at; above--) {
    for (const [row, column] of above === at ? wanted : inView(above)) place(above, row, column, most);
  }
  frame();
  state(known, wanted.length);
  remember();
}

// A tile where it lies; coarser ones stand in until the finer ones are there.
function place(at, row, column, most) {
  const tile = tiles.get(address(at, row, column));
  if (!tile?.values) return;
  const cell = 2 ** at, step = model.tile * cell, [queries, keys] = layer().shape;
  const drawn = picture(tile, most, table(), `${most} ${$("log").checked} ${dark.matches}`);
  // on whole pixels, or seams would show between tiles
  const x = (key) => Math.round((key - view.left) / view.span), y = (row) => Math.round((row - view.top) / view.span);
  const [left, top] = [x(column * step), y(row * step)];
  // the last cell may hold fewer tokens than the others: it is cut off where the map ends
  context.save();
  context.beginPath();
  context.rect(left, top, x(Math.min(keys, (column + 1) * step)) - left, y(Math.min(queries, (row + 1) * step)) - top);
  context.clip();
  context.drawImage(drawn, left, top, x(column * step + tile.columns * cell) - left, y(row * step + tile.rows * cell) - top);
  context.restore();
}

function frame() {
  const [queries, keys] = layer().shape;
  context.strokeStyle = getComputedStyle(document.body).getPropertyValue("--line");
  context.strokeRect(-view.left / view.span - 0.5, -view.top / view.span - 0.5, keys / view.span + 1, queries / view.span + 1);
}

function state(known, wanted) {
  const waiting = wanted - known.length, sampled = known.filter((tile) => !tile.exact);
  const parts = [`level ${level()}: a cell is ${2 ** level()} × ${2 ** level()} tokens`];
  if (waiting) parts.push(`${waiting} tiles on their way`);
  if (sampled.length) {
    const error = Math.max(...sampled.map((tile) => tile.error)), progress = Math.max(...sampled.map((tile) => tile.progress));
    parts.push(`from sampled rows, off by about ${(100 * error).toPrecision(2)} % (exact: ${Math.floor(100 * progress)} % done)`);
  } else if (known.length) parts.push("exact");
  $("state").textContent = parts.join("; ");
  $("state").dataset.waiting = waiting;
  $("state").dataset.exact = !sampled.length && !waiting;
}

// Reading

const names = new Map(); // of tokens, by layer, side and hundred

async function name(side, at) {
  const from = at - (at % 128), key = [view.layer, side, from].join("/");
  if (!names.has(key)) names.set(key, json("tokens", { layer: view.layer, side, from, to: from + 128 }));
  return (await names.get(key)).names[at - from];
}

// The cell under a point of the canvas, with its value if that is known.
function cellAt(x, y) {
  const at = level(), cell = 2 ** at, [queries, keys] = layer().shape;
  const row = view.top + y * view.span, key = view.left + x * view.span;
  if (row < 0 || key < 0 || row >= queries || key >= keys) return null;
  const i = Math.floor(row / cell), j = Math.floor(key / cell);
  const tile = tiles.get(address(at, Math.floor(i / model.tile), Math.floor(j / model.tile)));
  const value = tile?.values?.[(i % model.tile) * tile.columns + (j % model.tile)];
  const ends = (start, n) => [start * cell, Math.min(n, (start + 1) * cell) - 1];
  return { rows: ends(i, queries), keys: ends(j, keys), value, exact: tile?.exact };
}

let asked = 0;

async function tell() {
  const mine = ++asked, cell = pointer && cellAt(...pointer);
  if (!cell) return say("");
  const side = async (which, word, [first, last]) => {
    const from = await name(which, first);
    return first === last ? `${word} ${first} '${from}'` : `${word} ${first} '${from}' to ${last} '${await name(which, last)}'`;
  };
  const [rows, keys] = await Promise.all([side("rows", "query", cell.rows), side("keys", "key", cell.keys)]);
  const value = cell.value === undefined ? "not here yet" : cell.value.toPrecision(4) + (cell.exact ? "" : " (sampled)");
  if (mine === asked) say(`${rows} gives ${keys}: ${value}`);
}

const say = (text) => { $("read").textContent = text; };

// Moving

function zoom(factor, x, y) {
  const [width, height] = size(), [queries, keys] = layer().shape, widest = Math.max(keys / width, queries / height);
  const span = Math.min(Math.max(view.span * factor, 1 / 32), Math.max(1, widest) * 1.2);
  view.left += x * (view.span - span);
  view.top += y * (view.span - span);
  view.span = span;
  stay();
}

function stay() {
  const [width, height] = size(), [queries, keys] = layer().shape;
  const within = (start, length, n) => Math.min(Math.max(start, Math.min(0, n - length)), Math.max(0, n - length));
  view.left = within(view.left, width * view.span, keys);
  view.top = within(view.top, height * view.span, queries);
  draw();
  tell();
}

function whole() {
  const [width, height] = size(), [queries, keys] = layer().shape;
  Object.assign(view, { top: 0, left: 0, span: Math.max(keys / width, queries / height) });
  stay();
}

const held = new Map(); // pointers that are down
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, [event.offsetX, event.offsetY]);
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => held.delete(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  const here = [event.offsetX, event.offsetY], before = held.get(event.pointerId);
  pointer = here;
  if (!before) return tell();
  const others = [...held].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
  held.set(event.pointerId, here);
  if (others.length) {
    const far = ([x, y]) => Math.hypot(x - others[0][0], y - others[0][1]) || 1;
    return zoom(far(before) / far(here), ...others[0]);
  }
  view.left -= (here[0] - before[0]) * view.span;
  view.top -= (here[1] - before[1]) * view.span;
  stay();
});
canvas.addEventListener("pointerleave", () => { pointer = null; tell(); });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(2 ** (event.deltaY / 240), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const [width, height] = size(), step = 0.25 * view.span;
  const moves = { ArrowLeft: [-width, 0], ArrowRight: [width, 0], ArrowUp: [0, -height], ArrowDown: [0, height] };
  if (moves[event.key]) {
    view.left += step * moves[event.key][0];
    view.top += step * moves[event.key][1];
    stay();
  } else if (event.key === "+" || event.key === "=") zoom(0.5, width / 2, height / 2);
  else if (event.key === "-") zoom(2, width / 2, height / 2);
  else if (event.key === "Home") whole();
  else return;
  event.preventDefault();
});

// Search

$("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (!text) return $("found").replaceChildren();
  const answer = await json("search", { layer: view.layer, side: "keys", text });
  $("found").replaceChildren(...answer.found.map(({ at, name }) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `key ${at} '${name}'` });
    button.addEventListener("click", () => attenders(at, name));
    const line = document.createElement("li");
    line.append(button);
    return line;
  }));
  say(answer.found.length ? `${answer.more ? "the first " : ""}${answer.found.length} tokens with '${text}'` : `no token holds '${text}'`);
});

async function attenders(at, token) {
  const [width] = size(), answer = await json("column", { layer: view.layer, head: view.head, key: at });
  view.left = at - (width * view.span) / 2;
  stay();
  const all = answer.looked_at === answer.of ? "" : ` (of ${answer.looked_at} of ${answer.of} rows)`;
  const rows = answer.rows.map((row) => `${row.at} '${row.name}' ${row.weight.toPrecision(3)}`).join(", ");
  say(`key ${at} '${token}' is attended to most by${all}: ${rows || "nobody"}`);
}

// Export, and a link that restores the view

function remember() {
  const [width, height] = size(), at = level(), cell = 2 ** at, [queries, keys] = layer().shape;
  const range = (start, length, n) => [Math.max(0, Math.floor(start / cell)), Math.ceil(Math.min(n, start + length) / cell)];
  const [row, to_row] = range(view.top, height * view.span, queries), [column, to_column] = range(view.left, width * view.span, keys);
  const parts = { layer: view.layer, head: view.head, level: at, row, to_row, column, to_column };
  $("csv").href = `/api/export.csv?${query(parts)}`;
  $("png").href = `/api/export.png?${query({ ...parts, scale: $("log").checked ? "log" : "linear", theme: dark.matches ? "dark" : "light" })}`;
  const link = { layer: view.layer, head: view.head, top: view.top.toFixed(2), left: view.left.toFixed(2), span: view.span.toPrecision(6), log: Number($("log").checked) };
  history.replaceState(null, "", `#${query(link)}`);
}

function restore() {
  const given = new URLSearchParams(location.hash.slice(1)), number = (key) => Number(given.get(key));
  if (!given.has("span")) return false;
  view.layer = Math.min(model.layers.length - 1, Math.max(0, Math.trunc(number("layer")) || 0));
  view.head = Math.min(layer().heads - 1, Math.max(0, Math.trunc(number("head")) || 0));
  Object.assign(view, { top: number("top") || 0, left: number("left") || 0, span: number("span") > 0 ? number("span") : 1 });
  $("log").checked = given.get("log") !== "0";
  return true;
}

// Layers and heads

function options(select, texts, chosen) {
  select.replaceChildren(...texts.map((text, i) => new Option(text, i, false, i === chosen)));
}

function heads() {
  options($("head"), Array.from({ length: layer().heads }, (_, i) => String(i)), view.head);
}

$("layer").addEventListener("change", () => {
  const before = layer().shape.join();
  view.layer = Number($("layer").value);
  view.head = Math.min(view.head, layer().heads - 1);
  heads();
  layer().shape.join() === before ? stay() : whole();
});
$("head").addEventListener("change", () => {
  view.head = Number($("head").value);
  stay();
});
$("log").addEventListener("change", draw);
dark.addEventListener("change", draw);
addEventListener("resize", () => model && stay());

async function begin() {
  try {
    model = await json("model", {});
  } catch (error) {
    return say(error.message);
  }
  document.title = $("title").textContent = model.title;
  const restored = restore();
  options($("layer"), model.layers.map(({ name, turn }) => (turn ? `${name} (run ${turn + 1})` : name)), view.layer);
  heads();
  restored ? stay() : whole();
  canvas.dataset.ready = "";
}

begin();
