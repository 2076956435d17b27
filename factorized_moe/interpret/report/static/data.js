// The runs, from the JSON in the page to arrays, and what follows from them.

/** An array in base64: `row(n)` is its row `n`. */
function unpack(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  const values = packed.type === 'i4' ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
  const width = packed.shape.slice(1).reduce((product, size) => product * size, 1);
  return { values, width, shape: packed.shape, row: (n) => values.subarray(n * width, (n + 1) * width) };
}

function readRun(raw) {
  const run = { title: raw.title, facts: raw.facts, classes: raw.classes, inputs: readInputs(raw.inputs) };
  run.layers = raw.layers.map((layer) => readLayer(layer, run));
  return run;
}

/** The inputs that the page shows, each found by its number; of patches, the images that they are of. */
function readInputs(raw) {
  if (!raw) return null;
  const places = new Map();
  unpack(raw.numbers).values.forEach((number, place) => places.set(number, place));
  const tokens = raw.tokens && unpack(raw.tokens).values;
  const patch = raw.kind === 'patches' ? (number) => placeOfPatch(raw, number) : null;
  return {
    kind: raw.kind,
    coarse: raw.coarse,
    patch,
    image: (number) => raw.images[places.get(patch ? patch(number).image : number)],
    token: (number) => raw.words[tokens[places.get(number)]],
  };
}

/** Where a patch is: its image's number, its row and column, -1 for a token before the patches; and the grid. */
function placeOfPatch({ grid: [rows, columns], prefix }, number) {
  const each = prefix + rows * columns;
  const place = (number % each) - prefix;
  const inside = place >= 0;
  return {
    image: Math.floor(number / each),
    row: inside ? Math.floor(place / columns) : -1,
    column: inside ? place % columns : -1,
    rows,
    columns,
  };
}

const PACKED = [
  'load', 'mean', 'largest', 'histogram', 'top_samples', 'top_coefficients', 'top_equal', 'top_labels', 'context', 'class_share',
  'accuracy_drop', 'polysemanticity', 'spectrum',
];

function readLayer(raw, run) {
  const layer = { ...raw, run };
  for (const name of PACKED) layer[name] = unpack(raw[name]);
  const experts = Array.from({ length: layer.num_experts }, (_, number) => number);
  layer.experts = experts;
  layer.active = experts.filter((n) => layer.load.values[n] > 0).length;
  layer.topClass = layer.class_share && experts.map((n) => largest(layer.class_share.row(n)));
  layer.entropy = layer.class_share && experts.map((n) => entropy(layer.class_share.row(n)));
  layer.hurtClass = layer.accuracy_drop && experts.map((n) => largest(layer.accuracy_drop.row(n)));
  return layer;
}

/** The place of the largest value above 0, or -1. */
function largest(values) {
  let best = -1;
  values.forEach((value, place) => {
    if (value > (best < 0 ? 0 : values[best])) best = place;
  });
  return best;
}

/** In bits; NaN where all shares are 0. */
function entropy(shares) {
  let sum = 0;
  let any = false;
  for (const share of shares) {
    if (share > 0) {
      sum -= share * Math.log2(share);
      any = true;
    }
  }
  return any ? Math.max(0, sum) : NaN;
}

/** The mean of the numbers among values; NaN without any. */
function mean(values) {
  const numbers = Array.from(values).filter(Number.isFinite);
  return numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
}

/** An expert's top inputs: number, coefficient and label of each. */
function topInputs(layer, expert) {
  const labels = layer.top_labels && layer.top_labels.row(expert);
  return Array.from(layer.top_samples.row(expert), (number, rank) => ({
    number,
    rank,
    coefficient: layer.top_coefficients.row(expert)[rank],
    label: labels && labels[rank] >= 0 ? layer.run.classes[labels[rank]] : null,
  })).filter((input) => input.number >= 0);
}

/** The tokens around an expert's top token of a rank, up to `radius` to either side, each with its coefficient and
 *  whether it is the top token. */
function snippet(layer, expert, input, radius = Infinity) {
  const { inputs } = layer.run;
  if (!layer.context) return [{ text: inputs.token(input.number), coefficient: input.coefficient, top: true }];
  const size = layer.context.shape[2];
  const values = layer.context.row(expert).subarray(input.rank * size, (input.rank + 1) * size);
  return Array.from(values, (value, place) => ({ value, number: input.number + place - (size - 1) / 2 }))
    .filter(({ value, number }) => !Number.isNaN(value) && Math.abs(number - input.number) <= radius)
    .map(({ value, number }) => ({
      text: inputs.token(number),
      coefficient: value,
      top: number === input.number,
    }));
}

const DATA = JSON.parse(document.getElementById('data').textContent);
const RUNS = DATA.runs.map(readRun);
const MATCHES = (DATA.matches || []).map((raw) => ({
  layers: raw.layers.map((place, run) => RUNS[run].layers[place]),
  nearest: unpack(raw.nearest),
  similarity: unpack(raw.similarity),
}));
