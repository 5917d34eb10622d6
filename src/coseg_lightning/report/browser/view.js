// The large view: one or two panes that share one place and scale. Points are in pixels of the mask;
// the image is laid over it, whatever its own size.
const stage = $("bench-stage"), pictureCanvas = $("bench-picture"), marksCanvas = $("bench-marks");
const SKY = "#56b4e9", GREEN = "#00c08b", PINK = "#ff6ec7", GREY = "#999999";
const MOST_EDGES = 150000; // outlines of more are not drawn

const view = {
  sample: null, drawn: null, // what is shown, and the mask that was drawn of it
  mode: "given", scale: 1, x: 0, y: 0, // the point in the middle of a pane
  opacity: 0.5, hidden: false, mending: false,
  cursor: null, path: [], radius: 0, // of the tool
};
const layers = new WeakMap(); // by mask: its colours and outlines, until it changes

const rgb = (code) => [1, 3, 5].map((n) => parseInt(code.slice(n, n + 2), 16));
const isBinary = () => index.classes.length < 2 && ![view.sample?.given, view.sample?.proposal].some((mask) => mask && highest(mask) > 1);
const highest = (mask) => (layerOf(mask).highest ??= mask.data.reduce((most, value) => (value !== 255 && value > most ? value : most), 0));
const presentIn = (mask) => (layerOf(mask).present ??= mask.data.reduce((seen, value) => { seen[value] = 1; return seen; }, new Uint8Array(65536)));
const classColour = (id, own) => (id === 255 ? GREY : isBinary() ? own : index.colours[(id - 1) % index.colours.length]);

const layerOf = (mask) => {
  if (!layers.has(mask)) layers.set(mask, {});
  return layers.get(mask);
};

// The colours of a mask, a canvas of its own size; of a box alone where only that has changed.
const painted = (mask, own, box) => {
  const layer = layerOf(mask);
  if (!layer.canvas) {
    layer.canvas = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
    box = null;
  } else if (!box && layer.fresh) return layer.canvas;
  const area = box || { left: 0, top: 0, right: mask.width - 1, bottom: mask.height - 1 };
  const width = area.right - area.left + 1, height = area.bottom - area.top + 1;
  const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer), colours = new Map([[0, 0]]);
  for (let y = 0, n = 0; y < height; y++) {
    for (let x = 0, at = (y + area.top) * mask.width + area.left; x < width; x++, n++, at++) {
      const id = mask.data[at];
      if (id === 0) continue;
      if (!colours.has(id)) {
        const [r, g, b] = rgb(classColour(id, own));
        colours.set(id, ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
      }
      words[n] = colours.get(id);
    }
  }
  layer.canvas.getContext("2d").putImageData(pixels, area.left, area.top);
  layer.fresh = true;
  return layer.canvas;
};

// The edges between classes, as lines along the borders of pixels, by class.
const outlines = (mask) => {
  const layer = layerOf(mask);
  if (layer.outlines) return layer.outlines;
  const { width, height, data } = mask, paths = new Map();
  let edges = 0;
  const line = (id, x0, y0, x1, y1) => {
    if (id === 0) return;
    if (!paths.has(id)) paths.set(id, new Path2D());
    paths.get(id).moveTo(x0, y0);
    paths.get(id).lineTo(x1, y1);
    edges++;
  };
  const scan = (outer, inner, step, jump, put) => {
    for (let o = 1; o < outer && edges < MOST_EDGES; o++) {
      for (let i = 0, start = 0; i < inner; ) {
        const at = o * step + i * jump, a = data[at - step], b = data[at];
        for (start = i++; i < inner; i++) {
          const next = o * step + i * jump;
          if (data[next - step] !== a || data[next] !== b) break;
        }
        if (a !== b) { put(a, o, start, i); put(b, o, start, i); }
      }
    }
  };
  scan(height, width, width, 1, (id, y, x0, x1) => line(id, x0, y, x1, y));
  scan(width, height, 1, width, (id, x, y0, y1) => line(id, x, y0, x, y1));
  layer.outlines = edges < MOST_EDGES ? paths : new Map();
  return layer.outlines;
};

const changedMask = (mask, box) => {
  const layer = layerOf(mask);
  layer.outlines = null;
  layer.highest = layer.present = undefined;
  layer.fresh = false;
  if (box && layer.canvas) painted(mask, GREEN, box);
  draw();
};

// Where two masks differ: what the second adds, takes away, and calls otherwise.
const DIFFERENCES = { 1: SKY, 2: "#e69f00", 3: PINK };
const difference = (a, b) => {
  const layer = layerOf(b);
  if (layer.difference?.from === a && layer.difference.fresh === layer.outlines) return layer.difference.canvas;
  const canvas = Object.assign(document.createElement("canvas"), { width: a.width, height: a.height });
  const pixels = new ImageData(a.width, a.height);
  const colours = Object.values(DIFFERENCES).map(rgb);
  for (let n = 0; n < a.data.length; n++) {
    if (a.data[n] === b.data[n]) continue;
    pixels.data.set(colours[a.data[n] === 0 ? 0 : b.data[n] === 0 ? 1 : 2], 4 * n);
    pixels.data[4 * n + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  layer.difference = { from: a, canvas, fresh: outlines(b) };
  return canvas;
};

// What the panes show, from left to right or from top to bottom.
const panes = () => {
  const { sample, drawn, mode } = view;
  const { width, height } = stage.getBoundingClientRect(); // which may be fractions
  const other = drawn || sample.proposal;
  let shown = { given: ["given"], proposal: ["proposal"], drawn: ["drawn"], difference: ["difference"], image: ["image"] }[mode];
  if (mode === "sides") shown = other ? ["given", drawn ? "drawn" : "proposal"] : ["image", "given"];
  if (!shown) shown = ["given"];
  const across = shown.length === 2 && width >= height;
  return shown.map((kind, n) => ({
    kind,
    left: across ? (n * width) / 2 : 0,
    top: across ? 0 : (n * height) / shown.length,
    width: across ? width / 2 : width,
    height: across ? height : height / shown.length,
  }));
};
const maskOf = (kind) => (kind === "drawn" ? view.drawn : view.sample[kind]);
const OWN = { given: "#e69f00", proposal: SKY, drawn: GREEN };

let asked = false;
const draw = () => {
  if (!asked) requestAnimationFrame(() => { asked = false; drawNow(); });
  asked = true;
};

const drawNow = () => {
  const ratio = window.devicePixelRatio || 1;
  const box = stage.getBoundingClientRect();
  const [width, height] = [box.width, box.height].map((length) => Math.max(1, Math.round(length * ratio)));
  for (const canvas of [pictureCanvas, marksCanvas]) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }
  const picture = pictureCanvas.getContext("2d"), marks = marksCanvas.getContext("2d");
  for (const context of [picture, marks]) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
  }
  if (!view.sample) return;
  const all = panes();
  for (const pane of all) {
    for (const context of [picture, marks]) {
      context.save();
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.beginPath();
      context.rect(pane.left, pane.top, pane.width, pane.height);
      context.clip();
      context.translate(pane.left + pane.width / 2, pane.top + pane.height / 2);
      context.scale(view.scale, view.scale);
      context.translate(-view.x, -view.y);
    }
    picture.imageSmoothingEnabled = view.scale < 6;
    picture.imageSmoothingQuality = "high";
    picture.drawImage(view.sample.image, 0, 0, view.sample.width, view.sample.height);
    if (!view.hidden) drawMarks(marks, pane.kind);
    if (view.mending) drawTool(marks);
    picture.restore();
    marks.restore();
  }
  drawNames(marks, all, ratio);
};

const drawMarks = (context, kind) => {
  if (kind === "image") return;
  context.imageSmoothingEnabled = false;
  context.lineWidth = 1.6 / view.scale;
  if (kind === "difference") {
    const other = view.drawn || view.sample.proposal;
    if (!other) return;
    context.globalAlpha = view.opacity;
    context.drawImage(difference(view.sample.given, other), 0, 0);
    return;
  }
  const mask = maskOf(kind);
  if (!mask) return;
  context.globalAlpha = 0.6 * view.opacity;
  context.drawImage(painted(mask, OWN[kind]), 0, 0);
  context.globalAlpha = Math.min(1, 1.8 * view.opacity);
  if (view.stroking) return; // outlines follow when the stroke ends
  strokeOutlines(context, mask, kind);
  if (kind === "given" && showsBoth()) {
    context.setLineDash([5 / view.scale, 4 / view.scale]);
    strokeOutlines(context, view.sample.proposal, "proposal");
    context.setLineDash([]);
  }
};
// Alone, the given mask has the proposal's outline over it: nobody takes what was not shown.
const showsBoth = () => view.mode === "given" && !view.mending && Boolean(view.sample?.proposal);
const strokeOutlines = (context, mask, kind) => {
  for (const [id, path] of outlines(mask)) {
    context.strokeStyle = classColour(id, OWN[kind]);
    context.stroke(path);
  }
};

const drawTool = (context) => {
  context.globalAlpha = 1;
  const twice = (path) => {
    for (const [colour, wide] of [["#000", 3], ["#fff", 1.2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide / view.scale;
      context.stroke(path);
    }
  };
  if (view.path.length) {
    const path = new Path2D();
    [...view.path, view.cursor || view.path[0]].forEach(([x, y], n) => (n ? path.lineTo(x, y) : path.moveTo(x, y)));
    twice(path);
  }
  if (!view.cursor) return;
  const [x, y] = view.cursor, cross = new Path2D(), arm = 6 / view.scale;
  if (view.radius) cross.arc(x, y, Math.max(view.radius, 1.5 / view.scale), 0, 7);
  else { cross.moveTo(x - arm, y); cross.lineTo(x + arm, y); cross.moveTo(x, y - arm); cross.lineTo(x, y + arm); }
  twice(cross);
};

const NAMES = { given: "given", proposal: "proposal", drawn: "drawn", image: "image", difference: "difference" };
const drawNames = (context, all, ratio) => {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = 1;
  context.font = "600 13px system-ui, sans-serif";
  for (const pane of all) {
    const text = pane.kind === "given" && showsBoth() ? "given; dashed: proposal" : NAMES[pane.kind];
    const wide = context.measureText(text).width + 14;
    context.fillStyle = "rgb(0 0 0 / .65)";
    context.fillRect(pane.left + 6, pane.top + 6, wide, 22);
    context.fillStyle = "#fff";
    context.fillText(text, pane.left + 13, pane.top + 21);
  }
  if (all.length === 2) {
    context.fillStyle = "#fff";
    if (all[1].left) context.fillRect(all[1].left - 1, 0, 2, stage.clientHeight);
    else context.fillRect(0, all[1].top - 1, stage.clientWidth, 2);
  }
};

const fit = () => {
  if (!view.sample) return;
  const [pane] = panes();
  Object.assign(view, {
    scale: 0.98 * Math.min(pane.width / view.sample.width, pane.height / view.sample.height) || 1,
    x: view.sample.width / 2,
    y: view.sample.height / 2,
  });
  draw();
};

// The point of the mask under a place of the screen.
const pointAt = (clientX, clientY) => {
  const box = stage.getBoundingClientRect(), x = clientX - box.left, y = clientY - box.top, all = panes();
  const pane = all.find((p) => x >= p.left && x < p.left + p.width && y >= p.top && y < p.top + p.height) || all[0];
  return [(x - pane.left - pane.width / 2) / view.scale + view.x, (y - pane.top - pane.height / 2) / view.scale + view.y];
};

const zoomAt = (factor, clientX, clientY) => {
  if (!view.sample) return;
  const box = stage.getBoundingClientRect(), [pane] = panes();
  clientX ??= box.left + pane.left + pane.width / 2;
  clientY ??= box.top + pane.top + pane.height / 2;
  const before = pointAt(clientX, clientY);
  const whole = Math.min(pane.width / view.sample.width, pane.height / view.sample.height);
  view.scale = Math.min(64, Math.max(whole / 2, view.scale * factor));
  const after = pointAt(clientX, clientY);
  panBy(before[0] - after[0], before[1] - after[1]);
};

const panBy = (x, y) => {
  if (!view.sample) return;
  view.x = Math.min(view.sample.width, Math.max(0, view.x + x));
  view.y = Math.min(view.sample.height, Math.max(0, view.y + y));
  draw();
};
new ResizeObserver(() => { if (view.fitted) fit(); else draw(); }).observe(stage);
