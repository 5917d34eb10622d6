// Drawing on class ids: a pixel has a class or has it not, so that nothing is smoothed.
const emptyBox = () => ({ left: Infinity, top: Infinity, right: -1, bottom: -1 });
const grow = (box, x, y) => {
  if (x < box.left) box.left = x;
  if (x > box.right) box.right = x;
  if (y < box.top) box.top = y;
  if (y > box.bottom) box.bottom = y;
};

// Set what lies within a radius of a line. A pixel lies where its centre does; the pixels under the
// ends are always set.
const drawLine = (mask, [x0, y0], [x1, y1], radius, value, box) => {
  const { width, height, data } = mask;
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  const set = (x, y) => {
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    data[y * width + x] = value;
    grow(box, x, y);
  };
  const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius)), bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + radius));
  const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius)), right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + radius));
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - x0, py = y + 0.5 - y0;
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const ex = px - along * dx, ey = py - along * dy;
      if (ex * ex + ey * ey <= radius * radius) set(x, y);
    }
  }
  set(Math.floor(x0), Math.floor(y0));
  set(Math.floor(x1), Math.floor(y1));
};

// Set the pixels whose centres lie in a polygon, by the even-odd rule.
const fillPolygon = (mask, points, value, box) => {
  const { width, height, data } = mask;
  for (let y = 0; y < height; y++) {
    const middle = y + 0.5, crossings = [];
    points.forEach(([x0, y0], n) => {
      const [x1, y1] = points[(n + 1) % points.length];
      if (y0 <= middle !== y1 <= middle) crossings.push(x0 + ((middle - y0) / (y1 - y0)) * (x1 - x0));
    });
    crossings.sort((a, b) => a - b);
    for (let n = 0; n + 1 < crossings.length; n += 2) {
      const last = Math.min(width - 1, Math.ceil(crossings[n + 1] - 0.5) - 1);
      for (let x = Math.max(0, Math.ceil(crossings[n] - 0.5)); x <= last; x++) {
        data[y * width + x] = value;
        grow(box, x, y);
      }
    }
  }
};

// Set the connected pixels of one class.
const floodFill = (mask, [fx, fy], value, box) => {
  const { width, height, data } = mask;
  const x0 = Math.floor(fx), y0 = Math.floor(fy);
  if (x0 < 0 || y0 < 0 || x0 >= width || y0 >= height) return;
  const old = data[y0 * width + x0];
  if (old === value) return;
  const stack = [y0 * width + x0];
  while (stack.length) {
    const start = stack.pop(), y = Math.floor(start / width);
    if (data[start] !== old) continue;
    let left = start, right = start;
    while (left > y * width && data[left - 1] === old) left--;
    while (right + 1 < (y + 1) * width && data[right + 1] === old) right++;
    data.fill(value, left, right + 1);
    grow(box, left - y * width, y);
    grow(box, right - y * width, y);
    for (const next of [y - 1, y + 1]) {
      if (next < 0 || next >= height) continue;
      const by = (next - y) * width;
      for (let at = left + by; at <= right + by; at++) {
        if (data[at] === old && (at === left + by || data[at - 1] !== old)) stack.push(at);
      }
    }
  }
};

// The content of a box, to be put back by undo.
const cut = ({ width, data }, box) => {
  const rows = [];
  for (let y = box.top; y <= box.bottom; y++) rows.push(data.slice(y * width + box.left, y * width + box.right + 1));
  return rows;
};
const paste = ({ width, data }, box, rows) => rows.forEach((row, n) => data.set(row, (box.top + n) * width + box.left));
