// An expert's top inputs: images, shaded text, or their numbers where a run holds neither.

const SHORT = 12; // tokens to either side of a top token before more are asked for

function imageElement(run, number, label) {
  const { inputs } = run;
  const patch = inputs.patch && inputs.patch(number);
  const words = `${patch ? `${patchWords(patch)} of input ${patch.image}` : `input ${number}`}${label === null ? '' : `, ${label}`}`;
  const image = element('img', { src: inputs.image(number), alt: words, class: inputs.coarse ? 'coarse' : null });
  return patch ? framed(image, patch) : image;
}

function patchWords({ row, column }) {
  return row < 0 ? 'token before the patches' : `patch in row ${row + 1}, column ${column + 1}`;
}

/** A whole image with a frame about one of its patches. */
function framed(image, { row, column, rows, columns }) {
  const frame = element('span', { class: 'frame', hidden: row < 0 });
  const place = { left: column / columns, top: row / rows, width: 1 / columns, height: 1 / rows };
  for (const [side, share] of Object.entries(place)) frame.style[side] = `${100 * share}%`;
  return element('span', { class: 'framed' }, image, frame);
}

/** A few inputs in one line of a table. */
function preview(layer, expert) {
  const { run } = layer;
  const inputs = topInputs(layer, expert);
  if (run.inputs && run.inputs.kind !== 'texts') {
    return inputs.slice(0, 5).map((input) => imageElement(run, input.number, input.label));
  }
  if (run.inputs) {
    const words = new Set(inputs.map((input) => run.inputs.token(input.number).trim()).filter(Boolean));
    return Array.from(words).slice(0, 4).map((word) => element('span', { class: 'word' }, given(word)));
  }
  return inputs.slice(0, 3).map((input) => element('span', { class: 'word' }, `#${input.number}`));
}

/** All top inputs of an expert, for its own page. */
function gallery(layer, expert) {
  const { run } = layer;
  const inputs = topInputs(layer, expert);
  if (!inputs.length) return element('p', { class: 'faint' }, 'No input has a coefficient above 0.');
  if (run.inputs && run.inputs.kind === 'texts') return textList(layer, expert, inputs);
  return element(
    'ol',
    { class: 'gallery' },
    inputs.map((input) =>
      element(
        'li',
        { class: input.coefficient >= layer.threshold ? 'reached' : null },
        run.inputs ? imageElement(run, input.number, input.label) : null,
        element('span', { class: 'number' }, coefficient(input.coefficient)),
        input.label === null ? null : element('span', { class: 'label', title: input.label }, given(input.label)),
        run.inputs ? null : element('span', { class: 'faint' }, `#${input.number}`),
        run.inputs && run.inputs.patch && run.inputs.patch(input.number).row < 0 ? element('span', { class: 'faint' }, 'no patch') : null,
      ),
    ),
  );
}

let numbered = false; // whether tokens stand with their coefficients

/** The top tokens of different texts in their contexts, which can be lengthened, and shown with all coefficients. */

function textList(layer, expert, inputs) {
  const long = new Set(); // the ranks whose context is shown in full
  const list = element('ol', { class: 'texts' });
  const button = element('button', { type: 'button', class: 'button numbers', 'aria-keyshortcuts': 'n', onclick: turn }, 'Numbers');
  draw();
  return [element('p', { class: 'tools' }, button), list];

  function turn() {
    numbered = !numbered;
    draw();
  }

  function draw() {
    button.setAttribute('aria-pressed', numbered);
    list.replaceChildren(...inputs.map(item));
  }

  function item(input) {
    const full = snippet(layer, expert, input);
    const short = snippet(layer, expert, input, SHORT);
    const tokens = long.has(input.rank) ? full : short;
    return element(
      'li',
      { class: input.coefficient >= layer.threshold ? 'reached' : null },
      element('p', { dir: 'auto', class: 'snippet' }, tokens.map((token) => shaded(layer, token))),
      source(input, full.length > short.length ? () => lengthen(input.rank) : null),
    );
  }

  function source(input, more) {
    return element(
      'p',
      { class: 'source' },
      element('span', { class: 'number' }, coefficient(input.coefficient)),
      input.label === null ? null : element('span', { class: 'label' }, given(input.label)),
      element('span', { class: 'faint' }, `token ${whole.format(input.number)}`),
      more && element('button', { type: 'button', class: 'plain more', onclick: more, 'aria-expanded': String(long.has(input.rank)) }, long.has(input.rank) ? 'Less' : 'More context'),
    );
  }

  function lengthen(rank) {
    if (!long.delete(rank)) long.add(rank);
    draw();
    list.children[inputs.findIndex((input) => input.rank === rank)].querySelector('.more').focus();
  }
}

/** A token, shaded by its coefficient; line ends are shown as a sign. */
function shaded(layer, token) {
  const text = token.text.replace(/\r\n|[\n\r\u2028\u2029]/g, '\u23ce');
  const node = element(token.top ? 'mark' : 'span', { title: coefficient(token.coefficient) }, text);
  node.style.backgroundColor = `rgb(var(--heat) / ${(0.6 * Math.min(1, token.coefficient / layer.histogram_end)).toFixed(3)})`;
  return numbered ? [node, element('sub', {}, coefficient(token.coefficient))] : node;
}
