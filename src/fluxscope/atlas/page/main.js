// Routes, the list of features, one picture, keys.
const main = document.getElementById("main"), help = document.getElementById("help"), told = document.getElementById("told");
const kept = new Set();
const PAGE = 120;
let results = [], toldTimer = 0;

function tell(text) {
  told.textContent = text;
  clearTimeout(toldTimer);
  toldTimer = setTimeout(() => (told.textContent = ""), 1800);
}
function keep(id) {
  if (!kept.delete(id)) kept.add(id);
  tell(kept.has(id) ? `Kept: ${kept.size} in the list` : `Removed: ${kept.size} in the list`);
}
function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const hashOf = (to) => "#" + new URLSearchParams(to).toString();
const go = (to) => (location.hash = hashOf({ site: site().site, ...to }));

function card(line) {
  const columns = table(), id = columns.id[line];
  return element("a", { class: "card", href: hashOf({ site: site().site, feature: id }) },
    element("span", { class: "four" }, ...columns.top[line].slice(0, 4).map((place, rank) => tile(place, rank ? "" : columns.peak[line], { fixed: true }))),
    element("span", { class: "text" }, element("strong", {}, String(id)), element("span", { class: "name" }, nameOf(line)),
      element("span", { class: "soft" }, `${percent(columns.pictures[line])} of pictures`),
      element("span", { class: "soft" }, columns.score[line] === null ? "score not measured" : `score ${number(columns.score[line], 2)}`)));
}

function listPage() {
  const cards = element("div", { class: "cards", id: "results", tabindex: "-1" });
  const count = element("p", { class: "soft", role: "status" });
  const more = element("button", { type: "button", onclick: () => show(cards.childElementCount) }, "Show more");
  function show(from) {
    cards.append(...results.slice(from, from + PAGE).map(card));
    more.hidden = cards.childElementCount >= results.length;
  }
  function search() {
    results = found();
    count.textContent = results.length ? `${results.length} of ${table().id.length} features` : "";
    cards.replaceChildren(...(results.length ? [] : [element("p", { class: "empty" }, "No feature fits. Try fewer words, or wider sliders.")]));
    more.hidden = true;
    if (results.length) show(0);
  }
  const box = element("input", { type: "search", id: "search", "aria-label": "Search features", placeholder: "An id, or words of names and prompts: red circle -blue",
    oninput: (event) => { query.text = event.target.value; search(); } });
  box.value = query.text;
  const order = element("select", { "aria-label": "Sort by", onchange: (event) => { query.sort = event.target.value; search(); } },
    ...SORTS.filter(([name]) => rangeOf(name)).map(([name, label]) => element("option", { value: name }, `by ${label}`)));
  if (!rangeOf(query.sort)) query.sort = "coverage";
  order.value = query.sort;
  const actions = element("div", { class: "bar" }, box, order, element("button", { type: "button", onclick: () => go({ map: 1 }) }, "Map"), element("button", { type: "button", onclick: surprise }, "Surprise me"),
    element("button", { type: "button", onclick: exportList }, "Export list"), query.only ? element("button", { type: "button", "aria-pressed": "true", onclick: () => { query.only = null; listPage(); } }, "Chosen on the map: show all") : null);
  main.replaceChildren(actions, element("div", { class: "sliders" }, ...LIMITS.flatMap(([name, label]) => slider(name, label, search))), count, cards, more);
  search();
}

// The smallest value that is shown, in 100 even steps of the column's range; fractions that crowd at 0 in steps of a power.
function slider(name, label, search) {
  const range = rangeOf(name);
  if (!range || range[0] === range[1]) return [];
  const [low, high] = range, words = (value) => (name === "pictures" || name === "tokens" ? percent(value) : number(value));
  const value = (place) => (place <= 0 ? low : low + (high - low) * (place / 100) ** 2);
  const shown = element("span", {}, "any");
  const handle = element("input", { type: "range", min: "0", max: "100", value: "0", "aria-label": `${label}, at least`, oninput: () => {
    const place = Number(handle.value);
    if (place) query.limits[name] = [value(place), high]; else delete query.limits[name];
    shown.textContent = place ? `at least ${words(value(place))}` : "any";
    handle.setAttribute("aria-valuetext", shown.textContent);
    search();
  } });
  const old = query.limits[name];
  if (old) { handle.value = String(Math.round(100 * Math.sqrt((old[0] - low) / (high - low)))); shown.textContent = `at least ${words(old[0])}`; }
  return [element("label", {}, `${label}`, shown, handle)];
}

function surprise() {
  const from = results.length ? results : table().id.map((_, line) => line);
  if (from.length) go({ feature: table().id[from[Math.floor(Math.random() * from.length)]] });
}
function exportList() {
  const columns = table(), ids = kept.size ? [...kept] : results.map((line) => columns.id[line]);
  download("features.json", JSON.stringify({ run: run.index.run, site: site().site, step: site().step, features: ids.map((id) => ({
    feature_id: id, name: columns.name[lines().get(id)], score: columns.score[lines().get(id)], coverage: columns.coverage[lines().get(id)] })) }, null, 1));
  tell(`${ids.length} features exported`);
}
function move(by) {
  const id = Number(new URLSearchParams(location.hash.slice(1)).get("feature"));
  const order = results.length ? results : table().id.map((_, line) => line);
  const next = order[order.indexOf(lines().get(id)) + by];
  if (next !== undefined) go({ feature: table().id[next] });
}

async function picturePage(place) {
  if (!(place >= 0 && place < run.index.pictures.length)) return [element("p", { class: "empty" }, "There is no such picture.")];
  const tokens = await pictureTokens(place), [, seed, imageId] = run.index.pictures[place];
  const title = [element("h2", { tabindex: "-1", id: "title" }, foreign(promptOf(place))), element("p", { class: "soft" }, `Picture ${imageId}, seed ${seed}`)];
  const shown = tile(place, "");
  if (!tokens || !site().grid) return [...title, element("div", { class: "look" }, shown, NOT())];
  const [rows, columns] = site().grid, list = element("div", {});
  const pick = element("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  shown.append(pick);
  let token = -1;
  function choose(next) {
    token = next;
    const best = new Map();
    (token < 0 ? tokens.flat() : tokens[token]).forEach(([line, share]) => best.set(line, Math.max(share, best.get(line) ?? 0)));
    const context = pick.getContext("2d");
    context.clearRect(0, 0, columns, rows);
    if (token >= 0) { context.fillStyle = `rgba(${colour("--heat")}, 0.65)`; context.fillRect(token % columns, Math.floor(token / columns), 1, 1); }
    const order = [...best].sort(([, a], [, b]) => b - a).slice(0, 30);
    list.replaceChildren(heading(token < 0 ? "Most active features" : `Row ${Math.floor(token / columns) + 1}, column ${(token % columns) + 1}`, "share of the feature's largest code"),
      order.length ? element("div", { class: "neighbours" }, ...order.map(([line, share]) => element("a", { href: hashOf({ site: site().site, feature: table().id[line] }) },
        tile(table().top[line][0], table().peak[line], { fixed: true }), `${table().id[line]}`, element("span", { class: "soft" }, `  ${percent(share)}`)))) : element("p", { class: "soft" }, "Nothing fires here."),
      token < 0 ? "" : element("p", {}, element("button", { type: "button", onclick: () => choose(-1) }, "Whole picture")));
  }
  shown.setAttribute("tabindex", "0");
  shown.setAttribute("role", "application");
  shown.setAttribute("aria-label", "Tokens of the picture: click, or move with the arrow keys");
  shown.addEventListener("click", (event) => {
    const box = shown.getBoundingClientRect();
    const at = (share, most) => Math.min(most - 1, Math.max(0, Math.floor(share * most)));
    choose(at((event.clientY - box.top) / box.height, rows) * columns + at((event.clientX - box.left) / box.width, columns));
  });
  shown.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(token < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, token + by)));
  });
  choose(-1);
  return [...title, element("div", { class: "look" }, element("div", {}, shown, element("p", { class: "soft" }, "Click a token, or move over them with the arrow keys.")), list)];
}

let asked = 0;
async function route() {
  const turn = ++asked, to = new URLSearchParams(location.hash.slice(1));
  try {
    const wanted = run.index.sites.findIndex((each) => each.site === to.get("site"));
    if (wanted >= 0 && wanted !== run.site) { kept.clear(); results = []; query.limits = {}; query.only = null; }
    await openSite(wanted >= 0 ? wanted : run.site);
    document.getElementById("site").value = String(run.site);
    const feature = to.get("feature"), place = to.get("picture");
    if (feature === null && place === null && !to.has("map")) return listPage();
    const parts = to.has("map") ? mapPage() : feature !== null ? await featurePage(Number(feature)) : await picturePage(Number(place ?? NaN));
    if (turn !== asked) return;
    main.replaceChildren(...parts);
    window.scrollTo(0, 0);
    document.getElementById("title")?.focus({ preventScroll: true });
  } catch (error) {
    main.replaceChildren(element("p", { class: "empty" }, `${error.message}. Unpack the whole atlas folder, or make it again.`));
  }
}

const KEYS = [["/", "search", () => { location.hash = "#"; listPage(); document.getElementById("search").focus(); }], ["h", "heatmap, picture, crop", nextView],
  ["j", "next feature", () => move(1)], ["k", "previous feature", () => move(-1)], ["s", "keep this feature in the list", () => {
    const id = new URLSearchParams(location.hash.slice(1)).get("feature"); if (id !== null && lines().has(Number(id))) keep(Number(id)); }],
  ["m", "map of features", () => go({ map: 1 })], ["r", "surprise me", surprise], ["e", "export the list", exportList], ["g", "all features", () => (location.hash = "#")], ["?", "this help", () => openHelp()]];
function openHelp() {
  help.replaceChildren(element("h2", { id: "help-title" }, "Keys"), element("table", {}, ...KEYS.map(([key, words]) => element("tr", {}, element("td", {}, element("kbd", {}, key)), element("td", {}, words)))),
    element("p", { class: "soft" }, "Search: an id, words of names and prompts, and words with a minus that must not be there. A heatmap's colour is the code as a share of the feature's largest."),
    element("button", { type: "button", onclick: () => help.close() }, "Close"));
  if (!help.open) help.showModal();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.matches("input[type=search], select")) return;
  const found = KEYS.find(([key]) => key === event.key);
  if (found && run.index) { event.preventDefault(); found[2](); }
});

async function start() {
  run.index = await shard("index");
  const { model, pictures, prompts: texts, sites } = run.index;
  document.getElementById("run").textContent = `${run.index.run}: ${model}, ${pictures.length} pictures of ${texts.length} prompts`;
  document.getElementById("site").append(...sites.map((each, place) => element("option", { value: String(place) }, `${each.site}, step ${each.step + 1}`)));
  document.getElementById("site").addEventListener("change", (event) => { location.hash = hashOf({ site: sites[Number(event.target.value)].site }); });
  document.getElementById("home").addEventListener("click", () => (location.hash = "#"));
  document.getElementById("help-button").addEventListener("click", openHelp);
  document.getElementById("skip").addEventListener("click", () => (document.getElementById("results") ?? document.getElementById("title"))?.focus());
  window.addEventListener("hashchange", route);
  await route();
}
start().catch((error) => { main.replaceChildren(element("p", { class: "empty" }, `${error.message}. Unpack the whole atlas folder.`)); });
