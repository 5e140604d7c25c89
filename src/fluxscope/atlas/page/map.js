// The map of features: the first two principal axes, each by rank. Dots; pictures where few are in view.
const AS_PICTURES = 120;
const around = { x: 500, y: 500, half: 520 };

function mapPage() {
  const columns = table();
  if (!columns.x) return [element("h2", { tabindex: "-1", id: "title" }, "Map of features"), NOT()];
  const canvas = element("canvas", { "aria-hidden": "true" }), pictures = element("div", { class: "spots" });
  const count = element("p", { class: "soft", role: "status" });
  const board = element("div", { class: "map", tabindex: "0", role: "group",
    "aria-label": "Map: arrow keys move, plus and minus zoom, Enter lists what is in view" }, canvas, pictures);
  let lasso = null, from = null, drawing = false;
  const side = () => board.clientWidth || 1;
  const screen = (line) => [((columns.x[line] - around.x) / around.half + 1) * side() / 2, ((columns.y[line] - around.y) / around.half + 1) * side() / 2];
  const inView = () => columns.id.map((_, line) => line).filter((line) => Math.abs(columns.x[line] - around.x) <= around.half && Math.abs(columns.y[line] - around.y) <= around.half);

  function draw() {
    const lines = inView(), few = lines.length <= AS_PICTURES, sharp = window.devicePixelRatio || 1;
    canvas.width = canvas.height = side() * sharp;
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    context.fillStyle = colour("--accent");
    context.globalAlpha = few ? 1 : Math.max(0.25, Math.min(0.8, 900 / lines.length));
    if (!few) lines.forEach((line) => { const [x, y] = screen(line); context.fillRect(x - 1.5, y - 1.5, 3, 3); });
    context.globalAlpha = 1;
    if (lasso) {
      context.strokeStyle = colour("--accent");
      context.lineWidth = 2;
      context.beginPath();
      lasso.forEach(([x, y]) => context.lineTo(x, y));
      context.stroke();
    }
    pictures.replaceChildren(...(few ? lines.map((line) => {
      const [x, y] = screen(line), spot = element("a", { href: hashOf({ site: site().site, feature: columns.id[line] }), "aria-label": `Feature ${columns.id[line]}`, draggable: "false" },
        columns.top[line].length ? tile(columns.top[line][0], columns.peak[line], { fixed: true }) : String(columns.id[line]));
      spot.style.left = `${x}px`;
      spot.style.top = `${y}px`;
      return spot;
    }) : []));
    count.textContent = `${lines.length} of ${columns.id.length} features in view${few ? "" : "; zoom in to see their pictures"}`;
  }
  function zoom(by, x = around.x, y = around.y) {
    const half = Math.min(520, Math.max(4, around.half * by)), share = half / around.half;
    Object.assign(around, { x: x + (around.x - x) * share, y: y + (around.y - y) * share, half });
    draw();
  }
  function pan(x, y) { around.x += x * around.half; around.y += y * around.half; draw(); }
  function list(lines) {
    if (!lines.length) return tell("No feature is inside");
    query.only = new Set(lines);
    location.hash = hashOf({ site: site().site });
  }
  const at = (event) => { const box = board.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  board.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [x, y] = at(event).map((each) => (2 * each / side() - 1) * around.half);
    zoom(event.deltaY > 0 ? 1.25 : 0.8, around.x + x, around.y + y);
  }, { passive: false });
  board.addEventListener("pointerdown", (event) => {
    if (event.target.closest("a") && !drawing && !event.shiftKey) return;
    event.preventDefault();
    board.focus();
    board.setPointerCapture(event.pointerId);
    from = at(event);
    lasso = drawing || event.shiftKey ? [from] : null;
  });
  board.addEventListener("pointermove", (event) => {
    if (!from) return;
    const now = at(event);
    if (lasso) { lasso.push(now); draw(); return; }
    const [x, y] = now.map((each, axis) => (2 * (from[axis] - each)) / side());
    from = now;
    pan(x, y);
  });
  board.addEventListener("pointerup", () => {
    const drawn = lasso;
    from = lasso = null;
    if (drawn?.length > 2) list(inView().filter((line) => inside(screen(line), drawn)));
  });
  board.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => pan(-0.2, 0), ArrowRight: () => pan(0.2, 0), ArrowUp: () => pan(0, -0.2), ArrowDown: () => pan(0, 0.2),
      "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), Enter: () => event.target === board && list(inView()) }[event.key];
    if (!act || (event.key === "Enter" && event.target !== board)) return;
    event.preventDefault();
    act();
  });
  const button = (words, act) => element("button", { type: "button", onclick: act }, words);
  const lassoButton = element("button", { type: "button", "aria-pressed": "false", onclick: () => { drawing = !drawing; lassoButton.setAttribute("aria-pressed", String(drawing)); } }, "Lasso");
  requestAnimationFrame(draw);
  return [element("h2", { tabindex: "-1", id: "title" }, "Map of features"),
    element("p", { class: "soft" }, `First two principal axes of ${site().mapOf}, each by rank: near features are alike in two of many directions only.`),
    element("div", { class: "bar" }, button("Zoom in", () => zoom(0.6)), button("Zoom out", () => zoom(1 / 0.6)), lassoButton, button("List those in view", () => list(inView()))), count, board];
}

// Whether a point lies inside a polygon: how often a ray to the right crosses its sides.
function inside([x, y], corners) {
  let odd = false;
  corners.forEach(([ax, ay], place) => {
    const [bx, by] = corners[(place + 1) % corners.length];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  });
  return odd;
}
