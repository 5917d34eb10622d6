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

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by kind: grey, colours, palette, and the two with transparency
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const damagedPng = "the mask is damaged";
const pngHeader = (bytes) => {
  if (PNG_SIGNATURE.some((value, n) => bytes[n] !== value)) throw new Error("the mask is not a PNG file");
  if (bytes.length < 33 || !(bytes[25] in CHANNELS)) throw new Error(damagedPng);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return { width: view.getUint32(16), height: view.getUint32(20), depth: bytes[24], kind: bytes[25], interlaced: bytes[28] === 1 };
};
const pngChunks = (bytes, wanted) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), chunks = [];
  for (let at = 8; at + 8 <= bytes.length; at += view.getUint32(at) + 12) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === wanted) chunks.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  return joined(chunks);
};
const pngContent = async (bytes) => {
  try { return await inflate(pngChunks(bytes, "IDAT")); } catch { throw new Error(damagedPng); }
};

// The index of class 1 in a palette of which black and white alone are used, or null: the opaque one
// if the other is transparent, and else white.
const WHITE = "255,255,255";
const indexOfClass1 = (bytes, { data }) => {
  const palette = pngChunks(bytes, "PLTE"), alphas = pngChunks(bytes, "tRNS"), used = [...new Set(data)].sort((a, b) => a - b);
  const count = Math.floor(palette.length / 3), colour = (k) => palette.subarray(3 * k, 3 * k + 3).join();
  if (pngHeader(bytes).kind !== 3) return null;
  if (count === 1 && colour(0) === WHITE && !(alphas[0] < 128)) throw new Error("the mask has a palette of white alone; save it as a grey PNG of class ids");
  if (used.length > 2 || used.at(-1) >= count) return null;
  const indices = [...new Set([...used, 0, 1])].filter((k) => k < count), shown = new Set(indices.map(colour));
  if ([...shown].some((name) => name !== "0,0,0" && name !== WHITE)) return null;
  const opaque = indices.filter((k) => !(alphas[k] < 128));
  if (indices.length === 2 && opaque.length === 1) return opaque[0];
  return shown.size === 2 ? indices.find((k) => colour(k) === WHITE) : null;
};

// Greys or palette indices of any depth, as the class ids that they are. Greys may be saved as colours.
const decodePng = async (bytes) => {
  const { width, height, depth, kind, interlaced } = pngHeader(bytes);
  if (typeof DecompressionStream === "undefined") return decodeByCanvas(bytes, width, height, depth, kind);
  const rows = await pngContent(bytes), most = CHANNELS[kind], bits = most * depth;
  if (rows.length < (width * height * bits) / 8) throw new Error(damagedPng);
  const channels = Array.from({ length: most }, () => new Uint16Array(width * height));
  let from = 0;
  for (const [left, top, right, down] of interlaced ? ADAM7 : [[0, 0, 1, 1]]) {
    const across = Math.ceil((width - left) / right), along = Math.ceil((height - top) / down);
    if (across <= 0 || along <= 0) continue;
    const stride = Math.ceil((across * bits) / 8), end = from + along * (stride + 1);
    if (end > rows.length) throw new Error(damagedPng);
    const part = unfilter(rows.subarray(from, end), along, stride, Math.max(1, bits >> 3));
    from = end;
    channels.forEach((channel, k) => {
      for (let y = 0; y < along; y++) {
        for (let x = 0, n = (top + y * down) * width + left; x < across; x++, n += right) {
          const bit = (x * most + k) * depth, at = y * stride + (bit >> 3);
          if (depth === 16) channel[n] = (part[at] << 8) | part[at + 1];
          else if (depth === 8) channel[n] = part[at];
          else channel[n] = (part[at] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
        }
      }
    });
  }
  const alpha = most % 2 ? null : channels.pop();
  return newMask(width, height, oneChannel(channels, alpha, 2 ** (depth - 1)));
};

// Paint programs draw masks in the transparency too.
const oneChannel = ([grey, ...others], alpha, half) => {
  if (others.some((other) => other.some((value, n) => value !== grey[n]))) throw new Error("the mask is a colour picture; save it as a grey PNG of class ids");
  if (!alpha || alpha.every((value) => value === alpha[0])) return grey;
  const values = new Set(grey.filter((_, n) => alpha[n] >= half));
  const isOpaque = [...values].some(Boolean) && grey.every((value, n) => !value || alpha[n] >= half);
  if (isOpaque) return grey;
  if (values.size > 1) throw new Error("the mask holds another mask in its transparency; save it without transparency");
  return alpha;
};

const decodeByCanvas = async (bytes, width, height, depth, kind) => {
  if (depth !== 8 || (kind !== 0 && kind !== 2)) throw new Error("this browser cannot read such a mask; use a newer browser");
  const image = new Image();
  image.src = `data:image/png;base64,${toBase64(bytes)}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const channels = [0, 1, 2].map((k) => Uint16Array.from({ length: width * height }, (_, n) => pixels[4 * n + k]));
  return newMask(width, height, oneChannel(channels));
};
