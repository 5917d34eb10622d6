// The workbench's controls, and what they show.
const bench = $("bench"), dialog = bench.closest("dialog");
const mendButton = bench.querySelector(".bench-decide [data-do=mend]");
const every = (selector, action) => bench.querySelectorAll(selector).forEach(action);
const say = (text) => { $("bench-status").textContent = text; };
const tellStage = (text) => {
  $("bench-message").textContent = text;
  $("bench-message").hidden = !text;
};
const withText = (name, text, more = {}) => Object.assign(document.createElement(name), { textContent: text, ...more });

const VIEWS = ["given", "proposal", "drawn", "difference", "sides", "image"];
const available = (mode) => {
  const { sample, drawn } = view;
  if (!sample) return true;
  if (mode === "proposal") return Boolean(sample.proposal);
  if (mode === "drawn") return Boolean(drawn);
  return mode !== "difference" || Boolean(sample.proposal || drawn);
};
const setView = (mode) => {
  if (!available(mode)) return;
  const refit = (mode === "sides") !== (view.mode === "sides") && view.fitted;
  view.mode = mode;
  refresh();
  if (refit) fit();
  else draw();
};
const nextView = (by) => {
  const open = VIEWS.filter(available);
  setView(open[(open.indexOf(view.mode) + by + open.length) % open.length]);
};

const percent = (share) => `${share < 0.1 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;
const facts = (n) => {
  const texts = [`rank ${index.ranks[n]}`];
  if (index.proposed[n] && index.parts[n] >= 0) texts.push(index.change[n] ? `the proposal differs in ${percent(index.change[n])} of the marked area` : "proposal equals the given mask");
  if (!index.proposed[n]) texts.push("no proposal");
  if (index.annotators?.[n]) texts.push(index.annotators[n]);
  if (index.before?.[n]) texts.push(`decided before: ${index.before[n]}`);
  if (index.suggested?.[n] && !decided(n)) texts.push(`like ${index.like[n]}: ${index.suggested[n]}?`);
  return texts.join(" · ");
};

const refresh = () => {
  const { n } = current;
  $("bench-progress").textContent = progressText();
  $("bench-listed").textContent = `${sorted.filter(listed).length} of ${index.ids.length} samples listed`;
  showConflicts();
  if (n < 0) return;
  const item = itemOf(n);
  if (!available(view.mode)) view.mode = "given";
  $("bench-name").textContent = idOf(n);
  $("bench-facts").textContent = facts(n);
  every("[data-view]", (button) => {
    button.setAttribute("aria-pressed", button.dataset.view === view.mode);
    button.disabled = !available(button.dataset.view);
  });
  every("[data-decision]", (button) => {
    button.setAttribute("aria-pressed", button.dataset.decision === item.decision);
    button.disabled = button.dataset.decision === "take" && !index.proposed[n];
  });
  mendButton.disabled = !view.sample;
  if ($("bench-note").value !== (item.note || "")) $("bench-note").value = item.note || "";
  $("bench-difference").hidden = view.mode !== "difference";
  showLegend();
  const state = item.sides ? "reviewers differ" : item.decision ? `decided: ${item.decision}` : "undecided";
  $("bench-state").textContent = `${state}${isDrawn(n) ? ", with a drawn mask" : ""}`;
  stage.setAttribute("aria-label", `Picture of ${idOf(n)}, ${view.mode}, ${state}`);
};

// Only the classes that are shown: there may be many.
const showLegend = () => {
  const legend = $("bench-colours");
  if (!legend) return;
  const shown = view.sample ? [...panes().map(({ kind }) => maskOf(kind)), showsBoth() ? view.sample.proposal : null] : [];
  const present = shown.filter((mask) => mask?.data).map(presentIn);
  let any = false;
  legend.querySelectorAll("[data-class]").forEach((entry) => {
    entry.hidden = !present.some((classes) => classes[entry.dataset.class]);
    any ||= !entry.hidden;
  });
  legend.hidden = !any;
  // It takes the mouse and the focus only where there is more than fits.
  if (legend.scrollHeight > legend.clientHeight) legend.tabIndex = 0;
  else legend.removeAttribute("tabindex");
};

const showConflicts = () => {
  const all = conflicts(), sides = current.n < 0 ? null : itemOf(current.n).sides;
  $("bench-conflicts").hidden = !all.length;
  $("bench-conflict-count").textContent = all.length;
  $("bench-conflict-list").replaceChildren(
    ...all.slice(0, 200).map((n) => {
      const line = document.createElement("li");
      line.append(withText("button", idOf(n), { type: "button", onclick: () => show(n) }), ` ${itemOf(n).sides.map(sideText).join(" · ")}`);
      return line;
    }),
  );
  $("bench-sides").hidden = !sides;
  if (!sides) return;
  $("bench-sides").replaceChildren(
    withText("strong", "Reviewers differ: "),
    ...sides.map((side, number) => withText("button", `${sideText(side)}${drawings.has(sideName(idOf(current.n), number)) ? ", drawn" : ""}`, { type: "button", onclick: () => settle(current.n, number) })),
  );
};

const showMending = () => {
  $("bench-mend").hidden = !view.mending;
  bench.classList.toggle("mending", view.mending);
  mendButton.setAttribute("aria-pressed", view.mending);
  every("[data-tool]", (button) => button.setAttribute("aria-pressed", button.dataset.tool === mend.tool));
  $("bench-size").max = mend.most() | 1; // odd, as its steps
  $("bench-size").value = mend.size;
  $("bench-size-text").textContent = `${mend.size} px`;
  $("bench-class").value = mend.value;
  bench.querySelector("[data-do=closePath]").hidden = mend.tool !== "polygon";
  $("bench-from-proposal").disabled = !view.sample?.proposal;
  bench.querySelector("[data-do=redo]").disabled = !mend.undone.length;
  bench.querySelector("[data-do=discard]").disabled = !view.sample || !isDrawn(view.sample.n);
  refresh();
};

const fullScreen = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else bench.requestFullscreen?.().catch(() => say("This browser does not allow full screen."));
};
const toggleSide = (open = !bench.classList.contains("open")) => {
  bench.classList.toggle("open", open);
  $("bench-menu").setAttribute("aria-expanded", open);
};
const toggleHelp = (open = $("bench-help").hidden) => {
  $("bench-help").hidden = !open;
  if (open) $("bench-help").querySelector("button").focus();
  else stage.focus();
};
const open = async (id) => {
  await ready;
  if (dialog && !dialog.open) dialog.showModal();
  stage.focus({ preventScroll: true });
  await show(id === undefined ? firstOpen() : numberOf.get(id));
};
const close = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  dialog?.close();
};

const ACTIONS = {
  previous: () => step(-1), next: () => step(1), open: stepOpen, undo, redo: () => mend.redo(),
  mend: () => (view.mending ? mend.end() : mend.start()), discard: () => mend.discard(),
  closePath: () => mend.closePolygon(), bigger: () => zoomBy(1.4), smaller: () => zoomBy(1 / 1.4),
  fit: () => { view.fitted = true; fit(); }, full: fullScreen, side: () => toggleSide(), help: () => toggleHelp(),
  close, save, saveCsv, saveZip, saveFolder, load: () => $("bench-files").click(),
};
const zoomBy = (factor) => {
  view.fitted = false;
  zoomAt(factor);
};
bench.addEventListener("click", (event) => {
  const { action, view: mode, decision, tool } = { action: event.target.closest("[data-do]")?.dataset.do, ...event.target.closest("[data-view], [data-decision], [data-tool]")?.dataset };
  if (action) ACTIONS[action]();
  else if (mode) setView(mode);
  else if (decision && event.detail < 2) decide(decision); // a double click decides once
  else if (tool) mend.use(tool);
  // After the mouse, Enter and Space are those of the tool again.
  if (event.detail && event.target.closest(".bench-views, .bench-mend, .bench-decide, .bench-steps, .bench-zoom") && event.target.closest("button")) stage.focus();
});

const slide = (name, action) => $(name).addEventListener("input", (event) => action(Number(event.target.value)));
slide("bench-opacity", (value) => { view.opacity = value / 100; draw(); });
const expose = () => { pictureCanvas.style.filter = `brightness(${$("bench-brightness").value}%) contrast(${$("bench-contrast").value}%)`; };
slide("bench-brightness", expose);
slide("bench-contrast", expose);
slide("bench-size", (value) => { mend.size = value; mend.show(); });
$("bench-class").addEventListener("change", (event) => { mend.value = Number(event.target.value); mend.show(); });
$("bench-from").addEventListener("change", (event) => {
  mend.from(event.target.value);
  event.target.value = "";
  stage.focus();
});
$("bench-note").addEventListener("input", (event) => {
  const { n } = current;
  if (n < 0) return;
  items[idOf(n)] = { ...itemOf(n), note: event.target.value };
  keepItems();
});
$("bench-reviewer").addEventListener("input", (event) => memory.write("coseg reviewer", event.target.value));
$("bench-files").addEventListener("change", async (event) => {
  await mergeReviews([...event.target.files]);
  event.target.value = "";
});
every("[data-filter]", (field) =>
  field.addEventListener("input", () => {
    const name = field.dataset.filter;
    filters[name] = name === "find" ? field.value.toLowerCase() : field.value;
    if (name === "sort") sortAll();
    refresh();
    if (current.n < 0 || !listed(current.n)) show(firstOpen());
  }),
);
window.addEventListener("storage", ({ key, newValue }) => { // the page is open in another tab too
  if (key === drawnKey && newValue) receiveDrawing(JSON.parse(newValue)[0]);
  if (key !== storageKey) return;
  readItems();
  listeners.forEach((listener) => listener(null));
  refresh();
});
window.addEventListener("pageshow", (event) => { if (event.persisted) catchUp(); }); // nobody told a page that was left
window.addEventListener("beforeunload", (event) => {
  if (memory.refused && undoable.length) event.preventDefault();
});
