// From labels to token ids and class features, as xclip_jax.text does.
import type { Tokenizer } from '@huggingface/tokenizers';
import { PageError } from './protocol';

/**
 * Splits what was typed into labels: one a line; a single line is split at commas.
 * Empty labels and repetitions are left out.
 */
export function splitLabels(typed: string): string[] {
  const lines = typed.split('\n').filter((line) => line.trim());
  const parts = lines.length === 1 ? lines[0]!.split(',') : lines;
  return [...new Set(parts.map((part) => part.trim()).filter(Boolean))];
}

/**
 * Writes texts as rows of token ids: start, text, end, zeros. int32 [N, contextLength].
 * Throws a PageError that names the first text that is too long.
 */
export function tokenize(
  tokenizer: Tokenizer, texts: string[], contextLength: number,
): Int32Array {
  const rows = new Int32Array(texts.length * contextLength);
  texts.forEach((text, i) => {
    const { ids } = tokenizer.encode(text);
    if (ids.length > contextLength) {
      throw new PageError(
        `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}” has ${ids.length} tokens with start `
        + `and end, and the model reads ${contextLength}; shorten it.`);
    }
    rows.set(ids, i * contextLength);
  });
  return rows;
}

/**
 * Averages the features of a label's texts, as xclip_jax.text.prompts.average: the mean direction,
 * with the mean of the norms.
 *
 * features: P rows of E numbers. Returns E numbers.
 */
export function average(features: Float32Array[]): Float32Array {
  const first = features[0]!;
  if (features.length === 1) {
    return first;
  }
  const mean = new Float64Array(first.length);
  let meanNorm = 0;
  for (const row of features) {
    const norm = Math.hypot(...row);
    meanNorm += norm / features.length;
    row.forEach((value, i) => { mean[i]! += value / norm / features.length; });
  }
  const norm = Math.hypot(...mean);
  return Float32Array.from(mean, (value) => (value / norm) * meanNorm);
}
