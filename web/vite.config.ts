// Builds the page into the Python package, where `xclip export --to web` copies it from.
import { defineConfig, type Plugin } from 'vite';

// Chromium loads no stylesheet with `crossorigin` from file://, where the page has to say why it
// does not work. Everything comes from one origin, so the attribute has no other use.
const plainTags: Plugin = {
  name: 'plain-tags',
  transformIndexHtml: (html) => html.replaceAll(' crossorigin', ''),
};

export default defineConfig({
  base: './',                                 // the folder may be served under any path
  plugins: [plainTags],
  // The script of onnxruntime-web that takes its WebAssembly from files: its threads load the same.
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', 'module', 'browser', 'default'] },
  worker: { format: 'es' },
  build: {
    outDir: '../xclip_jax/assets/page',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,                     // data: URLs would need a weaker security policy
    modulePreload: { polyfill: false },
  },
});
