// Visits an exported page with Chromium, as a user would, and prints what was seen as JSON.
// Arguments: URL of the page, a task (below), and what the task takes: `pictures` and `file` a
// folder for screenshots, `files` paths of videos. CHROMIUM names the browser's program.
import { chromium } from 'playwright-core';

const [url, task, ...more] = process.argv.slice(2);
const [pictures] = more;
const seen = { errors: [], requests: [] };

// Remembers what goes to the model and what comes back, without a hook in the page itself.
function watchWorkers() {
  window.traffic = { clips: [], scores: [], facts: null };
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...rest) {
    const request = message?.request;
    if (request?.kind === 'encode') {
      const { frames, width, height } = request.clip;
      window.traffic.clips.push({ frames: frames.slice(), width, height });
    }
    if (!this.watched) {
      this.watched = true;
      this.addEventListener('message', ({ data }) => {
        if (data.result?.probabilities) {
          window.traffic.scores.push(data.result);
        }
        if (data.result?.numFrames) {
          window.traffic.facts = data.result;
        }
      });
    }
    return post.call(this, message, ...rest);
  };
}

async function openPage(browser, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  await page.addInitScript(watchWorkers);
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') {
      seen.errors.push(message.text());
    }
  });
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  context.on('request', (request) => seen.requests.push(request.url()));
  return page;
}

async function ready(page) {
  await page.goto(url);
  await page.locator('#main:not([inert])').waitFor({ timeout: 60_000 });
}

// Waits until the whole video and every window have an answer.
async function answered(page) {
  await page.waitForFunction(() => {
    const windows = [...document.querySelectorAll('#timeline button')];
    return document.querySelector('#bars li') && windows.length
      && windows.every((window) => window.dataset.colour);
  }, null, { timeout: 60_000 });
}

async function bars(page) {
  return page.locator('#bars li').evaluateAll((rows) => rows.map((row) => ({
    label: row.querySelector('.label').textContent, value: row.querySelector('.value').textContent,
  })));
}

async function reset(page) {
  await page.evaluate(() => { window.traffic.clips = []; window.traffic.scores = []; });
}

async function clipAt(page, place) {
  return page.evaluate((at) => {
    const { frames, width, height } = window.traffic.clips.at(at);
    let text = '';
    for (let i = 0; i < frames.length; i += 8192) {
      text += String.fromCharCode(...frames.subarray(i, i + 8192));
    }
    return { frames: btoa(text), width, height, score: window.traffic.scores.at(at) };
  }, place);
}

// The whole video is the first clip that is encoded.
const wholeClip = (page) => clipAt(page, 0);

const focused = (page) => page.evaluate(() => {
  const { id, textContent } = document.activeElement;
  return id || textContent.trim();
});

async function tabTo(page, isIt) {
  for (let i = 0; i < 40; i += 1) {
    await page.keyboard.press('Tab');
    if (await isIt()) {
      return true;
    }
  }
  return false;
}

const tasks = {
  async samples(browser) {
    const page = await openPage(browser);
    await ready(page);
    seen.samples = {};
    for (const name of await page.locator('#samples button').allTextContents()) {
      await reset(page);
      await page.getByRole('button', { name, exact: true }).click();
      await answered(page);
      seen.samples[name] = {
        bars: await bars(page), ...await wholeClip(page),
        status: await page.locator('#status').textContent(),
        windows: await page.locator('#timeline button').evaluateAll(
          (all) => all.map((one) => one.getAttribute('aria-label'))),
      };
    }
    seen.facts = await page.evaluate(() => window.traffic.facts);
    seen.labels = await page.locator('#labels').inputValue();
    seen.canReset = await page.locator('#reset-labels').isVisible();
  },

  async files(browser) {
    const page = await openPage(browser);
    await ready(page);
    seen.clips = [];
    for (const path of more) {
      await reset(page);
      await page.locator('#file').setInputFiles(path);
      await answered(page);
      seen.clips.push(await wholeClip(page));
    }
  },

  // Changes the length of windows while the answers for another length still come.
  async hurry(browser) {
    const page = await openPage(browser);
    await ready(page);
    await page.locator('#file').setInputFiles(more[0]);
    await answered(page);
    for (const seconds of ['0.2', '0.5', '0.25', '1']) {
      await page.locator('#window-seconds').fill(seconds);
      await page.keyboard.press('Enter');
      await page.waitForTimeout(150);
    }
    await answered(page);
    seen.clips = [];
    for (let i = await page.locator('#timeline button').count(); i > 0; i -= 1) {
      seen.clips.push(await clipAt(page, -i));
    }
  },

  async labels(browser) {
    const page = await openPage(browser);
    await ready(page);
    await page.getByRole('button', { name: 'ring', exact: true }).click();
    await answered(page);
    const type = async (text, done) => {
      await page.locator('#labels').fill(text);
      await page.waitForFunction(done, null, { timeout: 20_000 });
    };
    await type('a cat, a ring circling clockwise,  a square', () => (
      document.querySelectorAll('#bars li').length === 3));
    seen.commas = await bars(page);
    await type('A RING, circling clockwise\na ring — circling counter-clockwise\n\nnaïve 日本', () => (
      document.querySelector('#bars').textContent.includes('日本')));
    seen.lines = await bars(page);
    await type('word '.repeat(40), () => !document.querySelector('#labels-error').hidden);
    seen.tooLong = await page.locator('#labels-error').textContent();
    await type('', () => document.querySelector('#labels-error').textContent.startsWith('Write'));
    await page.getByRole('button', { name: /own labels/ }).click();
    await page.waitForFunction(() => document.querySelector('#labels-error').hidden
      && document.querySelectorAll('#bars li').length === 5);
    seen.restored = await bars(page);
  },

  async keyboard(browser) {
    const page = await openPage(browser);
    await ready(page);
    seen.reachedSample = await tabTo(page, async () => await focused(page) === 'square');
    await page.keyboard.press('Enter');
    await answered(page);
    await page.locator('#player').evaluate((player) => player.pause());
    seen.reachedLength = await tabTo(page, async () => await focused(page) === 'window-seconds');
    await page.keyboard.press('Control+A');
    await page.keyboard.type('0.25');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelectorAll('#timeline button').length === 4);
    await answered(page);
    seen.reachedTimeline = await tabTo(page, () => page.evaluate(
      () => document.activeElement.parentElement?.id === 'timeline'));
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('Enter');
    seen.window = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
    seen.outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    seen.time = await page.locator('#player').evaluate((player) => player.currentTime);
    seen.reachedLabels = await tabTo(page, async () => await focused(page) === 'labels');
    await page.keyboard.press('Control+A');
    await page.keyboard.type('a square growing, a cat');
    await page.waitForFunction(() => document.querySelectorAll('#bars li').length === 2);
    seen.bars = await bars(page);
  },

  async mistakes(browser) {
    const page = await openPage(browser);
    await ready(page);
    const error = page.locator('#error');
    await page.locator('#file').setInputFiles(
      { name: 'notes.mp4', mimeType: 'video/mp4', buffer: Buffer.from('no video at all') });
    await error.waitFor();
    seen.noVideo = await error.textContent();
    await page.getByRole('button', { name: 'Use the camera' }).click();
    await page.waitForFunction(() => document.querySelector('#error').textContent.includes('camera'));
    seen.noCamera = await error.textContent();
    await page.getByRole('button', { name: 'ring', exact: true }).click();
    await answered(page);
    seen.errorAfterwards = await error.isVisible();
    const other = await openPage(browser);
    await other.route('**/score.onnx', (route) => route.fulfill({ status: 404 }));
    await other.goto(url);
    await other.locator('#error').waitFor({ timeout: 30_000 });
    seen.noGraph = await other.locator('#error').textContent();
  },

  async camera(browser) {
    const page = await openPage(browser, { permissions: ['camera'] });
    await ready(page);
    await page.getByRole('button', { name: 'Use the camera' }).click();
    await page.waitForFunction(
      () => document.querySelectorAll('#timeline button').length >= 2, null, { timeout: 30_000 });
    seen.bars = await bars(page);
    seen.live = await page.locator('#player').evaluate((player) => player.videoWidth);
    await page.getByRole('button', { name: 'Stop the camera' }).click();
    seen.status = await page.locator('#status').textContent();
  },

  async pictures(browser) {
    const looks = {
      'desktop-light': { viewport: { width: 1280, height: 860 }, colorScheme: 'light' },
      'desktop-dark': { viewport: { width: 1280, height: 860 }, colorScheme: 'dark' },
      phone: { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, colorScheme: 'light' },
    };
    for (const [name, look] of Object.entries(looks)) {
      const page = await openPage(browser, look);
      await ready(page);
      await page.screenshot({ path: `${pictures}/${name}-start.png`, fullPage: true });
      await page.getByRole('button', { name: 'ring', exact: true }).click();
      await answered(page);
      await page.locator('#window-seconds').fill('0.125');
      await page.keyboard.press('Enter');
      await answered(page);
      await page.locator('#player').evaluate((player) => player.pause());
      await page.waitForTimeout(700);
      await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
      seen[name] = await page.evaluate(
        () => document.documentElement.scrollWidth <= document.documentElement.clientWidth);
      await page.context().close();
    }
  },

  async file(browser) {
    const page = await openPage(browser);
    await page.goto(url);
    await page.waitForTimeout(1000);
    seen.notice = await page.locator('#opened-as-file').isVisible();
    seen.inert = await page.locator('#main[inert]').count() === 1;
    seen.styled = await page.evaluate(() => getComputedStyle(document.body).maxWidth !== 'none');
    if (pictures) {
      await page.screenshot({ path: `${pictures}/file.png` });
    }
  },
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', ...(task === 'camera'
    ? ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'] : [])],
});
try {
  await tasks[task](browser);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
