// Elements, and pictures with their heatmaps. Every text goes in by textContent.
function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const foreign = (text) => element("bdi", { dir: "auto" }, text);
const number = (value, digits = 3) => (value === null || value === undefined ? null : String(Number(value.toPrecision(digits))));
const percent = (value) => (value === null || value === undefined ? null : `${number(100 * value)}%`);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const VIEWS = ["heatmap", "picture", "crop"];
let view = "heatmap";

// A picture; in `heat` a letter is a token's share of the largest code, and any other character passes over 1 to 52 tokens.
function tile(place, heat, options = {}) {
  const [width, height] = run.index.size;
  const made = element(options.onclick ? "button" : "span", { class: "tile", ...(options.onclick ? { type: "button" } : {}) });
  made.style.aspectRatio = `${width} / ${height}`;
  if (options.onclick) {
    made.addEventListener("click", options.onclick);
    made.setAttribute("aria-label", `Picture ${place}: ${promptOf(place)}`);
  }
  made.append(element("img", { src: `${base}pictures/${place}.webp`, alt: options.onclick ? "" : promptOf(place), loading: "lazy", decoding: "async" }));
  if (heat && site().grid) addHeat(made, heat, options.fixed);
  return made;
}

function addHeat(made, heat, fixed) {
  const [rows, columns] = site().grid;
  let best = 0, peak = 0, token = 0;
  const drawn = new Float32Array(rows * columns);
  for (let at = 0; at < heat.length; at++) {
    const share = shareAt(heat, at);
    if (share <= 0) { token += heat.charCodeAt(at) - 39; continue; }
    drawn[token] = share;
    if (share > best) [best, peak] = [share, token];
    token++;
  }
  made.style.setProperty("--x", `${(100 * ((peak % columns) + 0.5)) / columns}%`);
  made.style.setProperty("--y", `${(100 * (Math.floor(peak / columns) + 0.5)) / rows}%`);
  made.append(mapCanvas(drawn, rows, columns, 0.8));
  if (fixed) return;
  made.dataset.heat = "";
  applyView(made);
}

function mapCanvas(values, rows, columns, most) {
  const canvas = element("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const [red, green, blue] = colour("--heat").split(",").map(Number);
  const image = context.createImageData(columns, rows);
  values.forEach((value, token) => image.data.set([red, green, blue, 255 * most * value], 4 * token));
  context.putImageData(image, 0, 0);
  return canvas;
}

function applyView(made) {
  made.classList.toggle("cropped", view === "crop");
  made.querySelector("canvas").hidden = view !== "heatmap";
}

function nextView() {
  view = VIEWS[(VIEWS.indexOf(view) + 1) % VIEWS.length];
  document.querySelectorAll("[data-heat]").forEach(applyView);
  document.querySelectorAll("[data-view]").forEach((button) => (button.textContent = viewLabel()));
  tell(viewLabel());
}

const viewLabel = () => ({ heatmap: "Pictures with heatmap", picture: "Pictures alone", crop: "Crops around the peak" })[view];

function bars(counts, label) {
  const canvas = element("canvas", { width: 520, height: 150, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const most = Math.max(...counts, 1), step = 520 / counts.length;
  context.fillStyle = colour("--accent");
  counts.forEach((count, place) => {
    const height = count ? Math.max(2, (146 * Math.log1p(count)) / Math.log1p(most)) : 0;
    context.fillRect(place * step + 1, 148 - height, step - 2, height);
  });
  context.fillStyle = colour("--line");
  context.fillRect(0, 148, 520, 2);
  return canvas;
}

// Lines through [x, y] pairs, the feature in the accent colour and its control in grey.
function plot(series, label) {
  const canvas = element("canvas", { width: 520, height: 200, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const all = series.flatMap(([, points]) => points);
  const xs = all.map(([x]) => x), top = Math.max(...all.map(([, y]) => y), 1e-9);
  const left = Math.min(...xs), width = Math.max(...xs) - left || 1;
  for (const [name, points] of series) {
    context.strokeStyle = context.fillStyle = colour(name);
    context.lineWidth = 4;
    context.beginPath();
    points.forEach(([x, y], place) => context[place ? "lineTo" : "moveTo"](8 + (504 * (x - left)) / width, 192 - (180 * y) / top));
    context.stroke();
  }
  return canvas;
}
