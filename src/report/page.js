// What a picture cannot do by itself: pointing, smoothing, hiding, saving. Without this script the page says the same.
(() => {
'use strict';
const all = JSON.parse(document.getElementById('numbers').textContent);
if (!all.charts.length) return;
const root = document.documentElement;
const [left, top, right, bottom] = all.box;
const SVG = 'http://www.w3.org/2000/svg';

const at = ([low, high, log], v) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
const share = v => v > 0 ? Math.min(v, 1) : 0;
const px = (chart, v) => left + (right - left) * share(at(chart.x, v));
const py = (chart, v) => bottom - (bottom - top) * share(at(chart.y, v));
const middle = (line, i) => line.to ? (line.from[i] + line.to[i]) / 2 : line.from[i];
const count = (line, i) => i === line.mean.length - 1 ? line.end : line.width;
const short = v => v === 0 ? '0' : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e') : String(Number(v.toPrecision(4)));

// As `smoothed` of src/chart/series.rs.
function smoothed(chart, line, reach) {
  const n = line.mean.length;
  const own = i => chart.beyond ? Math.min(Math.max(line.mean[i], chart.y[0]), chart.y[1]) : line.mean[i];
  if (!(reach > 0)) return line.mean;
  const pass = order => {
    const sums = new Array(n);
    let before = -1, sum = 0, weight = 0;
    for (const i of order) {
      const d = before < 0 ? 0 : Math.exp(-Math.abs(middle(line, i) - middle(line, before)) / reach);
      sum = own(i) * count(line, i) + d * sum;
      weight = count(line, i) + d * weight;
      sums[i] = [sum, weight];
      before = i;
    }
    return sums;
  };
  const forward = pass(line.mean.keys());
  const backward = pass([...line.mean.keys()].reverse());
  return line.mean.map((_, i) => {
    const weight = count(line, i);
    return (forward[i][0] + backward[i][0] - own(i) * weight) / (forward[i][1] + backward[i][1] - weight);
  });
}

function path(chart, line, values) {
  const gaps = new Set(line.gaps || []);
  let text = '', before = '';
  values.forEach((y, i) => {
    const p = Math.round(px(chart, middle(line, i)) * 10) / 10 + ' ' + Math.round(py(chart, y) * 10) / 10;
    const starts = i === 0 || gaps.has(i);
    if (!starts && p === before) return;
    text += starts ? 'M' + p + 'h0' : 'L' + p;
    before = p;
  });
  return text;
}

// Smoothing.
const slider = document.getElementById('smoothing');
const shown = document.querySelector('.smoothing output');
let values = all.charts.map(chart => chart.lines.map(line => line.mean));
function smooth() {
  const part = all.smoothings[slider.value];
  shown.textContent = part === 0 ? 'nothing' : 100 * part + ' %';
  slider.setAttribute('aria-valuetext', part === 0 ? 'not smoothed' : 100 * part + ' percent of the steps');
  values = all.charts.map((chart, c) => {
    const reach = part * (chart.x[1] - chart.x[0]);
    const drawn = document.getElementById('chart' + c).querySelectorAll('path.line');
    let next = 0;
    return chart.lines.map(line => {
      if (line.set !== null) return line.mean;
      const means = smoothed(chart, line, reach);
      drawn[next++].setAttribute('d', path(chart, line, means));
      return means;
    });
  });
}
slider.addEventListener('input', smooth);
slider.closest('label').hidden = false;
smooth();

// Hiding.
for (const box of document.querySelectorAll('[data-hides]')) {
  box.hidden = false;
  const apply = () => root.classList.toggle(box.dataset.hides, !box.checked);
  box.addEventListener('change', apply);
  // A reload may keep what was unchecked.
  apply();
}
const hidden = line => root.classList.contains('hide' + line.run) || (line.set !== null && root.classList.contains('without' + line.set % 4));

// Pointing, by pointer and by keys.
for (const figure of document.querySelectorAll('.panel')) {
  const number = Number(figure.dataset.chart), chart = all.charts[number];
  const plot = figure.querySelector('.plot'), picture = plot.querySelector('svg');
  const guide = document.createElementNS(SVG, 'path');
  guide.setAttribute('class', 'guide');
  const tip = document.createElement('div');
  tip.className = 'tip';
  tip.hidden = true;
  const said = document.createElement('p');
  said.className = 'sr';
  said.setAttribute('aria-live', 'polite');
  plot.append(tip, said);
  plot.tabIndex = 0;
  plot.setAttribute('role', 'group');
  plot.setAttribute('aria-label', chart.title + ': left and right move along the steps');
  let step = null;

  const nearest = (line, x) => {
    let low = 0, high = line.mean.length - 1;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (middle(line, mid) < x) low = mid + 1; else high = mid;
    }
    return low > 0 && x - middle(line, low - 1) <= middle(line, low) - x ? low - 1 : low;
  };
  const lead = () => chart.lines.find(l => l.set === null && !hidden(l)) || chart.lines.find(l => !hidden(l));
  const hide = () => { tip.hidden = true; guide.remove(); step = null; };

  function show(x, speaks) {
    const first = lead();
    if (!first) return hide();
    const i = nearest(first, x);
    step = middle(first, i);
    const from = first.from[i], to = first.to ? first.to[i] : from;
    tip.replaceChildren();
    const head = document.createElement('b');
    head.textContent = from === to ? 'step ' + from : 'steps ' + from + ' to ' + to;
    tip.append(head);
    const words = [head.textContent];
    chart.lines.forEach((line, l) => {
      if (hidden(line)) return;
      const j = nearest(line, step), y = line.mean[j];
      // A held-out value belongs to its own step.
      const own = line.set !== null || Math.abs(middle(line, j) - step) > (line.to ? line.to[j] - line.from[j] + 1 : 1);
      const range = line.low ? ' (' + short(line.low[j]) + ' to ' + short(line.high[j]) + ')' : '';
      const mean = line.set === null && values[number][l] !== line.mean ? ', smoothed ' + short(values[number][l][j]) : '';
      const name = all.runs[line.run] + (line.set === null ? '' : ', ' + all.sets[line.set]);
      const text = (all.runs.length > 1 || line.set !== null ? name + ': ' : '') + short(y) + range + mean + (own ? ' at ' + middle(line, j) : '');
      const row = document.createElement('div');
      const key = document.querySelector('.legend').querySelectorAll('svg')[line.run].cloneNode(true);
      row.append(key, text);
      tip.append(row);
      words.push(text);
    });
    const place = px(chart, step);
    guide.setAttribute('d', 'M' + place + ' ' + top + 'V' + bottom);
    picture.append(guide);
    tip.hidden = false;
    const part = 100 * place / all.width;
    tip.style.left = part < 50 ? part + 2 + '%' : 'auto';
    tip.style.right = part < 50 ? 'auto' : 102 - part + '%';
    if (speaks) said.textContent = words.join('; ');
  }

  const value = event => {
    const box = picture.getBoundingClientRect();
    const part = ((event.clientX - box.left) * all.width / box.width - left) / (right - left);
    return chart.x[0] + Math.min(Math.max(part, 0), 1) * (chart.x[1] - chart.x[0]);
  };
  plot.addEventListener('pointermove', e => show(value(e), false));
  plot.addEventListener('pointerdown', e => show(value(e), false));
  plot.addEventListener('pointerleave', e => { if (e.pointerType === 'mouse') hide(); });
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', event => {
    const first = lead();
    if (!first) return;
    const n = first.mean.length, here = step === null ? -1 : nearest(first, step), far = event.shiftKey ? Math.max(10, Math.round(n / 20)) : 1;
    const next = { ArrowRight: here + far, ArrowLeft: here < 0 ? n - 1 : here - far, Home: 0, End: n - 1 }[event.key];
    if (event.key === 'Escape') return hide();
    if (next === undefined) return;
    event.preventDefault();
    show(middle(first, Math.min(Math.max(next, 0), n - 1)), true);
  });

  // Saving.
  const save = figure.querySelector('.save');
  save.hidden = false;
  save.addEventListener('click', () => {
    hide();
    const copy = picture.cloneNode(true);
    const text = document.createElementNS(SVG, 'text');
    text.setAttribute('class', 'name');
    text.setAttribute('x', left);
    text.setAttribute('y', -9);
    text.textContent = chart.title;
    copy.setAttribute('viewBox', '0 -28 ' + all.width + ' ' + (all.height + 28 + 18 * all.runs.length));
    copy.removeAttribute('id');
    all.runs.forEach((run, i) => {
      for (const gone of root.classList.contains('hide' + i) ? copy.querySelectorAll('.r' + i) : []) gone.remove();
      if (root.classList.contains('hide' + i)) return;
      const y = all.height + 10 + 18 * i;
      const key = document.querySelector('.legend').querySelectorAll('svg')[i].firstChild.cloneNode(true);
      key.setAttribute('transform', 'translate(' + left + ' ' + (y - 10) + ')');
      const name = document.createElementNS(SVG, 'text');
      name.setAttribute('x', left + 34);
      name.setAttribute('y', y);
      name.textContent = run;
      copy.append(key, name);
    });
    all.sets.forEach((_, i) => {
      for (const gone of root.classList.contains('without' + i % 4) ? copy.querySelectorAll('.s' + i % 4) : []) gone.remove();
    });
    const style = document.createElementNS(SVG, 'style');
    const page = document.querySelector('style').textContent;
    style.textContent = page.slice(0, page.indexOf(':root{'));
    copy.prepend(style, text);
    const file = new Blob([new XMLSerializer().serializeToString(copy)], { type: 'image/svg+xml' });
    const link = document.createElement('a');
    link.href = URL.createObjectURL(file);
    link.download = chart.title.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase().replace(/^-|-$/g, '') + '.svg';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// Printed, everything is open.
let closed = [];
addEventListener('beforeprint', () => {
  closed = [...document.querySelectorAll('details:not([open])')];
  closed.forEach(d => { d.open = true; });
});
addEventListener('afterprint', () => closed.forEach(d => { d.open = false; }));
})();
