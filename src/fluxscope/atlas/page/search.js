// Which features are shown, in which order. "red -blue": A but not B. Digits alone: an id.
const query = { text: "", sort: "score", limits: {} };
const LIMITS = [["pictures", "Active on pictures"], ["tokens", "Active on tokens"], ["coverage", "Distinct prompts"],
  ["score", "Score, held out"], ["truth", "F1 of its concept"]];
const SORTS = [["score", "score"], ["pictures", "pictures"], ["coverage", "prompts"], ["tokens", "density on tokens"], ["max", "largest code"],
  ["truth", "truth"], ["id", "id"]];

const prompts = { texts: null, of: new Map() };
function promptsWith(word) {
  prompts.texts ??= run.index.prompts.map((text) => text.toLowerCase());
  if (!prompts.of.has(word)) prompts.of.set(word, Uint8Array.from(prompts.texts, (text) => text.includes(word)));
  return prompts.of.get(word);
}

// Words of the name or of enriched prompt words count fully; else the share of top pictures whose prompt has the word,
// above the share of all prompts.
function match(line, word) {
  const columns = table(), has = promptsWith(word);
  if ((columns.name[line] ?? "").toLowerCase().includes(word)) return 2;
  if (columns.words[line].some((each) => each.toLowerCase().includes(word))) return 1.5;
  const top = columns.top[line];
  const share = top.reduce((sum, place) => sum + has[run.index.pictures[place][0]], 0) / Math.max(top.length, 1);
  return share;
}

function found() {
  const columns = table();
  const kept = columns.id.map((_, line) => line).filter((line) => Object.entries(query.limits).every(([name, [low, high]]) => {
    const value = columns[name][line];
    return value !== null && value >= low && value <= high;
  }));
  const text = query.text.trim().toLowerCase();
  if (/^#?\d+$/.test(text)) return kept.filter((line) => columns.id[line] === Number(text.replace("#", "")));
  const words = text.split(/\s+/).filter((word) => word && word !== "-");
  const wanted = words.filter((word) => !word.startsWith("-")), unwanted = words.filter((word) => word.startsWith("-"));
  const by = columns[query.sort] ?? columns.id;
  const order = (a, b) => (query.sort === "id" ? by[a] - by[b] : (by[b] ?? -Infinity) - (by[a] ?? -Infinity) || columns.id[a] - columns.id[b]);
  if (!words.length) return kept.sort(order);
  const scored = [];
  for (const line of kept) {
    if (unwanted.some((word) => match(line, word.slice(1)) > 0.1)) continue;
    const score = wanted.length ? Math.min(...wanted.map((word) => match(line, word))) : 1;
    if (score >= 0.5) scored.push([line, score]);
  }
  return scored.sort(([a, x], [b, y]) => y - x || order(a, b)).map(([line]) => line);
}

// A range of a column: [smallest, largest]; null where nothing was measured.
function rangeOf(name) {
  const values = (table()[name] ?? []).filter((value) => value !== null);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : null;
}
