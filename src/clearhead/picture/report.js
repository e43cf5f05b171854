
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const night = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const isDark = () => !paper.matches && (root.dataset.theme ? root.dataset.theme === "dark" : night.matches);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function build(space, name, attributes, children) {
    const node = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  const el = (name, attributes = {}, ...children) => build(null, name, attributes, children);
  const svg = (name, attributes = {}, ...children) => build("http://www.w3.org/2000/svg", name, attributes, children);

  // ---- light and dark: pictures that a script drew are drawn again when the theme changes

  const redraws = [];
  const redraw = () => redraws.forEach((draw) => draw());
  const toggle = document.getElementById("theme");
  const label = () => (toggle.textContent = isDark() ? "light" : "dark");
  toggle.hidden = false;
  toggle.setAttribute("aria-label", "switch between light and dark");
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  redraws.push(label);
  label();
  for (const query of [night, paper]) query.addEventListener("change", redraw);

  // ---- charts: point at a step, or walk along it with the arrow keys, and read every line there

  function readable(chart, value) {
    return chart.percent ? `${(100 * value).toFixed(2)} %` : String(Number(value.toPrecision(5)));
  }

  function cursor(picture) {
    const chart = data.charts[Number(picture.dataset.chart)];
    const layer = picture.querySelector(".cursor");
    const [left, right, top, bottom] = chart.plot;
    const steps = [...new Set(chart.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const place = (value, [low, high], from, to) => from + (to - from) * (high > low ? (value - low) / (high - low) : 0.5);
    let at = steps.length - 1;

    function show(index) {
      at = clamp(index, 0, steps.length - 1);
      const x = place(steps[at], chart.steps, left, right);
      const nodes = [svg("line", { x1: x, x2: x, y1: top, y2: bottom })];
      const words = [`step ${steps[at].toLocaleString("en")}`];
      for (const line of chart.lines) {
        const point = line.points.find((candidate) => candidate[0] === steps[at]);
        if (!point) continue;
        nodes.push(svg("circle", { cx: x, cy: place(point[1], chart.values, bottom, top), r: 3.5 }));
        words.push(`${line.label} ${readable(chart, point[1])}`);
      }
      const width = 12 + 6.6 * Math.max(...words.map((text) => text.length));
      const box = svg("g", {}, svg("rect", { width, height: 8 + 16 * words.length, rx: 4 }));
      words.forEach((text, i) => box.append(svg("text", { x: 7, y: 16 + 16 * i }, text)));
      const corner = x + 10 + width > right ? Math.max(x - 10 - width, 0) : x + 10;
      box.setAttribute("transform", `translate(${corner} ${top + 4})`);
      layer.replaceChildren(...nodes, box);
    }

    picture.addEventListener("pointermove", (event) => {
      const area = picture.getBoundingClientRect();
      const share = (((event.clientX - area.left) / area.width) * picture.viewBox.baseVal.width - left) / (right - left);
      const step = chart.steps[0] + share * (chart.steps[1] - chart.steps[0]);
      let nearest = 0;
      steps.forEach((each, i) => { if (Math.abs(each - step) < Math.abs(steps[nearest] - step)) nearest = i; });
      show(nearest);
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(at + move);
    });
    picture.addEventListener("focus", () => picture.matches(":focus-visible") && show(at));
    for (const end of ["pointerleave", "blur"]) picture.addEventListener(end, () => layer.replaceChildren());
  }
  document.querySelectorAll("[data-chart]").forEach(cursor);

  // ---- attention: the packed weights, and their colours

  const attention = data.attention;

  function numbers(packed, low, unit) {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
      const step = view.getUint16(2 * i, true);
      return step === attention.nothing ? NaN : low + step * unit;
    });
  }
  const unpack = (layer, head) => numbers(layer.heads[head], layer.low, layer.step);

  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

  // The range of colours: 0 to 1, so that heads compare, unless they are stretched or weights leave it.
  function range(weights, stretch) {
    const finite = weights.filter(Number.isFinite);
    const low = finite.reduce((a, b) => Math.min(a, b), 0);
    const high = finite.reduce((a, b) => Math.max(a, b), 0);
    return [low, stretch || low < 0 || high > 1.001 ? high || 1 : 1];
  }

  function colour(value, [low, high], missing = attention.notFinite) {
    if (Number.isNaN(value)) return channels(missing);
    const scale = isDark() ? attention.dark : attention.light;
    const at = clamp((value - low) / (high - low || 1), 0, 1) * (scale.length - 1);
    const below = Math.min(Math.floor(at), scale.length - 2);
    const [from, to] = [channels(scale[below]), channels(scale[below + 1])];
    return from.map((channel, i) => Math.round(channel + (to[i] - channel) * (at - below)));
  }

  function paint(canvas, width, height, value, limits, missing) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) pixels.data.set([...colour(value(i), limits, missing), 255], 4 * i);
    context.putImageData(pixels, 0, 0);
  }

  // ---- every head through training: a strip for each layer, a line of it for each head, and one head as a curve

  const course = data.heads;
  const unmeasured = () => (isDark() ? "#5b5968" : "#b4b2bf"); // grey: neither scale holds it, and it is no trouble

  function drawCourse() {
    const place = document.getElementById("strips");
    const layers = course.layers.map((each) => ({ ...each, numbers: new Map() }));
    const columns = course.steps.length;
    const first = course.alarms[0]; // what is worth seeing: where it is most likely to be wrong
    const chosen = { statistic: 0, layer: Math.max(0, layers.findIndex((each) => each.path === first?.layer)), head: first?.head ?? 0, at: columns - 1, stretch: false };
    const statistic = () => course.statistics[chosen.statistic];
    const count = layers.reduce((sum, each) => sum + each.heads, 0);
    const high = clamp(Math.floor(560 / count), 5, 18); // of a head's line, in pixels

    function values(each) {
      const key = statistic().key;
      if (!each.numbers.has(key)) {
        const { data: packed, low, step } = each.values[key];
        each.numbers.set(key, numbers(packed, low, step));
      }
      return each.numbers.get(key);
    }
    const value = (each, head, at) => values(each)[head * columns + at];
    const said = (number) => (Number.isNaN(number) ? "not measured" : String(Number(number.toPrecision(4))));
    const column = (step) => { const found = course.steps.findIndex((each) => each >= step); return found < 0 ? columns : found; };
    const alarmsOf = (each, head) => course.alarms.filter((alarm) => alarm.layer === each.path && (alarm.head === null || alarm.head === head));

    function limits() {
      const finite = layers.flatMap((each) => [...values(each)].filter(Number.isFinite));
      const [least, most] = [finite.reduce((a, b) => Math.min(a, b), Infinity), finite.reduce((a, b) => Math.max(a, b), -Infinity)];
      if (!finite.length) return [0, 1];
      return chosen.stretch ? [least, most] : [Math.min(least, 0), statistic().high ?? Math.max(most, 0)];
    }

    const choices = el("div", { class: "choices", role: "group", "aria-label": "Statistic" },
      ...course.statistics.map((each, i) => {
        const button = el("button", { type: "button" }, each.title);
        button.addEventListener("click", () => { chosen.statistic = i; draw(); });
        return button;
      }));
    const words = el("p", { class: "muted" });
    const name = el("h3", { id: "course-name" });
    const read = el("output", { class: "read", "aria-live": "polite" });
    const curve = svg("svg", { viewBox: "0 0 480 200", role: "img", "aria-labelledby": "course-name" });
    const legend = el("div", { class: "colours" });
    const rows = layers.map((each, i) => strip(each, i));
    const axis = el("div", { class: "steps", "aria-hidden": "true" }, ...ticks());
    const all = el("div", { class: "strips", tabindex: 0, role: "application", "aria-roledescription": "strips of heads",
      "aria-label": "Every head through training: arrow keys choose a head and a step" }, ...rows.map((row) => row.node), axis);

    function ticks() {
      const marks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * (columns - 1))))];
      return marks.map((at, i) => el("span", {}, `${i ? "" : "step "}${course.steps[at].toLocaleString("en")}`));
    }

    function strip(each, i) {
      const canvas = el("canvas", { "aria-hidden": "true" });
      const marks = svg("svg", { viewBox: `0 0 ${columns} ${each.heads}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      const box = el("div", { class: "strip" }, canvas, marks);
      box.style.height = `${each.heads * high}px`;
      const labels = el("div", { class: "labels", "aria-hidden": "true" }, ...Array.from({ length: each.heads }, (_, head) => el("span", {}, high > 11 ? String(head) : "")));
      const pick = (event) => {
        const area = box.getBoundingClientRect();
        const at = Math.floor(((event.clientX - area.left) / area.width) * columns);
        const head = Math.floor(((event.clientY - area.top) / area.height) * each.heads);
        choose(i, clamp(head, 0, each.heads - 1), clamp(at, 0, columns - 1));
      };
      box.addEventListener("pointerdown", pick);
      box.addEventListener("pointermove", pick);
      return { node: el("div", { class: "row" }, el("span", { class: "name", title: each.path }, each.name), labels, box), canvas, marks };
    }

    function mark(row, each, i) {
      row.marks.replaceChildren();
      for (const alarm of course.alarms.filter((alarm) => alarm.layer === each.path)) {
        const from = column(alarm.since);
        const to = alarm.until === null ? columns : Math.max(column(alarm.until), from + 1);
        const heads = alarm.head === null ? [...Array(each.heads).keys()] : [alarm.head];
        const thick = alarm.severity === "alarm" ? 0.3 : 0.14;
        for (const head of heads) row.marks.append(svg("rect", { x: from, y: head + 1 - thick, width: to - from, height: thick, class: alarm.severity }));
      }
      if (i === chosen.layer) row.marks.append(svg("rect", { x: 0, y: chosen.head, width: columns, height: 1, class: "chosen" }));
      row.marks.append(svg("line", { x1: chosen.at + 0.5, x2: chosen.at + 0.5, y1: 0, y2: each.heads, class: "now" }));
    }

    function choose(layer, head, at) {
      Object.assign(chosen, { layer, head, at });
      const each = layers[layer];
      rows.forEach((row, i) => mark(row, layers[i], i));
      name.textContent = `${each.path}, head ${head}`;
      const step = course.steps[at];
      const on = alarmsOf(each, head).filter((alarm) => column(alarm.since) <= at && (alarm.until === null || step < alarm.until));
      read.replaceChildren(`step ${step.toLocaleString("en")}: ${statistic().title} `, el("b", {}, said(value(each, head, at))),
        ...on.map((alarm) => el("small", { class: alarm.severity }, `${alarm.severity} from step ${alarm.since.toLocaleString("en")}: ${alarm.rule}`)));
      drawCurve(each);
    }

    function drawCurve(each) {
      const [left, right, top, bottom] = [50, 470, 10, 172];
      const [low, most] = limits();
      const x = (at) => left + ((right - left) * (at + 0.5)) / columns;
      const y = (number) => bottom - ((bottom - top) * (number - low)) / (most - low || 1);
      const path = (head) => {
        let pen = "M";
        return Array.from({ length: columns }, (_, at) => {
          const number = value(each, head, at);
          if (Number.isNaN(number)) return "";
          const [point, next] = [`${pen}${x(at).toFixed(1)} ${y(number).toFixed(1)}`, "L"];
          pen = next;
          return point;
        }).join("");
      };
      const nodes = [low, (low + most) / 2, most].flatMap((number) => [
        svg("line", { x1: left, x2: right, y1: y(number), y2: y(number), class: "rule" }),
        svg("text", { x: left - 7, y: y(number) + 4, class: "end" }, String(Number(number.toPrecision(3)))),
      ]);
      for (const alarm of alarmsOf(each, chosen.head)) {
        const [from, to] = [x(column(alarm.since) - 0.5), x((alarm.until === null ? columns : column(alarm.until)) - 0.5)];
        if (alarm.severity === "alarm") nodes.push(svg("rect", { x: from, y: top, width: Math.max(to - from, 2), height: bottom - top, class: "alarm" }));
      }
      for (let head = 0; head < each.heads; head++) if (head !== chosen.head) nodes.push(svg("path", { d: path(head), class: "other" }));
      nodes.push(svg("path", { d: path(chosen.head), class: "mine" }));
      const number = value(each, chosen.head, chosen.at);
      nodes.push(svg("line", { x1: x(chosen.at), x2: x(chosen.at), y1: top, y2: bottom, class: "now" }));
      if (!Number.isNaN(number)) nodes.push(svg("circle", { cx: x(chosen.at), cy: y(number), r: 3.5 }));
      const ends = [[0, "middle"], [columns - 1, "end"]].filter(([at], i) => i === 0 || columns > 1);
      for (const [at, anchor] of ends) nodes.push(svg("text", { x: at ? right : x(at), y: bottom + 17, class: anchor }, course.steps[at].toLocaleString("en")));
      nodes.push(svg("text", { x: (left + right) / 2, y: bottom + 24, class: "middle axis" }, "step"));
      curve.replaceChildren(...nodes);
    }

    function drawLegend([low, most]) {
      const bar = el("canvas", { "aria-hidden": "true" });
      paint(bar, 128, 1, (i) => i / 127, [0, 1]);
      const stretch = el("input", { type: "checkbox", id: "course-stretch" });
      stretch.checked = chosen.stretch;
      stretch.addEventListener("change", () => {
        chosen.stretch = stretch.checked;
        draw();
        document.getElementById("course-stretch").focus();
      });
      const nodes = [said(low), bar, `${said(most)} ${statistic().title}`];
      const swatch = (kind, text) => { const mark = el("i", { class: kind }); nodes.push(mark, text); };
      if (layers.some((each) => values(each).some(Number.isNaN))) {
        swatch("", "not measured");
        nodes.at(-2).style.background = unmeasured();
      }
      if (course.alarms.some((alarm) => alarm.severity === "alarm")) swatch("alarm", "alarm");
      if (course.alarms.some((alarm) => alarm.severity !== "alarm")) swatch("note", "note");
      legend.replaceChildren(...nodes, el("label", { for: "course-stretch" }, stretch, " from the lowest to the highest"));
    }

    function draw() {
      [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", i === chosen.statistic));
      words.textContent = statistic().words;
      const bounds = limits();
      rows.forEach((row, i) => paint(row.canvas, columns, layers[i].heads, (at) => values(layers[i])[at], bounds, unmeasured()));
      drawLegend(bounds);
      choose(chosen.layer, chosen.head, chosen.at);
    }

    all.addEventListener("keydown", (event) => {
      const move = (down) => {
        let [layer, head] = [chosen.layer, chosen.head + down];
        if (head < 0) [layer, head] = layer ? [layer - 1, layers[layer - 1].heads - 1] : [0, 0];
        else if (head >= layers[layer].heads) [layer, head] = layer + 1 < layers.length ? [layer + 1, 0] : [layer, head - 1];
        return [layer, head, chosen.at];
      };
      const across = (by) => [chosen.layer, chosen.head, clamp(chosen.at + by, 0, columns - 1)];
      const to = { ArrowUp: () => move(-1), ArrowDown: () => move(1), ArrowLeft: () => across(-1), ArrowRight: () => across(1),
        Home: () => across(-columns), End: () => across(columns) }[event.key];
      if (!to) return;
      event.preventDefault();
      choose(...to());
    });

    document.querySelectorAll("[data-alarm]").forEach((line) => {
      const alarm = course.alarms[Number(line.dataset.alarm)];
      const layer = layers.findIndex((each) => each.path === alarm.layer);
      if (layer < 0) return;
      const title = line.querySelector("b");
      const button = el("button", { type: "button" }, title.textContent);
      button.addEventListener("click", () => {
        choose(layer, alarm.head ?? 0, clamp(column(alarm.since), 0, columns - 1));
        place.scrollIntoView({ block: "nearest" });
      });
      title.replaceWith(button);
    });

    place.replaceChildren(choices, words, el("div", { class: "course" }, all,
      el("div", { class: "panel" }, name, read, el("figure", {}, curve), legend)));
    draw();
    redraws.push(draw);
  }
  if (course) drawCourse();

  // ---- the explorer: a word, all of its heads, and one of them large

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
    const bar = el("canvas", { "aria-hidden": "true" });
    paint(bar, 128, 1, (i) => i / 127, [0, 1]);
    const stretch = el("input", { type: "checkbox", id: "stretch" });
    stretch.checked = state.stretch;
    stretch.addEventListener("change", () => {
      state.stretch = stretch.checked;
      draw();
      document.getElementById("stretch").focus();
    });
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
})();
