// Maps side by side, all of the same place: drawn from tiles, with what keys received above and a statistic of rows beside
// Places are told in tokens: a map shows `span` tokens in each pixel, from query `top` and key `left` on.

const POWERS = 1e-5; // of the largest value, the least on the logarithmic scale
const NAMED = 12; // pixels of a cell from which on tokens are named
const MOST = 6; // maps side by side
const MARGINS = {
  entropy: ["entropy", "nats"], max_weight: ["largest weight", ""], sink: ["first key", ""], distance: ["distance", "tokens"],
};
let cursor = null; // the query and key that are pointed at, or walked to: {row, key}
const maps = []; // what is shown
const stage = el("div", { class: "maps" });

function mapOf(layer, head) {
  const canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": "attention map" });
  const map = {
    layer, head, canvas, box: null,
    name: el("h3"), layers: el("select", { "aria-label": "layer" }, ...layers.map((_, i) => el("option", { value: i }, called(i, "").replace(/, head $/, "")))),
    heads: el("select", { "aria-label": "head" }), close: el("button", { type: "button", class: "close", "aria-label": "close this map", title: "close (x)" }, "×"),
    read: el("output", { class: "value" }), legend: el("span", { class: "colours" }), state: el("p", { class: "muted state" }),
  };
  map.node = el("article", { class: "one" }, el("div", { class: "bar" }, map.name, el("span", {}, map.layers, " ", map.heads, " ", map.close)), canvas,
    el("div", { class: "foot" }, map.read, map.legend), map.state);
  map.layers.addEventListener("change", () => { activate(map); choose(Number(map.layers.value), Math.min(map.head, layers[map.layers.value].heads - 1)); });
  map.heads.addEventListener("change", () => { activate(map); choose(map.layer, Number(map.heads.value)); });
  map.close.addEventListener("click", () => closeMap(map));
  map.node.addEventListener("focusin", () => activate(map));
  map.node.addEventListener("pointerdown", () => activate(map));
  listen(map);
  titled(map);
  new ResizeObserver(() => { measure(map); stay(); }).observe(canvas);
  return map;
}

// The head's name, said in the frame that shows its weights.
function titled(map) {
  const title = called(map.layer, map.head);
  if (map.name.textContent === title) return;
  map.layers.value = map.layer;
  map.heads.replaceChildren(...Array.from({ length: layers[map.layer].heads }, (_, i) => el("option", { value: i }, `head ${i}`)));
  map.heads.value = map.head;
  map.name.textContent = title;
  map.canvas.setAttribute("aria-label", `${title}: a row for each query, a column for each key; arrow keys walk, Enter picks`);
}

function showMaps() {
  stage.replaceChildren(...maps.map((map) => map.node));
  stage.classList.toggle("many", maps.length > 2);
  for (const map of maps) map.close.hidden = maps.length === 1;
  draw();
}

// Where the map itself lies on its canvas: room is left for names, and for the numbers along its sides.
function measure(map) {
  const { clientWidth: width, clientHeight: height } = map.canvas;
  const ratio = devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (map.canvas.width !== wide || map.canvas.height !== high) [map.canvas.width, map.canvas.height] = [wide, high];
  const left = Math.round(clamp(width * 0.17, 52, 96)), right = width < 360 ? 40 : 60, bottom = Math.round(clamp(height * 0.16, 48, 84));
  map.box = { left, top: 42, width: Math.max(40, width - left - right), height: Math.max(40, height - 42 - bottom), ratio };
  return map.box;
}

// ---- where a map stands

const within = (start, length, n) => clamp(start, Math.min(0, n - length), Math.max(0, n - length));

function placeOf(map) {
  const box = map.box ?? measure(map), [queries, keys] = shapeOf(map);
  return { top: within(state.top, box.height * state.span, queries), left: within(state.left, box.width * state.span, keys), span: state.span };
}

// The level whose cells are about a pixel wide, or the finest or coarsest there is.
const levelOf = (map) => clamp(Math.floor(Math.log2(state.span) + 0.001), 0, levelsOf(map) - 1);

// The tiles of a level that are in view: numbers of their rows and of their columns.
function inView(map, level) {
  const step = data.tile * 2 ** level, place = placeOf(map);
  const range = (start, length, n) => {
    const first = Math.max(0, Math.floor(start / step)), last = Math.min(Math.ceil(n / step), Math.ceil((start + length) / step));
    return Array.from({ length: Math.max(0, last - first) }, (_, i) => first + i);
  };
  const [queries, keys] = shapeOf(map);
  return [range(place.top, map.box.height * place.span, queries), range(place.left, map.box.width * place.span, keys)];
}
const pairsOf = ([rows, columns]) => rows.flatMap((row) => columns.map((column) => [row, column]));

function zoom(factor, row, key) {
  const box = active().box, [queries, keys] = shapeOf(active()), widest = Math.max(keys / box.width, queries / box.height);
  const span = clamp(state.span * factor, 1 / 40, Math.max(1, widest) * 1.2);
  Object.assign(state, { left: key - ((key - state.left) * span) / state.span, top: row - ((row - state.top) * span) / state.span, span });
  stay();
}

function stay() {
  if (!maps.length) return;
  const { top, left } = placeOf(active());
  Object.assign(state, { top, left });
  draw();
}

function whole() {
  const box = active().box ?? measure(active()), [queries, keys] = shapeOf(active());
  Object.assign(state, { top: 0, left: 0, span: Math.max(keys / box.width, queries / box.height) });
  stay();
}

// Bring a query or key into view; what is null stays where it is.
function reveal(row, key) {
  const box = active().box ?? measure(active());
  if (row !== null && (row < state.top || row >= state.top + box.height * state.span)) state.top = row - (box.height * state.span) / 2;
  if (key !== null && (key < state.left || key >= state.left + box.width * state.span)) state.left = key - (box.width * state.span) / 2;
  stay();
}

// ---- colours: keys that are hidden are left out of the range

function hiddenKeys(layer) {
  const kinds = [state.first && "first", state.special && "special"].filter(Boolean).join(" ");
  const kept = (layers[layer].hidden ??= {});
  kept[kinds] ??= new Set([...(state.special ? data.special[layers[layer].axes[1]] : []), ...(state.first ? [0] : [])]);
  return Object.assign(kept[kinds], { kinds });
}

function mostOf(tile, hidden, level, column) {
  const kept = (tile.most ??= {});
  if (hidden.kinds in kept) return kept[hidden.kinds];
  const blank = new Set([...hidden].map((key) => (key >> level) - column * data.tile));
  let most = 0;
  for (let i = 0; i < tile.values.length; i++) if (tile.values[i] > most && !blank.has(i % tile.columns)) most = tile.values[i];
  return (kept[hidden.kinds] = most);
}

function pictureOf(tile, limits) {
  const look = `${limits} ${isDark()}`;
  if (tile.look !== look) {
    tile.picture ??= el("canvas");
    paint(tile.picture, tile.columns, tile.rows, (i) => tile.values[i], limits);
    tile.look = look;
  }
  return tile.picture;
}

// ---- drawing

let drawing = false, waiting = null, drawn = null;
const firstPicture = new Promise((resolve) => { drawn = resolve; }); // all else that is asked for comes behind it

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawMaps();
  });
}

// Again in a while, when more may be known.
function later() {
  waiting ??= setTimeout(() => { waiting = null; draw(); }, AGAIN);
}

function drawMaps() {
  const wanted = new Set(), ready = maps.map((map) => drawMap(map, wanted));
  for (const [key, tile] of tiles) if (tile.waiting && !wanted.has(key)) tile.stop();
  tellPlace(); // in the frame that shows its value
  stage.dataset.exact = ready.every(Boolean);
  if (maps.every((map) => map.there)) drawn();
  remember();
}

function drawMap(map, wanted) {
  const box = map.box ?? measure(map), level = levelOf(map), range = inView(map, level), pairs = pairsOf(range);
  titled(map);
  for (const [row, column] of pairs) wanted.add(address(map.layer, map.head, level, row, column));
  const asked = pairs.map(([row, column]) => ({ tile: wantTile(map, level, row, column), column })), known = asked.filter(({ tile }) => tile?.values);
  map.there = asked.every(({ tile }) => tile?.values || tile?.failed);
  const hidden = hiddenKeys(map.layer);
  const most = known.reduce((all, { tile, column }) => Math.max(all, mostOf(tile, hidden, level, column)), 0)
    || known.reduce((all, { tile }) => Math.max(all, tile.values.reduce((a, b) => Math.max(a, b), 0)), 0) || 1;
  map.limits = state.log ? [0, most, most * POWERS] : [0, most];
  const context = map.canvas.getContext("2d");
  context.setTransform(box.ratio, 0, 0, box.ratio, 0, 0);
  context.clearRect(0, 0, map.canvas.clientWidth, map.canvas.clientHeight);
  const place = placeOf(map), [queries, keys] = shapeOf(map);
  map.right = box.left + clamp((keys - place.left) / place.span, 0, box.width); // where the map ends, on the canvas
  map.bottom = box.top + clamp((queries - place.top) / place.span, 0, box.height);
  drawTiles(map, context, place, level, pairs);
  drawSides(map, context, place, level, range);
  drawAxes(map, context, place);
  drawMarks(map, context, place, level);
  tellState(map, place, level, known.map(({ tile }) => tile), pairs.length);
  tellValue(map, level);
  return known.length === pairs.length && known.every(({ tile }) => tile.exact);
}

const paints = {};
function tone(name) { // computed colours of light-dark() must be taken from an element
  const key = `${name} ${isDark()}`;
  if (!paints[key]) {
    const probe = el("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    paints[key] = getComputedStyle(probe).color;
    probe.remove();
  }
  return paints[key];
}

// Tiles where they lie; coarser ones stand in until the finer ones are there.
function drawTiles(map, context, place, level, pairs) {
  const { left, top, width, height } = map.box, [queries, keys] = shapeOf(map);
  const x = (key) => left + Math.round((key - place.left) / place.span), y = (row) => top + Math.round((row - place.top) / place.span); // whole pixels, or seams would show
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.beginPath();
  context.rect(x(0), y(0), x(keys) - x(0), y(queries) - y(0)); // the last cell may hold fewer tokens than the others
  context.clip();
  context.imageSmoothingEnabled = false;
  const complete = pairs.every(([row, column]) => tiles.get(address(map.layer, map.head, level, row, column))?.values);
  for (let above = complete ? level : levelsOf(map) - 1; above >= level; above--) {
    for (const [row, column] of above === level ? pairs : pairsOf(inView(map, above))) {
      const tile = tiles.get(address(map.layer, map.head, above, row, column));
      if (!tile?.values) continue;
      const cell = 2 ** above, step = data.tile * cell;
      context.drawImage(pictureOf(tile, map.limits), x(column * step), y(row * step),
        x(column * step + tile.columns * cell) - x(column * step), y(row * step + tile.rows * cell) - y(row * step));
    }
  }
  if (place.span <= 1) {
    context.fillStyle = tone("rule");
    for (const key of hiddenKeys(map.layer)) if (x(key + 1) > left && x(key) < left + width) context.fillRect(x(key), y(0), x(key + 1) - x(key), y(queries) - y(0));
  }
  context.restore();
  context.strokeStyle = tone("muted");
  context.lineWidth = 1;
  const from = [clamp(x(0), left, left + width), clamp(y(0), top, top + height)], to = [clamp(x(keys), left, left + width), clamp(y(queries), top, top + height)];
  context.strokeRect(from[0] - 0.5, from[1] - 0.5, to[0] - from[0] + 1, to[1] - from[1] + 1);
}

// Bars aligned with the cells: above what each key received, at the right a statistic of each row.
function drawSides(map, context, place, level, [rows, columns]) {
  wantSides(map, level, rows, columns);
  const hidden = hiddenKeys(map.layer), { left, top, width, height } = map.box, { right } = map, room = map.canvas.clientWidth - left - width - 9;
  const received = along(map, level, columns, "column", (kept) => kept.received), numbered = along(map, level, rows, "row", (kept) => kept.rows?.[state.margin]);
  const blank = new Set([...hidden].map((key) => key >> level));
  context.save();
  context.fillStyle = tone("muted");
  context.font = "11px system-ui, sans-serif";
  const [title, unit] = MARGINS[state.margin];
  const above = bars(received, blank, map, level, place.left, place.span, width, (at, wide, share) => context.fillRect(left + at, top - 4 - 22 * share, wide, 22 * share));
  const beside = bars(numbered, new Set(), map, level, place.top, place.span, height, (at, wide, share) => context.fillRect(right + 5, top + at, room * share, wide));
  context.textAlign = "left";
  context.fillText(`received ${above}`, left, 11, width);
  const words = `${title} ${beside}${beside.startsWith("0") ? ` ${unit}` : ""}`;
  context.fillText(words, clamp(right + 5, left, map.canvas.clientWidth - context.measureText(words).width - 2), right - left < 150 ? 24 : 11);
  context.restore();
  map.received = received;
  map.numbered = numbered;
}

// Numbers of blocks along a side, by their number; `state` says why there is none.
function along(map, level, parts, which, values) {
  const found = { numbers: new Map(), state: "" };
  for (const at of parts) {
    const kept = sideOf(map, level, which, at), some = kept && values(kept);
    if (some) some.forEach((value, i) => found.numbers.set(at * data.tile + i, value));
    else found.state = kept && some === undefined && (kept.rows || kept.received) ? "not measured" : "not known yet";
  }
  return found;
}

// Draws the bars in view; returns their scale, or why there are none.
function bars({ numbers, state: why }, blank, map, level, start, span, length, bar) {
  if (why) return why;
  const cell = 2 ** level, [first, last] = [Math.floor(start / cell), Math.ceil((start + length * span) / cell)];
  let most = 0;
  for (let i = first; i < last; i++) if (!blank.has(i)) most = Math.max(most, numbers.get(i) ?? 0);
  for (let i = first; most && i < last; i++) {
    const value = numbers.get(i);
    if (!(value > 0) || blank.has(i)) continue;
    const [from, to] = [clamp(Math.round((i * cell - start) / span), 0, length), clamp(Math.round(((i + 1) * cell - start) / span), 0, length)];
    bar(from, Math.max(to - from - (to - from > 3 ? 1 : 0), Math.min(1, to - from)), value / most);
  }
  return `0 – ${brief(most)}`;
}

// Names of tokens where there is room for them, else their numbers.
function drawAxes(map, context, place) {
  const { left, top, width, height } = map.box, [queries, keys] = shapeOf(map), cell = 1 / place.span, { bottom } = map;
  context.fillStyle = tone("muted");
  context.font = cell >= NAMED ? "12px ui-monospace, 'DejaVu Sans Mono', monospace" : "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  const marks = (start, length, n) => {
    const step = cell >= NAMED ? 1 : nice(place.span * 60), first = Math.max(0, Math.ceil(start / step)), found = [];
    for (let at = first * step; at < Math.min(n, start + length * place.span); at += step) if ((at + 0.5 - start) / place.span <= length) found.push(at);
    return found;
  };
  const strong = (mine) => { context.fillStyle = tone(mine ? "ink" : "muted"); };
  for (const at of marks(place.top, height, queries)) {
    strong(at === state.query || at === cursor?.row);
    context.fillText(written(map.layer, "rows", at, cell, left - 10, context), left - 5, top + (at + 0.5 - place.top) / place.span);
  }
  for (const at of marks(place.left, width, keys)) {
    strong(at === state.key || at === cursor?.key);
    context.save();
    context.translate(left + (at + 0.5 - place.left) / place.span, bottom + 5);
    if (cell >= NAMED) context.rotate(-Math.PI / 2);
    else context.textAlign = "center";
    const below = cell >= NAMED ? 0 : 9;
    context.fillText(written(map.layer, "keys", at, cell, map.canvas.clientHeight - top - height - 10, context), 0, below);
    context.restore();
  }
  context.textBaseline = "alphabetic";
  context.fillStyle = tone("muted");
  context.font = "11px system-ui, sans-serif";
  if (cell < NAMED) {
    context.textAlign = "left";
    context.fillText("key (attended to)", left, bottom + 32);
    context.save();
    context.translate(11, bottom);
    context.rotate(-Math.PI / 2);
    context.fillText("query (attends)", 0, 0);
    context.restore();
  }
}

function written(layer, side, at, cell, room, context) {
  if (cell < NAMED) return at.toLocaleString("en");
  const name = nameOf(layer, side, at) ?? "…";
  return shortened(name, Math.max(3, Math.floor(room / (context.measureText("0").width || 7))));
}

function nice(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return Math.max(1, [1, 2, 5, 10].find((each) => each * power >= least) * power);
}

// The cell that is pointed at, and the query and key that are picked.
function drawMarks(map, context, place, level) {
  const { left, top, width, height } = map.box, cell = 2 ** level;
  const x = (key) => left + (key - place.left) / place.span, y = (row) => top + (row - place.top) / place.span;
  const [queries, keys] = shapeOf(map), right = map.right + map.canvas.clientWidth - left - width - 4;
  context.save();
  context.beginPath();
  context.rect(left, 14, map.canvas.clientWidth - left, top + height - 14);
  context.clip();
  const band = (colour, row, key, thick) => {
    context.strokeStyle = tone(colour);
    context.lineWidth = thick;
    context.beginPath();
    if (row !== null && row < queries && y(row + 0.5) >= top && y(row + 0.5) <= top + height) { context.moveTo(left, y(row + 0.5)); context.lineTo(right, y(row + 0.5)); }
    if (key !== null && key < keys && x(key + 0.5) >= left && x(key + 0.5) <= left + width) { context.moveTo(x(key + 0.5), 16); context.lineTo(x(key + 0.5), map.bottom); }
    context.stroke();
  };
  context.globalAlpha = 0.75;
  band("s1", state.query, state.key, 1.25);
  context.globalAlpha = 0.5;
  if (cursor) band("ink", cursor.row, cursor.key, 0.75);
  context.globalAlpha = 1;
  if (cursor && cursor.row < queries && cursor.key < keys) {
    const [row, key] = [cursor.row - (cursor.row % cell), cursor.key - (cursor.key % cell)], side = cell / place.span;
    context.strokeStyle = tone("s1");
    context.lineWidth = 2;
    if (side >= 3) context.strokeRect(x(key), y(row), side, side);
  }
  context.restore();
}

// ---- what is said about a map

function tellState(map, place, level, known, wanted) {
  const missing = wanted - known.length, sampled = known.filter((tile) => !tile.exact), [queries, keys] = shapeOf(map);
  const side = 2 ** level, parts = [level ? `a cell is the mean of ${side} × ${side} weights` : "single weights"];
  if (missing) parts.push(`${plural(missing, "tile")} on ${missing === 1 ? "its" : "their"} way`);
  if (sampled.length) {
    const error = Math.max(...sampled.map((tile) => tile.error)), progress = Math.max(...sampled.map((tile) => tile.progress));
    parts.push(`from sampled rows, off by about ${(100 * error).toPrecision(2)} % (exact: ${Math.floor(100 * progress)} % done)`);
  } else if (!missing) parts.push("exact");
  if (shapeOf(map).join() !== shapeOf(active()).join()) {
    parts.push(`another shape, ${queries.toLocaleString("en")} × ${keys.toLocaleString("en")}`);
    if (Math.abs(place.top - state.top) + Math.abs(place.left - state.left) > 1e-6) parts.push(`shown from query ${Math.floor(Math.max(0, place.top))} and key ${Math.floor(Math.max(0, place.left))} on`);
  }
  const text = parts.join("; ");
  if (map.state.textContent !== text) map.state.textContent = text;
  const [low, high, floor] = map.limits, ends = [floor ? `≤ ${floor.toExponential(1)}` : String(low), String(Number(high.toPrecision(3)))];
  const look = `${ends} ${isDark()}`;
  if (map.look !== look) map.legend.replaceChildren(ends[0], colourBar(), ends[1]);
  map.look = look;
}

// The cell under the cursor with its value, if that is known.
function cellAt(map, level) {
  const cell = 2 ** level, [queries, keys] = shapeOf(map);
  if (!cursor || cursor.row >= queries || cursor.key >= keys) return null;
  const i = Math.floor(cursor.row / cell), j = Math.floor(cursor.key / cell);
  const tile = tiles.get(address(map.layer, map.head, level, Math.floor(i / data.tile), Math.floor(j / data.tile)));
  const value = tile?.values?.[(i % data.tile) * tile.columns + (j % data.tile)];
  const ends = (start, n) => [start * cell, Math.min(n, (start + 1) * cell) - 1];
  return { i, j, rows: ends(i, queries), keys: ends(j, keys), value, exact: tile?.exact };
}

function tellValue(map, level) {
  const cell = cellAt(map, level);
  if (!cell) return map.read.replaceChildren(cursor ? "outside this map" : "");
  const value = cell.value === undefined ? "not here yet" : Number.isNaN(cell.value) ? "NaN" : cell.value.toPrecision(4);
  const beside = [["received", map.received, cell.j], [MARGINS[state.margin][0], map.numbered, cell.i]]
    .map(([word, { numbers, state: why }, at]) => `${word} ${why || (numbers.get(at) === null || numbers.get(at) === undefined ? "undefined" : Number(numbers.get(at).toPrecision(4)))}`);
  map.read.replaceChildren(el("b", {}, value), cell.exact === false ? " (sampled)" : "", el("small", {}, beside.join(" · ")));
}

const pointed = el("p", { id: "read", role: "status" });

// What is pointed at, in words, once for all maps; "…" is a name that is not here yet.
function tellPlace() {
  const { layer } = active(), cell = cellAt(active(), levelOf(active()));
  const named = (side, at) => {
    const name = nameOf(layer, side, at);
    return `${at} ${name === null ? "…" : quoted(name)}`;
  };
  const range = (side, ends) => [...new Set(ends)].map((at) => named(side, at)).join(" to ");
  const nowhere = cursor ? "" : "Point at a cell to read it; click to pick its query and key.";
  const words = cell ? `query ${range("rows", cell.rows)} gives key ${range("keys", cell.keys)}` : nowhere;
  if (pointed.textContent !== words) pointed.textContent = words;
}

function point(at) {
  cursor = at;
  draw();
}

// ---- moving, by pointer and by keys

function under(map, x, y) {
  const { left, top, width, height } = map.box, place = placeOf(map), [queries, keys] = shapeOf(map);
  const row = Math.floor(place.top + (y - top) * place.span), key = Math.floor(place.left + (x - left) * place.span);
  return x >= left && x < left + width && y >= top && y < top + height && row >= 0 && key >= 0 && row < queries && key < keys ? { row, key } : null;
}

function listen(map) {
  const { canvas } = map, held = new Map(); // pointers that are down
  let moved = 0;
  const at = (x, y) => [state.top + (y - map.box.top) * state.span, state.left + (x - map.box.left) * state.span];
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = held.size > 1 ? 99 : 0;
  });
  canvas.addEventListener("pointerup", (event) => {
    const found = held.delete(event.pointerId) && moved < 4 && under(map, event.offsetX, event.offsetY);
    if (found) pick(found.row, found.key);
  });
  canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => held.size || point(null));
  canvas.addEventListener("pointermove", (event) => {
    const here = [event.offsetX, event.offsetY], before = held.get(event.pointerId);
    if (!before) return point(under(map, ...here));
    const others = [...held].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    held.set(event.pointerId, here);
    moved += Math.hypot(here[0] - before[0], here[1] - before[1]);
    if (others.length) {
      const far = ([x, y]) => Math.hypot(x - others[0][0], y - others[0][1]) || 1;
      return zoom(far(before) / far(here), ...at(...others[0]));
    }
    state.left -= (here[0] - before[0]) * state.span;
    state.top -= (here[1] - before[1]) * state.span;
    stay();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    activate(map);
    zoom(2 ** (event.deltaY / 240), ...at(event.offsetX, event.offsetY));
    point(under(map, event.offsetX, event.offsetY));
  }, { passive: false });
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => walked(map, event));
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function walked(map, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { width, height } = map.box, [queries, keys] = shapeOf(map);
  const centre = () => cursor ?? { row: clamp(Math.floor(state.top + (height * state.span) / 2), 0, queries - 1), key: clamp(Math.floor(state.left + (width * state.span) / 2), 0, keys - 1) };
  const step = STEPS[event.key], cell = 2 ** levelOf(map);
  if (step && event.shiftKey) {
    state.top += 0.25 * step[0] * height * state.span;
    state.left += 0.25 * step[1] * width * state.span;
    stay();
  } else if (step) {
    const from = centre(), by = cursor ? cell : 0;
    const found = { row: clamp(from.row + step[0] * by, 0, queries - 1), key: clamp(from.key + step[1] * by, 0, keys - 1) };
    reveal(found.row, found.key);
    point(found);
  } else if (event.key === "+" || event.key === "=") zoom(0.5, centre().row + 0.5, centre().key + 0.5);
  else if (event.key === "-") zoom(2, centre().row + 0.5, centre().key + 0.5);
  else if (event.key === "Home") whole();
  else if (event.key === "Enter") pick(centre().row, centre().key);
  else return;
  event.preventDefault();
  event.stopPropagation();
}
