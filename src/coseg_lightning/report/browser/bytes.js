// Bytes: base64, checksums, and zlib by the browser's own streams.
const fromBase64 = (text) => {
  const signs = atob(text);
  const bytes = new Uint8Array(signs.length);
  for (let n = 0; n < signs.length; n++) bytes[n] = signs.charCodeAt(n);
  return bytes;
};
const toBase64 = (bytes) => {
  let signs = "";
  for (let n = 0; n < bytes.length; n += 8192) signs += String.fromCharCode(...bytes.subarray(n, n + 8192));
  return btoa(signs);
};

const CRC_TABLE = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});
const crc32 = (bytes) => {
  let crc = 0xffffffff;
  for (let n = 0; n < bytes.length; n++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[n]) & 255];
  return (crc ^ 0xffffffff) >>> 0;
};
const checksum = (bytes) => crc32(bytes).toString(16).padStart(8, "0");
const adler32 = (bytes) => {
  let a = 1, b = 0;
  for (let n = 0; n < bytes.length; ) {
    const end = Math.min(n + 3800, bytes.length); // the sums stay below 2^32
    for (; n < end; n++) { a += bytes[n]; b += a; }
    a %= 65521; b %= 65521;
  }
  return ((b << 16) | a) >>> 0;
};

const joined = (chunks) => {
  const all = new Uint8Array(chunks.reduce((length, chunk) => length + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) { all.set(chunk, at); at += chunk.length; }
  return all;
};
const piped = async (bytes, stream) =>
  new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
const inflate = (bytes, format = "deflate") => piped(bytes, new DecompressionStream(format));

// zlib without compression, for browsers that cannot compress.
const storedBlocks = (bytes) => {
  const chunks = [Uint8Array.of(0x78, 0x01)];
  for (let n = 0; n === 0 || n < bytes.length; n += 65535) {
    const block = bytes.subarray(n, n + 65535), length = block.length;
    const last = n + 65535 >= bytes.length ? 1 : 0;
    chunks.push(Uint8Array.of(last, length & 255, length >> 8, ~length & 255, (~length >> 8) & 255), block);
  }
  const sum = adler32(bytes);
  chunks.push(Uint8Array.of(sum >>> 24, (sum >>> 16) & 255, (sum >>> 8) & 255, sum & 255));
  return joined(chunks);
};
const deflate = (bytes) =>
  typeof CompressionStream === "undefined" ? storedBlocks(bytes) : piped(bytes, new CompressionStream("deflate"));
