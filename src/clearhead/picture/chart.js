// Charts: point at a step, or walk along it with the arrow keys, and read every line there

function readable(chart, value) {
  return chart.percent ? `${(100 * value).toFixed(2)} %` : String(Number(value.toPrecision(5)));
}

function cursor(picture) {
  if (picture.dataset.read) return;
  picture.dataset.read = "";
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
const readCharts = () => document.querySelectorAll("[data-chart]").forEach(cursor);
readCharts();
