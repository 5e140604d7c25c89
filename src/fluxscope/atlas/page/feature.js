// The page of one feature.
const NOT = () => element("span", { class: "soft" }, "not measured");
const heading = (text, note) => element("h3", {}, text, note ? element("small", {}, `  ${note}`) : null);

function fact(title, value, note) {
  return element("div", {}, element("h4", {}, title), value === null ? NOT() : value instanceof Node ? value : element("div", { class: "number" }, value),
    note ? element("span", { class: "soft" }, note) : null);
}

function picture([place, s, heat]) {
  return element("figure", {}, tile(place, heat, { onclick: () => go({ picture: place }) }),
    element("figcaption", { title: promptOf(place) }, `${number(s) ?? 0}  `, foreign(promptOf(place))));
}

function neighbours(pairs, other) {
  if (pairs === null) return NOT();
  if (!pairs.length) return element("span", { class: "soft" }, "none above 0");
  return element("div", { class: "neighbours" }, ...pairs.map(([id, value]) => {
    const line = other ? undefined : lines().get(id);
    return element("a", { href: hashOf({ site: other ?? site().site, feature: id }) },
      line !== undefined && table().top[line].length ? tile(table().top[line][0], table().peak[line], { fixed: true }) : null, `${id}`, element("span", { class: "soft" }, `  ${value.toFixed(2)}`));
  }));
}

function nameOf(line) {
  const columns = table(), name = columns.name[line];
  if (name) return foreign(name);
  return columns.words[line].length ? element("span", { class: "soft words" }, "prompts: ", foreign(columns.words[line].slice(0, 3).join(", "))) : element("span", { class: "soft words" }, "unnamed");
}

function evidence(line) {
  const columns = table();
  const known = Object.entries(columns.evidence[line]).map(([key, value]) => `${{ z: "words z", held_out_r: "held out r", clip_z: "CLIP z" }[key]} ${number(value)}`);
  if (columns.name[line]) return `Name from names.json: ${known.join(", ") || "no evidence kept"}.`;
  if (columns.unnamed[line]) return `No name holds: ${columns.unnamed[line]}.`;
  return "Name: not measured. The words shown are those its prompts have more often than others.";
}

async function featurePage(id) {
  const record = await featureRecord(id);
  if (!record) return [element("p", { class: "empty" }, `Feature ${id} is not in this atlas: it is silent on every picture, or was left out.`)];
  const line = lines().get(id), columns = table(), { site: place, step, grid, codes } = site();
  const save = () => element("button", { type: "button", "aria-pressed": String(kept.has(id)), onclick: (event) => {
    keep(id); event.currentTarget.setAttribute("aria-pressed", String(kept.has(id))); } }, "Keep in list");
  const parts = [
    element("h2", { tabindex: "-1", id: "title" }, `${id}  `, nameOf(line)),
    element("p", { class: "soft" }, `${place}, denoising step ${step + 1}. `, evidence(line), " Stability over SAE seeds: not measured."),
    element("div", { class: "bar" }, element("button", { type: "button", "data-view": "", onclick: nextView }, viewLabel()), save(),
      element("button", { type: "button", onclick: () => move(-1) }, "Previous"), element("button", { type: "button", onclick: () => move(1) }, "Next")),
    heading(`${record.top.length} top pictures`, "of distinct prompts, strongest first; click one to see what else fires there"),
    element("div", { class: "wall" }, ...record.top.map(picture)),
    heading("From all over its range", "top pictures alone mislead"),
    element("div", { class: "strips" }, ...record.strips.map(([name, found]) => element("div", {}, element("h4", {}, name === "silent" ? "silent pictures" : `${name} of its active pictures`),
      found.length ? element("div", { class: "strip" }, ...found.map(([at, , heat]) => tile(at, heat, { onclick: () => go({ picture: at }) }))) : element("span", { class: "soft" }, "none")))),
    heading("Numbers"),
    element("div", { class: "facts" },
      fact("Active on pictures", percent(columns.pictures[line])), fact("Active on tokens", percent(columns.tokens[line])),
      fact("Distinct prompts", String(columns.coverage[line]), `of ${run.index.prompts.length}`),
      fact("Score, held out", number(columns.score[line]), columns.score[line] === null ? "" : `a correlation; 0 by chance${columns.q[line] === null ? "" : `, q ${number(columns.q[line], 2)}`}${columns.scorePictures[line] ? `, ${columns.scorePictures[line]} pictures` : ""}`),
      fact("Where on the picture", record.position && grid ? positionMap(record, grid) : null, record.position ? `at most on ${percent(record.positionMax)} of pictures` : ""),
      fact("Codes where active", record.histogram ? bars(record.histogram, "Histogram of its codes") : null, record.histogram ? `0 to ${number(record.max)}, log counts` : ""),
      fact("Along denoising", record.steps ? plot([["--accent", record.steps.steps.map((at, i) => [at, record.steps.mean[i]])]], "Mean of its largest code at each step") : null)),
    heading("Near by decoder direction", "cosine"), neighbours(record.decoder),
    heading("Fires on the same pictures", "correlation of being active; 0 by chance"), neighbours(record.cofiring),
    ...record.sites.flatMap(([name, pairs]) => [heading(`In ${name}`, "correlation of being active; 0 by chance"), neighbours(pairs, name)]),
    heading("Prompt words", `in its prompts more than in others; chance gives one in twenty features a word of z ${site().wordBar}`), wordTable(record.words),
    heading("Steering", "beside a random direction of the same norm"), ...(record.effects.length ? record.effects.map(effect) : [NOT()]),
    ...truthCard(record),
    heading("Take it with you"),
    element("div", { class: "bar" }, element("a", { href: hashOf({ site: place, feature: id }) }, "Permalink"),
      element("button", { type: "button", onclick: () => download(`feature_${id}.json`, JSON.stringify(record, null, 1)) }, "JSON")),
    element("pre", {}, `fluxscope atlas --out-dir ${run.index.run}\nfluxscope steer --out-dir ${run.index.run} --feature ${id} --strength 8 --prompt "..." --seed 1`),
  ];
  return codes ? parts : [element("p", { class: "soft" }, "This run kept no token codes: no heatmaps."), ...parts];
}

function positionMap(record, [rows, columns]) {
  const canvas = mapCanvas(Float32Array.from(record.position, (letter) => shareAt(letter, 0)), rows, columns, 1);
  canvas.className = "square";
  return canvas;
}

function wordTable(words) {
  if (!words.length) return element("span", { class: "soft" }, "no word stands out");
  const row = (kind, ...cells) => element("tr", {}, ...cells.map((cell) => element(kind, {}, cell)));
  return element("table", {}, row("th", "word", "in its prompts", "in others", "z"),
    ...words.map(([word, inside, outside, z]) => row("td", foreign(word), percent(inside), percent(outside), number(z))));
}

function effect(each) {
  const drawn = each.feature.length ? plot([["--control", each.random], ["--accent", each.feature]], "Change of the picture by strength, feature and random direction") : null;
  return element("figure", { class: "effect" }, element("img", { src: base + each.file, alt: `Steering strip of picture with seed ${each.seed}`, loading: "lazy" }),
    element("figcaption", {}, foreign(each.prompt), ` (seed ${each.seed})`),
    drawn && fact("Change by strength", drawn, `feature in colour, random direction grey; unrelated pictures differ by ${number(each.strangers) ?? "?"}`));
}

function truthCard(record) {
  if (!record.truthMeasured) return run.index.model === "flux-shapes" ? [heading("Truth"), NOT()] : [];
  if (!record.truth.length) return [heading("Truth"), element("span", { class: "soft" }, "the best detector of no concept")];
  return [heading("Truth", "best single feature of these concepts, on pictures that did not choose it"), ...record.truth.map((each) =>
    fact(each.concept, `F1 ${each.f1.toFixed(2)}`, `95% interval ${each.low.toFixed(2)} to ${each.high.toFixed(2)}; untrained SAE ${each.untrained === null ? "not measured" : each.untrained.toFixed(2)}`))];
}
