// Two runs side by side.

function compareView(state) {
  const { match } = state;
  const head = [heading('Comparison', null), legend(), factTable()];
  if (!match) {
    return {
      title: 'Comparison',
      nodes: [...head, element('p', { class: 'nothing' }, 'The two runs have no layer of the same name.')],
      keys: {},
      up: overviewLink(0),
    };
  }
  const [layer, other] = match.layers;
  const list = match.nearest ? matchList(match, state) : null;
  const firsts = MATCHES.map((each) => each.layers[0]);
  return {
    ...(list || { keys: {} }),
    title: 'Comparison',
    nodes: [
      ...head,
      element('div', { class: 'title' }, element('h2', {}, given(layer.name)), layerSwitch(layer, compareTo, firsts)),
      figureTable(layer, other),
      element('div', { class: 'columns' }, loadPanel([layer, other]), sharedHistogram(layer, other)),
      list ? matchSection(list) : null,
    ],
    up: overviewLink(0),
  };
}

function compareTo(layer) {
  return formatHash({ ...PLAIN, view: 'compare', match: MATCHES.find((each) => each.layers[0] === layer) });
}

/** Both histograms in one chart, where their bins are the same. */
function sharedHistogram(layer, other) {
  const same = layer.histogram_end === other.histogram_end && layer.histogram.shape[1] === other.histogram.shape[1];
  return same ? coefficientPanel([layer, other]) : null;
}

function legend() {
  return element(
    'ul',
    { class: 'legend' },
    RUNS.map((run, place) =>
      element('li', {}, element('span', { class: place ? 'key second' : 'key' }), element('a', { href: overviewLink(place) }, given(run.title))),
    ),
  );
}

/** Rows of a name and two values; those that differ stand out. */
function pairTable(caption, rows) {
  return element(
    'table',
    { class: 'pairs', 'aria-label': caption },
    element('thead', {}, element('tr', {}, element('td', {}), RUNS.map((run) => element('th', { scope: 'col' }, given(run.title))))),
    element(
      'tbody',
      {},
      rows.map(([name, ...values]) =>
        element(
          'tr',
          { class: values[0] === values[1] ? 'same' : null },
          element('th', { scope: 'row' }, name),
          values.map((value) => element('td', {}, value === undefined ? '\u2013' : given(value))),
        ),
      ),
    ),
  );
}

function factTable() {
  const facts = RUNS.map((run) => new Map(run.facts));
  const names = [...new Set(facts.flatMap((each) => [...each.keys()]))];
  return names.length ? pairTable('Facts', names.map((name) => [name, ...facts.map((each) => each.get(name))])) : null;
}

function figureTable(layer, other) {
  const figures = [layer, other].map((each) => new Map(layerFigures(each)));
  const names = [...new Set(figures.flatMap((each) => [...each.keys()]))];
  return pairTable('Figures', names.map((name) => [name, ...figures.map((each) => each.get(name))]));
}

/** Every expert with the one of the other run that takes the most similar labels. */
function matchList(match, state) {
  const [layer, other] = match.layers;
  const nearest = match.nearest.values;
  const similarity = match.similarity.values;
  const name = (of, expert) => (of.topClass[expert] < 0 ? '\u2013' : [given(of.run.classes[of.topClass[expert]]), faint(percent(of.class_share.row(expert)[of.topClass[expert]]))]);
  const columns = [
    { key: 'expert', title: 'Expert', value: (n) => n, cell: (n) => String(n), first: true },
    { key: null, title: 'Top inputs', kind: 'preview', cell: (n) => preview(layer, n) },
    { key: 'load', title: 'Load', kind: 'number wide', value: (n) => layer.load.values[n], cell: (n) => whole.format(layer.load.values[n]) },
    { key: 'label', title: 'Top label', kind: 'label wide', value: (n) => (layer.topClass[n] < 0 ? null : layer.run.classes[layer.topClass[n]]), cell: (n) => name(layer, n) },
    { key: 'match', title: 'Match', help: 'cosine of the two distributions over labels', kind: 'number', value: (n) => similarity[n], cell: (n) => coefficient(similarity[n]) },
    {
      key: 'nearest',
      title: 'Nearest',
      kind: 'number',
      value: (n) => nearest[n],
      cell: (n) => element('a', { href: expertLink(other, nearest[n]) }, String(nearest[n])),
    },
    { key: null, title: 'Its top inputs', kind: 'preview wide', cell: (n) => preview(other, nearest[n]) },
    { key: null, title: 'Its top label', kind: 'label wide', cell: (n) => name(other, nearest[n]) },
  ];
  return listView({
    items: layer.experts,
    columns,
    state,
    link: (expert) => expertLink(layer, expert),
    textOf: (expert) => `${searchText(layer, expert)} ${searchText(other, nearest[expert])}`,
    word: 'expert',
    caption: 'Nearest experts',
  });
}

function matchSection(list) {
  return element(
    'section',
    {},
    element('h2', {}, 'Nearest experts'),
    element('p', { class: 'note' }, 'Runs number their experts by chance. Each expert stands beside the one of the other run whose coefficients divide most alike among the labels.'),
    list.nodes,
  );
}
