// Shards: scripts that hand over one value each, loaded when first asked for.
const base = document.currentScript.dataset.base;
const waiting = new Map();
window.fluxscopeShard = (name, text) => waiting.get(name)?.resolve(unpacked(text));

// Deflated JSON in base64.
function unpacked(text) {
  const raw = atob(text), packed = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) packed[place] = raw.charCodeAt(place);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

function shard(name) {
  if (!waiting.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    waiting.set(name, entry);
    const script = document.createElement("script");
    script.src = `${base}data/${name}.js`;
    script.onerror = () => { waiting.delete(name); entry.reject(new Error(`${name} is not there`)); };
    script.onload = () => script.remove();
    document.head.append(script);
  }
  return waiting.get(name).promise;
}

// A letter from a to p is a share in sixteenths; ` is 0.
const shareAt = (text, place) => (text.charCodeAt(place) - 96) / 16;

const run = { index: null, tables: [], site: 0 };
const site = () => run.index.sites[run.site];
const table = () => run.tables[run.site];
const lines = (number = run.site) => run.tables[number].line;

async function openSite(number) {
  if (!run.tables[number]) {
    const columns = await shard(`s${number}_table`);
    columns.line = new Map((columns.id ?? []).map((id, line) => [id, line]));
    columns.id ??= [];
    run.tables[number] = columns;
  }
  run.site = number;
}

async function featureRecord(id) {
  const line = lines().get(id);
  if (line === undefined) return null;
  const per = site().perShard;
  return (await shard(`s${run.site}_f${Math.floor(line / per)}`))[line % per];
}

// Every token of a picture: its features as lines of the table, strongest first, with shares of their largest code.
async function pictureTokens(place) {
  const { picturesPerShard, codes } = site();
  if (!codes) return null;
  const part = await shard(`s${run.site}_p${Math.floor(place / picturesPerShard)}`);
  const [counts, features, shares] = part.pictures[place - part.first];
  let at = 0;
  return counts.map((count) => Array.from({ length: count }, () => [features[at], shareAt(shares, at++)]));
}

const promptOf = (place) => run.index.prompts[run.index.pictures[place][0]];
