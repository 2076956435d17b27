// One expert.

const MOST_BARS = 12;

function expertView(state) {
  const { layer, expert } = state;
  const order = orderedExperts(layer, state);
  const place = order.indexOf(expert);
  const neighbour = (step) => (place < 0 ? order[0] : order[place + step]);
  const go = (step) => {
    const next = neighbour(step);
    if (next !== undefined) location.hash = expertLink(layer, next, listOf(state));
  };
  const step = (text, by, keys) =>
    neighbour(by) === undefined
      ? element('span', { class: 'button', 'aria-disabled': 'true' }, text)
      : element('a', { class: 'button', href: expertLink(layer, neighbour(by), listOf(state)), 'aria-keyshortcuts': keys }, text);
  return {
    title: `Expert ${expert}`,
    nodes: [
      element(
        'div',
        { class: 'pager' },
        heading(`Expert ${expert}`, place < 0 ? null : `${whole.format(place + 1)} of ${whole.format(order.length)}${listName(state)}`),
        element('nav', { 'aria-label': 'Neighbours' }, step('\u2190 Previous', -1, 'ArrowLeft k'), step('Next \u2192', 1, 'ArrowRight j')),
      ),
      element(
        'dl',
        { class: 'figures' },
        expertFigures(layer, expert).map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
      ),
      part('Top inputs', topNote(layer, expert), gallery(layer, expert)),
      element('div', { class: 'columns' }, expertPanels(layer, expert)),
    ],
    keys: {
      next: () => go(1),
      previous: () => go(-1),
      right: () => go(1),
      left: () => go(-1),
      numbers: () => document.querySelector('.numbers')?.click(),
    },
    up: tableLink(layer, listOf(state)),
  };
}

function listName({ sort, query, layer }) {
  const column = expertColumns(layer).find(({ key }) => key === sort);
  const parts = [];
  if (query) parts.push(` found by \u201c${query}\u201d`);
  if (column) parts.push(` by ${column.title.toLowerCase()}`);
  return parts.join(',');
}

/** "12 of 261 equal", where more inputs have the last coefficient than are shown. */
function equalNote(layer, expert) {
  const inputs = topInputs(layer, expert);
  if (!layer.top_equal || !inputs.length) return '';
  const last = inputs[inputs.length - 1].coefficient;
  const shown = inputs.filter((input) => input.coefficient === last).length;
  const equal = layer.top_equal.values[expert];
  return equal > shown ? ` Of ${whole.format(equal)} inputs with a coefficient of ${coefficient(last)}, ${shown} are drawn at random.` : '';
}

function topNote(layer, expert) {
  const kind = {
    texts: 'Tokens are shaded by the expert\u2019s coefficient; the top one is underlined. ',
    patches: 'Whole images, each with a frame about the patch. ',
  }[layer.run.inputs && layer.run.inputs.kind] || '';
  return `${kind}Coefficients of at least ${layer.threshold} are in bold.${equalNote(layer, expert)}`;
}

function expertFigures(layer, expert) {
  const load = layer.load.values[expert];
  const figures = [
    [`inputs reach ${layer.threshold}`, `${whole.format(load)} (${percent(load / layer.num_samples)})`],
    ['mean coefficient', average(layer.mean.values[expert])],
    ['largest', coefficient(layer.largest.values[expert])],
  ];
  if (layer.entropy) figures.push(['label entropy, bits', decimals(layer.entropy[expert], 2)]);
  if (layer.polysemanticity) figures.push(['polysemanticity', decimals(layer.polysemanticity.values[expert], 3)]);
  return figures;
}

/** A part of this page, whose headings follow the page's own. */
const part = (title, note, content) => panel(title, note, content, 2);

function expertPanels(layer, expert) {
  const { classes } = layer.run;
  const panels = [];
  if (layer.class_share) {
    panels.push(
      part(
        'Labels',
        'How the expert\u2019s coefficients divide among the labels',
        classBars(layer.class_share.row(expert), classes, (value) => percent(value), 'Share of each label'),
      ),
    );
  }
  if (layer.accuracy_drop) {
    panels.push(
      part(
        'Without this expert',
        'The share of each class\u2019s accuracy that is lost when its coefficient is set to 0',
        classBars(layer.accuracy_drop.row(expert), classes, (value) => lost(value), 'Accuracy lost in each class'),
      ),
    );
  }
  panels.push(
    part(
      'Coefficients',
      'How many inputs have each coefficient, on a logarithmic scale',
      histogramChart([layer.histogram.row(expert)], layer, `Histogram of the coefficients of expert ${expert}`),
    ),
  );
  if (layer.spectrum) {
    const values = layer.spectrum.row(expert);
    panels.push(
      part(
        'Spectrum',
        'The singular values of the expert\u2019s matrix',
        columnChart({
          series: [values],
          label: `${values.length} singular values, the largest ${values.length ? values[0].toPrecision(3) : 'none'}`,
          ends: ['1', String(values.length)],
          describe: (n, value) => `singular value ${n + 1}: ${value.toPrecision(3)}`,
        }),
      ),
    );
  }
  return panels;
}

/** A share that is lost. */
function lost(share) {
  return share >= 0.01 ? `\u2212${percent(share)}` : percent(share);
}

/** Bars for the classes: all in their order if they are few, or else those of the largest values. */
function classBars(values, classes, format, label) {
  const all = Array.from(values, (value, place) => ({ name: given(classes[place]), value, text: format(value) }));
  const rows = all.length <= MOST_BARS ? all : [...all].sort((a, b) => b.value - a.value).slice(0, MOST_BARS).filter(({ value }) => value > 0);
  const hidden = all.length - rows.length;
  return [
    rows.length ? barList(rows, 1, label) : element('p', { class: 'faint' }, 'None.'),
    hidden && rows.length ? element('p', { class: 'note' }, `and ${plural(hidden, 'other')}, none of them larger`) : null,
  ];
}
