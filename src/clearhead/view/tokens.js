// The query and key that are picked: what the query attends to most, who attends to the key most, and the text around

const AROUND = 100; // tokens of the text before and after what is picked
const LISTED = 8;
const FAINT = 1e-3; // a text in which nothing is larger than this is not coloured to the full
const HIDES = { first: "the first key", special: "special tokens" };
const weightSaid = (value) => (value === null || Number.isNaN(value) ? "NaN" : value >= 0.001 ? value.toFixed(4) : value ? value.toExponential(1) : "0");

const pair = el("p", { id: "pair" });
const toKeys = el("div", { class: "most" }), fromRows = el("div", { class: "most" });
const excerpt = el("div", { class: "excerpt", role: "group", "aria-label": "the text around" });
const excerptRead = el("output", { class: "read", id: "excerpt-read", "aria-live": "polite" });
const excerptScale = el("div", { class: "colours" });
const turn = el("div", { class: "choices", role: "group", "aria-label": "In colours" }, ...[["query", "what the query attends to"], ["key", "who attends to the key"]].map(([from, words]) => {
  const button = el("button", { type: "button", "data-from": from }, words);
  button.addEventListener("click", () => turnTo(from));
  return button;
}));
const picked = el("div", { class: "picked" }, pair, el("div", { class: "lists" }, toKeys, fromRows), turn, excerptRead, excerpt, excerptScale);
const nothing = el("p", { class: "absent" }, "Nothing is picked yet: click on a cell of a map, press Enter on one, or search for a token.");
const tokensPlace = el("section", { id: "tokens" }, el("h2", {}, "Tokens"), nothing, picked);
let asking = null; // what is asked about the tokens that are picked

function turnTo(from) {
  state.from = from;
  showPicked();
}

function pick(row, key) {
  if (row !== null) state.query = row;
  if (key !== null) state.key = key;
  draw();
  showPicked();
}

function letGo() {
  Object.assign(state, { query: null, key: null });
  draw();
  showPicked();
}

// A button that picks another token, with how much it holds.
function strongest(side, { at, name, weight }, most) {
  const button = el("button", { type: "button", class: "entry" }, el("bdi", {}, shortened(name, 24)), el("small", {}, at.toLocaleString("en")), el("b", {}, weightSaid(weight)));
  button.style.setProperty("--share", `${Math.round((100 * weight) / (most || 1))}%`);
  button.title = `pick ${side} ${at}: ${name}`;
  button.addEventListener("click", () => {
    reveal(side === "query" ? at : null, side === "key" ? at : null);
    pick(side === "query" ? at : null, side === "key" ? at : null);
  });
  return button;
}

function list(place, title, found, side, more = "") {
  const most = found.reduce((all, { weight }) => Math.max(all, weight), 0);
  place.replaceChildren(el("h3", {}, title), ...found.map((each) => strongest(side, each, most)), ...(found.length ? [] : [el("p", { class: "absent" }, "none")]),
    ...(more ? [el("p", { class: "muted" }, more)] : []));
}

async function showPicked() {
  asking?.abort();
  asking = new AbortController();
  const options = { signal: asking.signal };
  const { layer, head } = active(), [queries, keys] = shapeOf(active());
  if (state.query >= queries) state.query = null;
  if (state.key >= keys) state.key = null;
  if ((state.from === "query" ? state.query : state.key) === null) state.from = state.query === null && state.key !== null ? "key" : "query";
  const any = state.query !== null || state.key !== null;
  remember();
  delete tokensPlace.dataset.ready;
  tokensPlace.setAttribute("aria-busy", any);
  const { query, key, from } = state, { kinds: hide } = hiddenKeys(layer), what = { layer, head, query, key, from, hide };
  const found = any ? firstPicture.then(() => lookUp(what, options)) : Promise.resolve([]);
  showFlow(found.catch(() => null)); // asked after the tokens, which take less time
  try {
    const parts = await found;
    if (options.signal.aborted) return;
    [picked.hidden, nothing.hidden] = [!any, any];
    for (const part of parts) part();
    tokensPlace.dataset.ready = `${layer}.${head} ${query} ${key} ${from} ${hide}`;
  } catch (error) {
    if (options.signal.aborted) return;
    picked.hidden = true; // it is of what was picked before
    said(error);
  }
  tokensPlace.setAttribute("aria-busy", false);
}

// What is said of the tokens that are picked: functions that show it, so that all parts change at once.
async function lookUp(what, options) {
  options.signal.throwIfAborted();
  return Promise.all([() => () => pressed(what), pairOf, keysOf, rowsOf, excerptOf].map((part) => part(what, options)));
}

const pressed = ({ query, key, from }) => {
  for (const button of turn.children) {
    button.setAttribute("aria-pressed", button.dataset.from === from);
    button.disabled = { query, key }[button.dataset.from] === null;
  }
};

const oneName = async (layer, side, at) => quoted((await namesOf(layer, side, at, at + 1))[0]);

async function pairOf({ layer, head, query, key }, options) {
  if (query === null || key === null) return () => pair.replaceChildren();
  const { weights: [weight] } = await json("line", { layer, head, side: "rows", at: query, from: key, to: key + 1 }, options);
  const [row, column] = await Promise.all([oneName(layer, "rows", query), oneName(layer, "keys", key)]);
  return () => pair.replaceChildren(`${called(layer, head)}: query ${query} ${row} gives key ${key} ${column} `, el("b", {}, weightSaid(weight)));
}

async function keysOf({ layer, head, query, hide }, options) {
  if (query === null) return () => toKeys.replaceChildren();
  const { keys } = await json("row", { layer, head, row: query, most: LISTED, hide }, options), name = await oneName(layer, "rows", query);
  const hidden = hide && `hidden: ${hide.split(" ").map((kind) => HIDES[kind]).join(" and ")}`;
  return () => list(toKeys, `query ${query} ${name} attends most to`, keys, "key", hidden);
}

// Who attends to the key most; as long as rows are unknown, again in a while.
async function rowsOf(what, options) {
  const { layer, head, key } = what;
  if (key === null) return () => fromRows.replaceChildren();
  const { rows, looked_at, of } = await json("column", { layer, head, key, most: LISTED }, options), name = await oneName(layer, "keys", key);
  const partly = looked_at < of ? `of ${looked_at.toLocaleString("en")} of ${of.toLocaleString("en")} rows: the others are not known yet` : "";
  const again = () => rowsOf(what, options).then((show) => options.signal.aborted || show()).catch(said);
  return () => {
    keepingFocus(fromRows, () => list(fromRows, `key ${key} ${name} is attended to most by`, rows, "query", partly));
    if (partly) setTimeout(() => options.signal.aborted || again(), 2 * AGAIN);
  };
}

// Where the text is looked at: around the token itself, or in another text than its own around what it attends to most.
async function middle({ layer, head, query, key, from }, options) {
  const own = shapeOf({ layer })[0] === shapeOf({ layer })[1] && layers[layer].group !== "cross";
  if (own) return from === "query" ? query : key;
  const answer = from === "query" ? (await json("row", { layer, head, row: query, most: 1 }, options)).keys
    : (await json("column", { layer, head, key, most: 1 }, options)).rows;
  return answer[0]?.at ?? 0;
}

async function excerptOf(what, options) {
  const { layer, head } = what, ofQuery = what.from === "query", [near, far] = ofQuery ? ["query", "key"] : ["key", "query"];
  const mine = what[near], side = ofQuery ? "keys" : "rows", n = shapeOf({ layer })[ofQuery ? 1 : 0], hidden = ofQuery ? hiddenKeys(layer) : new Set();
  const at = await middle(what, options), from = Math.max(0, at - AROUND), to = Math.min(n, at + AROUND + 1);
  const [{ weights }, list] = await Promise.all([
    json("line", { layer, head, side: ofQuery ? "rows" : "keys", at: mine, from, to }, options), namesOf(layer, side, from, to)]);
  const shown = weights.map((weight, i) => (hidden.has(from + i) ? null : weight ?? NaN));
  return () => drawExcerpt({ from, list, shown, near, far, mine, own: at === mine && layers[layer].group !== "cross", n });
}

function drawExcerpt(text) {
  const { from, list, shown, mine, own, n } = text;
  const limits = [0, shown.reduce((most, weight) => Math.max(most, weight || 0), FAINT)];
  const buttons = list.map((name, i) => {
    const here = own && from + i === mine, shade = shown[i] === null ? null : colour(shown[i], limits);
    const button = el("button", { type: "button", class: `token${here ? " here" : ""}`, tabindex: -1, "data-at": from + i }, shortened(name, 24));
    if (shade) Object.assign(button.style, { backgroundColor: `rgb(${shade})`, color: inkOn(shade) });
    else button.classList.add("blank");
    return button;
  });
  (buttons.find((button) => button.classList.contains("here")) ?? buttons[0]).tabIndex = 0;
  excerpt.replaceChildren(...(from ? [el("span", { class: "muted" }, "…")] : []), ...buttons, ...(from + list.length < n ? [el("span", { class: "muted" }, "…")] : []));
  excerpt.text = text;
  excerptScale.replaceChildren("0", colourBar(), weightSaid(limits[1]), ` tokens ${from.toLocaleString("en")} to ${(from + list.length - 1).toLocaleString("en")} of ${n.toLocaleString("en")}`);
  tellToken(null);
  excerpt.redraw = () => drawExcerpt(text);
}

function tellToken(button) {
  if (!button) return excerptRead.replaceChildren("Point at a token to read its weight; a click picks it.");
  const { from, list, shown, near, far, mine } = excerpt.text, at = Number(button.dataset.at), value = shown[at - from];
  const [query, key] = near === "query" ? [mine, at] : [at, mine];
  excerptRead.replaceChildren(`query ${query} gives key ${key} `, el("b", {}, value === null ? "(hidden)" : weightSaid(value)), el("small", {}, `${far} ${at}: ${quoted(list[at - from])}`));
}

for (const kind of ["pointerover", "focusin"]) excerpt.addEventListener(kind, (event) => tellToken(event.target.closest(".token")));
for (const kind of ["pointerleave", "focusout"]) excerpt.addEventListener(kind, () => tellToken(null));
excerpt.addEventListener("click", (event) => {
  const button = event.target.closest(".token");
  if (!button) return;
  const at = Number(button.dataset.at), own = layers[active().layer].group !== "cross" && shapeOf(active())[0] === shapeOf(active())[1];
  const side = own ? state.from : excerpt.text.far; // in its own text the next token of the same kind
  reveal(side === "query" ? at : null, side === "key" ? at : null);
  pick(side === "query" ? at : null, side === "key" ? at : null);
});
excerpt.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], all = [...excerpt.querySelectorAll(".token")];
  if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  all[clamp(all.indexOf(document.activeElement) + by, 0, all.length - 1)].focus();
});

// ---- search

const foundPlace = el("div", { id: "found", role: "region", "aria-label": "found", hidden: "" });

let searching = null;

async function search(text) {
  searching?.abort();
  searching = new AbortController();
  foundPlace.hidden = true; // what is found of another text
  if (!text) return;
  const { layer } = active();
  try {
    const { found, more } = await json("search", { layer, side: "keys", text }, { signal: searching.signal });
    const words = found.length ? `${more ? "the first " : ""}${plural(found.length, "token")} with ${quoted(text)}: pick one to see who attends to it` : `no token holds ${quoted(text)}`;
    const close = el("button", { type: "button", class: "close", "aria-label": "close the search" }, "×");
    close.addEventListener("click", () => (foundPlace.hidden = true));
    foundPlace.replaceChildren(el("div", { class: "bar" }, el("p", {}, words), close), el("div", { class: "text" }, ...found.map(({ at, name }) => {
      const button = el("button", { type: "button" }, `key ${at} ${quoted(shortened(name, 80))}`);
      button.addEventListener("click", () => {
        state.from = "key";
        reveal(null, at);
        pick(null, at);
      });
      return button;
    })));
    foundPlace.hidden = false;
  } catch (error) {
    said(error);
  }
}
