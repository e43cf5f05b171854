// The flow through one token: what its output rests on, layer by layer (Abnar & Zuidema 2020)

const [MOVES, STAYS] = [60, 30]; // the strongest of a layer that are drawn: from token to token, and those that stay

// `chosen` holds the token; `held` is told when another is chosen.
function flowOf(chosen, held) {
  const words = el("output", { class: "read", "aria-live": "polite" });
  const picture = svg("svg", { tabindex: 0, role: "application", "aria-roledescription": "paths", "aria-label": "Flow through one token: arrow keys choose the token" });
  const plot = el("div", { class: "plot" }, picture);
  const node = el("div", { class: "paths" }, words, plot);
  let shown = null;

  // Relevance of every token on each level, from the output (last) down to the input (0), and the paths between.
  function followed(means, token) {
    const n = shown.names.length;
    const levels = [new Float64Array(n)];
    levels[0][token] = 1;
    const edges = [];
    for (const mean of [...means].reverse()) {
      const [above, below] = [levels[0], new Float64Array(n)];
      const found = [];
      for (let i = 0; i < n; i++) {
        for (let j = 0; above[i] && j < n; j++) {
          const flow = (above[i] * (mean[i * n + j] + (i === j ? 1 : 0))) / 2;
          below[j] += flow;
          if (flow > 1e-4) found.push({ i, j, flow });
        }
      }
      levels.unshift(below);
      found.sort((a, b) => b.flow - a.flow);
      edges.unshift([...found.filter(({ i, j }) => i === j).slice(0, STAYS), ...found.filter(({ i, j }) => i !== j).slice(0, MOVES)]);
    }
    return { levels, edges };
  }

  const percent = (share) => (share > 0 && share < 0.005 ? "<1\u00a0%" : `${Math.round(100 * share)}\u00a0%`);

  // `means` of the heads of each layer of the stack, `names` of its tokens and of its `layers`, and the `causal` ones end last.
  function show(what) {
    shown = what;
    if (what.why) {
      words.replaceChildren(what.why);
      picture.replaceChildren();
      for (const side of ["width", "height"]) picture.setAttribute(side, 0);
      return;
    }
    const n = what.names.length;
    const token = chosen.token !== null && chosen.token < n ? chosen.token : n - 1;
    const { levels, edges } = followed(what.means, token);
    const left = 64;
    const cell = clamp((Math.max(node.clientWidth, 240) - left - 16) / n, 4, 56);
    const gap = clamp(430 / what.layers.length, 34, 74);
    const [top, height] = [28, gap * what.layers.length];
    const x = (i) => left + (i + 0.5) * cell;
    const y = (level) => top + height - level * gap;
    const foot = y(0) + 60;
    const width = left + n * cell + 12;
    const every = Math.ceil(13 / cell);
    const most = Math.max(...levels[0]);
    const strongest = edges.map((some) => Math.max(...some.map(({ flow }) => flow)));
    const labels = what.names.map((text) => shortened(text, 14));

    picture.replaceChildren(
      ...what.layers.map((name, l) => svg("text", { class: "end axis", x: left - 10, y: y(l + 0.5) + 4 }, shortened(name, 9))),
      ...what.layers.map((_, l) => svg("line", { class: "rule", x1: left, x2: width - 12, y1: y(l), y2: y(l) })),
      ...edges.flatMap((some, l) => some.map(({ i, j, flow }) => svg("path", {
        class: i === j ? "stays" : "moves", "stroke-width": Math.max(14 * flow, 0.6).toFixed(2), "stroke-opacity": (0.1 + 0.75 * Math.sqrt(flow / strongest[l])).toFixed(2),
        d: `M${x(i)} ${y(l + 1)}C${x(i)} ${y(l + 0.45)} ${x(j)} ${y(l + 0.55)} ${x(j)} ${y(l)}`,
      }))),
      ...levels.flatMap((level, l) => [...level].flatMap((share, i) => (share < 0.001 ? [] : [svg("circle", {
        cx: x(i), cy: y(l), r: clamp(11 * Math.sqrt(share), 0.8, 9).toFixed(1), "data-level": l, "data-token": i })]))),
      ...[...levels[0]].map((share, i) => svg("rect", { class: i === token ? "sum own" : "sum", x: x(i) - cell * 0.35, width: cell * 0.7, y: y(0) + 12, height: 40 * share / most })),
      ...labels.map((text, i) => (i % every && i !== token ? "" : svg("text", { class: i === token ? "end here" : "end", "data-name": i, transform: `translate(${x(i) + 4.5} ${foot}) rotate(-90)` }, text))).filter(Boolean),
      svg("text", { class: x(token) > width - 120 ? "end here" : "here", x: x(token) > width - 120 ? width - 8 : x(token) - 5, y: 13 }, `output of ${quoted(shortened(what.names[token], 14))}`),
      svg("text", { class: "end axis", x: left - 10, y: y(0) + 26 }, "rests on"),
    );
    picture.setAttribute("width", width);
    picture.setAttribute("height", foot + 8 * Math.min(Math.max(...labels.map((text) => text.length)), 14) + 8);
    if (width > plot.clientWidth) plot.scrollLeft = x(token) - plot.clientWidth / 2;
    Object.assign(shown, { token, levels, left, cell });
    tell();
  }

  function tell(level = 0, token = null) {
    const relevance = shown.levels[level];
    if (token !== null) {
      const where = level === 0 ? "of the input" : `after ${shown.layers[level - 1]}`;
      words.replaceChildren(`${where}, `, el("b", {}, quoted(shown.names[token])), ` (${token}) holds `, el("b", {}, percent(relevance[token])),
        el("small", {}, `of what the output of ${quoted(shown.names[shown.token])} rests on`));
      return;
    }
    const most = [...relevance.keys()].sort((a, b) => relevance[b] - relevance[a]).slice(0, 4);
    words.replaceChildren("the output of ", el("b", {}, quoted(shown.names[shown.token])), ` (${shown.token}) rests on `,
      ...most.flatMap((i, at) => [at ? ", " : "", quoted(shown.names[i]), " ", el("b", {}, percent(relevance[i]))]),
      el("small", {}, "rollout: half of each layer's input stays, half goes where its heads attend on average"));
  }

  const under = (event) => {
    const i = Math.floor((event.clientX - picture.getBoundingClientRect().left - shown.left) / shown.cell);
    return !shown.why && i >= 0 && i < shown.names.length ? i : null;
  };
  picture.addEventListener("pointermove", (event) => {
    const { level, token } = event.target.dataset;
    if (level !== undefined) tell(Number(level), Number(token));
    else if (!shown.why) tell();
  });
  picture.addEventListener("click", (event) => choose(under(event)));
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || shown.why || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    choose(clamp(shown.token + by, 0, shown.names.length - 1));
  });

  function choose(token) {
    if (token === null) return;
    Object.assign(chosen, { token, key: null });
    show(shown);
    held();
  }

  return { node, show };
}
