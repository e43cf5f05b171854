// The flow through one token: what the output of the picked query rests on, down the layers of its stack

const flowWords = el("p", { class: "read" });
const flowPicture = svg("svg", { role: "img", "aria-label": "the flow through the picked token: the position in the text across, layers down" });
const flowList = el("div", { class: "most" });
const flowPlace = el("section", { id: "flow" }, el("h2", {}, "Flow"), flowWords, el("div", { class: "flowing" }, el("div", { class: "paths" }, flowPicture), flowList));
const percent = (share) => (share > 0 && share < 0.005 ? "<1\u00a0%" : `${Math.round(100 * share)}\u00a0%`);
let flowing = null, flown = null; // what is being asked ({key, stop}), and what was answered

// The flow through the query that is picked, which is asked for once `first` is there.
async function showFlow(first) {
  const { layer } = active(), { query } = state, key = `${layers[layer].group} ${query}`;
  if (flowing?.key === key) return;
  flowing?.stop.abort();
  const mine = (flowing = { key, stop: new AbortController() });
  flown = null;
  flowPicture.replaceChildren();
  flowPicture.setAttribute("height", 0);
  flowList.replaceChildren();
  delete flowPlace.dataset.ready;
  if (query === null) return flowWords.replaceChildren(el("span", { class: "absent" }, "Pick a query to follow its output down the layers."));
  if (layers[layer].unfollowed) return flowWords.replaceChildren(el("span", { class: "absent" }, `No token can be followed: ${layers[layer].unfollowed}.`));
  flowWords.replaceChildren(el("span", { class: "muted" }, "being followed …"));
  try {
    await first;
    const answer = await json("flow", { layer, row: query }, { signal: mine.stop.signal });
    flown = { ...answer, n: shapeOf({ layer })[1] };
    drawFlow();
    flowPlace.dataset.ready = query;
  } catch (error) {
    if (error.name === "AbortError") return;
    flowing = null; // asked for anew when it is picked again
    flowWords.replaceChildren(el("span", { class: "absent" }, error.name === "TypeError" ? "The server does not answer." : `${error.message}.`));
  }
}

function drawFlow() {
  if (!flown) return;
  const { levels, n } = flown, [token] = levels[0].tokens, last = levels.at(-1);
  flowWords.replaceChildren("the output of ", el("b", {}, quoted(token.name)), ` (${token.at}) rests on the tokens at the right; `,
    el("b", {}, percent(last.followed)), " of it was followed",
    el("small", {}, `rollout: half of each layer's input stays, half goes where its heads attend on average; of each layer the ${Math.max(...levels.map((level) => level.tokens.length))} tokens that hold most are followed`));
  const most = Math.max(...last.tokens.map(({ share }) => share), 0);
  flowList.replaceChildren(...last.tokens.slice(0, 12).map(({ at, name, share }) => {
    const button = strongest("query", { at, name, weight: share }, most);
    button.lastChild.textContent = percent(share);
    button.dataset.share = share;
    return button;
  }));
  picturedFlow(levels, n);
}

function picturedFlow(levels, n) {
  const width = Math.max(flowPicture.parentNode.clientWidth, 260), [left, right] = [96, 14], gap = clamp(430 / levels.length, 22, 64);
  const all = levels.flatMap((level) => level.tokens.map(({ at }) => at)), [least, greatest] = [Math.min(...all), Math.max(...all)];
  const x = (at) => left + ((at - least + 0.5) / (greatest - least + 1)) * (width - left - right), y = (level) => 16 + level * gap; // that part of the text which is reached
  const foot = y(levels.length - 1), strong = levels.map((level) => Math.max(...level.paths.map(([, , share]) => share), 1e-9));
  const named = [];
  for (const token of levels.at(-1).tokens) if (named.every((other) => Math.abs(x(other.at) - x(token.at)) >= 14)) named.push(token);
  flowPicture.replaceChildren(
    ...levels.map((_, i) => svg("line", { class: "rule", x1: left, x2: width - right, y1: y(i), y2: y(i) })),
    ...levels.slice(1).map((level, i) => svg("text", { class: "end axis", x: left - 8, y: y(i + 0.5) + 4 }, shortened(layers[level.layer].name, 13))),
    ...levels.flatMap((level, i) => level.paths.map(([from, to, share]) => svg("path", {
      class: from === to ? "stays" : "moves", "stroke-width": Math.max(12 * share, 0.6).toFixed(2), "stroke-opacity": (0.1 + 0.75 * Math.sqrt(share / strong[i])).toFixed(2),
      d: `M${x(from)} ${y(i - 1)}C${x(from)} ${y(i - 0.45)} ${x(to)} ${y(i - 0.55)} ${x(to)} ${y(i)}`,
    }))),
    ...levels.flatMap((level, i) => level.tokens.map(({ at, name, share }) => svg("circle", { cx: x(at), cy: y(i), r: clamp(10 * Math.sqrt(share), 0.9, 8).toFixed(1), "data-at": at },
      svg("title", {}, `${quoted(name)} (${at}) holds ${percent(share)} ${level.layer === null ? "of itself" : `before ${layers[level.layer].name}`}`)))),
    ...named.map(({ at, name }) => svg("text", { class: "end", transform: `translate(${x(at) + 4} ${foot + 14}) rotate(-90)` }, shortened(name, 12))),
  );
  const high = foot + 22 + 7.5 * Math.min(12, Math.max(...named.map(({ name }) => name.length), 1));
  for (const [key, value] of [["width", width], ["height", high], ["viewBox", `0 0 ${width} ${high}`]]) flowPicture.setAttribute(key, value);
}

flowPicture.addEventListener("click", (event) => {
  const at = event.target.dataset?.at;
  if (at !== undefined) pick(Number(at), null);
});
