// Small charts as SVG, drawn anew at each width so that type keeps its size.

/** A frame that calls `draw(width)` for its SVG element whenever its width changes. */
function responsive(height, draw) {
  const box = element('div', { class: 'chart' });
  box.style.height = `${height}px`;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && Number(box.dataset.width) !== width) {
      box.dataset.width = width;
      box.replaceChildren(draw(width));
    }
  }).observe(box);
  return box;
}

const GUTTER = 34; // pixels on the left for the numbers of the vertical axis

/** Columns side by side: counts of a histogram or the values of a spectrum, of one run or of two.
 *  `ends` are the texts at both ends of the axis, `mark` a place from 0 to 1 to draw a line at. */
function columnChart({ series, label, ends, describe, height = 150, logarithmic = false, mark = null }) {
  const scale = logarithmic ? (value) => Math.log10(1 + value) : (value) => value;
  const most = series.reduce((top, values) => values.reduce((a, b) => Math.max(a, b), top), 0);
  const top = scale(most) || 1;
  return responsive(height, (width) => {
    const base = height - 20;
    const place = (value) => base - (scale(value) / top) * (base - 10);
    const chart = frame(width, height, base, label, ends);
    for (const tick of logarithmic ? logTicks(top) : [most]) chart.append(...gridLine(width, place(tick), tick));
    series.forEach((values, run) => {
      const step = (width - GUTTER) / Math.max(1, values.length);
      const size = Math.min(step / series.length - 1, 28);
      values.forEach((value, n) => {
        if (!(value > 0)) return;
        const x = GUTTER + (n + 0.5) * step + (run - series.length / 2) * (size + 0.5);
        const y = Math.min(place(value), base - 1);
        const column = { class: run ? 'column second' : 'column', x, y, width: Math.max(0.8, size), height: base - y };
        chart.append(shape('rect', column, shape('title', {}, describe(n, value))));
      });
    });
    if (mark !== null && mark <= 1) {
      const x = GUTTER + mark * (width - GUTTER);
      chart.append(shape('line', { class: 'mark', x1: x, x2: x, y1: 4, y2: base }));
    }
    return chart;
  });
}

/** One line for each series of values in falling order, from the first expert to the last. */
function fallingChart({ series, label, ends, height = 150 }) {
  const top = series.reduce((most, values) => values.reduce((a, b) => Math.max(a, b), most), 0);
  return responsive(height, (width) => {
    const base = height - 20;
    const chart = frame(width, height, base, label, ends);
    if (top > 0) chart.append(...gridLine(width, 10, top));
    series.forEach((values, run) => {
      const falling = Array.from(values).sort((a, b) => b - a);
      const step = (width - GUTTER) / Math.max(1, falling.length);
      let path = `M${GUTTER},${base}`;
      falling.forEach((value, n) => {
        path += `V${(base - (value / (top || 1)) * (base - 10)).toFixed(2)}H${(GUTTER + (n + 1) * step).toFixed(2)}`;
      });
      chart.append(shape('path', { class: run ? 'area second' : 'area', d: `${path}V${base}Z` }));
    });
    return chart;
  });
}

/** An empty chart with its horizontal axis. */
function frame(width, height, base, label, [left, right]) {
  return shape(
    'svg',
    { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label },
    shape('line', { class: 'axis', x1: GUTTER, x2: width, y1: base, y2: base }),
    shape('text', { class: 'tick', x: GUTTER, y: base + 15 }, left),
    shape('text', { class: 'tick', x: width, y: base + 15, 'text-anchor': 'end' }, right),
  );
}

function gridLine(width, y, value) {
  return [
    shape('line', { class: 'grid', x1: GUTTER, x2: width, y1: y, y2: y }),
    shape('text', { class: 'tick', x: GUTTER - 6, y: y + 4, 'text-anchor': 'end' }, shortNumber(value)),
  ];
}

/** Powers of ten up to what a logarithmic axis ends at, at most four of them. */
function logTicks(top) {
  const powers = Array.from({ length: Math.floor(top) + 1 }, (_, n) => n).filter((n) => Math.log10(1 + 10 ** n) <= top);
  const step = Math.ceil(powers.length / 4);
  return powers.filter((n) => n % step === 0).map((n) => 10 ** n);
}

function shortNumber(value) {
  if (value >= 1e6) return `${Math.round(value / 1e5) / 10}M`;
  if (Number.isInteger(value)) return value >= 10000 ? `${Math.round(value / 100) / 10}k` : whole.format(value);
  return value.toPrecision(3);
}

/** Bars from left to right, one for each row: `{name, value, text}`. */
function barList(rows, end, label) {
  return element(
    'ul',
    { class: 'bars', 'aria-label': label },
    rows.map(({ name, value, text }) => {
      const bar = element('span', { class: 'fill' });
      bar.style.width = `${Math.max(0, Math.min(1, value / end)) * 100}%`;
      return element(
        'li',
        {},
        element('span', { class: 'name' }, name),
        element('span', { class: 'track' }, bar),
        element('span', { class: 'number' }, text),
      );
    }),
  );
}

/** A grid of shares: classes down, experts across; the darkest shade is the largest share, as the scale below says. */
function heatMap(layer, experts, classes) {
  const names = layer.run.classes;
  const top = roundedUp(Math.max(0.01, ...experts.map((expert) => Math.max(...classes.map((n) => layer.class_share.row(expert)[n])))));
  const links = experts.map((expert) =>
    element('th', { scope: 'col' }, element('a', { href: expertLink(layer, expert), title: `expert ${expert}` }, String(expert))),
  );
  const rows = classes.map((n) => {
    const cells = experts.map((expert) => {
      const share = layer.class_share.row(expert)[n];
      const cell = element('td', { title: `expert ${expert}, ${names[n]}: ${percent(share)}` });
      cell.append(element('span', { class: 'unseen' }, percent(share)));
      cell.style.backgroundColor = heat(share / top);
      return cell;
    });
    return element('tr', {}, element('th', { scope: 'row', title: names[n] }, given(names[n])), cells);
  });
  const head = element('thead', {}, element('tr', {}, element('td', {}), links));
  const digits = String(Math.max(0, ...experts)).length;
  const long = digits > 3 && digits * experts.length > 80; // numbers that have no room beside each other on paper
  const table = element('table', { class: long ? 'heat long' : 'heat' }, head, element('tbody', {}, rows));
  table.style.setProperty('--columns', experts.length);
  table.style.setProperty('--cell', `${Math.max(16, 7 * digits + 4)}px`);
  return [
    element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Experts and labels' }, table),
    heatScale(top),
  ];
}

/** What the shades of a heat map stand for. */
function heatScale(top) {
  return element(
    'p',
    { class: 'scale', role: 'img', 'aria-label': `Shades from 0% to ${percent(top)}` },
    element('span', {}, '0%'),
    element('span', { class: 'shades' }),
    element('span', {}, percent(top)),
  );
}

/** The next of 1, 2, 5, 10, 20, 50, 100 percent, so that scales are comparable. */
function roundedUp(share) {
  return [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((step) => share <= step) || 1;
}

/** The colour for a share of the full shade. */
function heat(share) {
  return `rgb(var(--heat) / ${(Math.max(0, Math.min(1, share)) * 0.9).toFixed(3)})`;
}
