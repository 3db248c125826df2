// Prints the token ids of texts, as the JavaScript library reads them from a tokenizer.json.
// Arguments: folder of @huggingface/tokenizers, tokenizer.json, a file with a JSON list of texts.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [library, tokenizerFile, textsFile] = process.argv.slice(2);
const { Tokenizer } = await import(pathToFileURL(`${library}/dist/tokenizers.mjs`));
const read = (file) => JSON.parse(readFileSync(file, 'utf8'));
const tokenizer = new Tokenizer(read(tokenizerFile), {});
console.log(JSON.stringify(read(textsFile).map((text) => tokenizer.encode(text).ids)));
