// Loading of the export's files, with progress.
import { PageError, type Progress } from './protocol';

/** The parts of manifest.json that the page reads. */
export interface Manifest {
  num_frames: number;
  image_size: number;
  context_length: number;
  template: string[];
  labels: string[];
  weights?: { source?: string };
  tokenizer?: string;
  graphs: Record<string, { onnx?: string } | undefined>;
  files?: Record<string, { bytes: number } | undefined>;
}

export const GRAPHS = ['video', 'text', 'score'] as const;
export type GraphName = (typeof GRAPHS)[number];

/** Reads manifest.json of the export that the page lies in. */
export async function readManifest(base: string): Promise<Manifest> {
  const bytes = await download(base, 'manifest.json', () => {});
  let manifest: Manifest & { format?: string; version?: number };
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new PageError('manifest.json beside this page is not JSON; export the model again.');
  }
  if (manifest.format !== 'xclip-jax export' || manifest.version !== 1) {
    throw new PageError(
      `manifest.json beside this page must have format “xclip-jax export”, version 1; found `
      + `“${manifest.format}”, ${manifest.version}.`);
  }
  return manifest;
}

/** Returns the file of a graph. */
export function fileOf(manifest: Manifest, graph: GraphName): string {
  const file = manifest.graphs[graph]?.onnx;
  if (!file) {
    throw new PageError(
      `manifest.json names no ONNX file for the graph “${graph}”; export with --to web.`);
  }
  return file;
}

/** Downloads files one after the other and reports the share of all bytes that have come. */
export async function downloadAll(
  base: string, names: string[], manifest: Manifest, report: (progress: Progress) => void,
): Promise<Uint8Array[]> {
  const sizes = names.map((name) => manifest.files?.[name]?.bytes ?? 0);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  const contents: Uint8Array[] = [];
  let before = 0;
  for (const name of names) {
    const content = await download(base, name, (received) => {
      const come = before + received;
      report({
        share: total ? Math.min(come / total, 1) : 0,
        text: `${megabytes(come)} of ${megabytes(Math.max(total, come))} MB`,
      });
    });
    contents.push(content);
    before += content.byteLength;
  }
  return contents;
}

async function download(
  base: string, name: string, received: (bytes: number) => void,
): Promise<Uint8Array> {
  let response: Response;
  try {
    response = await fetch(new URL(name, base));
  } catch {
    throw new PageError(`${name} could not be loaded: the server of this page does not answer.`);
  }
  if (!response.ok || !response.body) {
    throw new PageError(
      `${name} is missing beside this page (the server says ${response.status}); copy the whole `
      + 'folder that xclip export wrote.');
  }
  const chunks: Uint8Array[] = [];
  let length = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      break;
    }
    chunks.push(value);
    length += value.byteLength;
    received(length);
  }
  const content = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    content.set(chunk, offset);
    offset += chunk.byteLength;
  }
  return content;
}
