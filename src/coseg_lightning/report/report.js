"use strict";
(() => {
  const table = document.getElementById("samples");
  if (!table) return;
  const body = table.tBodies[0], review = window.coseg;
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
    undecided: (row) => !review.decision(row.dataset.id),
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

  // Reviewing: a row opens its sample in the workbench, and shows what was decided.
  const buttons = new Map(rows.map((row) => [row.dataset.id, row.querySelector(".decide button")]));
  const tell = (id) => {
    const button = buttons.get(id), decision = review.decision(id);
    if (!button) return;
    if (button.textContent !== (decision || "review")) { // a text that is set lays the table out
      button.textContent = decision || "review";
      button.classList.toggle("decided", Boolean(decision));
    }
    button.setAttribute("aria-label", `${decision ? `${decision}: review` : "Review"} ${id}`);
  };
  body.addEventListener("click", (event) => {
    if (event.target.closest(".decide button, img")) review.open(event.target.closest("tr").dataset.id);
  });
  $("review").addEventListener("click", () => review.open());
  $("save").addEventListener("click", () => review.save());
  review.listen((id) => { // of one sample, or of all
    if (review.isOpen()) return; // the table is laid out once, when the workbench is closed
    if (id === null) rows.forEach((row) => tell(row.dataset.id));
    else tell(id);
    $("progress").textContent = review.progress();
    if (id === null) filter();
  });
  filter();
})();
