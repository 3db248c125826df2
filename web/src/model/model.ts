// The model: three ONNX graphs and the tokenizer of an export.
import { Tokenizer } from '@huggingface/tokenizers';
import * as ort from 'onnxruntime-web/wasm';
import glueUrl from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url';
import wasmUrl from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';
import {
  downloadAll, fileOf, GRAPHS, readManifest, type GraphName, type Manifest,
} from './files';
import { PageError, type Clip, type ModelFacts, type Progress, type Score } from './protocol';
import { average, tokenize } from './texts';

const TEXTS_AT_ONCE = 32;              // bounds the memory of the text graph
const MAX_THREADS = 4;

type Features = Record<string, ort.Tensor>;

export class Model {
  /** Features of texts that were encoded before, so that a new label costs one text. */
  private readonly textFeatures = new Map<string, Float32Array>();
  private readonly videos = new Map<number, Features>();
  private nextVideo = 0;
  private labels: string[] = [];
  private labelFeatures: ort.Tensor | null = null;

  private constructor(
    private readonly manifest: Manifest,
    private readonly sessions: Record<GraphName, ort.InferenceSession>,
    private readonly tokenizer: Tokenizer,
  ) {}

  /** Loads the export at a URL. */
  static async load(base: string, report: (progress: Progress) => void): Promise<Model> {
    ort.env.wasm.wasmPaths = { mjs: glueUrl, wasm: wasmUrl };
    ort.env.wasm.numThreads = self.crossOriginIsolated
      ? Math.min(MAX_THREADS, Math.ceil(navigator.hardwareConcurrency / 2)) : 1;
    const manifest = await readManifest(base);
    const tokenizerFile = manifest.tokenizer ?? 'tokenizer.json';
    const names = [...GRAPHS.map((graph) => fileOf(manifest, graph)), tokenizerFile];
    const contents = await downloadAll(base, names, manifest, report);
    report({ share: 1, text: 'starting' });
    const tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(contents.pop())), {});
    const sessions: Partial<Record<GraphName, ort.InferenceSession>> = {};
    for (const graph of GRAPHS) {
      sessions[graph] = await open(fileOf(manifest, graph), contents.shift()!);
    }
    return new Model(manifest, sessions as Record<GraphName, ort.InferenceSession>, tokenizer);
  }

  facts(): ModelFacts {
    return {
      source: this.manifest.weights?.source ?? '',
      numFrames: this.manifest.num_frames,
      imageSize: this.manifest.image_size,
      labels: this.manifest.labels,
      template: this.manifest.template,
      threads: ort.env.wasm.numThreads ?? 1,
    };
  }

  /** Encodes what later scores compare with. */
  async setLabels(labels: string[]): Promise<void> {
    const templates = this.manifest.template;
    // A function as the second argument: in a string, `$&` would have a meaning.
    const write = (label: string) => templates.map((text) => text.replaceAll('{}', () => label));
    await this.encodeTexts(labels.flatMap(write));
    const rows = labels.map((label) => average(
      write(label).map((text) => this.textFeatures.get(text)!)));
    const length = rows[0]!.length;
    const data = new Float32Array(rows.length * length);
    rows.forEach((row, i) => data.set(row, i * length));
    this.labels = labels;
    this.labelFeatures = new ort.Tensor('float32', data, [rows.length, length]);
  }

  private async encodeTexts(texts: string[]): Promise<void> {
    const length = this.manifest.context_length;
    const missing = [...new Set(texts)].filter((text) => !this.textFeatures.has(text));
    const ids = tokenize(this.tokenizer, missing, length);
    for (let start = 0; start < missing.length; start += TEXTS_AT_ONCE) {
      const part = missing.slice(start, start + TEXTS_AT_ONCE);
      const rows = ids.subarray(start * length, (start + part.length) * length);
      const { text_features: features } = await this.sessions.text.run({
        token_ids: new ort.Tensor('int32', rows, [part.length, length]),
      });
      const data = features!.data as Float32Array;
      const width = data.length / part.length;
      part.forEach((text, i) => {
        this.textFeatures.set(text, data.slice(i * width, (i + 1) * width));
      });
    }
  }

  /** Encodes a clip; returns its number for `score`. */
  async encode({ frames, width, height }: Clip): Promise<number> {
    const shape = [1, this.manifest.num_frames, height, width, 3];
    const features = await this.sessions.video.run({
      frames: new ort.Tensor('uint8', frames, shape),
    });
    this.videos.set(this.nextVideo, features);
    return this.nextVideo++;
  }

  /** Compares an encoded clip with the labels. */
  async score(video: number): Promise<Score> {
    const features = this.videos.get(video);
    if (!features || !this.labelFeatures) {
      throw new Error(`no features of video ${video}, or no labels`);
    }
    const known: Features = { ...features, text_features: this.labelFeatures };
    const { score } = this.sessions;
    // A model without prompts does not take the features of patches.
    const taken = score.inputNames.map((name) => [name, known[name]!]);
    const { probabilities } = await score.run(Object.fromEntries(taken));
    return {
      labels: this.labels, probabilities: Array.from(probabilities!.data as Float32Array),
    };
  }

  /** Frees the features of all clips but those to keep. */
  forget(keep: number[]): void {
    for (const video of [...this.videos.keys()].filter((number) => !keep.includes(number))) {
      this.videos.delete(video);
    }
  }
}

async function open(name: string, content: Uint8Array): Promise<ort.InferenceSession> {
  try {
    return await ort.InferenceSession.create(content, { executionProviders: ['wasm'] });
  } catch (error) {
    throw new PageError(`${name} cannot be opened by onnxruntime-web: ${
      error instanceof Error ? error.message : error}`);
  }
}
