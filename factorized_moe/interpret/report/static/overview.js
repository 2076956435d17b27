// A run at a glance.

const MOST_ROWS = 48;
const MOST_CLASSES = 24;

function overviewView(state) {
  const run = RUNS[state.run];
  const cards = run.layers.map(layerCard);
  return {
    title: run.title,
    nodes: [
      heading(given(run.title), summaryLine(run)),
      run.facts.length ? factList(run.facts) : null,
      ...cards,
      run.layers.length ? null : element('p', { class: 'nothing' }, 'This run has no layers.'),
    ],
    keys: run.layers.length ? { Enter: () => (location.hash = tableLink(run.layers[0])) } : {},
  };
}

function summaryLine(run) {
  const experts = run.layers.reduce((sum, layer) => sum + layer.num_experts, 0);
  const inputs = run.layers.length ? run.layers[0].num_samples : 0;
  const kind = run.inputs ? { images: 'image', patches: 'patch', texts: 'token' }[run.inputs.kind] : 'input';
  return `${plural(experts, 'expert')} in ${plural(run.layers.length, 'layer')}, on ${plural(inputs, kind)}`;
}

function factList(facts) {
  return element(
    'dl',
    { class: 'facts' },
    facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, given(value)))),
  );
}

/** The figures of a layer: names and values, for an overview or a comparison. */
function layerFigures(layer) {
  const figures = [
    ['experts', whole.format(layer.num_experts)],
    [`reach ${layer.threshold} at least once`, `${whole.format(layer.active)} (${percent(layer.active / layer.num_experts)})`],
  ];
  if (layer.entropy) figures.push(['label entropy, mean bits', decimals(mean(layer.entropy), 2)]);
  if (layer.polysemanticity) {
    const effective = layer.polysemanticity.values.filter(Number.isFinite).length;
    figures.push(
      ['have an effect alone', whole.format(effective)],
      ['polysemanticity, their mean', decimals(mean(layer.polysemanticity.values), 3)],
    );
  }
  return figures;
}

function layerCard(layer) {
  const link = tableLink(layer, { sort: 'load', descending: true });
  return element(
    'section',
    { class: 'layer', 'aria-label': layer.name },
    element(
      'div',
      { class: 'title' },
      element('h2', {}, element('a', { href: link }, given(layer.name))),
      layer.description ? element('p', {}, layer.description) : null,
    ),
    element(
      'dl',
      { class: 'figures' },
      layerFigures(layer).map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
    ),
    element('div', { class: 'columns' }, loadPanel([layer]), coefficientPanel([layer])),
    layer.class_share && layer.num_experts ? classPanel(layer) : null,
    element('p', {}, element('a', { class: 'button', href: link }, `All ${plural(layer.num_experts, 'expert')}`)),
  );
}

/** A part of the page with a heading one level below what it stands under: a layer's name, or the page's own. */
function panel(title, note, content, level = 3) {
  return element('section', { class: 'panel' }, element(`h${level}`, {}, title), note ? element('p', { class: 'note' }, note) : null, content);
}

function loadPanel(layers) {
  return panel(
    'Load',
    `Inputs with a coefficient of at least ${layers[0].threshold}, for each expert, most first`,
    fallingChart({
      series: layers.map((layer) => layer.load.values),
      label: layers.map((layer) => `${layer.active} of ${plural(layer.num_experts, 'expert')} take an input`).join('; '),
      ends: ['first expert', plural(Math.max(...layers.map((layer) => layer.num_experts)), 'expert')],
    }),
  );
}

function coefficientPanel(layers) {
  const sums = layers.map((layer) => {
    const sum = new Array(layer.histogram.shape[1]).fill(0);
    layer.histogram.values.forEach((value, place) => (sum[place % sum.length] += value));
    return sum;
  });
  return panel(
    'Coefficients',
    'How many there are of each size, on a logarithmic scale',
    histogramChart(sums, layers[0], 'Histogram of all coefficients'),
  );
}

/** A histogram of coefficients with a line at the threshold. */
function histogramChart(series, layer, label) {
  const end = layer.histogram_end;
  const bins = layer.histogram.shape[1];
  return columnChart({
    series,
    label,
    logarithmic: true,
    mark: layer.threshold / end,
    ends: ['0', decimals(end, end === 1 ? 0 : 2)],
    describe: (n, value) =>
      `${plural(value, 'coefficient')} from ${decimals((n * end) / bins, 3)} to ${decimals(((n + 1) * end) / bins, 3)}`,
  });
}

/** The experts of most load against the classes, those of one class next to each other. */
function classPanel(layer) {
  const busiest = layer.experts
    .filter((n) => layer.topClass[n] >= 0)
    .sort((a, b) => layer.load.values[b] - layer.load.values[a] || layer.mean.values[b] - layer.mean.values[a])
    .slice(0, MOST_ROWS)
    .sort((a, b) => layer.topClass[a] - layer.topClass[b] || layer.entropy[a] - layer.entropy[b]);
  const used = new Map();
  for (const n of busiest) used.set(layer.topClass[n], (used.get(layer.topClass[n]) || 0) + 1);
  const all = layer.run.classes.map((_, place) => place);
  const classes =
    all.length <= MOST_CLASSES
      ? all
      : all.sort((a, b) => (used.get(b) || 0) - (used.get(a) || 0)).slice(0, MOST_CLASSES).sort((a, b) => a - b);
  const experts = busiest.filter((n) => classes.includes(layer.topClass[n])); // no column whose label has no row
  const left = [];
  if (experts.length < layer.num_experts) left.push(`${experts.length} of ${plural(layer.num_experts, 'expert')}, those of most load`);
  if (classes.length < all.length) left.push(`${classes.length} of ${whole.format(all.length)} labels`);
  const note = `How each expert's coefficients divide among the labels${left.length ? `; ${left.join(', ')}` : ''}`;
  return panel('Experts and labels', note, heatMap(layer, experts, classes));
}
