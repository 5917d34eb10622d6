// review.csv: text that no spreadsheet runs as a formula, as the package's own tables.
const csvCell = (text) => {
  const guarded = /^[=+\-@\t\r']/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
};
const csvText = (lines) => lines.map((cells) => `${cells.map(csvCell).join(",")}\n`).join("");

// The lines that are not empty, with their numbers, by the same rules as the package's own reader.
const csvLines = (text) => {
  const [first] = /^[^\r\n]*/.exec(text), count = (sign) => first.split(sign).length;
  const [, told] = /^sep=([,;\t])[ \t]*$/.exec(first) || []; // Excel's own line
  // Spreadsheets write semicolons where the comma is the decimal sign.
  const comma = told || [",", ";", "\t"].reduce((best, sign) => (count(sign) > count(best) ? sign : best));
  const lines = [];
  let cells = [], cell = "", quoted = false, closed = false, number = 0;
  const endCell = () => { cells.push(cell); cell = ""; closed = false; };
  const endLine = () => {
    endCell();
    if (cells.some((part) => part.trim())) lines.push({ number, cells });
    cells = [];
  };
  for (let n = 0; n < text.length; n++) {
    const sign = text[n], ends = sign === "\n" || (sign === "\r" && text[n + 1] !== "\n");
    if (ends) number++;
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[n + 1] === '"') { cell += '"'; n++; }
      else { quoted = false; closed = true; }
    } else if (ends) endLine();
    else if (sign === "\r") continue; // a line feed follows
    else if (sign === comma) endCell();
    else if (closed) throw new Error(noTable);
    else if (sign === '"' && cell === "") quoted = true;
    else cell += sign;
  }
  if (quoted) throw new Error(noTable);
  number++;
  if (cell || closed || cells.length) endLine();
  return told ? lines.slice(1) : lines;
};
const noTable = "it is not a table; save it as CSV in UTF-8";

const csvRecords = (bytes, columns) => {
  let text;
  try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { throw new Error(noTable); }
  const [head = { cells: [] }, ...lines] = csvLines(text);
  const names = head.cells.map((name) => name.trim()), missing = columns.find((name) => !names.includes(name));
  if (missing) throw new Error(`it has no column ${missing}; its first line must name the columns ${columns.join(", ")}`);
  const own = (cell) => (/^'[=+\-@\t\r']/.test(cell) ? cell.slice(1) : cell);
  const needed = Math.max(0, ...columns.map((name) => names.indexOf(name)));
  return lines.map(({ number, cells }, at) => {
    // Excel drops empty cells at the end of a row, and adds some. The last row may be cut off.
    if (!cells.slice(names.length).some(Boolean)) cells = cells.slice(0, names.length);
    if (cells.length > needed && at < lines.length - 1) cells = cells.concat(Array(Math.max(0, names.length - cells.length)).fill(""));
    if (cells.length !== names.length) throw new Error(`it has ${cells.length} cells in line ${number}, but ${names.length} columns; correct that line`);
    return Object.fromEntries(names.map((name, n) => [name, own(cells[n])]));
  });
};
