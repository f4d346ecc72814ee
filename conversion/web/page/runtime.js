// ONNX Runtime in this browser: which of its two builds runs the model, and sessions of its graphs.

import { download } from "./download.js";

const MOST_THREADS = 4; // our choice: small models gain nothing from more

/**
 * Whether WebGPU would help: the attribute alone says nothing, an adapter must answer. One without a GPU behind it is
 * slower than WebAssembly by far.
 */
async function hasGpu(needsHalf) {
  const adapter = await self.navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter || adapter.info?.isFallbackAdapter) return false;
  return !needsHalf || adapter.features.has("shader-f16");
}

/** Which of the site's models shall run, "webgpu" or "wasm". */
export async function chooseBackend(site, wanted) {
  if (wanted && site.models[wanted]) return wanted;
  const webgpu = site.models.webgpu;
  return webgpu && (await hasGpu(webgpu.precision === "fp16")) ? "webgpu" : "wasm";
}

/** Load the runtime's build for a backend; its code comes from this site. */
export async function loadRuntime(site, backend, base, onBytes) {
  const files = site.runtime[backend];
  const ort = await import(new URL(files.script, base));
  const threads = self.crossOriginIsolated ? Math.min(self.navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: new URL(files.loader, base).href, wasm: new URL(files.binary, base).href };
  ort.env.wasm.wasmBinary = (await download(new URL(files.binary, base), onBytes)).buffer;
  ort.env.logLevel = "error";
  return { ort, threads };
}

/** A session of a graph whose weights are in a file of their own. */
export async function openGraph({ ort, backend, base }, path, weights, onBytes) {
  const graph = await download(new URL(path, base), onBytes);
  return ort.InferenceSession.create(graph, {
    executionProviders: [backend],
    externalData: weights ? [weights] : undefined,
    graphOptimizationLevel: "all",
    logSeverityLevel: 3, // errors only: that shapes are computed on the CPU is as it should be
  });
}
