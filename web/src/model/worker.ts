// Runs the model beside the page, which stays responsive.
import { Model } from './model';
import { PageError, type Reply, type Request } from './protocol';

let model: Model | null = null;
let last: Promise<void> = Promise.resolve();

const reply = (message: Reply) => self.postMessage(message);

async function answer(request: Request): Promise<unknown> {
  if (request.kind === 'load') {
    model = await Model.load(request.base, (progress) => reply({ kind: 'progress', progress }));
    return model.facts();
  }
  if (!model) {
    throw new Error('the model is not loaded');
  }
  switch (request.kind) {
    case 'labels': return model.setLabels(request.labels);
    case 'encode': return model.encode(request.clip);
    case 'score': return model.score(request.video);
    case 'forget': return model.forget(request.keep);
  }
}

// One request at a time: a session of onnxruntime-web runs one input at a time.
self.onmessage = ({ data }: MessageEvent<{ id: number; request: Request }>) => {
  last = last.then(async () => {
    try {
      reply({ kind: 'done', id: data.id, result: await answer(data.request) });
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      reply({ kind: 'failed', id: data.id, message, isOurs: error instanceof PageError });
    }
  });
};
