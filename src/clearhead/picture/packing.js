// Very many numbers, as `compressed` packs them: base85, deflate, and codes of one byte or more

// The first character says how many bytes at the end are there only to make blocks of five characters whole.
function bytesOf(text) {
  const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;.=>?@^_`{|}~";
  const value = new Uint8Array(128);
  [...alphabet].forEach((character, i) => (value[character.charCodeAt(0)] = i));
  const bytes = new Uint8Array(((text.length - 1) / 5) * 4);
  for (let i = 1, at = 0; i < text.length; i += 5) {
    let word = 0;
    for (let j = 0; j < 5; j++) word = word * 85 + value[text.charCodeAt(i + j)];
    for (let shift = 24; shift >= 0; shift -= 8) bytes[at++] = word >>> shift;
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

const valuesOf = (codes, decimals) => Float64Array.from(codes, (code) => (code ? (code - 1) / 10 ** decimals : NaN));
