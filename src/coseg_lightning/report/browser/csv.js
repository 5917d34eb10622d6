// review.csv: text that no spreadsheet runs as a formula, as the package's own tables.
const csvCell = (text) => {
  const guarded = /^[=+\-@\t\r']/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
};
const csvText = (lines) => lines.map((cells) => `${cells.map(csvCell).join(",")}\n`).join("");

const csvRows = (text) => {
  const rows = [];
  let row = [], cell = "", quoted = false, n = text.charCodeAt(0) === 0xfeff ? 1 : 0;
  const endRow = () => {
    row.push(cell);
    if (row.some((part) => part.trim())) rows.push(row);
    row = []; cell = "";
  };
  for (; n < text.length; n++) {
    const sign = text[n];
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[n + 1] === '"') { cell += '"'; n++; }
      else quoted = false;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === ",") { row.push(cell); cell = ""; }
    else if (sign === "\n") endRow();
    else if (sign !== "\r") cell += sign;
  }
  if (cell || row.length) endRow();
  return rows;
};

const csvRecords = (text) => {
  const [head, ...rows] = csvRows(text);
  const names = (head || []).map((name) => name.trim());
  const own = (cell) => (/^'[=+\-@\t\r']/.test(cell) ? cell.slice(1) : cell);
  return rows.map((row) => Object.fromEntries(names.map((name, n) => [name, own(row[n] ?? "")])));
};
