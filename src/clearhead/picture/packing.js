// Very many numbers, as `compressed` packs them: two characters are 13 bits of what was deflated, behind one that says
// how many bytes too many that makes

function bytesOf(text) {
  const value = new Uint8Array(127);
  for (let code = 33, next = 0; code < 127; code++) if (!'"<\\'.includes(String.fromCharCode(code))) value[code] = next++;
  const bytes = new Uint8Array(Math.floor((((text.length - 1) / 2) * 13) / 8));
  let [bits, count, at] = [0, 0, 0];
  for (let i = 1; i < text.length; i += 2) {
    bits = ((bits << 13) | (91 * value[text.charCodeAt(i)] + value[text.charCodeAt(i + 1)])) & 0xfffff; // 7 + 13
    for (count += 13; count >= 8; ) bytes[at++] = bits >>> (count -= 8);
  }
  return bytes.subarray(0, bytes.length - Number(text[0]));
}

// Nothing is fetched: bytes in memory go through the browser's own decompressor.
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// `count` codes: a byte each, 255 for those that are told by the planes behind them.
function codesOf(bytes, count) {
  const codes = new Int32Array(count);
  const long = (bytes.length - count) / 3;
  for (let i = 0, next = count; i < count; i++) {
    codes[i] = bytes[i];
    if (codes[i] === 255) {
      codes[i] = bytes[next] | (bytes[next + long] << 8) | (bytes[next + 2 * long] << 16);
      next += 1;
    }
  }
  return codes;
}

function valuesOf(codes, decimals) {
  const [values, unit] = [new Float64Array(codes.length), 10 ** decimals];
  for (let i = 0; i < codes.length; i++) values[i] = codes[i] ? (codes[i] - 1) / unit : NaN;
  return values;
}
