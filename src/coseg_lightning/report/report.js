"use strict";
(() => {
  const table = document.getElementById("samples");
  document.documentElement.classList.add("js");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const $ = (id) => document.getElementById(id);

  // Sorting: numbers by value, everything else as text.
  const value = (row, n) => {
    const text = row.cells[n].dataset.value ?? row.cells[n].textContent.trim();
    return text === "" || text === "–" ? null : isNaN(text) ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  [...table.tHead.rows[0].cells].forEach((head, n) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const keyed = rows.map((row) => [value(row, n), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // unknown values last
        return descending ? compare(b, a) : compare(a, b);
      });
      rows.splice(0, rows.length, ...keyed.map(([, row]) => row));
      body.append(...rows);
    });
  });

  // Filtering: by part of the name and by kind.
  const kinds = {
    all: () => true,
    noisy: (row) => row.dataset.noisy === "1",
    corrected: (row) => "proposed" in row.dataset,
    undecided: (row) => "proposed" in row.dataset && !decisions[row.dataset.id],
  };
  const filter = () => {
    const wanted = $("find").value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const matches = row.dataset.id.toLowerCase().includes(wanted) && kinds[$("kind").value](row);
      row.hidden = !matches;
      if (matches) shown += 1;
    }
    $("shown").textContent = `${shown} of ${rows.length} samples`;
  };
  $("find").addEventListener("input", filter);
  $("kind").addEventListener("change", filter);

  // Reviewing: the browser stores the decisions too, so that they survive closing the page.
  const storageKey = `coseg review ${table.dataset.run}`;
  let decisions = Object.create(null);
  try { Object.assign(decisions, JSON.parse(localStorage.getItem(storageKey) || "{}")); } catch { /* no stored decisions */ }
  const proposed = rows.filter((row) => "proposed" in row.dataset);
  const known = new Set(proposed.map((row) => row.dataset.id));
  for (const id of Object.keys(decisions)) if (!known.has(id)) delete decisions[id];
  let current = null;
  const showProgress = () => {
    const decided = Object.keys(decisions).length;
    if ($("progress")) $("progress").textContent = `${decided} of ${proposed.length} decided`;
  };
  const decide = (row, decision) => {
    decisions[row.dataset.id] = decision;
    const input = row.querySelector(`input[value=${decision}]`);
    if (input) input.checked = true;
    try { localStorage.setItem(storageKey, JSON.stringify(decisions)); } catch { /* not stored */ }
    showProgress();
    filter(); // the filter may show undecided samples only
  };
  const show = (row) => {
    if (current) current.classList.remove("current");
    current = row;
    row.classList.add("current");
    row.scrollIntoView({ block: "center" });
  };
  const step = (by) => {
    const open = rows.filter((row) => !row.hidden && "proposed" in row.dataset);
    if (!open.length) return;
    const at = open.indexOf(current);
    show(open[at < 0 ? (by > 0 ? 0 : open.length - 1) : Math.min(open.length - 1, Math.max(0, at + by))]);
  };
  for (const row of proposed) {
    const decision = decisions[row.dataset.id];
    const input = decision && row.querySelector(`input[value=${decision}]`);
    if (input) input.checked = true;
    row.addEventListener("change", (event) => decide(row, event.target.value));
    row.addEventListener("click", () => { if (current !== row) { if (current) current.classList.remove("current"); current = row; row.classList.add("current"); } });
  }
  const keys = { k: "keep", r: "reject", d: "redraw" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
    if (event.key === "n") step(1);
    else if (event.key === "p") step(-1);
    else if (keys[event.key] && current && !current.hidden && "proposed" in current.dataset) {
      const open = rows.filter((row) => !row.hidden && "proposed" in row.dataset);
      const next = open[open.indexOf(current) + 1] || current;
      decide(current, keys[event.key]);
      show(next);
    } else return;
    event.preventDefault();
  });
  const quoted = (text) => {
    const guarded = /^[=+\-@\t\r']/.test(text) ? `'${text}` : text; // a spreadsheet must not read it as a formula
    return /[",\n\r]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
  };
  if ($("save")) {
    $("save").addEventListener("click", () => {
      const lines = Object.entries(decisions).map(([id, decision]) => `${quoted(id)},${decision}\n`);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["id,decision\n", ...lines], { type: "text/csv" }));
      link.download = "review.csv";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
  showProgress();
  filter();
})();
