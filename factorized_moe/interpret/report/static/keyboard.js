// The keys, and the dialog that names them.

const KEYS = [
  [['/'], 'search'],
  [['j', '\u2193'], 'next row or expert'],
  [['k', '\u2191'], 'previous row or expert'],
  [['\u2190', '\u2192'], 'neighbouring experts'],
  [['Home', 'End'], 'first and last row'],
  [['Enter'], 'open'],
  [['Esc'], 'clear the search, or go up'],
  [['n'], 'coefficients of tokens as numbers'],
  [['d'], 'dark or light'],
  [['?'], 'these keys'],
];

const ACTIONS = {
  j: 'next', k: 'previous', ArrowDown: 'next', ArrowUp: 'previous', ArrowRight: 'right', ArrowLeft: 'left',
  Home: 'first', End: 'last', '/': '/', Enter: 'Enter', n: 'numbers',
};

const help = element(
  'dialog',
  { class: 'help', 'aria-label': 'Keys' },
  element('h2', {}, 'Keys'),
  element('dl', {}, KEYS.map(([keys, what]) => element('div', {}, element('dt', {}, keys.map((key) => element('kbd', {}, key))), element('dd', {}, what)))),
  element('form', { method: 'dialog' }, element('button', { class: 'button' }, 'Close')),
);

/** What to do on a key: `view()` is the view that is shown. */
function listenToKeys(view) {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
    const target = event.target;
    const typing = target.matches('input, select, textarea');
    if (event.key === 'Escape') {
      escape(view(), typing ? target : null);
      return;
    }
    const { keys } = view();
    if (typing) {
      if (target.type === 'search' && (event.key === 'Enter' || event.key === 'ArrowDown')) act(event, keys.Enter);
      return;
    }
    if (event.key === '?') act(event, () => help.showModal());
    else if (event.key === 'd') act(event, toggleTheme);
    else if (event.key === 'Enter' && target.closest('a, button, summary')) return; // it has its own meaning there
    else if (target.closest('.scroll') && event.key.startsWith('Arrow')) return; // scrolls sideways
    else act(event, keys[ACTIONS[event.key]]);
  });
}

function act(event, action) {
  if (!action) return;
  event.preventDefault();
  action();
}

/** Out of the search field first, then without the search, then one level up. */
function escape(view, field) {
  const cleared = view.keys.clear && view.keys.clear();
  if (field) field.blur();
  else if (!cleared && view.up) location.hash = view.up;
}
