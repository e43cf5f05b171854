// One head, large: a heatmap that reads its cells out, with what each key received above and each row's entropy beside it

// `chosen` holds stretch, log and the cell that is picked; `redraw` is asked for when these change, `picked` is told of
// cells that are clicked or walked to.
function headMap(chosen, label, redraw, picked = () => {}) {
  const read = el("output", { class: "read", "aria-live": "polite" });
  const canvas = el("canvas", { "aria-hidden": "true" });
  const picture = svg("svg", { tabindex: 0, role: "application", "aria-roledescription": "heatmap", "aria-labelledby": label });
  const legend = el("div", { class: "colours" });
  const plot = el("div", { class: "plot" }, canvas, picture);
  const node = el("div", { class: "map" }, read, plot, legend);
  let shown = null; // what is drawn, and where its cells are

  // `hidden` and `hiddenRows` are left blank; `received` and `entropy`, with so many decimals as `sums`, may be missing.
  function show(what) {
    const { rows, columns, weights, hidden = new Set(), hiddenRows = new Set(), received, entropy } = what;
    const longest = (labels) => Math.min(Math.max(...labels.map((text) => text.length)), 16);
    const left = 30 + 8 * longest(rows);
    const [top, right] = [received ? 46 : 2, entropy ? 62 : 6];
    const room = Math.max(node.clientWidth, 240) - left - right;
    const fit = Math.min(room / columns.length, 560 / rows.length);
    const cell = clamp(fit < 6 ? fit : Math.floor(fit), 1, 46);
    const thin = cell > 3 ? 1 : 0; // between bars
    const [width, height] = [columns.length * cell, rows.length * cell];
    const wide = columns.map((text) => Math.min(text.length, 16) * 8 + 3 > cell);
    const turned = wide.filter(Boolean).length > columns.length / 4; // where many names are too wide, all are turned
    const below = (wide.includes(true) ? 8 * longest(columns) + 10 : 18) + 22;
    const blank = (i) => hidden.has(i % columns.length) || hiddenRows.has(Math.floor(i / columns.length));
    const seen = weights.map((weight, i) => (blank(i) ? 0 : weight));
    const [low, high] = range(seen, chosen.stretch);
    const limits = chosen.log ? [low, high, 10 ** -what.decimals] : [low, high];
    shown = { ...what, left, top, cell, width, height };

    paint(canvas, columns.length, rows.length, (i) => seen[i], limits);
    Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    for (const [key, value] of [["width", left + width + right], ["height", top + height + below]]) picture.setAttribute(key, value);
    picture.replaceChildren(
      ...[...hidden].map((j) => svg("rect", { class: "blank", x: left + j * cell, y: top, width: cell, height })),
      ...[...hiddenRows].map((i) => svg("rect", { class: "blank", x: left, y: top + i * cell, width, height: cell })),
      svg("rect", { class: "frame", x: left, y: top, width, height }),
      ...(received ? bars(received, columns.length, (j, size) => ({ x: left + j * cell + thin / 2, y: top - 6 - 30 * size, width: cell - thin, height: 30 * size }), hidden) : []),
      ...(entropy ? bars(entropy, rows.length, (i, size) => ({ x: left + width + 6, y: top + i * cell + thin / 2, width: 46 * size, height: cell - thin }), hiddenRows) : []),
      ...rows.flatMap((text, i) => named(text, i, "row", cell, { x: left - 7, y: top + (i + 0.5) * cell + 4.5, class: "end" })),
      ...columns.flatMap((text, j) => {
        const x = left + (j + 0.5) * cell;
        return named(text, j, "column", cell, turned || wide[j]
          ? { transform: `translate(${x + 4.5} ${top + height + 7}) rotate(-90)`, class: "end" }
          : { x, y: top + height + 16, class: "middle" });
      }),
      svg("text", { class: "axis middle", transform: `translate(12 ${top + height / 2}) rotate(-90)` }, height < 110 ? "query" : "query (attends)"),
      svg("text", { class: "axis middle", x: left + width / 2, y: top + height + below - 4 }, width < 130 ? "key" : "key (attended to)"),
      ...(received ? [svg("text", { class: "axis", x: left + width + 6, y: top - 8 }, "received")] : []),
      ...(entropy ? [svg("text", { class: "axis", x: left + width + 6, y: top + height + 16 }, "entropy")] : []),
      svg("rect", { class: "pick", visibility: "hidden", rx: 2 }),
    );
    drawLegend(limits, seen);
    if (chosen.cell) pick(...chosen.cell);
    else read.replaceChildren("Point at a cell to read it; on the keyboard, Enter and the arrow keys.");
  }

  // Bars as long as numbers are large, beside the rows or above the columns.
  function bars(numbers, count, at, hidden) {
    const most = Math.max(...[...numbers].filter((number, i) => Number.isFinite(number) && !hidden.has(i)), 0) || 1;
    return Array.from({ length: count }, (_, i) => i)
      .filter((i) => numbers[i] > 0 && !hidden.has(i))
      .map((i) => svg("rect", { class: "sum", ...at(i, numbers[i] / most) }));
  }

  // Names of an axis are thinned where they would touch.
  function named(text, i, axis, cell, attributes) {
    return i % Math.ceil(13 / cell) === 0 ? [svg("text", { ...attributes, [`data-${axis}`]: i }, shortened(text))] : [];
  }

  function drawLegend([low, high, floor], weights) {
    const least = floor === undefined ? String(Number(low.toFixed(4))) : `≤ ${floor.toFixed(shown.decimals)}`;
    const nodes = [least, colourBar(), `${Number(high.toFixed(4))} attention weight`];
    if (weights.some(Number.isNaN)) {
      const swatch = el("i");
      swatch.style.background = attention.notFinite;
      nodes.push(swatch, "NaN or infinite");
    }
    for (const [key, words] of [["log", "logarithmic"], ["stretch", "each head up to its own largest"]])
      nodes.push(el("label", { for: key }, switchBox(key, chosen, key, redraw), ` ${words}`));
    legend.replaceChildren(...nodes);
  }

  function pick(row, column) {
    const { rows, columns, weights, left, top, cell, decimals } = shown;
    [row, column] = [clamp(row, 0, rows.length - 1), clamp(column, 0, columns.length - 1)];
    chosen.cell = [row, column];
    const mark = picture.querySelector(".pick");
    const at = { x: left + column * cell, y: top + row * cell, width: cell, height: cell, visibility: "visible" };
    for (const [key, value] of Object.entries(at)) mark.setAttribute(key, value);
    picture.querySelectorAll("[data-row], [data-column]").forEach((text) => {
      text.classList.toggle("here", Number(text.dataset.row) === row || Number(text.dataset.column) === column);
    });
    const line = weights.slice(row * columns.length, (row + 1) * columns.length);
    const said = (value) => (Number.isNaN(value) ? "NaN or infinity" : value.toFixed(decimals));
    const most = [...line.keys()].filter((j) => !Number.isNaN(line[j])).sort((a, b) => line[b] - line[a]).slice(0, 3);
    read.replaceChildren(
      `query ${quoted(rows[row])} gives `, el("b", {}, said(line[column])), ` to key ${quoted(columns[column])}`,
      el("small", {}, `most: ${most.map((j) => `${quoted(columns[j])} ${said(line[j])}`).join(", ")}`),
      ...sums(row, column),
    );
  }

  function sums(row, column) {
    if (!shown.received) return [];
    const said = (value, unit) => (Number.isNaN(value) ? "not measured" : `${value.toFixed(shown.sums)}${unit}`);
    return [el("small", {}, `entropy of the query ${said(shown.entropy[row], " nats")} · the key received ${said(shown.received[column], " of all queries")}`)];
  }

  function under(event) {
    const area = picture.getBoundingClientRect();
    const column = Math.floor((event.clientX - area.left - shown.left) / shown.cell);
    const row = Math.floor((event.clientY - area.top - shown.top) / shown.cell);
    return row >= 0 && row < shown.rows.length && column >= 0 && column < shown.columns.length ? [row, column] : null;
  }

  picture.addEventListener("pointermove", (event) => {
    const at = under(event);
    if (at) pick(...at);
  });
  picture.addEventListener("click", (event) => {
    const at = under(event);
    if (at) picked(...at);
  });
  picture.addEventListener("focus", () => picture.matches(":focus-visible") && pick(...(chosen.cell || [0, 0])));
  picture.addEventListener("keydown", (event) => {
    const [row, column] = chosen.cell || [0, 0];
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, Infinity],
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    pick(...to);
    picked(...chosen.cell);
  });

  function enter() {
    picture.focus();
    pick(0, 0);
  }
  return { node, show, enter };
}
