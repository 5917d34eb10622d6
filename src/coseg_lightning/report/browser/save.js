// Saving: review.csv, review.zip with the drawn masks, or both in a folder.
const reviewRows = () => {
  const reviewer = $("bench-reviewer").value.trim();
  const rows = [["id", "decision", "note", "reviewer"]];
  for (const id of index.ids) {
    const item = items[id];
    if (!item || !(item.decision || item.note)) continue;
    const note = (item.note || "").replaceAll("\u0000", "");
    rows.push([id, item.decision || "", note, item.reviewer || (item.decision ? reviewer : "")]);
  }
  return rows;
};
const reviewCsv = () => csvText(reviewRows());
const savedMasks = () =>
  index.ids.filter((id) => items[id]?.decision === "redraw" && drawings.has(id)).map((id) => [`masks/${id}.png`, drawings.get(id)]);

const download = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const tellSaved = (what) => {
  const open = conflicts().length;
  say(`Saved ${what}.${open ? ` ${open} conflict${open === 1 ? " is" : "s are"} not settled, and not in it.` : ""}`);
};

const saveCsv = () => {
  download(new Blob([reviewCsv()], { type: "text/csv" }), "review.csv");
  const masks = savedMasks().length;
  tellSaved(masks ? `review.csv without the ${masks} drawn masks` : "review.csv");
};

const saveZip = async () => {
  await mend.saving;
  const masks = savedMasks();
  download(writeZip([["review.csv", new TextEncoder().encode(reviewCsv())], ...masks]), "review.zip");
  tellSaved(`review.zip with ${masks.length} drawn mask${masks.length === 1 ? "" : "s"}`);
};

// review.csv is enough where nothing was drawn.
const save = async () => {
  await mend.saving;
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

const saveFolder = async () => {
  await mend.saving;
  try {
    const folder = await window.showDirectoryPicker({ id: "coseg", mode: "readwrite" });
    const masks = savedMasks();
    for (const [path, png] of masks) await writeInto(folder, path, png);
    await writeInto(folder, "review.csv", reviewCsv()); // last, so that it never names what is not there
    tellSaved(`review.csv and ${masks.length} drawn mask${masks.length === 1 ? "" : "s"} in the folder ${folder.name}`);
  } catch (error) {
    if (error.name !== "AbortError") say(`The folder cannot be written (${error.message}); save review.zip.`);
  }
};
