// Reviews of others: review.csv or review.zip, added to this one. Where two decide otherwise, nobody
// has decided until somebody settles it.
const sideName = (id, number) => `${id}\u0000${number}`;
// What one side drew; null also takes away what is left of a conflict that was settled.
const setSide = async (id, number, png) => {
  const name = sideName(id, number);
  if (png || drawings.has(name)) await setDrawing(name, png);
};

const SYSTEM_FILES = [".DS_Store", "Thumbs.db", "desktop.ini"];
const isOfTheSystem = (parts) => parts[0] === "__MACOSX" || parts.at(-1).startsWith("._") || SYSTEM_FILES.includes(parts.at(-1));

// An id as this page has it; a Mac writes letters and their accents apart.
const composed = (id) => (numberOf.has(id) ? id : id.normalize("NFC"));

// The table and the masks of an archive, by the same rules as `coseg apply`.
const reviewFiles = (files) => {
  const found = [...files]
    .map(([name, bytes]) => ({ name, bytes, parts: [...(name.startsWith("/") ? ["/"] : []), ...name.replaceAll("\\", "/").split("/").filter((part) => part && part !== ".")] }))
    .filter(({ parts }) => parts.length && !isOfTheSystem(parts));
  // An archive made by hand may hold the folder itself.
  const tops = new Set(found.filter(({ parts }) => parts.length > 1 || parts[0] !== "review.csv").map(({ parts }) => parts[0]));
  const inside = tops.size === 1 && !tops.has("masks") && found.every(({ parts }) => parts.length > 1);
  let table = null;
  const masks = new Map();
  for (const { name, bytes, parts } of found) {
    const [first, second, ...more] = inside ? parts.slice(1) : parts;
    if (first === "review.csv" && second === undefined) table = bytes;
    else if (first === "masks" && second?.endsWith(".png") && !more.length) masks.set(composed(second.slice(0, -4)), bytes);
    else throw new Error(`it holds ${name}, but a review may hold only review.csv and masks/ID.png; remove the other file`);
  }
  if (!table && !masks.size) throw new Error("it holds neither review.csv nor masks/ID.png");
  return { table, masks };
};

const readReview = async (file) => {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const packed = (bytes[0] === 0x50 && bytes[1] === 0x4b) || file.name.endsWith(".zip");
  const { table, masks } = packed ? reviewFiles(await readZip(bytes)) : { table: bytes, masks: new Map() };
  const records = table ? csvRecords(table, ["id", "decision"]) : [];
  for (const record of records) record.id = composed(record.id);
  const named = new Set();
  for (const { id } of records) {
    if (named.has(id)) throw new Error(`it names ${id} twice; give one decision for it`);
    named.add(id);
  }
  for (const id of masks.keys()) if (!named.has(id)) records.push({ id, decision: "" });
  return { records, masks };
};

// A mask that can be used for a sample, as the PNG that this page writes. In one that a page or `exchange` wrote,
// which its checksum tells, 255 is surely no foreground.
const checkedDrawing = async (n, png, drawn) => {
  const { width, height } = pngHeader(png);
  const own = index.parts[n] < 0 ? null : (await loadPart(index.parts[n]))[idOf(n)];
  if (own && (own.width !== width || own.height !== height)) throw new Error(`the mask is ${width} x ${height} pixels, but must be ${own.width} x ${own.height}`);
  const mask = await decodePng(png), isForeground = (value) => value > 0 && value !== 255;
  const white = (index.named || index.classes.length) === 1 ? indexOfClass1(png, mask) : null;
  if (white !== null) mask.data = mask.data.map((value) => Number(value === white));
  const other = index.named ? mask.data.find((value) => value > index.named && value !== 255) : undefined;
  if (other !== undefined) throw new Error(`the mask has the value ${other}, but may hold only 0 to ${index.named}, and 255 for unlabelled pixels`);
  if (own && drawn !== checksum(png) && mask.data.includes(255) && !mask.data.some(isForeground)) {
    const given = await decodePng(fromBase64(own.given));
    if (mask.data.some((value, k) => value === 255 && given.data[k] !== 255)) throw new Error("the mask holds only 0 and 255, but 255 means unlabelled; save the foreground as 1");
  }
  return encodePng(mask);
};

const sameBytes = (one, other) => one?.length === other?.length && one.every((value, n) => value === other[n]);
const sameDrawing = async (one, other) => {
  if (!one || !other) return true; // the one that is there is taken
  return sameBytes(one, other) || sameMask(await decodePng(one), await decodePng(other));
};

const addRecord = async (record, png, fallback, counts) => {
  const n = numberOf.get(record.id), given = (record.decision || "").trim().toLowerCase();
  const leaveOut = (reason) => {
    if (!counts.leftOut.has(reason)) counts.leftOut.set(reason, []);
    counts.leftOut.get(reason).push(record.id);
  };
  const read = readItem({ decision: given || (png ? "redraw" : "") });
  if (n === undefined) return leaveOut("not on this page");
  if (!read) return leaveOut("the decision must be ok, take or redraw");
  if (read.decision === "take" && !index.proposed[n]) return leaveOut("there is no proposal to take");
  const taken = (record.proposal || "").trim();
  if (read.decision === "take" && taken && digestOf(n) && taken !== digestOf(n)) return leaveOut("it takes a proposal that is not this page's");
  if (png && read.decision !== "redraw") return leaveOut(`the decision is ${read.decision}, but a mask is drawn`);
  const drawn = (record.drawn || "").trim(), mine = drawings.get(record.id);
  const isMissing = drawn && read.decision === "redraw" && !png && !(mine && drawn === checksum(mine));
  if (isMissing) return leaveOut("the mask that was drawn is not in the file, but in review.zip");
  let drawing;
  try { drawing = png && (await checkedDrawing(n, png, drawn)); } catch (error) { return leaveOut(error.message.replace(/\.$/, "")); }
  const item = itemOf(n), note = (record.note || "").trim(), reviewer = (record.reviewer || "").trim() || fallback;
  const side = { decision: read.decision, note, reviewer };
  if (read.decision === "take") side.proposal = taken; // another review knows which proposal it was of
  const notes = [...new Set([item.note, note].filter(Boolean))].join("; ");
  if (!side.decision) {
    if (note) items[record.id] = { ...item, note: notes };
    return;
  }
  if (item.sides) {
    let known = false; // the same decision of one person, with the same drawing
    for (const [number, other] of item.sides.entries()) {
      const name = sideName(record.id, number), there = drawings.get(name);
      if (known || other.decision !== side.decision || other.reviewer !== side.reviewer) continue;
      known = await sameDrawing(there, drawing);
      if (known && drawing && !there) await setDrawing(name, drawing);
    }
    if (!known) {
      await setSide(record.id, item.sides.length, drawing ?? null);
      items[record.id] = { ...item, sides: [...item.sides, side] };
    }
    counts.conflicts++;
  } else if (!item.decision) {
    items[record.id] = { ...side, note: notes };
    if (drawing) await setDrawing(record.id, drawing);
    counts.added++;
  } else if (item.decision === side.decision && (side.decision !== "redraw" || (await sameDrawing(mine, drawing)))) {
    items[record.id] = { ...item, note: notes };
    if (drawing && !mine) await setDrawing(record.id, drawing);
    counts.same++;
  } else {
    const first = { decision: item.decision, note: item.note || "", reviewer: item.reviewer || $("bench-reviewer").value, proposal: item.proposal };
    await setSide(record.id, 0, item.decision === "redraw" && mine ? mine : null);
    await setSide(record.id, 1, drawing ?? null);
    items[record.id] = { decision: "", note: item.note, reviewer: "", sides: [first, side] };
    counts.conflicts++;
  }
};

const leftOutText = (byReason) => {
  const some = (ids) => `${ids.slice(0, 3).join(", ")}${ids.length > 3 ? ` and ${ids.length - 3} more` : ""}`;
  const all = [...byReason.values()].flat().length;
  return `${all} left out: ${[...byReason].map(([reason, ids]) => `${some(ids)} (${reason})`).join("; ")}`;
};

let merging = null;
const mergeReviews = (files) => (merging = mergeFiles(files));
const mergeFiles = async (files) => {
  const told = [];
  await mend.saving;
  for (const file of files) {
    const counts = { added: 0, same: 0, conflicts: 0, leftOut: new Map() }; // by reason: ids
    try {
      const { records, masks } = await readReview(file);
      const fallback = file.name.replace(/\.(csv|zip)$/i, "");
      for (const record of records) await addRecord(record, masks.get(record.id), fallback, counts);
      const parts = [`${counts.added} added`, `${counts.same} the same`, `${counts.conflicts} in conflict`];
      if (counts.leftOut.size) parts.push(leftOutText(counts.leftOut));
      told.push(`${file.name}: ${parts.join(", ")}.`);
    } catch (error) {
      told.push(`${file.name} cannot be read: ${error.message}.`);
    }
  }
  keepItems();
  listeners.forEach((listener) => listener(null));
  if (current.n >= 0) await show(current.n);
  refresh();
  say(told.join(" "));
};

// Settle a conflict by taking one side.
const settle = async (n, number) => {
  const { sides, note } = itemOf(n), side = sides[number], id = idOf(n);
  remember(n);
  current.newly = true;
  const drawing = drawings.get(sideName(id, number));
  if (side.decision === "redraw") await setDrawing(id, drawing ?? null); // not an older drawing of this browser
  const notes = [...new Set([note, ...sides.map((other) => other.note)].filter(Boolean))].join("; ");
  const next = nextOpen(n);
  setItem(n, { decision: side.decision, reviewer: side.reviewer, note: notes, sides: undefined, proposal: side.proposal });
  await show(next >= 0 ? next : n);
};
const conflicts = () => index.ids.map((_, n) => n).filter((n) => itemOf(n).sides);
const sideText = (side) => `${side.reviewer || "without a name"}: ${side.decision}${side.note ? ` (${side.note})` : ""}`;
