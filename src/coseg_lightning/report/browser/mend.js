// Mending: brush, eraser, polygon and fill on a copy of a mask, at its own size.
const KEPT_STROKES = 200;
const mend = {
  tool: "brush", size: 0, value: 1,
  strokes: [], undone: [], begun: null, // since mending began, and its step of the review's undo
  saving: null, pending: null, turn: 0, // of the drawing
  before: null, box: null, last: null, // of the stroke that is being drawn

  start() {
    const { sample } = view;
    if (!sample || view.mending) return;
    const touched = isDrawn(sample.n);
    this.forget(); // strokes of an earlier time are one step now
    if (!view.drawn) view.drawn = copyOf(view.mode === "proposal" && sample.proposal ? sample.proposal : sample.given);
    this.touched = touched;
    view.mending = true;
    view.hidden = false;
    this.size ||= Math.max(9, (Math.max(sample.width, sample.height) / 60) | 1);
    if (view.mode !== "sides") view.mode = "drawn";
    this.show();
  },

  most() {
    return view.sample ? Math.max(99, Math.round(Math.max(view.sample.width, view.sample.height) / 8)) : 99;
  },

  // End mending. A copy on which nothing was drawn is dropped.
  end() {
    if (!view.mending) return;
    this.dropPolygon();
    view.mending = false;
    if (!this.touched) {
      view.drawn = null;
      if (view.mode === "drawn") view.mode = "given";
    }
    this.show();
  },

  show() {
    view.radius = this.tool === "brush" || this.tool === "eraser" ? this.size / 2 : 0;
    showMending();
    draw();
  },

  use(tool) {
    this.dropPolygon();
    this.tool = tool;
    this.show();
  },

  dropPolygon() {
    view.path = [];
  },

  // Begin anew from another mask, which can be undone.
  from(name) {
    const { sample } = view;
    const source = { given: sample.given, proposal: sample.proposal, nothing: newMask(sample.width, sample.height) }[name];
    if (!source) return;
    this.begin();
    view.drawn.data.set(source.data);
    this.box = { left: 0, top: 0, right: sample.width - 1, bottom: sample.height - 1 };
    this.finish();
  },

  begin() {
    this.before = view.drawn.data.slice();
    this.box = emptyBox();
    view.stroking = true;
  },

  get ink() {
    return this.tool === "eraser" ? 0 : this.value;
  },

  press(point) {
    if (view.mode !== "sides") setView("drawn"); // other masks can be looked at in between
    if (this.tool === "polygon") {
      const [first] = view.path;
      const closes = view.path.length > 2 && Math.hypot(first[0] - point[0], first[1] - point[1]) * view.scale < 10;
      if (closes) this.closePolygon();
      else view.path.push(point);
      draw();
      return;
    }
    this.begin();
    if (this.tool === "fill") {
      floodFill(view.drawn, point, this.ink, this.box);
      this.finish();
      return;
    }
    this.last = point;
    this.move(point);
  },

  move(point) {
    if (!this.before || !this.last) return;
    const part = emptyBox();
    drawLine(view.drawn, this.last, point, this.size / 2, this.ink, part);
    this.last = point;
    if (part.right < 0) return;
    grow(this.box, part.left, part.top);
    grow(this.box, part.right, part.bottom);
    changedMask(view.drawn, part);
  },

  closePolygon() {
    if (view.path.length > 2) {
      this.begin();
      fillPolygon(view.drawn, view.path, this.ink, this.box);
      this.finish();
    }
    this.dropPolygon();
    draw();
  },

  // Put back what a stroke has drawn that turned out to be a gesture of two fingers.
  cancel() {
    if (!this.before) return;
    view.drawn.data.set(this.before);
    this.before = this.last = null;
    view.stroking = false;
    changedMask(view.drawn);
  },

  finish() {
    if (!this.before) return;
    const { box, before } = this;
    this.before = this.last = null;
    view.stroking = false;
    if (box.right >= 0) {
      const old = newMask(view.drawn.width, view.drawn.height, before);
      const n = view.sample.n;
      const first = this.begun ? null : { drawn: this.touched, step: remember(n) };
      this.begun ||= first;
      this.strokes.push({ box, before: cut(old, box), after: cut(view.drawn, box), first });
      this.strokes.splice(0, this.strokes.length - KEPT_STROKES);
      this.undone = [];
      this.touched = true;
      decideDrawn(n);
    }
    changedMask(view.drawn);
    this.keep();
    showMending();
  },

  undo() {
    if (view.path.length) { view.path.pop(); draw(); return true; }
    const stroke = this.strokes.pop();
    if (!stroke) return false;
    paste(view.drawn, stroke.box, stroke.before);
    this.undone.push(stroke);
    if (stroke.first) { // as before mending
      this.begun = null;
      this.touched = stroke.first.drawn;
      forgetStep(stroke.first.step);
      restoreItem(view.sample.n, stroke.first.step.item);
    }
    this.keep();
    changedMask(view.drawn);
    showMending();
    return true;
  },

  redo() {
    const stroke = view.mending && this.undone.pop();
    if (!stroke) return;
    if (stroke.first) {
      this.begun = stroke.first;
      undoable.push(stroke.first.step);
    }
    paste(view.drawn, stroke.box, stroke.after);
    this.strokes.push(stroke);
    this.touched = true;
    decideDrawn(view.sample.n);
    changedMask(view.drawn);
    this.keep();
    showMending();
  },

  // Keep the drawing, when this was its last change.
  keep() {
    const { sample, drawn } = view, touched = this.touched;
    const id = idOf(sample.n), png = touched ? encodePng(drawn) : null;
    const turn = ++this.turn;
    this.pending = touched ? { id, png } : null;
    if (!touched) drawings.delete(id);
    this.saving = (async () => {
      await this.saving;
      const bytes = await png;
      if (turn === this.turn) await setDrawing(id, bytes); // else a later stroke is kept next
    })();
  },

  async discard() {
    await this.saving;
    if (!view.drawn || !drawings.has(idOf(view.sample.n))) return;
    remember(view.sample.n);
    this.forget();
    setDrawing(idOf(view.sample.n), null);
    if (items[idOf(view.sample.n)]?.decision === "redraw") setItem(view.sample.n, { decision: "", reviewer: "" });
    view.mending = false;
    view.drawn = null;
    if (view.mode === "drawn") view.mode = "given";
    showMending();
    draw();
  },

  // Another tab has drawn on the sample that is shown, or has discarded its drawing.
  receive(mask) {
    const { sample } = view, id = idOf(sample.n);
    this.cancel();
    this.turn++; // what is being kept here is older
    this.pending = null;
    if (!mask || mask.width !== sample.width || mask.height !== sample.height) {
      this.forget();
      Object.assign(view, { drawn: null, mending: false });
    } else if (view.mending && this.strokes.length) { // undo brings this tab's drawing back
      const box = { left: 0, top: 0, right: sample.width - 1, bottom: sample.height - 1 };
      this.strokes.push({ box, before: cut(view.drawn, box), after: cut(mask, box), first: null });
      this.undone = [];
      view.drawn.data.set(mask.data);
      changedMask(view.drawn);
    } else {
      this.forget();
      view.drawn = mask;
      this.touched = true;
    }
    if (view.mending) say(`${id} was drawn in another tab too; that drawing is shown.`);
    this.show();
  },

  forget() {
    Object.assign(this, { strokes: [], undone: [], begun: null, before: null, last: null, touched: false });
    view.path = [];
    view.stroking = false;
  },
};
// Whether a sample has a drawn mask, which may not be encoded yet.
const isDrawn = (n) => drawings.has(idOf(n)) || Boolean(mend.touched && view.sample?.n === n);
