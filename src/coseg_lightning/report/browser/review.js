// The review: a decision, a note and perhaps a drawn mask of each sample; which are listed; undo.
const DECISIONS = ["ok", "take", "redraw"];
const OLD_NAMES = { keep: "take", reject: "ok" }; // of version 0.1
const items = Object.create(null); // by id: decision, note, reviewer, and sides where reviewers differ
const drawings = new Map(); // by id: PNG; those of sides by id, a zero and their number
const storageKey = `coseg review ${index.key}`;
const drawnKey = `coseg drawn ${index.key}`; // names what was drawn last, for other tabs
const numberOf = new Map(index.ids.map((id, n) => [id, n]));
const listeners = [];
const idOf = (n) => index.ids[n];
const itemOf = (n) => items[idOf(n)] || {};
const digestOf = (n) => (typeof index.proposed[n] === "string" ? index.proposed[n] : ""); // of its proposal
const decided = (n) => Boolean(itemOf(n).decision);
const current = { n: -1, since: 0, times: [], newly: false, loading: false };
const filters = { find: "", class: "", annotator: "", change: "", decision: "", kind: "", sort: "order" };
let undoable = [];

const readItem = (value) => {
  const item = typeof value === "string" ? { decision: value } : { ...value };
  item.decision = OLD_NAMES[item.decision] || item.decision || "";
  return item.decision === "" || DECISIONS.includes(item.decision) ? item : null;
};
const readItems = () => {
  for (const [id, value] of Object.entries(memory.read(storageKey) || {})) {
    const item = numberOf.has(id) && value && readItem(value);
    if (item) items[id] = item;
  }
};
const keepItems = () => memory.write(storageKey, items);

const setItem = (n, change) => {
  items[idOf(n)] = { ...itemOf(n), ...change };
  keepItems();
  listeners.forEach((listener) => listener(idOf(n)));
  refresh();
};
// Notes stay, since they are written apart from decisions.
const restoreItem = (n, item) => {
  const note = itemOf(n).note ?? item.note;
  delete items[idOf(n)];
  setItem(n, note === undefined ? item : { ...item, note });
};
const setDrawing = (id, png) => {
  if (mend.pending?.id === id) mend.pending = null;
  if (png) drawings.set(id, png);
  else drawings.delete(id);
  const kept = memory.keepMask(index.key, id, png);
  refresh();
  return kept;
};

// Other tabs with this page: what they draw is shown and saved here too.
let receiving = null;
const receiveDrawing = (name) => {
  const before = receiving;
  receiving = (async () => {
    await before;
    await ready;
    if (memory.unkept.has(name)) return;
    const png = await memory.mask(index.key, name), n = numberOf.get(name);
    const drawn = png ? await decodePng(png).catch(() => null) : null;
    if (png) drawings.set(name, png);
    else drawings.delete(name);
    undoable = undoable.filter((step) => step.n !== n); // else undo would take back what is not this tab's
    if (n !== undefined && view.sample?.n === n) mend.receive(drawn);
    refresh();
  })();
  return receiving;
};
// Bring what this tab has not been told of yet, as before saving.
const catchUp = async () => {
  await mend.saving;
  await receiving;
  await merging;
  if (!memory.refused) readItems();
  for (const [name, png] of await memory.masks(index.key)) {
    if (!sameBytes(drawings.get(name), png)) await receiveDrawing(name);
  }
  refresh();
};

const remember = (n) => {
  const id = idOf(n), { pending } = mend; // the drawing may not be encoded yet
  const step = { n, item: { ...itemOf(n) }, drawing: pending?.id === id ? pending.png : drawings.get(id) };
  undoable.push(step);
  undoable.splice(0, undoable.length - 500);
  return step;
};
const forgetStep = (step) => { undoable = undoable.filter((other) => other !== step); };
const undoDecision = async () => {
  const last = undoable.pop();
  if (!last) return say("There is nothing to undo.");
  setLoading(true);
  await mend.saving; // else it would come back
  const drawing = await last.drawing;
  restoreItem(last.n, last.item);
  if (drawing !== drawings.get(idOf(last.n))) await setDrawing(idOf(last.n), drawing);
  await show(last.n);
  say(`Undone: ${idOf(last.n)}.`);
};
const undo = () => (view.mending && mend.undo() ? undefined : undoDecision());

const decide = async (decision) => {
  const { n } = current;
  if (n < 0 || current.loading) return; // nobody has seen it yet
  if (decision === "take" && !index.proposed[n]) return say("There is no proposal to take; mend the mask, or choose redraw.");
  say(""); // of the sample before
  remember(n);
  current.newly = true;
  const next = nextOpen(n);
  setItem(n, { decision, reviewer: "", sides: undefined, proposal: undefined });
  if (next >= 0) await show(next);
  else {
    if (view.mending) mend.end();
    countTime();
    say("All listed samples are decided. Save the review.");
  }
  if (decision !== "redraw" && drawings.has(idOf(n))) say(`The mask drawn for ${idOf(n)} is saved only with redraw, not with ${decision}; press z to undo.`);
};
const decideDrawn = (n) => {
  current.newly = true;
  setItem(n, { decision: "redraw", reviewer: "", sides: undefined });
};

// Which samples are listed, and in which order.
const CHANGES = {
  none: (share) => share === 0,
  little: (share) => share > 0 && share < 0.05,
  some: (share) => share >= 0.05 && share < 0.2,
  much: (share) => share >= 0.2 && share < 0.5,
  most: (share) => share >= 0.5,
};
const BY_DECISION = {
  undecided: (item) => !item.decision,
  decided: (item) => Boolean(item.decision),
  note: (item) => Boolean(item.note),
  conflicts: (item) => Boolean(item.sides),
  suggested: (item, n) => !item.decision && Boolean(index.suggested?.[n]),
};
const fits = (n) =>
  (!filters.find || idOf(n).toLowerCase().includes(filters.find)) &&
  (!filters.class || index.present[n].includes(Number(filters.class))) &&
  (!filters.annotator || index.annotators[n] === filters.annotator) &&
  (!filters.change || CHANGES[filters.change](index.change[n])) &&
  (!filters.kind || Boolean(index.noisy[n]));
const fitsDecision = (n) => {
  if (!filters.decision) return true;
  const item = itemOf(n);
  return BY_DECISION[filters.decision]?.(item, n) ?? item.decision === filters.decision;
};
const SORTS = {
  order: (a, b) => a - b,
  rank: (a, b) => index.ranks[a] - index.ranks[b],
  change: (a, b) => index.change[b] - index.change[a] || a - b,
  name: (a, b) => (idOf(a) < idOf(b) ? -1 : 1),
};
let sorted = index.ids.map((_, n) => n);
const sortAll = () => sorted.sort(SORTS[filters.sort]);
const selected = () => sorted.filter(fits);

// The next sample of the list after one that may have left it.
const following = (n, by, wanted) => {
  const at = sorted.indexOf(n);
  for (let next = at + by; next >= 0 && next < sorted.length; next += by) {
    if (wanted(sorted[next])) return sorted[next];
  }
  return -1;
};
const listed = (n) => fits(n) && fitsDecision(n);
const isOpen = (n) => fits(n) && fitsDecision(n) && !decided(n);
const nextOpen = (n) => {
  const next = following(n, 1, isOpen);
  return next >= 0 ? next : (sorted.find((other) => other !== n && isOpen(other)) ?? -1);
};
const step = (by) => {
  const next = following(current.n, by, listed);
  say("");
  if (next >= 0) show(next);
  else say(by > 0 ? "This is the last one of the list." : "This is the first one of the list.");
};
const stepOpen = () => {
  const next = nextOpen(current.n);
  say("");
  if (next >= 0) show(next);
  else say("All other listed samples are decided.");
};
const firstOpen = () => sorted.find(isOpen) ?? sorted.find(listed) ?? -1;

// How long the rest takes, by the median of the last decisions.
const timesKey = `coseg times ${index.key}`;
const countTime = () => {
  if (current.newly) {
    current.times.push(Math.min(300, (performance.now() - current.since) / 1000));
    current.times.splice(0, current.times.length - 99);
    memory.write(timesKey, current.times.map((seconds) => Math.round(10 * seconds) / 10));
  }
  current.newly = false;
  current.since = performance.now();
};
const progressText = () => {
  const all = selected(), done = all.filter(decided).length;
  const text = `${done} of ${all.length}`;
  if (current.times.length < 3 || done === all.length) return done === all.length && done ? `${text}, done` : text;
  const times = [...current.times].sort((a, b) => a - b);
  const minutes = ((all.length - done) * times[times.length >> 1]) / 60;
  if (minutes < 1) return `${text}, less than a minute left`;
  if (minutes < 90) return `${text}, about ${Math.round(minutes)} minute${Math.round(minutes) === 1 ? "" : "s"} left`;
  return `${text}, about ${Math.round(minutes / 60)} hours left`;
};

const setLoading = (loading) => {
  current.loading = loading;
  stage.setAttribute("aria-busy", loading);
};
const show = async (n) => {
  if (n < 0) {
    if (current.n < 0) setLoading(false);
    return say("No sample is listed; change the filters.");
  }
  if (view.mending) mend.end();
  if (current.n >= 0) countTime();
  Object.assign(current, { n, since: performance.now(), newly: false });
  setLoading(true);
  mend.forget();
  Object.assign(view, { sample: null, drawn: null, cursor: null });
  tellStage("Loading …");
  refresh();
  draw();
  try {
    await mend.saving;
    const sample = await loadSample(n), png = drawings.get(idOf(n));
    const drawn = png ? await decodePng(png).catch(() => newMask(0, 0)) : null;
    if (current.n !== n) return;
    if (png !== drawings.get(idOf(n))) return await show(n); // another tab has drawn meanwhile
    view.sample = sample;
    view.drawn = drawn && drawn.width === sample.width && drawn.height === sample.height ? drawn : null;
    if (drawn && !view.drawn) say("The drawn mask of this sample is damaged or has another size, so it is not shown.");
    tellStage("");
    refresh();
    view.fitted = true;
    fit();
  } catch (error) {
    if (current.n === n) tellStage(error.message);
  }
  if (current.n === n) setLoading(false);
  const next = nextOpen(n);
  if (next >= 0 && current.n === n) loadSample(next).catch(() => {}); // ahead
};
