// Reviews of others: review.csv or review.zip, added to this one. Where two decide otherwise, nobody
// has decided until somebody settles it.
const sideName = (id, number) => `${id}\u0000${number}`;

const readReview = async (file) => {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const packed = bytes[0] === 0x50 && bytes[1] === 0x4b;
  const files = packed ? await readZip(bytes) : new Map([["review.csv", bytes]]);
  // An archive made of a folder may hold that folder.
  const table = [...files.keys()].find((name) => name === "review.csv" || name.endsWith("/review.csv"));
  const top = table ? table.slice(0, -"review.csv".length) : "";
  const records = table ? csvRecords(new TextDecoder().decode(files.get(table))) : [];
  if (table && records.length && !("id" in records[0] && "decision" in records[0])) throw new Error("it has no columns id and decision");
  if (!table && !packed) throw new Error("it is not a review");
  const masks = new Map();
  for (const [name, png] of files) {
    const path = name.startsWith(top) ? name.slice(top.length) : name;
    if (path.startsWith("masks/") && path.endsWith(".png")) masks.set(path.slice(6, -4), png);
  }
  const named = new Set(records.map((record) => record.id));
  for (const id of masks.keys()) if (!named.has(id)) records.push({ id, decision: "redraw" });
  return { records, masks };
};

const sameBytes = (one, other) => one?.length === other?.length && one.every((value, n) => value === other[n]);
const sameDrawing = async (one, other) => {
  if (!one || !other) return true; // the one that is there is taken
  return sameBytes(one, other) || sameMask(await decodePng(one), await decodePng(other));
};

const addRecord = async (record, png, fallback, counts) => {
  const n = numberOf.get(record.id);
  const read = readItem({ decision: (record.decision || "").trim().toLowerCase() });
  if (n === undefined) return void counts.unknown++;
  if (!read || (read.decision === "take" && !index.proposed[n])) return void counts.invalid++;
  const item = itemOf(n), note = record.note || "", reviewer = record.reviewer || fallback;
  const drawing = read.decision === "redraw" ? png : undefined;
  if (drawing && !(await decodePng(drawing).catch(() => null))) return void counts.invalid++;
  const side = { decision: read.decision, note, reviewer };
  const notes = [...new Set([item.note, note].filter(Boolean))].join("; ");
  if (!side.decision) {
    if (note) items[record.id] = { ...item, note: notes };
    return;
  }
  const mine = drawings.get(record.id);
  if (item.sides) {
    const known = item.sides.some((other) => other.decision === side.decision && other.reviewer === side.reviewer);
    if (!known) {
      if (drawing) await setDrawing(sideName(record.id, item.sides.length), drawing);
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
    const first = { decision: item.decision, note: item.note || "", reviewer: item.reviewer || $("bench-reviewer").value };
    if (item.decision === "redraw" && mine) await setDrawing(sideName(record.id, 0), mine);
    if (drawing) await setDrawing(sideName(record.id, 1), drawing);
    items[record.id] = { decision: "", note: item.note, reviewer: "", sides: [first, side] };
    counts.conflicts++;
  }
};

const mergeReviews = async (files) => {
  const told = [];
  for (const file of files) {
    const counts = { added: 0, same: 0, conflicts: 0, unknown: 0, invalid: 0 };
    try {
      const { records, masks } = await readReview(file);
      const fallback = file.name.replace(/\.(csv|zip)$/i, "");
      for (const record of records) await addRecord(record, masks.get(record.id), fallback, counts);
      const parts = [`${counts.added} added`, `${counts.same} the same`, `${counts.conflicts} in conflict`];
      if (counts.unknown) parts.push(`${counts.unknown} left out, since this page does not have their samples`);
      if (counts.invalid) parts.push(`${counts.invalid} left out, since their decision or mask is not valid here`);
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
  if (side.decision === "redraw" && drawing) await setDrawing(id, drawing);
  const notes = [...new Set([note, ...sides.map((other) => other.note)].filter(Boolean))].join("; ");
  const next = nextOpen(n);
  setItem(n, { decision: side.decision, reviewer: side.reviewer, note: notes, sides: undefined });
  await show(next >= 0 ? next : n);
};
const conflicts = () => index.ids.map((_, n) => n).filter((n) => itemOf(n).sides);
const sideText = (side) => `${side.reviewer || "without a name"}: ${side.decision}${side.note ? ` (${side.note})` : ""}`;
