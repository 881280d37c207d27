// A page of runs in a real browser; see scripts/report_test.sh. Arguments: the folder with page.html, one.html and long.html, axe's script, and
// a folder for pictures or nothing.
const fs = require('fs');
const path = require('path');
const assert = require('assert');
const { chromium } = require('playwright-core');
const [folder, axe, shots] = process.argv.slice(2);
const at = name => 'file://' + path.join(folder, name);
const small = { width: 390, height: 844 }, large = { width: 1360, height: 900 };
const done = what => console.log('ok: ' + what);

async function open(browser, file, options = {}) {
  const context = await browser.newContext({ viewport: large, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.wrong = [];
  page.on('pageerror', e => page.wrong.push(e.message));
  page.on('console', m => ['error', 'warning'].includes(m.type()) && page.wrong.push(m.text()));
  page.on('request', r => r.url().startsWith('file://') || r.url().startsWith('blob:') || page.wrong.push('asked for ' + r.url()));
  await page.goto(at(file));
  return page;
}

async function shot(page, name, options = {}) {
  if (shots) await page.screenshot({ path: path.join(shots, name + '.png'), ...options });
}

async function faults(page, what) {
  // The page's policy forbids scripts that are not its own; axe is put into it from outside.
  const found = await page.evaluate(async source => {
    (0, eval)(source);
    const result = await axe.run(document, { resultTypes: ['violations'] });
    return result.violations.map(v => [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 160) + ' | ' + n.failureSummary)]);
  }, fs.readFileSync(axe, 'utf8'));
  const serious = found.filter(([impact]) => ['serious', 'critical'].includes(impact));
  assert.deepStrictEqual(serious, [], what + ': ' + JSON.stringify(serious, null, 1));
  console.log(`ok: axe-core, ${what}: nothing serious` + (found.length ? `; of less weight: ${found.map(f => f[1]).join(', ')}` : ''));
}

async function pointing(page) {
  const panel = page.locator('.panel').first(), tip = panel.locator('.tip');
  assert(!(await tip.isVisible()));
  const box = await panel.locator('svg.chart').boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  const text = await tip.innerText();
  assert(/^steps? \d+/.test(text) && text.split('\n').length > 2, text);
  await page.mouse.move(0, 0);
  assert(!(await tip.isVisible()));
  done('pointing names the values: ' + text.split('\n').slice(0, 2).join(', '));
}

async function keys(page) {
  // From the top by keys alone: first the skip link, in the end a picture.
  await page.keyboard.press('Tab');
  assert.strictEqual(await page.evaluate(() => document.activeElement.className), 'skip');
  for (let i = 0; i < 60; i++) {
    if (await page.evaluate(() => document.activeElement.className === 'plot')) break;
    await page.keyboard.press('Tab');
  }
  const tip = page.locator('.tip').first();
  const steps = [];
  for (const key of ['ArrowRight', 'ArrowRight', 'End', 'ArrowLeft', 'Home']) {
    await page.keyboard.press(key);
    steps.push(Number((await tip.locator('b').innerText()).match(/\d+/)[0]));
  }
  assert(steps[0] < steps[1] && steps[1] < steps[3] && steps[3] < steps[2] && steps[4] === steps[0], String(steps));
  assert((await page.locator('.sr').first().textContent()).startsWith('step'));
  await page.keyboard.press('Escape');
  assert(!(await tip.isVisible()));
  done('keys alone reach a picture and walk along it: steps ' + steps);
}

async function hiding(page) {
  const line = page.locator('svg.chart path.line.r1').first();
  assert(await line.isVisible());
  await page.locator('[data-hides=hide1]').uncheck();
  assert(!(await line.isVisible()));
  await page.locator('[data-hides=hide1]').check();
  assert(await line.isVisible());
  done('a run is hidden and shown');
}

async function smoothing(page) {
  const path = page.locator('#chart0 path.line').first();
  // What the script draws at first is what stood there.
  const own = await page.evaluate(async url => {
    const drawn = [...document.querySelectorAll('svg.chart path.line')].map(p => p.getAttribute('d'));
    return drawn;
  });
  const bare = await page.context().browser().newContext({ javaScriptEnabled: false });
  const still = await bare.newPage();
  await still.goto(page.url());
  const server = [];
  for (const p of await still.locator('svg.chart path.line').all()) server.push(await p.getAttribute('d'));
  await bare.close();
  assert.strictEqual(own.length, server.length);
  let furthest = 0;
  own.forEach((d, i) => {
    const [a, b] = [d, server[i]].map(d => d.match(/-?[\d.]+/g).map(Number));
    if (a.length === b.length) a.forEach((v, j) => { furthest = Math.max(furthest, Math.abs(v - b[j])); });
    // Points that fall together may be one on one side alone.
    assert(Math.abs(a.length - b.length) < 0.05 * b.length + 8, `${i}: ${a.length} ${b.length}`);
  });
  assert(furthest < 0.3, 'the script draws other lines: ' + furthest);
  const before = await path.getAttribute('d');
  await page.locator('#smoothing').focus();
  await page.keyboard.press('End');
  const after = await path.getAttribute('d');
  assert(before !== after && (await page.locator('.smoothing output').innerText()) === '32 %');
  await page.locator('#smoothing').fill('3');
  assert.strictEqual(await path.getAttribute('d'), before);
  done(`smoothing redraws; script and program draw the same lines (${own.length} lines, ${furthest.toFixed(2)} units apart at most)`);
}

async function saving(page) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator('.save').first().click()]);
  const file = path.join(folder, 'saved.svg');
  await download.saveAs(file);
  const text = fs.readFileSync(file, 'utf8');
  assert(download.suggestedFilename() === 'loss.svg' && text.startsWith('<svg') && text.includes('.c0{stroke:'), text.slice(0, 300));
  const alone = await page.context().newPage();
  await alone.goto('file://' + file);
  const runs = await alone.evaluate(() => [document.querySelectorAll('path.line').length, document.querySelector('parsererror')]);
  assert(runs[0] > 1 && runs[1] === null, String(runs));
  await shot(alone, 'saved');
  await alone.close();
  done('a picture is saved as SVG, and opens by itself');
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
  const page = await open(browser, 'page.html');
  assert(!(await page.title()).includes('broken') && (await page.locator('img').count()) === 0);
  await keys(page);
  await pointing(page);
  await hiding(page);
  await smoothing(page);
  await saving(page);
  await faults(page, 'light');
  await page.evaluate(() => scrollTo(0, 0));
  await shot(page, 'light');
  await shot(page, 'whole', { fullPage: true });
  // Printed: paper is white, and everything on it is open.
  const pdf = await page.pdf({ path: shots ? path.join(shots, 'printed.pdf') : undefined, printBackground: true });
  assert(pdf.subarray(0, 5).toString() === '%PDF-' && pdf.length > 20000);
  done(`printed: ${pdf.length} bytes of PDF`);
  assert.deepStrictEqual(page.wrong, []);
  for (const [name, options] of [['dark', { colorScheme: 'dark' }], ['phone', { viewport: small, hasTouch: true, isMobile: true }], ['phone-dark', { viewport: small, colorScheme: 'dark', isMobile: true }]]) {
    const other = await open(browser, 'page.html', options);
    const wide = await other.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(wide <= 0, `${name}: ${wide} pixels beyond the screen`);
    await faults(other, name);
    await other.evaluate(() => document.querySelector('#curves').scrollIntoView({ behavior: 'instant' }));
    await shot(other, name);
    assert.deepStrictEqual(other.wrong, []);
    await other.context().close();
  }
  const one = await open(browser, 'one.html');
  await faults(one, 'one run');
  await shot(one, 'one');
  assert.deepStrictEqual(one.wrong, []);
  // 100,000 steps.
  const times = [];
  for (let i = 0; i < 3; i++) {
    const began = process.hrtime.bigint();
    const long = await open(browser, 'long.html');
    await long.evaluate(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))));
    times.push(Number(process.hrtime.bigint() - began) / 1e9);
    assert.deepStrictEqual(long.wrong, []);
    if (i === 0) await shot(long, 'long', { fullPage: true });
    await long.context().close();
  }
  const bytes = fs.statSync(path.join(folder, 'long.html')).size;
  assert(bytes < 3e6 && Math.min(...times) < 2, `${bytes} bytes, ${times}`);
  done(`100,000 steps: ${bytes} bytes, opened in ${times.map(t => t.toFixed(2)).join(', ')} s`);
  await browser.close();
}

main().catch(e => { console.error(e.message || e); process.exit(1); });
