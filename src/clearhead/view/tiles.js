// What the server is asked for, and what it has answered: tiles of every map, the numbers along their sides, and names

const KEPT = 600; // tiles, at most
const AGAIN = 1000; // milliseconds after which what was not known yet is asked for again
const tiles = new Map(); // by address: {values, rows, columns, exact, error} or {waiting}
const sides = new Map(); // by address: what lies along a tile's rows, or its columns
const names = new Map(); // of tokens, by layer, side and hundred
const trouble = el("p", { class: "trouble", role: "alert", hidden: "" });

function complain(text) {
  trouble.hidden = !text;
  const again = el("button", { type: "button" }, "try again");
  again.addEventListener("click", () => {
    for (const cache of [tiles, sides, names]) for (const [key, kept] of cache) if (kept.failed) cache.delete(key);
    complain("");
    drawAll();
  });
  trouble.replaceChildren(...(text ? [text, " ", again] : []));
}

let unanswered = 0; // requests

// The answer, read by `read`; the page is busy until then.
async function ask(path, parts, read, options) {
  busy(+1);
  try {
    const answer = await fetch(`api/${path}?${new URLSearchParams(parts)}`, options);
    if (!answer.ok) throw new Error((await answer.json()).error);
    return await read(answer);
  } catch (error) {
    if (error.name === "TypeError") complain("The server does not answer: is clearhead view still running?");
    throw error;
  } finally {
    busy(-1);
  }
}
const json = (path, parts, options) => ask(path, parts, (answer) => answer.json(), options);

function busy(change) {
  unanswered += change;
  explorer.setAttribute("aria-busy", unanswered > 0);
}

// What went wrong is said, but for what was no longer wanted, and for a server that is gone, of which is told already.
function said(error) {
  if (!["AbortError", "TypeError"].includes(error.name)) complain(error.message);
}

const address = (...parts) => parts.join("/");
const shapeOf = (map) => layers[map.layer].shape;
const levelsOf = (map) => Math.max(1, 1 + Math.ceil(Math.log2(Math.max(...shapeOf(map)) / data.tile)));

async function load(map, level, row, column) {
  const key = address(map.layer, map.head, level, row, column);
  const stopped = new AbortController();
  const old = tiles.get(key);
  tiles.set(key, { ...old, waiting: true, stop: () => stopped.abort() });
  try {
    const tile = await ask("tile", { layer: map.layer, head: map.head, level, row, column }, tileOf, { signal: stopped.signal });
    tiles.delete(key); // to the end: the first ones are dropped first
    tiles.set(key, tile);
  } catch (error) {
    const gone = error.name === "AbortError"; // what failed is not asked for again
    said(error);
    if (old?.values) tiles.set(key, old);
    else if (gone) tiles.delete(key);
    else tiles.set(key, { failed: true });
  }
  for (const first of tiles.keys()) {
    if (tiles.size <= KEPT) break;
    tiles.delete(first);
  }
  draw();
}

async function tileOf(answer) {
  const header = (name) => Number(answer.headers.get(name));
  return { values: floats(await answer.arrayBuffer()), rows: header("X-Rows"), columns: header("X-Columns"), exact: header("X-Exact") === 1,
    error: header("X-Error"), progress: header("X-Progress"), at: Date.now() };
}

function floats(buffer) {
  const bytes = new DataView(buffer);
  return Float32Array.from({ length: buffer.byteLength / 4 }, (_, i) => bytes.getFloat32(4 * i, true));
}

// Tiles that are looked at: those that are not there are asked for, and sampled ones once more until they are exact.
function wantTile(map, level, row, column) {
  const kept = tiles.get(address(map.layer, map.head, level, row, column));
  if (!kept || (kept.values && !kept.exact && !kept.waiting && Date.now() - kept.at >= AGAIN)) load(map, level, row, column);
  if (kept?.values && !kept.exact) later();
  return kept;
}

// ---- along the sides of a tile: `rows` holds the statistics of rows, `received` what keys received; null: not known yet

const sideOf = (map, level, which, at) => sides.get(address(map.layer, map.head, level, which, at));
const settled = (kept) => kept && (kept.waiting || kept.failed || (kept.known ? true : Date.now() - kept.at < AGAIN));

function wantSides(map, level, rows, columns) {
  const count = Math.max(rows.length, columns.length);
  for (let i = 0; i < count; i++) {
    const [row, column] = [rows[Math.min(i, rows.length - 1)], columns[Math.min(i, columns.length - 1)]];
    const pair = [sideOf(map, level, "row", row), sideOf(map, level, "column", column)];
    if (!pair.every(settled)) loadSides(map, level, row, column);
    if (pair.some((kept) => kept && !kept.known && !kept.failed)) later();
  }
}

async function loadSides(map, level, row, column) {
  const keys = [address(map.layer, map.head, level, "row", row), address(map.layer, map.head, level, "column", column)];
  for (const key of keys) sides.set(key, { ...sides.get(key), waiting: true });
  try {
    const { rows, received } = await json("marginals", { layer: map.layer, head: map.head, level, row, column });
    sides.set(keys[0], { rows, known: Object.values(rows).every((values) => values), at: Date.now() });
    sides.set(keys[1], { received, known: Boolean(received), at: Date.now() });
  } catch (error) {
    said(error);
    for (const key of keys) sides.set(key, { failed: true });
  }
  draw();
}

// ---- names of tokens

const CHUNK = 128;

function chunk(layer, side, at) {
  const from = at - (at % CHUNK), key = address(layer, side, from);
  if (!names.has(key)) {
    const kept = { from, list: null };
    kept.ready = json("tokens", { layer, side, from, to: from + CHUNK }).then(
      (answer) => { kept.list = answer.names; draw(); },
      (error) => { kept.failed = true; said(error); });
    names.set(key, kept);
  }
  return names.get(key);
}

// A token's name, or null while it is on its way.
function nameOf(layer, side, at) {
  const kept = chunk(layer, side, at);
  return kept.list?.[at - kept.from] ?? null;
}

// The names of tokens from one number to before another.
async function namesOf(layer, side, from, to) {
  const found = [];
  for (let at = from; at < to; at = at - (at % CHUNK) + CHUNK) {
    const kept = chunk(layer, side, at);
    await kept.ready;
    if (!kept.list) throw new TypeError("no names");
    found.push(...kept.list.slice(at - kept.from, to - kept.from));
  }
  return found;
}
