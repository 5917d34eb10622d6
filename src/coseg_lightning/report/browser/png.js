// Masks as PNG, to the last class id: a canvas might smooth, convert or disturb the values.
const PNG_SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

const newMask = (width, height, data) => ({ width, height, data: data || new Uint16Array(width * height) });
const copyOf = (mask) => newMask(mask.width, mask.height, mask.data.slice());
const sameMask = (a, b) =>
  a.width === b.width && a.height === b.height && a.data.every((value, n) => value === b.data[n]);

const pngChunk = (name, content) => {
  const chunk = new Uint8Array(content.length + 12), view = new DataView(chunk.buffer);
  view.setUint32(0, content.length);
  for (let n = 0; n < 4; n++) chunk[4 + n] = name.charCodeAt(n);
  chunk.set(content, 8);
  view.setUint32(8 + content.length, crc32(chunk.subarray(4, 8 + content.length)));
  return chunk;
};

const encodePng = async ({ width, height, data }) => {
  const wide = data.some((value) => value > 255) ? 2 : 1; // bytes a pixel
  const rows = new Uint8Array(height * (width * wide + 1));
  let at = 0;
  for (let y = 0; y < height; y++) {
    at++; // the row's filter: none
    for (let n = y * width; n < (y + 1) * width; n++) {
      if (wide === 2) rows[at++] = data[n] >> 8;
      rows[at++] = data[n] & 255;
    }
  }
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8 * wide; // bits; grey, no interlacing
  const content = await deflate(rows);
  return joined([Uint8Array.from(PNG_SIGNATURE), pngChunk("IHDR", header), pngChunk("IDAT", content), pngChunk("IEND", new Uint8Array(0))]);
};

const unfilter = (rows, height, stride, step) => {
  let from = 0;
  const out = new Uint8Array(height * stride);
  for (let y = 0; y < height; y++) {
    const filter = rows[from++], row = y * stride, above = row - stride;
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? out[row + x - step] : 0;
      const up = y ? out[above + x] : 0;
      const corner = y && x >= step ? out[above + x - step] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) {
        const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
        guess = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      out[row + x] = rows[from++] + guess;
    }
  }
  return out;
};

// Greys or palette indices of any depth, as the class ids that they are.
const decodePng = async (bytes) => {
  if (PNG_SIGNATURE.some((value, n) => bytes[n] !== value)) throw new Error("This is not a PNG file.");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const width = view.getUint32(16), height = view.getUint32(20), depth = bytes[24], kind = bytes[25];
  if ((kind !== 0 && kind !== 3) || bytes[28]) throw new Error("A mask must be a grey PNG of class ids.");
  if (typeof DecompressionStream === "undefined") return decodeByCanvas(bytes, width, height, depth, kind);
  const chunks = [];
  for (let at = 8; at + 8 <= bytes.length; at += view.getUint32(at) + 12) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") chunks.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const stride = Math.ceil((width * depth) / 8);
  const rows = unfilter(await inflate(joined(chunks)), height, stride, Math.max(1, depth >> 3));
  const mask = newMask(width, height);
  for (let y = 0, n = 0; y < height; y++) {
    for (let x = 0; x < width; x++, n++) {
      const at = y * stride + ((x * depth) >> 3);
      if (depth === 16) mask.data[n] = (rows[y * stride + 2 * x] << 8) | rows[y * stride + 2 * x + 1];
      else if (depth === 8) mask.data[n] = rows[at];
      else mask.data[n] = (rows[at] >> (8 - depth - ((x * depth) & 7))) & ((1 << depth) - 1);
    }
  }
  return mask;
};

const decodeByCanvas = async (bytes, width, height, depth, kind) => {
  if (depth !== 8 || kind) throw new Error("This browser cannot read such a mask; use a newer browser.");
  const image = new Image();
  image.src = `data:image/png;base64,${toBase64(bytes)}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  return newMask(width, height, Uint16Array.from({ length: width * height }, (_, n) => pixels[4 * n]));
};
