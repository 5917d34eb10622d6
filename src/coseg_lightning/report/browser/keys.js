// Everything by keys, and the start.
const PAN = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  o: () => decide("ok"), t: () => decide("take"), d: () => decide("redraw"),
  n: ACTIONS.next, p: ACTIONS.previous, u: ACTIONS.open, z: undo, Z: () => mend.redo(), y: () => mend.redo(),
  x: () => nextView(1), X: () => nextView(-1),
  "+": ACTIONS.bigger, "=": ACTIONS.bigger, "-": ACTIONS.smaller, 0: ACTIONS.fit,
  ",": () => nudge("bench-opacity", -10), ".": () => nudge("bench-opacity", 10),
  "<": () => nudge("bench-brightness", -10), ">": () => nudge("bench-brightness", 10),
  "{": () => nudge("bench-contrast", -10), "}": () => nudge("bench-contrast", 10),
  f: fullScreen, m: ACTIONS.mend, s: save, "?": ACTIONS.help,
  h: () => { view.hidden = !view.hidden; draw(); },
  i: () => { toggleSide(true); $("bench-note").focus(); },
  w: () => { toggleSide(); if (bench.classList.contains("open")) $("bench-find").focus(); },
};
VIEWS.forEach((mode, n) => { KEYS[n + 1] = () => setView(mode); });
const MEND_KEYS = {
  b: () => mend.use("brush"), e: () => mend.use("eraser"), l: () => mend.use("polygon"), k: () => mend.use("fill"),
  "[": () => nudge("bench-size", -2), "]": () => nudge("bench-size", 2),
  c: () => { $("bench-class").selectedIndex = ($("bench-class").selectedIndex + 1) % $("bench-class").length; $("bench-class").dispatchEvent(new Event("change")); },
  Enter: () => (view.path.length ? mend.closePolygon() : mend.end()),
  " ": () => { view.cursor ||= [view.x, view.y]; mend.press(view.cursor); if (mend.tool !== "polygon") mend.finish(); },
};
const nudge = (name, by) => {
  const field = $(name);
  field.value = Number(field.value) + by;
  field.dispatchEvent(new Event("input"));
};

// While mending, arrows move the tool; with Shift they draw.
const moveCursor = ([x, y], draws) => {
  const by = Math.max(1, Math.round(8 / view.scale));
  const from = view.cursor || [view.x, view.y];
  const to = [Math.min(view.sample.width - 0.5, Math.max(0.5, from[0] + by * x)), Math.min(view.sample.height - 0.5, Math.max(0.5, from[1] + by * y))];
  if (draws && view.radius) { mend.press(from); mend.move(to); mend.finish(); }
  view.cursor = to;
  // The view follows.
  const [pane] = panes(), room = [pane.width, pane.height].map((side) => Math.max(0, side / view.scale / 2 - by));
  const beyond = [to[0] - view.x, to[1] - view.y].map((apart, n) => Math.sign(apart) * Math.max(0, Math.abs(apart) - room[n]));
  if (beyond.some(Boolean)) {
    view.fitted = false;
    panBy(...beyond);
  } else draw();
};

const escape = () => {
  if (!$("bench-help").hidden) toggleHelp(false);
  else if (view.path.length) { mend.dropPolygon(); draw(); }
  else if (view.mending) mend.end();
  else if (bench.classList.contains("open")) { toggleSide(false); stage.focus(); }
  else if (document.fullscreenElement) document.exitFullscreen();
  else close();
};

const isActive = () => !dialog || dialog.open;
document.addEventListener("keydown", (event) => {
  if (!isActive() || event.altKey || (event.repeat && "otd".includes(event.key))) return;
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    if (event.target.matches("input, textarea") || !["z", "y", "s"].includes(key)) return;
    event.preventDefault();
    if (key === "s") save();
    else if (key === "y" || event.shiftKey) mend.redo();
    else undo();
    return;
  }
  if (event.key === "Escape") {
    event.preventDefault();
    if (event.target.matches("input, textarea, select")) stage.focus();
    else escape();
    return;
  }
  const slider = event.target.matches("input[type=range]") && !/^(Arrow|Page|Home|End)/.test(event.key);
  if (event.target.matches("input, textarea, select, summary") && !slider) return;
  if (!$("bench-help").hidden) return event.key === "?" ? toggleHelp(false) : undefined;
  if (event.target === $("bench-colours") && /^(Arrow|Page|Home|End)/.test(event.key)) return; // scrolls
  const onButton = event.target.matches("button") && (event.key === "Enter" || event.key === " ");
  if (onButton || !view.sample && event.key in MEND_KEYS && view.mending) return;
  const pan = PAN[event.key];
  const action = (view.mending && MEND_KEYS[event.key]) || KEYS[event.key];
  if (pan && view.sample) {
    if (view.mending) moveCursor(pan, event.shiftKey);
    else { view.fitted = false; panBy((40 * pan[0]) / view.scale, (40 * pan[1]) / view.scale); }
  } else if (action) action();
  else return;
  event.preventDefault();
});
dialog?.addEventListener("cancel", (event) => event.preventDefault()); // Escape goes back step by step
dialog?.addEventListener("close", () => {
  if (view.mending) mend.end();
  listeners.forEach((listener) => listener(null));
});

const start = async () => {
  readItems();
  current.times = (memory.read(timesKey) || []).filter(Number.isFinite);
  $("bench-reviewer").value = memory.read("coseg reviewer") || "";
  bench.querySelector("[data-do=saveFolder]").hidden = !window.showDirectoryPicker;
  memory.write(timesKey, current.times); // tells at once whether anything is kept
  listeners.forEach((listener) => listener(null));
  await memory.open();
  for (const [name, png] of await memory.masks(index.key)) drawings.set(name, png);
  refresh();
};
window.coseg = {
  open, save,
  isOpen: () => Boolean(dialog?.open),
  decision: (id) => (items[id]?.sides ? "conflict" : items[id]?.decision || ""),
  progress: () => progressText(),
  listen: (listener) => { listeners.push(listener); listener(null); },
};
const ready = start();
if (!dialog) open();
