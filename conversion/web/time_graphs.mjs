// Times graphs in ONNX Runtime Web's WebAssembly build, one thread, in turns: JSON on standard input, JSON out.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const ROUNDS = 5;
const { files, graphs, input } = JSON.parse(readFileSync(0, "utf8"));
const ort = await import(pathToFileURL(files.script).href);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { mjs: pathToFileURL(files.loader).href, wasm: pathToFileURL(files.binary).href };
ort.env.wasm.wasmBinary = readFileSync(files.binary);
ort.env.logLevel = "error";

const bytes = Uint8Array.from(Buffer.from(input.data, "base64")).buffer;
const values = input.type === "int64" ? new BigInt64Array(bytes) : new Float32Array(bytes);
const feed = { [input.name]: new ort.Tensor(input.type, values, input.dims) };

const sessions = {};
for (const [name, path] of Object.entries(graphs)) {
  sessions[name] = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"] });
  await sessions[name].run(feed);
}
const best = {};
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, session] of Object.entries(sessions)) {
    const begin = performance.now();
    await session.run(feed);
    best[name] = Math.min(best[name] ?? Infinity, performance.now() - begin);
  }
}
console.log(JSON.stringify(best));
process.exit(0);
