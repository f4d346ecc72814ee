// The worker behind the page: it holds the model and the last picture's features, and answers one message after another.

import { componentColors } from "./components.js";
import { download } from "./download.js";
import { outputSize, resize, toPixelValues, withoutAlpha } from "./preprocessing.js";
import { chooseBackend, loadRuntime, openGraph } from "./runtime.js";
import { agreement, cosinesWith, unitRows } from "./similarity.js";
import { REFERENCES, bestNames, classVectors, findUnlikely, nameMap, relevancies, tokenize } from "./words.js";

let site, base, engine; // engine: {ort, backend, base, threads, model, weights, sessions}
let texts = null; // {session, tokenizer}
let seen = null; // {rows, cols, spaces: Map of name to {features, units, count, width, rows, cols}, texts, logits of the patches}

function report(stage, done, total) {
  self.postMessage({ event: "progress", stage, done, total });
}

/** A function for `download` that reports bytes of all files together. */
function counter(stage, total) {
  let done = 0;
  report(stage, 0, total);
  return (bytes) => report(stage, (done += bytes), total);
}

const commands = {
  /** Load runtime and model; the answer describes both. */
  async open({ address, backend: wanted }) {
    base = address;
    site = JSON.parse(new TextDecoder().decode(await download(new URL("site.json", base))));
    let backend = await chooseBackend(site, wanted);
    try {
      await start(backend);
    } catch (error) {
      if (backend !== "webgpu" || wanted) throw error;
      backend = "wasm"; // an adapter that answers may still lack what the model needs
      await start(backend);
    }
    return { site, backend, threads: engine.threads, precision: engine.model.precision, bytes: engine.model.bytes };
  },

  /** Run the model on a picture of RGBA bytes; the answer has colors for every space, and the best names. */
  async see({ rgba, height, width, size, windows }) {
    const step = windows ? site.window.step : site.step;
    const target = outputSize(height, width, size, step);
    const bytes = resize(withoutAlpha(rgba), { height, width }, target);
    const input = new engine.ort.Tensor("float32", toPixelValues(bytes, target), [1, 3, target.height, target.width]);
    const passed = await run(windows ? "windows" : "global", input);
    const [rows, cols] = [target.height / site.patch_size, target.width / site.patch_size];
    let comparison = null;
    if (windows) {
      const other = await run("global", input);
      const [{ dims, data }, { data: otherData }] = [passed.outputs.features, other.outputs.features];
      const alike = agreement(data, otherData, dims[1], dims[2]);
      comparison = { milliseconds: other.milliseconds, agreement: alike };
    }
    seen = { rows, cols, spaces: new Map(), texts: null, logits: null };
    const spaces = site.spaces.map((space) => keep(space, passed.outputs[space.output]));
    if (site.texts) seen.texts = read(passed.outputs[site.texts.output], site.texts.upsample);
    const names = site.names && bestNames(passed.outputs[site.names.output].data, site.names.labels);
    if (site.names?.patches) seen.logits = passed.outputs[site.names.patches].data;
    return { ...target, rows, cols, milliseconds: passed.milliseconds, comparison, spaces, names };
  },

  /** How alike every patch is to the one at a place in [0, 1] x [0, 1], in every space. */
  async alike({ x, y }) {
    return site.spaces.map(({ name }) => {
      const { units, count, width, rows, cols } = seen.spaces.get(name);
      const [row, col] = [Math.min(Math.floor(y * rows), rows - 1), Math.min(Math.floor(x * cols), cols - 1)];
      const start = (row * cols + col) * width;
      const cosines = cosinesWith(units, count, width, units.subarray(start, start + width));
      return { name, rows, cols, row, col, cosines };
    });
  },

  /** The best names of the patch at a place, as if the picture had no other. */
  async patch({ row, col }) {
    const { labels } = site.names;
    const start = (row * seen.cols + col) * labels.length;
    return bestNames(seen.logits.subarray(start, start + labels.length), labels, 3);
  },

  /** Where a name is seen: its logit at every patch, as if the picture had no other. */
  async name({ name }) {
    const { labels } = site.names;
    const { rows, cols, logits } = seen;
    return { name, rows, cols, ...nameMap(logits, rows * cols, labels.length, labels.indexOf(name)) };
  },

  /** How sure every patch is of each word, and of which words none is. */
  async words({ words }) {
    texts ??= await openTexts();
    const vectors = await embed([...words, ...REFERENCES]);
    const { units, count, width, rows, cols } = seen.texts;
    const [wanted, references] = [vectors.slice(0, words.length), vectors.slice(words.length)];
    const maps = relevancies(units, count, width, wanted, references, site.texts.scale);
    return { rows, cols, maps, unlikely: findUnlikely(units, count, width, wanted) };
  },

  /** The last picture's features in a space, as the model gave them. */
  async features({ name }) {
    const { features, count, width, rows, cols } = seen.spaces.get(name);
    return { features: features.slice(), count, width, rows, cols };
  },
};

async function start(backend) {
  const model = site.models[backend];
  const total = site.runtime[backend].bytes + model.bytes;
  const onBytes = counter("Loading the model", total);
  const { ort, threads } = await loadRuntime(site, backend, base, onBytes);
  const data = await download(new URL(model.weights, base), onBytes);
  const weights = { path: model.weights.split("/").pop(), data };
  engine = { ort, backend, base, threads, model, weights, sessions: {} };
  report("Starting the model", 1, 1);
  engine.sessions.global = await openGraph(engine, model.graphs.global, weights, onBytes);
}

/** Run one of the model's graphs; windows get their session when they are first asked for. */
async function run(graph, input) {
  if (!engine.sessions[graph]) {
    report("Starting the model with windows", 1, 1);
    engine.sessions[graph] = await openGraph(engine, engine.model.graphs[graph], engine.weights);
    await engine.sessions[graph].run({ pixel_values: input }); // the first pass allocates
  }
  const begin = performance.now();
  const outputs = await engine.sessions[graph].run({ pixel_values: input });
  return { outputs, milliseconds: performance.now() - begin };
}

/** Keep a space's features for what is asked next; return its colors. */
function keep({ name, output, scale }, tensor) {
  const map = read(tensor, scale);
  const { features, count, width, rows, cols } = map;
  seen.spaces.set(name, map);
  return { name, rows, cols, width, colors: componentColors(features, count, width) };
}

/** An output as a map, on a grid `scale` times as fine as the patches. */
function read(tensor, scale) {
  const [, count, width] = tensor.dims;
  const features = tensor.data;
  const [rows, cols] = [seen.rows * scale, seen.cols * scale];
  return { features, units: unitRows(features, count, width), count, width, rows, cols };
}

async function openTexts() {
  const onBytes = counter("Loading the words", site.texts.bytes);
  const { Tokenizer } = await import(new URL(site.runtime.tokenizers, base));
  const [tokenizer, settings] = await Promise.all(
    ["tokenizer.json", "tokenizer_config.json"].map(async (name) => {
      return JSON.parse(new TextDecoder().decode(await download(new URL(`${site.texts.tokenizer}/${name}`, base))));
    }),
  );
  const session = await openGraph({ ...engine, backend: "wasm" }, site.texts.graph, null, onBytes);
  return { session, tokenizer: new Tokenizer(tokenizer, settings) };
}

/** Vectors of words; those that have been asked for before are kept. */
async function embed(words) {
  texts.known ??= new Map();
  const unknown = words.filter((word) => !texts.known.has(word));
  if (unknown.length) {
    const { templates, width } = site.texts;
    const prompts = unknown.flatMap((word) => templates.map((template) => template.replace("{}", () => word)));
    const { tokens, dims } = tokenize(texts.tokenizer, prompts, site.texts);
    const outputs = await texts.session.run({ input_ids: new engine.ort.Tensor("int64", tokens, dims) });
    const vectors = classVectors(outputs.text_embeds.data, unknown.length, templates.length, width);
    unknown.forEach((word, i) => texts.known.set(word, vectors[i]));
  }
  return words.map((word) => texts.known.get(word));
}

let queue = Promise.resolve();
self.addEventListener("message", ({ data: { id, command, ...given } }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ id, result: await commands[command](given) });
    } catch (error) {
      self.postMessage({ id, error: error?.message ?? String(error) });
    }
  });
});
