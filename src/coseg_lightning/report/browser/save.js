// Saving: review.csv, review.zip with the drawn masks, or both in a folder.
// `drawn` is the CRC-32 of the drawn mask's file: a mask that was changed elsewhere is told by it.
// `proposal` is the digest of the proposal that was taken: that of another run is told by it.
const REVIEW_COLUMNS = ["id", "decision", "note", "reviewer", "drawn", "proposal"];
const reviewRows = () => {
  const reviewer = $("bench-reviewer").value.trim();
  const rows = [REVIEW_COLUMNS];
  for (const id of index.ids) {
    const item = items[id];
    if (!item || !(item.decision || item.note)) continue;
    const note = (item.note || "").replaceAll("\u0000", "");
    const drawn = isSaved(id) ? checksum(drawings.get(id)) : "";
    const proposal = item.decision === "take" ? (item.proposal ?? digestOf(numberOf.get(id))) : "";
    rows.push([id, item.decision || "", note, item.reviewer || (item.decision ? reviewer : ""), drawn, proposal]);
  }
  return rows;
};
const reviewCsv = () => csvText(reviewRows());
const isSaved = (id) => items[id]?.decision === "redraw" && drawings.has(id);
const savedMasks = () => index.ids.filter(isSaved).map((id) => [`masks/${id}.png`, drawings.get(id)]);

const download = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const tellSaved = (what, file) => {
  const open = conflicts().length, use = bench.dataset.use.replace("REVIEW", file);
  say(`Saved ${what}.${use ? ` Next: ${use}` : ""}${open ? ` ${open} conflict${open === 1 ? " is" : "s are"} not settled; no decision on ${open === 1 ? "it" : "them"} is saved.` : ""}`);
};

const saveCsv = async () => {
  await catchUp();
  download(new Blob([reviewCsv()], { type: "text/csv" }), "review.csv");
  const masks = savedMasks().length;
  tellSaved(masks ? `review.csv without the ${masks} drawn mask${masks === 1 ? "" : "s"}` : "review.csv", "review.csv");
};

const saveZip = async () => {
  await catchUp();
  const masks = savedMasks();
  download(writeZip([["review.csv", new TextEncoder().encode(reviewCsv())], ...masks]), "review.zip");
  tellSaved(`review.zip with ${masks.length} drawn mask${masks.length === 1 ? "" : "s"}`, "review.zip");
};

// review.csv is enough where nothing was drawn.
const save = async () => {
  await catchUp();
  return savedMasks().length ? saveZip() : saveCsv();
};

const writeInto = async (folder, path, content) => {
  const names = path.split("/");
  for (const name of names.slice(0, -1)) folder = await folder.getDirectoryHandle(name, { create: true });
  const file = await folder.getFileHandle(names.at(-1), { create: true });
  const stream = await file.createWritable();
  await stream.write(content);
  await stream.close();
};

const readIn = async (folder, name) => {
  try { return await (await (await folder.getFileHandle(name)).getFile()).text(); } catch { return null; }
};

// Another folder's masks or tables are never replaced, such as those of the data itself.
const isReviewFolder = async (folder) => {
  const table = await readIn(folder, "review.csv");
  if (table !== null) return table.startsWith(REVIEW_COLUMNS.slice(0, 4).join(","));
  for await (const name of folder.keys()) if (name === "masks") return false;
  return true;
};

// A mask that is not in the review any more would count as drawn.
const removeOld = async (folder, kept) => {
  let masks;
  try { masks = await folder.getDirectoryHandle("masks"); } catch { return; }
  const names = [];
  for await (const name of masks.keys()) names.push(name);
  for (const name of names) {
    if (name.endsWith(".png") && numberOf.has(name.slice(0, -4)) && !kept.has(`masks/${name}`)) await masks.removeEntry(name);
  }
};

const saveFolder = async () => {
  try {
    const folder = await window.showDirectoryPicker({ id: "coseg", mode: "readwrite" });
    if (!(await isReviewFolder(folder))) return say(`The folder ${folder.name} holds other masks or another review.csv; choose an empty folder.`);
    await catchUp();
    const masks = savedMasks();
    await removeOld(folder, new Set(masks.map(([path]) => path)));
    for (const [path, png] of masks) await writeInto(folder, path, png);
    await writeInto(folder, "review.csv", reviewCsv()); // last, so that it never names what is not there
    tellSaved(`review.csv and ${masks.length} drawn mask${masks.length === 1 ? "" : "s"} in the folder ${folder.name}`, folder.name);
  } catch (error) {
    if (error.name !== "AbortError") say(`The folder cannot be written (${error.message}); save review.zip instead.`);
  }
};
