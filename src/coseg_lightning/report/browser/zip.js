// ZIP archives: written without compression, since PNG is compressed; read as others write them.
const zipTime = () => {
  const now = new Date();
  return {
    time: (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1),
    day: ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate(),
  };
};

const zipHeader = (entry, central) => {
  const { name, bytes, crc, offset, time, day } = entry;
  const header = new Uint8Array((central ? 46 : 30) + name.length), view = new DataView(header.buffer);
  let at = 0;
  const short = (value) => { view.setUint16(at, value, true); at += 2; };
  const long = (value) => { view.setUint32(at, value, true); at += 4; };
  long(central ? 0x02014b50 : 0x04034b50);
  if (central) short(20);
  short(20);
  short(0x0800); // names are UTF-8
  short(0);
  short(time);
  short(day);
  long(crc);
  long(bytes.length);
  long(bytes.length);
  short(name.length);
  short(0);
  if (central) { short(0); short(0); short(0); long(0); long(offset); }
  header.set(name, at);
  return header;
};

const writeZip = (files) => {
  const stamp = zipTime(), chunks = [], directory = [];
  let offset = 0;
  for (const [text, bytes] of files) {
    const entry = { name: new TextEncoder().encode(text), bytes, crc: crc32(bytes), offset, ...stamp };
    const header = zipHeader(entry, false);
    chunks.push(header, bytes);
    directory.push(zipHeader(entry, true));
    offset += header.length + bytes.length;
  }
  const end = new Uint8Array(22), view = new DataView(end.buffer);
  view.setUint32(0, 0x06054b50, true);
  view.setUint16(8, directory.length, true);
  view.setUint16(10, directory.length, true);
  view.setUint32(12, directory.reduce((sum, part) => sum + part.length, 0), true);
  view.setUint32(16, offset, true);
  return new Blob([...chunks, ...directory, end], { type: "application/zip" });
};

const readZip = async (bytes) => {
  try { return await unpacked(bytes); } catch (error) {
    throw error.name === "Error" ? error : new Error("it is a damaged ZIP archive; save the review again");
  }
};
const unpacked = async (bytes) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("it is not a ZIP archive");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let n = view.getUint16(end + 10, true); n > 0; n--) {
    const method = view.getUint16(at + 10, true), size = view.getUint32(at + 20, true);
    const lengths = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + lengths[0]));
    if (view.getUint16(at + 8, true) & 1) throw new Error("it is encrypted; save it without a password");
    if (method !== 0 && method !== 8) throw new Error("it is packed in an uncommon way; pack it as plain ZIP");
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const content = bytes.subarray(start, start + size);
    if (files.has(name)) throw new Error(`it holds ${name} twice, and it is not known which counts; remove one`);
    if (!name.endsWith("/")) {
      const file = method === 8 ? await inflate(content, "deflate-raw") : content;
      if (crc32(file) !== view.getUint32(at + 16, true)) throw new RangeError("checksum");
      files.set(name, file);
    }
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
  return files;
};
