// Shows the view that the address names, and what is around every view.

const VIEWS = { overview: overviewView, table: tableView, expert: expertView, compare: compareView, missing: missingView };
const page = document.getElementById('main');
let current = { keys: {} };

function missingView() {
  return {
    title: 'Not here',
    nodes: [
      heading('Not here', 'This address names nothing in this report.'),
      element('p', {}, element('a', { class: 'button', href: overviewLink(0) }, 'To the overview')),
    ],
    keys: {},
    up: overviewLink(0),
  };
}

/** Show what the address names; `moved` is false for the first view, which leaves the focus where it is. */
function show(moved) {
  dropKept();
  const state = parseHash(location.hash);
  current = VIEWS[state.view](state);
  document.title = current.title === RUNS[0].title ? current.title : `${current.title} \u00b7 ${RUNS[state.run].title}`;
  document.querySelector('.bar').replaceChildren(...bar(state));
  page.replaceChildren(...current.nodes.flat().filter(Boolean));
  page.dataset.view = state.view;
  current.shown?.();
  window.scrollTo(0, history.state?.y ?? 0);
  current.scrolled?.();
  if (moved && !current.restored?.()) page.querySelector('h1').focus({ preventScroll: true });
}

function bar(state) {
  const run = RUNS[state.run];
  const crumbs = [[RUNS.length > 1 && state.view === 'compare' ? 'Comparison' : run.title, state.view === 'compare' ? compareLink() : overviewLink(state.run)]];
  if (state.layer) crumbs.push([state.layer.name, tableLink(state.layer, listOf(state))]);
  if (state.view === 'expert') crumbs.push([`Expert ${state.expert}`, location.hash]);
  const links = crumbs.map(([text, href], place) =>
    element('li', {}, element('a', { href, 'aria-current': place === crumbs.length - 1 ? 'page' : null }, given(text))),
  );
  return [
    element('nav', { class: 'crumbs', 'aria-label': 'You are here' }, element('ol', {}, links)),
    RUNS.length > 1 ? runSwitch(state) : null,
    element(
      'div',
      { class: 'buttons' },
      element('button', { type: 'button', 'aria-label': 'Keys', title: 'Keys (?)', onclick: () => help.showModal() }, '?'),
      element('button', { type: 'button', class: 'theme', 'aria-label': 'Dark or light', title: 'Dark or light (d)', onclick: toggleTheme }, '\u25d0'),
    ),
  ].filter(Boolean);
}

function runSwitch(state) {
  const places = [
    ['First run', overviewLink(0), state.view !== 'compare' && state.run === 0],
    ['Second run', overviewLink(1), state.view !== 'compare' && state.run === 1],
    ['Compare', compareLink(), state.view === 'compare'],
  ];
  return element(
    'nav',
    { class: 'runs', 'aria-label': 'Runs' },
    places.map(([text, href, here], place) => element('a', { href, title: place < 2 ? RUNS[place].title : null, 'aria-current': here ? 'true' : null }, text)),
  );
}

/** Light and dark follow the system until the reader chooses; the choice is kept where the browser allows it. */
function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : window.matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  try {
    localStorage.setItem('factorized-moe-theme', root.dataset.theme);
  } catch {
    // a browser may refuse this to files: the choice then holds for this page
  }
}

function recallTheme() {
  try {
    const theme = localStorage.getItem('factorized-moe-theme');
    if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
  } catch {
    // as above
  }
}

/** Follow a link within the page. In a frame without an address of its own, such as a notebook's, the browser would take
 *  the link to be the notebook's and load that into the frame. */
function followInside(event) {
  const link = event.target.closest('a[href^="#/"]');
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  location.hash = link.getAttribute('href');
}

/** Draw what has come into view, and keep the place, so that going back returns to it. */
let drawing = 0;
function scrolled() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    current.scrolled?.();
  });
  keep({ y: window.scrollY });
}

history.scrollRestoration = 'manual';
recallTheme();
document.body.append(help);
document.querySelector('.foot').append(
  element('p', {}, 'Made by factorized-moe. Everything on this page is in this file.'),
  element('button', { type: 'button', class: 'plain', onclick: () => help.showModal() }, 'Keys'),
  element('button', { type: 'button', class: 'plain', onclick: download }, 'Save the data (JSON)'),
);
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault(); // the address is the view's
  page.focus();
});
window.addEventListener('scroll', scrolled, { passive: true });
window.addEventListener('resize', scrolled, { passive: true });
document.addEventListener('click', saveKept, true); // before a link is followed
document.addEventListener('click', followInside);
window.addEventListener('beforeprint', () => current.printing?.(true));
window.addEventListener('afterprint', () => current.printing?.(false));
window.addEventListener('hashchange', () => show(true));
listenToKeys(() => current);
show(false);
