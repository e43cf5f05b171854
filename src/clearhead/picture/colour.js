// Attention: the packed weights, and their colours

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

// What every legend has: the colours from least to greatest, and a box that stretches them to what is shown.
function colourBar() {
  const bar = el("canvas", { "aria-hidden": "true" });
  paint(bar, 128, 1, (i) => i / 127, [0, 1]);
  return bar;
}

function stretchBox(id, chosen, draw) {
  const box = el("input", { type: "checkbox", id });
  box.checked = chosen.stretch;
  box.addEventListener("change", () => {
    chosen.stretch = box.checked;
    draw();
    document.getElementById(id).focus(); // drawing made another box
  });
  return box;
}
