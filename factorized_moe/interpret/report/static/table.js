// Long lists: sorted, searched, and only the rows in view are in the document, so that thousands stay smooth.

const ROW = 48; // pixels, as in the style
const MOST_PRINTED = 200; // rows on paper

/** The experts of a layer in the order of a list's state. A state without a sort is in order of number. */
function orderedExperts(layer, state) {
  return ordered(layer.experts, expertColumns(layer), state, (expert) => searchText(layer, expert));
}

function ordered(items, columns, state, textOf) {
  const terms = normal(state.query).split(/\s+/).filter(Boolean);
  const found = terms.length ? items.filter((item) => terms.every((term) => matches(textOf(item), term))) : [...items];
  const column = columns.find(({ key }) => key === state.sort);
  if (!column) return found;
  const keyed = found.map((item) => [column.value(item), item]);
  const sign = state.descending ? -1 : 1;
  keyed.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compareValues(a, b)));
  return keyed.map(([, item]) => item);
}

const missing = (value) => Number(value === null || Number.isNaN(value));
const compareValues = (a, b) => (typeof a === 'string' ? a.localeCompare(b, 'en', { numeric: true }) : a - b);
const normal = (text) => text.normalize('NFKC').toLocaleLowerCase('en');

/** A number matches a whole word alone, so that 7 does not find 17 and 70. */
function matches(text, term) {
  return /^\d+$/.test(term) ? text.split(/\s+/).includes(term) : text.includes(term);
}

const searchTexts = new Map();

function searchText(layer, expert) {
  if (!searchTexts.has(layer)) searchTexts.set(layer, []);
  const texts = searchTexts.get(layer);
  if (texts[expert] === undefined) {
    const { classes, inputs } = layer.run;
    const words = [`expert ${expert}`];
    if (layer.topClass) words.push(classes[layer.topClass[expert]]);
    if (layer.hurtClass) words.push(classes[layer.hurtClass[expert]]);
    if (inputs && inputs.kind === 'texts') {
      words.push(...topInputs(layer, expert).map((input) => inputs.token(input.number).trim()));
    }
    texts[expert] = normal(words.filter((word) => word !== undefined).join(' '));
  }
  return texts[expert];
}

/** What a table of experts shows, as far as the layer has it; `wide` columns are left out on narrow screens. */
function expertColumns(layer) {
  const { classes } = layer.run;
  const share = (expert) => layer.class_share.row(expert)[layer.topClass[expert]];
  const drop = (expert) => layer.accuracy_drop.row(expert)[layer.hurtClass[expert]];
  const most = Math.max(1, ...layer.load.values);
  const columns = [
    { key: 'expert', title: 'Expert', value: (n) => n, cell: (n) => String(n), first: true },
    { key: null, title: 'Top inputs', kind: 'preview', cell: (n) => preview(layer, n) },
    {
      key: 'load',
      title: 'Load',
      help: `inputs with a coefficient of at least ${layer.threshold}`,
      kind: 'bar',
      value: (n) => layer.load.values[n],
      cell: (n) => loadCell(layer.load.values[n], most),
    },
    {
      key: 'mean',
      title: 'Mean',
      help: 'mean coefficient',
      kind: 'number wide',
      value: (n) => layer.mean.values[n],
      cell: (n) => average(layer.mean.values[n]),
    },
    {
      key: 'largest',
      title: 'Max',
      help: 'largest coefficient',
      kind: 'number wide',
      value: (n) => layer.largest.values[n],
      cell: (n) => coefficient(layer.largest.values[n]),
    },
  ];
  if (layer.class_share) {
    columns.push(
      {
        key: 'label',
        title: 'Top label',
        help: 'the label with the largest share of the coefficients',
        kind: 'label',
        value: (n) => (layer.topClass[n] < 0 ? null : classes[layer.topClass[n]]),
        cell: (n) => (layer.topClass[n] < 0 ? '\u2013' : [given(classes[layer.topClass[n]]), faint(percent(share(n)))]),
      },
      {
        key: 'entropy',
        title: 'Entropy',
        help: 'of the labels, in bits: 0 for an expert of one label',
        kind: 'number wide',
        value: (n) => layer.entropy[n],
        cell: (n) => decimals(layer.entropy[n], 2),
      },
    );
  }
  if (layer.polysemanticity) {
    columns.push({
      key: 'polysemanticity',
      title: 'Polysem.',
      help: 'class-level polysemanticity: 0 for an expert that carries exactly one class',
      kind: 'number wide',
      value: (n) => layer.polysemanticity.values[n],
      cell: (n) => decimals(layer.polysemanticity.values[n], 3),
    });
  }
  if (layer.accuracy_drop) {
    columns.push({
      key: 'effect',
      title: 'Without it',
      help: 'the class that loses most accuracy without the expert, and the share lost',
      kind: 'label wide',
      value: (n) => (layer.hurtClass[n] < 0 ? null : drop(n)),
      cell: (n) =>
        layer.hurtClass[n] < 0 ? '\u2013' : [given(classes[layer.hurtClass[n]]), faint(lost(drop(n)))],
    });
  }
  return columns;
}

const faint = (text) => element('span', { class: 'faint' }, text);

function loadCell(value, most) {
  const bar = element('span', { class: 'fill' });
  bar.style.width = `${(value / most) * 100}%`;
  return [element('span', { class: 'number' }, whole.format(value)), element('span', { class: 'track' }, bar)];
}

/** A sortable, searchable list. `link(item)` is where a row leads, `describe` counts rows for people. */
function listView({ items, columns, state, link, textOf, word, caption }) {
  let shown = ordered(items, columns, state, textOf);
  let current = Math.min(history.state?.row ?? -1, shown.length - 1);
  let drawn = new Map(); // the rows in the document by their place
  let onPaper = false;

  const search = element('input', {
    type: 'search',
    class: 'search',
    placeholder: 'Search',
    'aria-label': `Search ${word}s`,
    'aria-keyshortcuts': '/',
    autocomplete: 'off',
    spellcheck: 'false',
    oninput: () => change({ query: search.value }),
  });
  search.value = state.query;
  const count = element('p', { class: 'count', role: 'status' });
  const headers = columns.map((column) => headerCell(column, sortBy));
  const body = element('tbody');
  const table = element(
    'table',
    { class: 'list', 'aria-label': caption },
    element('thead', {}, element('tr', { 'aria-rowindex': 1 }, headers)),
    body,
  );
  const nothing = element('p', { class: 'nothing', hidden: true });
  const cut = element('p', { class: 'note', hidden: true });

  function headerCell(column, onsort) {
    const properties = { scope: 'col', class: column.kind || 'first', title: column.help };
    if (!column.key) return element('th', properties, column.title);
    return element('th', properties, element('button', { type: 'button', onclick: () => onsort(column) }, column.title));
  }

  /** The same column again turns the order; numbers start with the largest, names and numbers of experts do not. */
  function sortBy(column) {
    const down = column.key !== 'expert' && column.key !== 'label';
    change({ sort: column.key, descending: state.sort === column.key ? !state.descending : down });
  }

  function change(part) {
    Object.assign(state, part);
    shown = ordered(items, columns, state, textOf);
    remember(-1);
    replaceHash(state);
    update();
  }

  function update() {
    headers.forEach((header, place) => {
      const { key } = columns[place];
      const sorted = key !== null && key === (state.sort || columns[0].key);
      if (sorted) header.setAttribute('aria-sort', state.sort && state.descending ? 'descending' : 'ascending');
      else header.removeAttribute('aria-sort');
    });
    count.textContent =
      shown.length === items.length ? plural(items.length, word) : `${whole.format(shown.length)} of ${plural(items.length, word)}`;
    table.setAttribute('aria-rowcount', shown.length + 1);
    nothing.hidden = shown.length > 0;
    nothing.replaceChildren(`No ${word} matches `, element('q', {}, given(state.query)), '.');
    drawn = new Map();
    draw();
  }

  /** Put the rows in view into the document, with space for the others above and below. */
  function draw() {
    if (onPaper) return;
    const above = Math.floor(-body.getBoundingClientRect().top / ROW) - 12;
    const start = Math.max(0, Math.min(above - (above % 8), shown.length - 1));
    const stop = Math.min(shown.length, start + Math.ceil(window.innerHeight / ROW) + 36);
    if (drawn.size === stop - start && drawn.has(start)) return;
    const focused = body.contains(document.activeElement);
    const earlier = drawn;
    drawn = new Map();
    for (let place = start; place < stop; place++) drawn.set(place, earlier.get(place) || row(shown[place], place));
    body.replaceChildren(spacer(start), ...drawn.values(), spacer(shown.length - stop));
    if (focused) focusRow(current, false);
  }

  /** On paper there is no scrolling: the first rows alone, and how many are left out. */
  function printing(on) {
    onPaper = on;
    drawn = new Map();
    cut.hidden = !on || shown.length <= MOST_PRINTED;
    cut.textContent = `The first ${MOST_PRINTED} of ${plural(shown.length, word)}; sort or search the list to print others.`;
    if (on) body.replaceChildren(...shown.slice(0, MOST_PRINTED).map(row));
    else draw();
  }

  function spacer(rows) {
    const cell = element('td'); // of one column: a span would count the columns that narrow screens leave out
    cell.style.height = `${rows * ROW}px`;
    return element('tr', { class: 'spacer', 'aria-hidden': 'true', hidden: rows <= 0 }, cell);
  }

  function row(item, place) {
    const cells = columns.map((column) => {
      const content = column.cell(item);
      if (!column.first) return element('td', { class: column.kind }, element('div', {}, content));
      const anchor = element('a', { href: link(item), onfocus: () => remember(place) }, content);
      return element('th', { scope: 'row', class: 'first' }, anchor);
    });
    const node = element('tr', { 'aria-rowindex': place + 2, 'data-place': place }, cells);
    node.addEventListener('click', (event) => {
      if (!event.target.closest('a') && !String(window.getSelection())) {
        remember(place);
        saveKept();
        location.hash = link(item);
      }
    });
    return node;
  }

  function remember(place) {
    current = place;
    keep({ row: place });
  }

  function focusRow(place, scroll = true) {
    if (place < 0 || place >= shown.length) return false;
    current = place;
    if (scroll) {
      const top = body.getBoundingClientRect().top + place * ROW;
      const space = table.tHead.getBoundingClientRect().height + 8;
      if (top < space) window.scrollBy(0, top - space - ROW);
      else if (top + ROW > window.innerHeight) window.scrollBy(0, top + 2 * ROW - window.innerHeight);
      draw();
    }
    const link = body.querySelector(`tr[data-place="${place}"] a`);
    link?.focus({ preventScroll: true });
    return Boolean(link);
  }

  return {
    nodes: [element('div', { class: 'tools' }, search, count), table, nothing, cut],
    printing,
    shown: update, // once the nodes are in the document
    restored: () => current >= 0 && focusRow(current, false),
    scrolled: draw,
    keys: {
      '/': () => search.focus(),
      next: () => focusRow(Math.min(current + 1, shown.length - 1)),
      previous: () => focusRow(Math.max(current - 1, 0)),
      first: () => focusRow(0),
      last: () => focusRow(shown.length - 1),
      Enter: () => focusRow(0),
      clear: () => {
        if (!state.query) return false;
        search.value = '';
        change({ query: '' });
        return true;
      },
    },
  };
}

/** The experts of one layer. */
function tableView(state) {
  const { layer } = state;
  const list = listView({
    items: layer.experts,
    columns: expertColumns(layer),
    state,
    link: (expert) => expertLink(layer, expert, listOf(state)),
    textOf: (expert) => searchText(layer, expert),
    word: 'expert',
    caption: `Experts of ${layer.name}`,
  });
  return {
    ...list,
    title: layer.name,
    nodes: [heading(given(layer.name), layer.description), layerSwitch(layer, (other) => tableLink(other, listOf(state))), ...list.nodes],
    up: overviewLink(state.run),
  };
}

function heading(title, text) {
  return element('div', { class: 'heading' }, element('h1', { tabindex: -1 }, title), text ? element('p', {}, text) : null);
}

/** Links to the run's layers, where there are several: `link` says where to. */
function layerSwitch(layer, link, layers = layer.run.layers) {
  if (layers.length < 2) return null;
  const select = element(
    'select',
    { 'aria-label': 'Layer', onchange: () => (location.hash = link(layers[select.selectedIndex])) },
    layers.map((each) => element('option', { selected: each === layer }, each.name)),
  );
  return element('p', { class: 'switch' }, select);
}
