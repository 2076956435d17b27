// The page's data as JSON, in the form that `report_json` of the Python package writes and describes.

function exported() {
  const matches = MATCHES.map(({ layers, nearest, similarity }) => ({
    layer: layers[0].name,
    ...(nearest && { nearest: Array.from(nearest.values), similarity: rounded(similarity.values) }),
  }));
  return { format: 'factorized-moe-report', version: 1, runs: RUNS.map(exportedRun), ...(RUNS.length > 1 && { matches }) };
}

function exportedRun(run) {
  return {
    title: run.title,
    facts: run.facts.map(([name, value]) => ({ name, value })),
    classes: run.classes,
    inputs: run.inputs && run.inputs.kind,
    layers: run.layers.map(exportedLayer),
  };
}

function exportedLayer(layer) {
  const { name, description, threshold, num_samples, histogram_end } = layer;
  return { name, description, threshold, num_samples, histogram_end, experts: layer.experts.map((n) => exportedExpert(layer, n)) };
}

function exportedExpert(layer, expert) {
  const found = { expert, load: layer.load.values[expert] };
  for (const name of ['mean', 'largest', 'polysemanticity']) {
    if (layer[name]) found[name] = sevenDigits(layer[name].values[expert]);
  }
  if (layer.top_equal) found.top_equal = layer.top_equal.values[expert];
  for (const name of ['histogram', 'class_share', 'accuracy_drop', 'spectrum']) {
    if (layer[name]) found[name] = rounded(layer[name].row(expert));
  }
  found.top = topInputs(layer, expert).map((input) => exportedInput(layer, expert, input));
  return found;
}

function exportedInput(layer, expert, input) {
  const { inputs } = layer.run;
  const found = { sample: input.number, coefficient: sevenDigits(input.coefficient) };
  if (layer.top_labels) found.label = input.label;
  if (inputs && inputs.kind === 'texts') {
    found.tokens = snippet(layer, expert, input).map((token) => ({ text: token.text, coefficient: sevenDigits(token.coefficient) }));
  }
  if (inputs && inputs.patch) {
    const { image, row, column } = inputs.patch(input.number);
    Object.assign(found, { image, row, column });
  }
  return found;
}

const rounded = (values) => Array.from(values, sevenDigits);

/** As many digits as 32-bit numbers hold, whole numbers as they are; JSON has no NaN. */
function sevenDigits(value) {
  if (!Number.isFinite(value)) return null;
  return Number.isInteger(value) ? value : Number(value.toPrecision(7));
}

function download() {
  const address = URL.createObjectURL(new Blob([JSON.stringify(exported())], { type: 'application/json' }));
  const name = RUNS[0].title.replace(/[^A-Za-z0-9]+/g, '-').replace(/^-|-$/g, '').toLowerCase() || 'report';
  element('a', { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
