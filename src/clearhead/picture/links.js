// Who attends to whom, token by token: two columns with lines between, or the text itself in colours

const LINED = 40; // tokens of a side up to which lines are drawn unless chosen otherwise
const HIGH = 24; // of a token's line, in pixels

// `chosen` holds the token (a query) or key that is held, and how it is shown; `held` is told when these change.
function headLinks(chosen, held) {
  const words = el("output", { class: "read", "aria-live": "polite" });
  const stage = el("div", { class: "stage" });
  const node = el("div", { class: "links" }, words, stage);
  let shown = null;
  let tokens = [];
  let lines = [];

  const lined = () => (chosen.lines ?? Math.max(shown.rows.length, shown.columns.length) <= LINED);
  const weight = (i, j) => shown.weights[i * shown.columns.length + j];
  const seen = (side, i) => !(side === "query" ? shown.hiddenRows : shown.hidden).has(i);
  const names = (side) => (side === "query" ? shown.rows : shown.columns);
  const other = (side) => (side === "query" ? "key" : "query");
  const said = (value) => (Number.isNaN(value) ? "NaN" : value.toFixed(4));

  // The token that is looked at: under the pointer, or else held; null where there is neither.
  function active(hovered) {
    if (hovered) return hovered;
    if (chosen.token !== null && seen("query", chosen.token)) return { side: "query", i: chosen.token };
    if (chosen.token === null && chosen.key !== null && seen("key", chosen.key)) return { side: "key", i: chosen.key };
    return null;
  }

  function token(side, i) {
    const button = el("button", { class: "token", type: "button", "data-side": side, "data-index": i, title: `${side} ${i}: ${names(side)[i]}` },
      el("bdi", {}, shortened(names(side)[i], 24)), el("small"));
    const me = () => ({ side: button.dataset.side, i });
    button.addEventListener("pointerenter", () => draw(me()));
    button.addEventListener("pointerleave", () => draw());
    button.addEventListener("focus", () => button.matches(":focus-visible") && draw(me()));
    button.addEventListener("blur", () => draw());
    button.addEventListener("click", () => {
      const key = side === "query" ? "token" : "key";
      const again = chosen[key] === i && (key === "token" || chosen.token === null);
      Object.assign(chosen, { token: null, key: null, [key]: again ? null : i });
      draw();
      held();
    });
    tokens.push(button);
    return button;
  }

  const column = (side) => names(side).flatMap((_, i) => (seen(side, i) ? [token(side, i)] : []));
  const block = (side, title) => el("div", { class: "text" }, ...(title ? [el("h4", {}, title)] : []), ...column(side));

  function show(what) {
    shown = what;
    [tokens, lines] = [[], []];
    if (lined()) {
      const [queries, keys] = [column("query"), column("key")];
      stage.replaceChildren(el("div", { class: "options" }, way()), el("div", { class: "lines" }, el("div", { class: "column right" }, el("h4", {}, "query"), ...queries),
        between(queries, keys), el("div", { class: "column" }, el("h4", {}, "key"), ...keys)));
    } else if (what.same) {
      stage.replaceChildren(el("div", { class: "options" }, direction(), way()), block(chosen.from ? "key" : "query", ""));
    } else {
      stage.replaceChildren(el("div", { class: "options" }, way()), block("query", "queries (attend)"), block("key", "keys (attended to)"));
    }
    draw();
  }

  // A line for each pair that has at least a hundredth of the head's largest weight.
  function between(queries, keys) {
    const height = Math.max(queries.length, keys.length) * HIGH;
    const area = svg("svg", { viewBox: `0 0 100 ${height}`, height, preserveAspectRatio: "none", "aria-hidden": "true" });
    const most = tokensMost(queries, keys);
    queries.forEach((query, a) => keys.forEach((key, b) => {
      const [i, j] = [Number(query.dataset.index), Number(key.dataset.index)];
      if (!(weight(i, j) >= most / 100)) return;
      const [from, to] = [(a + 0.5) * HIGH, (b + 0.5) * HIGH];
      const line = svg("path", { d: `M0 ${from}C45 ${from} 55 ${to} 100 ${to}` });
      lines.push({ i, j, line, most });
      area.append(line);
    }));
    return area;
  }

  function tokensMost(queries, keys) {
    let most = 0;
    for (const query of queries) for (const key of keys) most = Math.max(most, weight(Number(query.dataset.index), Number(key.dataset.index)) || 0);
    return most || 1;
  }

  function direction() {
    const button = el("button", { type: "button" }, chosen.from ? "shown: who attends to a token" : "shown: what a token attends to");
    button.addEventListener("click", () => {
      Object.assign(chosen, { from: !chosen.from, token: chosen.key, key: chosen.token });
      show(shown);
      held();
    });
    return button;
  }

  function way() {
    const button = el("button", { type: "button" }, lined() ? "as text" : "as lines");
    button.addEventListener("click", () => {
      chosen.lines = !lined();
      show(shown);
      held();
    });
    return button;
  }

  // The other side of the active token in colours, or without one what keys received on average.
  function draw(hovered = null) {
    const now = active(hovered);
    const inText = !lined() && shown.same;
    const values = now ? across(now) : received();
    const limits = [0, Math.max(...values.filter((value, i) => !Number.isNaN(value) && seen(now ? other(now.side) : "key", i)), 0) || 1];
    for (const button of tokens) {
      const [side, i] = [button.dataset.side, Number(button.dataset.index)];
      const mine = now && side === now.side && i === now.i;
      const coloured = inText || side === (now ? other(now.side) : "key");
      const shade = coloured ? colour(values[i], limits) : null;
      button.style.backgroundColor = shade ? `rgb(${shade})` : "";
      button.style.color = shade ? inkOn(shade) : "";
      button.classList.toggle("here", Boolean(mine));
      button.setAttribute("aria-pressed", chosen[side === "query" ? "token" : "key"] === i);
      button.lastChild.textContent = now && coloured && lined() ? said(values[i]) : "";
    }
    for (const { i, j, line, most } of lines) {
      line.classList.toggle("off", Boolean(now) && (now.side === "query" ? i : j) !== now.i);
      line.setAttribute("stroke-opacity", (weight(i, j) / (now ? limits[1] : most)).toFixed(3));
    }
    tell(now, values, limits);
  }

  const across = ({ side, i }) => (side === "query"
    ? [...shown.weights.slice(i * shown.columns.length, (i + 1) * shown.columns.length)]
    : shown.rows.map((_, row) => weight(row, i)));
  const received = () => shown.columns.map((_, j) => shown.received[j] / shown.rows.length);

  function tell(now, values, limits) {
    if (!now) {
      words.replaceChildren("Point at a token to see what it attends to; a click holds it, Esc lets go.",
        el("small", {}, "In colours: what each key received on average."));
      return;
    }
    const far = names(other(now.side));
    const most = [...values.keys()].filter((i) => values[i] >= 0.00005 && seen(other(now.side), i)).sort((a, b) => values[b] - values[a]).slice(0, 5);
    words.replaceChildren(now.side === "query" ? "query " : "key ", el("b", {}, quoted(names(now.side)[now.i])), ` (${now.i}) `,
      now.side === "query" ? "attends to " : "is attended to by ",
      ...most.flatMap((i, at) => [at ? ", " : "", quoted(far[i]), " ", el("b", {}, said(values[i]))]),
      el("small", {}, `colours from 0 to ${said(limits[1])}`));
  }

  return { node, show, draw };
}
