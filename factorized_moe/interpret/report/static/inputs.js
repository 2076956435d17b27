// An expert's top inputs: images, shaded text, or their numbers where a run holds neither.

function imageElement(run, number, label) {
  const words = `input ${number}${label === null ? '' : `, ${label}`}`;
  return element('img', { src: run.inputs.image(number), alt: words });
}

/** A few inputs in one line of a table. */
function preview(layer, expert) {
  const { run } = layer;
  const inputs = topInputs(layer, expert);
  if (run.inputs && run.inputs.kind === 'images') {
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
        input.label === null ? null : element('span', { class: 'label' }, given(input.label)),
        run.inputs ? null : element('span', { class: 'faint' }, `#${input.number}`),
      ),
    ),
  );
}

function textList(layer, expert, inputs) {
  return element(
    'ol',
    { class: 'texts' },
    inputs.map((input) =>
      element(
        'li',
        { class: input.coefficient >= layer.threshold ? 'reached' : null },
        element('p', { dir: 'auto', class: 'snippet' }, snippet(layer, expert, input).map((token) => shaded(layer, token))),
        element(
          'p',
          { class: 'source' },
          element('span', { class: 'number' }, coefficient(input.coefficient)),
          input.label === null ? null : element('span', { class: 'label' }, given(input.label)),
          element('span', { class: 'faint' }, `token ${whole.format(input.number)}`),
        ),
      ),
    ),
  );
}

/** A token, shaded by its coefficient; line ends are shown as a sign. */
function shaded(layer, token) {
  const text = token.text.replace(/\r\n|[\n\r\u2028\u2029]/g, '\u23ce');
  const node = element(token.top ? 'mark' : 'span', { title: coefficient(token.coefficient) }, text);
  node.style.backgroundColor = `rgb(var(--heat) / ${(0.6 * Math.min(1, token.coefficient / layer.histogram_end)).toFixed(3)})`;
  return node;
}
