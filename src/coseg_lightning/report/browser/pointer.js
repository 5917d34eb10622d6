// Mouse, pen and fingers: one draws or moves the view, two zoom.
const pointers = new Map();
let panning = null, pinch = null;
let tapped = null; // a finger's tap with a tool that acts at once; it may become a gesture

const pinchOf = () => {
  const [[ax, ay], [bx, by]] = pointers.values();
  return { x: (ax + bx) / 2, y: (ay + by) / 2, apart: Math.hypot(ax - bx, ay - by) || 1 };
};

stage.addEventListener("pointerdown", (event) => {
  if (!view.sample || event.target.closest("button, .bench-legend")) return;
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (pointers.size === 2) {
    mend.cancel();
    panning = tapped = null;
    pinch = pinchOf();
    return;
  }
  const point = pointAt(event.clientX, event.clientY);
  if (view.mending && event.button === 0 && !event.shiftKey) {
    view.cursor = point;
    if (event.pointerType === "touch" && ["fill", "polygon"].includes(mend.tool)) tapped = { point, at: [event.clientX, event.clientY] };
    else mend.press(point);
  } else panning = [event.clientX, event.clientY];
});

stage.addEventListener("pointermove", (event) => {
  if (!view.sample) return;
  if (pointers.has(event.pointerId)) pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (tapped && Math.hypot(tapped.at[0] - event.clientX, tapped.at[1] - event.clientY) > 10) { // the finger moves the view
    panning = tapped.at;
    tapped = null;
  }
  if (pinch && pointers.size === 2) {
    const now = pinchOf();
    panBy((pinch.x - now.x) / view.scale, (pinch.y - now.y) / view.scale);
    zoomAt(now.apart / pinch.apart, now.x, now.y);
    pinch = now;
  } else if (panning) {
    panBy((panning[0] - event.clientX) / view.scale, (panning[1] - event.clientY) / view.scale);
    panning = [event.clientX, event.clientY];
    view.fitted = false;
  } else if (view.mending) {
    // Several positions of a fast pen may come as one event.
    const parts = event.getCoalescedEvents?.() || [];
    for (const part of parts.length ? parts : [event]) mend.move(pointAt(part.clientX, part.clientY));
    view.cursor = pointAt(event.clientX, event.clientY);
    draw();
  }
});

const lift = (event) => {
  pointers.delete(event.pointerId);
  if (pointers.size < 2) pinch = null;
  panning = null;
  if (tapped && event.type === "pointerup") mend.press(tapped.point);
  tapped = null;
  mend.finish();
};
stage.addEventListener("pointerup", lift);
stage.addEventListener("pointercancel", lift);
stage.addEventListener("contextmenu", (event) => event.preventDefault());
stage.addEventListener("dblclick", () => {
  if (view.mending && mend.tool === "polygon") mend.closePolygon();
});
stage.addEventListener(
  "wheel",
  (event) => {
    if (event.target.closest(".bench-legend")) return;
    event.preventDefault();
    view.fitted = false;
    const lines = event.deltaMode === 1 ? 16 : 1; // Firefox counts lines
    zoomAt(Math.exp((-event.deltaY * lines) / 400), event.clientX, event.clientY);
  },
  { passive: false },
);
