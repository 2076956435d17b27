// Elements and numbers. Text becomes text nodes alone: nothing in this page parses text as HTML.

const SVG = 'http://www.w3.org/2000/svg';

/** Append children (nodes, text, nested lists; null is left out) and set properties: `onclick` and the like are
 *  listeners, all others attributes. */
function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function shape(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Text from the data inside other text: its direction of writing stays its own; empty text stays visible. */
function given(text) {
  return text.trim() ? element('bdi', {}, text) : element('bdi', { class: 'faint' }, text === '' ? 'empty' : 'blank');
}

const whole = new Intl.NumberFormat('en');

/** A coefficient: two decimals, cut and not rounded, so that none seems to reach a threshold that it misses. */
function coefficient(value) {
  return Number.isFinite(value) ? (Math.floor(value * 100 + 1e-4) / 100).toFixed(2) : '\u2013';
}

function decimals(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : '\u2013';
}

/** A mean coefficient: that of one expert of thousands has no digit among the first three decimals. */
function average(value) {
  return value > 0 && value < 0.0005 ? value.toExponential(1) : decimals(value, 3);
}

/** A share in whole percent; neither nothing nor all unless it is. */
function percent(share) {
  if (!Number.isFinite(share)) return '\u2013';
  if (share > 0 && share < 0.01) return '<1%';
  return `${Math.min(Math.round(share * 100), share < 1 - 1e-6 ? 99 : 100)}%`;
}

function plural(count, word) {
  return `${whole.format(count)} ${word}${count === 1 ? '' : word.endsWith('ch') ? 'es' : 's'}`;
}
