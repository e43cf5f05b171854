// The weights that the atlas holds, as they are unpacked and summed up, and every head as a small map

const THUMBNAIL = 56; // cells of a side; of longer maps a cell shows the largest weight below it
const state = {
  layer: 0, head: 0, statistic: "map", view: "tokens", token: null, key: null, cell: null,
  first: false, special: false, log: false, stretch: true, from: false, lines: null,
};

function unpacked(codes) {
  let at = 0;
  const take = (count) => codes.subarray(at, (at += count));
  for (const layer of layers) {
    const [queries, keys] = [axes[layer.rows].names.length, axes[layer.columns].names.length];
    Object.assign(layer, { codes: take(layer.heads * queries * keys), queries, keys });
    for (const name of ["entropy", "received"]) layer[name] = take(layer.heads * layer[name === "entropy" ? "queries" : "keys"]);
  }
}
const countOf = (layer) => layer.heads * (axes[layer.rows].names.length * (axes[layer.columns].names.length + 1) + axes[layer.columns].names.length);
const weightsOf = (layer, head) => valuesOf(layer.codes.subarray(head * layer.queries * layer.keys, (head + 1) * layer.queries * layer.keys), layer.decimals);
const sumsOf = (layer, head, name, count) => valuesOf(layer[name].subarray(head * count, (head + 1) * count), data.sums);

// The mean of a layer's heads, whose rows sum to 1 whatever was rounded; a row that sees nothing keeps what it has.
function meanOf(layer) {
  if (layer.mean) return layer.mean;
  const n = layer.keys;
  layer.mean = new Float64Array(n * n);
  for (let at = 0; at < layer.codes.length; at++) if (layer.codes[at] > 1) layer.mean[at % (n * n)] += layer.codes[at] - 1;
  for (let i = 0; i < n; i++) {
    const row = layer.mean.subarray(i * n, (i + 1) * n);
    const total = row.reduce((a, b) => a + b, 0);
    if (total) row.forEach((value, j) => (row[j] = value / total));
    else row[i] = 1;
  }
  return layer.mean;
}

// The first key that anything attends to.
function firstKey(layer) {
  for (let j = 0; j < layer.keys; j++)
    for (let at = j; at < layer.codes.length; at += layer.keys) if (layer.codes[at] > 1) return j;
  return 0;
}

function hiddenOf(layer) {
  const hidden = new Set(state.special ? axes[layer.columns].special : []);
  if (state.first) hidden.add(firstKey(layer));
  const hiddenRows = new Set(state.special ? axes[layer.rows].special : []);
  const all = hidden.size === layer.keys || hiddenRows.size === layer.queries; // then nothing would be left to see
  return all ? { hidden: new Set(), hiddenRows: new Set() } : { hidden, hiddenRows };
}

function drawThumbnail(button, i, head) {
  const { queries, keys, decimals } = layers[i];
  const codes = layers[i].codes.subarray(head * queries * keys, (head + 1) * queries * keys);
  const [high, wide] = [Math.min(queries, THUMBNAIL), Math.min(keys, THUMBNAIL)];
  const most = new Int32Array(high * wide);
  let [largest, broken] = [0, false];
  for (let row = 0, at = 0; row < queries; row++) {
    const line = Math.floor((row * high) / queries) * wide;
    for (let column = 0; column < keys; column++, at++) {
      const cell = line + Math.floor((column * wide) / keys);
      broken ||= codes[at] === 0;
      if (codes[at] > most[cell]) most[cell] = codes[at];
      if (codes[at] > largest) largest = codes[at];
    }
  }
  if (!broken) for (let at = 0; at < most.length; at++) most[at] ||= 1;
  const values = valuesOf(most, decimals);
  const top = state.stretch ? (largest - 1) / 10 ** decimals || 1 : 1;
  const canvas = el("canvas", { "aria-hidden": "true" });
  paint(canvas, wide, high, (at) => values[at], state.log ? [0, top, 10 ** -decimals] : [0, top]);
  button.replaceChildren(canvas);
  button.style.backgroundColor = "";
  named(button, i, head, "");
}
