// What is shown is in the address, so that a link shows the same:
//   #/                                  the overview
//   #/head?sort=-load&q=seven           a layer's experts, sorted and searched
//   #/head/expert/17?sort=-load         an expert; its neighbours are those of that list
//   #/~other, #/~other/head, ..         the same of the other run
//   #/~compare?layer=head&sort=-match   the two runs side by side

/** The state that an address stands for; `view` is 'missing' for one that stands for nothing here. */
function parseHash(hash) {
  const [path, search = ''] = hash.replace(/^#/, '').split('?');
  const parameters = new URLSearchParams(search);
  const parts = path.split('/').filter(Boolean).map(decode);
  const sort = parameters.get('sort') || '';
  const state = {
    view: 'overview',
    run: 0,
    layer: null,
    expert: null,
    sort: sort.replace(/^-/, ''),
    descending: sort.startsWith('-'),
    query: parameters.get('q') || '',
  };
  if (parts[0] === '~compare' && RUNS.length > 1 && parts.length === 1) {
    const slug = parameters.get('layer');
    const match = MATCHES.find((found) => found.layers[0].slug === slug) || MATCHES[0];
    return { ...state, view: 'compare', match };
  }
  if (parts[0] === '~other' && RUNS.length > 1) {
    state.run = 1;
    parts.shift();
  }
  if (!parts.length) return state;
  state.layer = RUNS[state.run].layers.find((layer) => layer.slug === parts[0]) || null;
  if (!state.layer) return { ...state, view: 'missing' };
  if (parts.length === 1) return { ...state, view: 'table' };
  if (parts.length === 3 && parts[1] === 'expert' && /^\d+$/.test(parts[2])) {
    const expert = Number(parts[2]);
    if (expert < state.layer.num_experts) return { ...state, view: 'expert', expert };
  }
  return { ...state, view: 'missing' };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function formatHash(state) {
  const parameters = new URLSearchParams();
  const parts = [];
  if (state.view === 'compare') {
    parts.push('~compare');
    if (state.match && state.match !== MATCHES[0]) parameters.set('layer', state.match.layers[0].slug);
  } else {
    if (state.run) parts.push('~other');
    if (state.layer) parts.push(state.layer.slug);
    if (state.view === 'expert') parts.push('expert', state.expert);
  }
  if (state.sort) parameters.set('sort', (state.descending ? '-' : '') + state.sort);
  if (state.query) parameters.set('q', state.query);
  const search = parameters.toString();
  return `#/${parts.join('/')}${search ? `?${search}` : ''}`;
}

const PLAIN = { run: 0, layer: null, expert: null, sort: '', descending: false, query: '' };

const overviewLink = (run) => formatHash({ ...PLAIN, view: 'overview', run });
const compareLink = () => formatHash({ ...PLAIN, view: 'compare' });
const tableLink = (layer, list = {}) =>
  formatHash({ ...PLAIN, ...list, view: 'table', run: RUNS.indexOf(layer.run), layer });
const expertLink = (layer, expert, list = {}) =>
  formatHash({ ...PLAIN, ...list, view: 'expert', run: RUNS.indexOf(layer.run), layer, expert });

/** The part of a state that orders a list, to carry along in links. */
function listOf({ sort, descending, query }) {
  return { sort, descending, query };
}

/** Change the address without a new entry in the history. */
function replaceHash(state) {
  saveKept();
  history.replaceState(history.state, '', location.href.replace(/#.*/, '') + formatHash(state)); // in a frame, not relative to its parent
}

let kept = {};
let saving = 0;

/** Keep a part of where the reader is in the history entry, for coming back. Not at once: browsers limit how often. */
function keep(part) {
  Object.assign(kept, part);
  clearTimeout(saving);
  saving = setTimeout(saveKept, 150);
}

function saveKept() {
  clearTimeout(saving);
  if (Object.keys(kept).length) history.replaceState({ ...history.state, ...kept }, '');
  kept = {};
}

/** What was not saved belongs to an entry that has been left. */
function dropKept() {
  clearTimeout(saving);
  kept = {};
}
