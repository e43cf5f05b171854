// Every head through training: a strip for each layer, a line of it for each head, and one head as a curve

let course = null; // what is drawn
const unmeasured = () => (isDark() ? "#5b5968" : "#b4b2bf"); // grey: neither scale holds it, and it is no trouble

// Drawn again, it keeps what was chosen, and stays at its last step if it was there.
function drawCourse(heads) {
  const [place, before] = [document.getElementById("strips"), course];
  course = heads;
  const layers = course.layers.map((each) => ({ ...each, numbers: new Map() }));
  const columns = course.steps.length;
  const first = course.alarms[0]; // what is worth seeing: where it is most likely to be wrong
  const chosen = before?.chosen() ?? { layer: first?.layer, head: first?.head ?? 0, stretch: false };
  chosen.statistic = Math.max(0, course.statistics.findIndex((each) => each.key === chosen.statistic));
  chosen.layer = Math.max(0, layers.findIndex((each) => each.path === chosen.layer));
  chosen.head = clamp(chosen.head, 0, layers[chosen.layer].heads - 1);
  chosen.at = clamp(chosen.step === undefined ? columns : column(chosen.step), 0, columns - 1);
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
  const alarmsOf = (each, head) => course.alarms.filter((alarm) => alarm.layer === each.path && (alarm.head === null || alarm.head === head));

  function column(step) {
    const found = course.steps.findIndex((each) => each >= step);
    return found < 0 ? columns : found;
  }

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
    const [bar, stretch] = [colourBar(), switchBox("course-stretch", chosen, "stretch", draw)];
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

  if (!before) redraws.push(() => course.draw());
  course.draw = draw;
  course.chosen = () => ({ ...chosen, statistic: statistic().key, layer: layers[chosen.layer].path, step: chosen.at < columns - 1 ? course.steps[chosen.at] : undefined });
  draw();
  keepingFocus(place, () => place.replaceChildren(choices, words, el("div", { class: "course" }, all,
    el("div", { class: "panel" }, name, read, el("figure", {}, curve), legend))));
  course.show = (path, head) => {
    const layer = layers.findIndex((each) => each.path === path && head < each.heads);
    if (layer >= 0) choose(layer, head, chosen.at);
  };
}
if (data.heads) drawCourse(data.heads);
