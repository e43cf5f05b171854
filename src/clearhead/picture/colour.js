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

// Where a value stands in its range, 0 to 1; a range with a third number is logarithmic, from that number on.
function place(value, [low, high, floor]) {
  if (floor === undefined) return clamp((value - low) / (high - low || 1), 0, 1);
  return value > floor && high > floor ? clamp(Math.log(value / floor) / Math.log(high / floor), 0, 1) : 0;
}

// The scale in 1,024 colours: as long as there are pixels to paint, they are looked up and not computed.
const SHADES = 1024;
const shades = {};
function scale() {
  const name = isDark() ? "dark" : "light";
  shades[name] ??= Array.from({ length: SHADES }, (_, i) => {
    const at = (i / (SHADES - 1)) * (attention[name].length - 1);
    const below = Math.min(Math.floor(at), attention[name].length - 2);
    const [from, to] = [channels(attention[name][below]), channels(attention[name][below + 1])];
    return from.map((channel, j) => Math.round(channel + (to[j] - channel) * (at - below)));
  });
  return shades[name];
}

function colour(value, limits, missing = attention.notFinite) {
  return Number.isNaN(value) ? channels(missing) : scale()[shadeOf(value, limits)];
}
const shadeOf = (value, limits) => Math.round(place(value, limits) * (SHADES - 1));

// What can be read on a colour.
const inkOn = ([red, green, blue]) => (0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#1c1b22" : "#ffffff");

const packedColour = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as pixels lie in memory
const packedScales = {};

function paint(canvas, width, height, value, limits, missing = attention.notFinite) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const whole = new Uint32Array(pixels.data.buffer);
  const known = (packedScales[isDark()] ??= Uint32Array.from(scale(), packedColour)); // asked for once, not for every pixel
  const unknown = packedColour(channels(missing));
  for (let i = 0; i < whole.length; i++) {
    const number = value(i);
    whole[i] = Number.isNaN(number) ? unknown : known[shadeOf(number, limits)];
  }
  context.putImageData(pixels, 0, 0);
}

// What every legend has: the colours from least to greatest, and boxes that change them.
function colourBar() {
  const bar = el("canvas", { "aria-hidden": "true" });
  paint(bar, 128, 1, (i) => i / 127, [0, 1]);
  return bar;
}

function switchBox(id, chosen, key, draw) {
  const box = el("input", { type: "checkbox", id });
  box.checked = chosen[key];
  box.addEventListener("change", () => {
    chosen[key] = box.checked;
    draw();
    document.getElementById(id).focus(); // drawing made another box
  });
  return box;
}
