// Which features are shown, in which order. "red -blue": A but not B. Digits alone: an id.
const query = { text: "", sort: "score", limits: {}, only: null };
const LIMITS = [["pictures", "Active on pictures"], ["tokens", "Active on tokens"], ["coverage", "Distinct prompts"],
  ["score", "Score, held out"], ["truth", "F1 of its concept"]];
const SORTS = [["score", "score"], ["pictures", "pictures"], ["coverage", "prompts"], ["tokens", "density on tokens"], ["max", "largest code"],
  ["truth", "truth"], ["id", "id"]];

// What a search reads of a site, made once: its words by line, prompts of its top pictures, its orders.
function searched() {
  const columns = table();
  columns.searched ??= {
    texts: run.index.prompts.map((text) => text.toLowerCase()),
    names: columns.name.map((name) => (name ?? "").toLowerCase()),
    words: columns.words.map((words) => words.join("\n").toLowerCase()),
    prompts: columns.top.map((top) => top.map((place) => run.index.pictures[place][0])),
    orders: new Map(),
    scores: new Map(),
  };
  return columns.searched;
}

// Words of the name or of enriched prompt words count fully; else the share of top pictures whose prompt has the word.
function scoresOf(word) {
  const { texts, names, words, prompts, scores } = searched();
  if (scores.size > 200) scores.clear();
  if (!scores.has(word)) {
    const has = texts.map((text) => text.includes(word));
    scores.set(word, Float32Array.from(names, (name, line) => {
      if (name.includes(word)) return 2;
      if (words[line].includes(word)) return 1.5;
      let count = 0;
      for (const prompt of prompts[line]) count += has[prompt];
      return count / Math.max(prompts[line].length, 1);
    }));
  }
  return scores.get(word);
}

// All lines in the order asked for: largest first, what was not measured last; ids ascend.
function ordered() {
  const columns = table(), { orders } = searched();
  if (!orders.has(query.sort)) {
    const by = Float64Array.from(columns[query.sort], (value) => value ?? -Infinity);
    const sign = query.sort === "id" ? 1 : -1;
    orders.set(query.sort, columns.id.map((_, line) => line).sort((a, b) => (by[a] === by[b] ? a - b : sign * (by[a] - by[b]))));
  }
  return orders.get(query.sort);
}

function found() {
  const columns = table(), limits = Object.entries(query.limits);
  const text = query.text.trim().toLowerCase();
  const kept = ordered().filter((line) => (!query.only || query.only.has(line)) && limits.every(([name, [low, high]]) => {
    const value = columns[name][line];
    return value !== null && value >= low && value <= high;
  }));
  if (/^#?\d+$/.test(text)) return kept.filter((line) => columns.id[line] === Number(text.replace("#", "")));
  const words = text.split(/\s+/).filter((word) => word && word !== "-");
  if (!words.length) return kept;
  const unwanted = words.filter((word) => word.startsWith("-")).map((word) => scoresOf(word.slice(1)));
  const wanted = words.filter((word) => !word.startsWith("-")).map(scoresOf);
  const score = (line) => wanted.reduce((least, scores) => Math.min(least, scores[line]), 2);
  const fit = kept.filter((line) => unwanted.every((scores) => scores[line] <= 0.1) && score(line) >= 0.5);
  return fit.sort((a, b) => score(b) - score(a));
}

// A range of a column: [smallest, largest]; null where nothing was measured.
function rangeOf(name) {
  const values = (table()[name] ?? []).filter((value) => value !== null);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : null;
}
