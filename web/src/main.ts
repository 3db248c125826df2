// Starts the page: loads the model and connects the controls.
import { App, report } from './app';
import { ModelClient } from './model/client';
import { element, say, showProgress } from './view/page';

interface Sample {
  name: string;
  file: string;
  label: string;
}

const TYPING_PAUSE = 400;        // ms after the last key, before labels are compared

async function start(): Promise<void> {
  const model = new ModelClient(showProgress);
  showProgress({ share: 0, text: '' });
  try {
    const [facts, samples] = await Promise.all(
      [model.load(new URL('.', location.href).href), readSamples()]);
    showProgress(null);
    element('model-name').textContent = facts.source;
    element('method').textContent = `A clip is ${facts.numFrames} frames: the middle frame of each of `
      + `${facts.numFrames} equal parts of the video or window.`;
    const app = new App(model, facts);
    const labels = facts.labels.length ? facts.labels : samples.map(({ label }) => label);
    connectLabels(app, labels, facts.labels.length > 0);
    connectVideos(app);
    showSamples(app, samples);
    element('main').inert = false;
  } catch (error) {
    showProgress(null);
    say('status', '');
    say('error', report(error));
  }
}

async function readSamples(): Promise<Sample[]> {
  const response = await fetch(new URL('samples/samples.json', location.href));
  return response.ok ? response.json() : [];
}

function connectLabels(app: App, initial: string[], areTheModels: boolean): void {
  const field = element<HTMLTextAreaElement>('labels');
  const reset = element<HTMLButtonElement>('reset-labels');
  let timer = 0;
  let latest = 0;
  const compare = async () => {
    const mine = ++latest;
    const problem = await app.setLabels(field.value);
    if (mine === latest) {
      say('labels-error', problem);
      field.setAttribute('aria-invalid', String(Boolean(problem)));
    }
  };
  const fill = () => {
    field.value = initial.join('\n');
    return compare();
  };
  field.addEventListener('input', () => {
    clearTimeout(timer);
    timer = window.setTimeout(compare, TYPING_PAUSE);
  });
  reset.addEventListener('click', fill);
  reset.hidden = !areTheModels;
  void fill();
}

function connectVideos(app: App): void {
  const file = element<HTMLInputElement>('file');
  file.addEventListener('change', () => {
    const [chosen] = file.files ?? [];
    if (chosen) {
      void app.open(chosen, chosen.name);
      file.value = '';                              // the same file may be chosen again
    }
  });
  element('camera').addEventListener('click', () => void app.toggleCamera());
  element('window-seconds').addEventListener('change', () => void app.fillTimeline());
  const stage = element('stage');
  const mark = (event: DragEvent, isOver: boolean) => {
    event.preventDefault();
    stage.classList.toggle('over', isOver);
  };
  // Anywhere: a browser that gets a video outside of the stage would leave the page for it.
  window.addEventListener('dragover', (event) => mark(event, true));
  window.addEventListener('dragleave', (event) => mark(event, false));
  window.addEventListener('drop', (event) => {
    mark(event, false);
    const [dropped] = event.dataTransfer?.files ?? [];
    if (dropped) {
      void app.open(dropped, dropped.name);
    }
  });
}

function showSamples(app: App, samples: Sample[]): void {
  const group = element('samples');
  for (const { name, file } of samples) {
    const button = group.appendChild(document.createElement('button'));
    button.type = 'button';
    button.textContent = name;
    button.addEventListener('click', () => void app.open(new URL(file, location.href).href, name));
  }
  group.hidden = !samples.length;
}

void start();
